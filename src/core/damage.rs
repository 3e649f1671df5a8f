//! Notices that a database file is damaged, and says what to do.
//!
//! redb panics when it meets pages that it did not write, for example after a disk failed. Checking the whole file at each
//! start would take as long as reading it.

use std::any::Any;
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use stagely_protocol::ErrorChain;

use super::data_folder::LOGS_FILE;

/// A database file that does not hold what was written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} is damaged ({what}): {}; see docs/operations.md#damaged-files", file.display(), advice(file))]
pub struct DamagedDatabase {
    file: PathBuf,
    /// In the words of redb.
    what: String,
}

fn advice(file: &Path) -> &'static str {
    if file.file_name().is_some_and(|name| name == LOGS_FILE) {
        "move it away, and core begins with empty logs and keeps everything else"
    } else {
        "restore the data folder from a backup"
    }
}

impl DamagedDatabase {
    /// Calls `access`, which uses the database `file`. Its panics are damage, and so are its errors about what it read.
    ///
    /// # Errors
    /// Those of `access`, or `damaged` with what is wrong.
    pub(super) fn checked<T, E: Error + 'static>(
        file: &Path,
        damaged: impl FnOnce(Self) -> E,
        access: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // What is left half done is a transaction that is not committed.
        let what = match catch_unwind(AssertUnwindSafe(access)) {
            Ok(Err(error)) if is_damage(&error) => ErrorChain(&error).to_string(),
            Ok(result) => return result,
            Err(panic) => words(&*panic),
        };
        Err(damaged(Self { file: file.to_owned(), what }))
    }
}

/// Whether the database file, not its disk or its permissions, is the cause.
fn is_damage(error: &(dyn Error + 'static)) -> bool {
    let boxed = error.downcast_ref::<Box<redb::Error>>().map(|error| &**error);
    if let Some(error) = boxed.or_else(|| error.downcast_ref()) {
        return match error {
            redb::Error::Corrupted(_) => true,
            redb::Error::Io(error) => {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
            }
            _ => false,
        };
    }
    error.source().is_some_and(is_damage)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use stagely_protocol::{LogLine, Stream};
    use stagely_state::Attempt;
    use stagely_state::ids::JobId;

    use super::*;
    use crate::config::Config;
    use crate::core::data_folder::{DataFolder, FolderCheck, RECORDS_FILE};
    use crate::core::logs::LogStore;

    const PAGE_BYTES: usize = 4_096;

    fn attempt(number: u64) -> Attempt {
        Attempt { job: JobId::from_bits(number.into()), number: 1 }
    }

    async fn append(logs: &LogStore, number: u64) -> Result<(), String> {
        let data = format!("{number} {:x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(60);
        let line = LogLine { t: 0, stream: Stream::Stdout, data: data.into() };
        let mut receipt = logs.append(attempt(number), None, &[line]).await.unwrap();
        receipt.stored().await.map(drop).map_err(|error| error.to_string())
    }

    /// Opens the folder, and reads and appends to all logs. Returns the errors.
    async fn use_all(config: &Config, jobs: u64) -> Vec<String> {
        let data = match DataFolder::open(config, FolderCheck::None).await {
            Ok(data) => data,
            Err(error) => return vec![format!("{error:#}")],
        };
        let mut errors = Vec::new();
        for number in 0..jobs {
            let read = data.logs.read(attempt(number), 0, 10).await;
            errors.extend(read.err().map(|error| ErrorChain(&error).to_string()));
            errors.extend(append(&data.logs, number).await.err());
        }
        data.logs.close().await;
        errors
    }

    /// A page of zeros, and a file that ends early, where a disk failed.
    #[tokio::test]
    async fn damage_names_the_file_and_what_to_do() {
        const JOBS: u64 = 40;
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.core.data_dir = folder.path().to_owned();
        assert_eq!(use_all(&config, JOBS).await, [""; 0]);
        for (name, advice) in
            [(RECORDS_FILE, "restore the data folder"), (LOGS_FILE, "move it away")]
        {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            let mut found = 0;
            for at in (0..whole.len()).step_by(2 * PAGE_BYTES) {
                let mut zeroed = whole.clone();
                zeroed[at..at + PAGE_BYTES].fill(0);
                for damaged in [&zeroed, &whole[..at.max(1)]] {
                    fs::write(&path, damaged).unwrap();
                    let errors = use_all(&config, JOBS).await;
                    found += usize::from(!errors.is_empty());
                    for error in errors {
                        let is_named = error.contains(&format!("{} is damaged (", path.display()));
                        assert!(is_named && error.contains(advice), "{name} {at}: {error}");
                    }
                }
            }
            assert!(found >= whole.len() / PAGE_BYTES / 2, "{name}: only {found} were noticed");
            fs::write(&path, &whole).unwrap();
        }
        fs::remove_file(folder.path().join(LOGS_FILE)).unwrap();
        assert_eq!(use_all(&config, JOBS).await, [""; 0]);
    }
}
