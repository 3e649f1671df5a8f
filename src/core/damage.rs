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

/// A database file that does not hold what was written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} is damaged ({what}): {advice}; see docs/operations.md#damaged-files", file.display())]
pub struct DamagedDatabase {
    file: PathBuf,
    /// In the words of redb.
    what: String,
    /// What to do, for people.
    advice: &'static str,
}

impl DamagedDatabase {
    /// `what` says what is wrong, and `advice` what to do, for people.
    pub(super) fn new(file: &Path, what: impl Into<String>, advice: &'static str) -> Self {
        Self { file: file.to_owned(), what: what.into(), advice }
    }

    /// Calls `access`, which uses the database `file`. Its panics are damage, and so are its errors about what it read.
    /// `advice` says what to do then.
    ///
    /// # Errors
    /// Those of `access`, or `damaged` with what is wrong.
    pub(super) fn checked<T, E: Error + 'static>(
        file: &Path,
        advice: &'static str,
        damaged: impl FnOnce(Self) -> E,
        access: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // What is left half done is a transaction that is not committed.
        let what = match catch_unwind(AssertUnwindSafe(access)) {
            Ok(Err(error)) if is_damage(&error) => ErrorChain(&error).to_string(),
            Ok(result) => return result,
            Err(panic) => words(&*panic),
        };
        Err(damaged(Self::new(file, what, advice)))
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
