//! Says on disk when core was last heard of and when the machine's lease ends, for the machine's
//! dead-man switch, which goes on without an agent.
//!
//! Both are seconds since the machine booted, as in `/proc/uptime`: wall clocks jump.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// When core was last heard of.
const CONTACT_FILE: &str = "contact";

/// When the lease ends.
const LEASE_FILE: &str = "lease";

/// Contacts closer to each other than this are not told apart.
const CONTACT_INTERVAL: Duration = Duration::from_secs(5);

/// Writes the two files.
#[derive(Debug)]
pub(crate) struct ContactFiles {
    folder: Option<PathBuf>,
    /// The last contact that was told.
    told: Option<Instant>,
    has_failed: bool,
}

impl ContactFiles {
    /// Without a folder nothing is written.
    pub(crate) const fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, told: None, has_failed: false }
    }

    /// Core was heard of `at` that time.
    pub(crate) fn heard(&mut self, at: Instant) {
        if self.told.is_none_or(|told| at >= told + CONTACT_INTERVAL) {
            self.told = Some(at);
            self.write(CONTACT_FILE, |uptime| uptime.saturating_sub(at.elapsed()));
        }
    }

    /// Core lets the machine live for so many seconds from now. Without a word the lease stays as it was.
    pub(crate) fn leased(&mut self, seconds: Option<u64>) {
        if let Some(seconds) = seconds {
            self.write(LEASE_FILE, |uptime| uptime.saturating_add(Duration::from_secs(seconds)));
        }
    }

    fn write(&mut self, name: &str, time: impl FnOnce(Duration) -> Duration) {
        let Some(folder) = &self.folder else { return };
        let write = || {
            let text = format!("{:.2}\n", time(uptime()?).as_secs_f64());
            fs::create_dir_all(folder)?;
            // The switch must never read half a number.
            let new = folder.join(format!("{name}.new"));
            fs::write(&new, text)?;
            fs::rename(new, folder.join(name))
        };
        if let Err(error) = write() {
            if !self.has_failed {
                let folder = folder.display();
                tracing::error!(%folder, %error, "cannot tell the dead-man switch of core");
            }
            self.has_failed = true;
        }
    }
}

/// How long the machine has been up.
fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    uptime.ok_or_else(|| io::Error::other(format!("/proc/uptime says {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &std::path::Path, name: &str) -> Option<f64> {
        fs::read_to_string(folder.join(name)).ok()?.strip_suffix('\n')?.parse().ok()
    }

    #[test]
    fn the_time_is_that_of_the_contact_and_not_of_the_writing() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ContactFiles::new(Some(folder.path().join("run")));
        let run = folder.path().join("run");
        let now = Instant::now();
        let uptime = uptime().unwrap().as_secs_f64();
        files.heard(now.checked_sub(Duration::from_secs(9)).unwrap());
        let first = read(&run, "contact").unwrap();
        assert!((uptime - 9.0 - first).abs() < 1.0, "{first} of {uptime}");
        // Nothing has come since, nor much later.
        files.heard(now.checked_sub(Duration::from_secs(9)).unwrap());
        files.heard(now.checked_sub(Duration::from_secs(5)).unwrap());
        assert_eq!(read(&run, "contact"), Some(first));
        files.heard(now);
        assert!(read(&run, "contact").unwrap() > first + 8.0);
    }

    #[test]
    fn a_lease_stays_until_core_says_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ContactFiles::new(Some(folder.path().to_owned()));
        files.leased(None);
        assert_eq!(read(folder.path(), "lease"), None);
        files.leased(Some(600));
        let first = read(folder.path(), "lease").unwrap();
        assert!((uptime().unwrap().as_secs_f64() + 600.0 - first).abs() < 1.0, "{first}");
        files.leased(None);
        assert_eq!(read(folder.path(), "lease"), Some(first));
        files.leased(Some(60));
        assert!(read(folder.path(), "lease").unwrap() < first - 500.0);
        files.leased(Some(u64::MAX));
        assert!(read(folder.path(), "lease").unwrap() > 1e18);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_harms_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut files = ContactFiles::new(Some(file.path().to_owned()));
        files.heard(Instant::now());
        assert!(files.has_failed);
        files.leased(Some(1));
        ContactFiles::new(None).leased(Some(1));
    }
}
