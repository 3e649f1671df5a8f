//! Finds the programs that guests need.

use std::ffi::OsStr;
use std::path::PathBuf;

use nix::unistd::{AccessFlags, access};

/// The file of `program` in `path`, which has the form of `PATH`.
pub(super) fn find(path: &OsStr, program: &str) -> Option<PathBuf> {
    let files = std::env::split_paths(path).map(|folder| folder.join(program));
    files.into_iter().find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}
