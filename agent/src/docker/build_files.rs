//! The files that `buildx` reads: the context in the checkout, and copies of the Dockerfile and its ignore file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stagely_protocol::paths::{BuildPaths, ignore_file_of};

/// Where `buildx` finds a build's files.
#[derive(Clone, Debug)]
pub struct BuildFiles {
    /// The folder that is sent to the engine.
    pub context: PathBuf,
    /// A regular file. Its ignore file, if there is one, is beside it.
    pub dockerfile: PathBuf,
}

impl BuildFiles {
    /// Copies the Dockerfile, whose path in `stagely.yaml` is `dockerfile`, and its ignore file into a new folder below
    /// `folder`.
    ///
    /// The engine gets a Dockerfile's folder only as far as it needs it, so a symlink that leads to another folder is
    /// broken for it. `buildx` finds the ignore file by the Dockerfile's name, so the target of a symlink is the
    /// wrong name. The engine does not follow a context's `.dockerignore` that leads out of the context, so that file
    /// is copied as well.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn stage(paths: &BuildPaths, dockerfile: &str, folder: &Path) -> io::Result<Self> {
        let folder = folder.join("dockerfile");
        fs::create_dir(&folder)?;
        // It appears in error messages.
        let name = Path::new(dockerfile).file_name().unwrap_or("Dockerfile".as_ref());
        let dockerfile = folder.join(name);
        fs::copy(&paths.dockerfile.file, &dockerfile)?;
        if let Some(ignore_file) = &paths.dockerfile.ignore_file {
            fs::copy(ignore_file, ignore_file_of(&dockerfile))?;
        }
        Ok(Self { context: paths.context.clone(), dockerfile })
    }
}
