//! Records on disk the last contact with core and the end of the machine's lease, for the machine's dead-man
//! switch, which also works without an agent.
//!
//! Both are seconds since the machine booted, as in `/proc/uptime`, because wall clocks jump.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// Holds the time of the last contact with core.
const CONTACT_FILE: &str = "contact";

/// Holds the end of the lease.
const LEASE_FILE: &str = "lease";

/// The file of the last contact is written at most this often.
const CONTACT_INTERVAL: Duration = Duration::from_secs(5);

/// Writes the two files.
#[derive(Debug)]
pub(crate) struct ContactFiles {
    folder: Option<PathBuf>,
    /// The last contact that was written.
    written_contact: Option<Instant>,
    has_failed: bool,
}

impl ContactFiles {
    /// Creates a writer into `folder`. `None`: nothing is written.
    pub(crate) const fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, written_contact: None, has_failed: false }
    }

    /// Records that something was received from core at the time `at`.
    pub(crate) fn record_contact(&mut self, at: Instant) {
        if self.written_contact.is_none_or(|written| at >= written + CONTACT_INTERVAL) {
            self.written_contact = Some(at);
            self.write(CONTACT_FILE, |uptime| uptime.saturating_sub(at.elapsed()));
        }
    }

    /// Records that the lease ends in `seconds` from now. `None`: the lease stays as it was.
    pub(crate) fn record_lease(&mut self, seconds: Option<u64>) {
        if let Some(seconds) = seconds {
            self.write(LEASE_FILE, |uptime| uptime.saturating_add(Duration::from_secs(seconds)));
        }
    }

    fn write(&mut self, name: &str, time: impl FnOnce(Duration) -> Duration) {
        let Some(folder) = &self.folder else { return };
        let write = || {
            let text = format!("{:.2}\n", time(uptime()?).as_secs_f64());
            fs::create_dir_all(folder)?;
            // A rename, so that the switch never reads half a number.
            let new = folder.join(format!("{name}.new"));
            fs::write(&new, text)?;
            fs::rename(new, folder.join(name))
        };
        if let Err(error) = write() {
            if !self.has_failed {
                let folder = folder.display();
                tracing::error!(%folder, %error, "cannot write the files of the dead-man switch");
            }
            self.has_failed = true;
        }
    }
}

/// The time since the machine booted.
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
    fn the_file_holds_the_time_of_the_contact_and_not_of_the_write() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ContactFiles::new(Some(folder.path().join("run")));
        let run = folder.path().join("run");
        let now = Instant::now();
        let uptime = uptime().unwrap().as_secs_f64();
        files.record_contact(now.checked_sub(Duration::from_secs(9)).unwrap());
        let first = read(&run, "contact").unwrap();
        assert!((uptime - 9.0 - first).abs() < 1.0, "{first} of {uptime}");
        // No later contact, or one within the interval.
        files.record_contact(now.checked_sub(Duration::from_secs(9)).unwrap());
        files.record_contact(now.checked_sub(Duration::from_secs(5)).unwrap());
        assert_eq!(read(&run, "contact"), Some(first));
        files.record_contact(now);
        assert!(read(&run, "contact").unwrap() > first + 8.0);
    }

    #[test]
    fn a_lease_stays_until_core_sends_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ContactFiles::new(Some(folder.path().to_owned()));
        files.record_lease(None);
        assert_eq!(read(folder.path(), "lease"), None);
        files.record_lease(Some(600));
        let first = read(folder.path(), "lease").unwrap();
        assert!((uptime().unwrap().as_secs_f64() + 600.0 - first).abs() < 1.0, "{first}");
        files.record_lease(None);
        assert_eq!(read(folder.path(), "lease"), Some(first));
        files.record_lease(Some(60));
        assert!(read(folder.path(), "lease").unwrap() < first - 500.0);
        files.record_lease(Some(u64::MAX));
        assert!(read(folder.path(), "lease").unwrap() > 1e18);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut files = ContactFiles::new(Some(file.path().to_owned()));
        files.record_contact(Instant::now());
        assert!(files.has_failed);
        files.record_lease(Some(1));
        ContactFiles::new(None).record_lease(Some(1));
    }
}
