//! Removes the job folders that a former agent left in the work folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::job::JOBS_FOLDER;

/// The prefix of folders in the work folder that hold the jobs of a former agent and are to be removed.
const MOVED_PREFIX: &str = "jobs.old.";

/// Moves the job folders of a former agent out of the way of new ones. Returns their new paths, and the
/// folders that an earlier agent had moved and not removed.
pub(super) fn move_leftovers(work_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(work_dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == JOBS_FOLDER {
            // A random name: in a container every agent has the same process id, and an earlier one may have been
            // killed before it removed its own folder.
            let moved = tempfile::Builder::new().prefix(MOVED_PREFIX).tempdir_in(work_dir)?.keep();
            fs::rename(&path, &moved)?;
            leftovers.push(moved);
        } else if name.starts_with(MOVED_PREFIX) {
            leftovers.push(path);
        }
    }
    Ok(leftovers)
}

/// Removes the folder at `path`, if it exists. A failure is logged.
pub(super) fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a leftover folder");
        }
        _ => {}
    }
}
