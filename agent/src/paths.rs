//! Finds a build's context and Dockerfile, and keeps both inside the checkout.

use std::io;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Where a build reads from. Both paths are absolute, without symlinks, and inside the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPaths {
    /// The folder that is sent to the engine.
    pub context: PathBuf,
    /// The Dockerfile.
    pub dockerfile: PathBuf,
}

/// A context or Dockerfile that cannot be used. Paths are shown relative to the repository's root.
#[derive(Debug, Error)]
pub enum PathError {
    /// The path leads out of the repository.
    #[error("`{0}` leads out of the repository")]
    Outside(String),
    /// There is no such folder.
    #[error("the context `{0}` is not in the repository")]
    NoContext(String),
    /// The context is a file.
    #[error("the context `{0}` is not a folder")]
    NotAFolder(String),
    /// The Dockerfile is in neither place.
    #[error("no Dockerfile: neither `{in_context}` nor `{in_root}` is a file of the repository")]
    NoDockerfile {
        /// The first place that was looked at.
        in_context: String,
        /// The second.
        in_root: String,
    },
    /// The file system failed.
    #[error("cannot look at `{path}`")]
    Io {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds the context and the Dockerfile of a build in `checkout_root`.
///
/// The Dockerfile is looked up in the context, then from the repository's root.
///
/// # Errors
/// [`PathError`], also where a symlink or `..` would leave the checkout.
pub fn locate(
    checkout_root: &Path,
    context_path: &str,
    dockerfile: &str,
) -> Result<BuildPaths, PathError> {
    let root = checkout_root
        .canonicalize()
        .map_err(|source| PathError::Io { path: ".".to_owned(), source })?;
    let relative_context = normalize(Path::new(context_path), context_path)?;
    let context = resolve(&root, &relative_context, context_path)?
        .ok_or_else(|| PathError::NoContext(context_path.to_owned()))?;
    if !context.is_dir() {
        return Err(PathError::NotAFolder(context_path.to_owned()));
    }
    let in_context = normalize(&relative_context.join(dockerfile), dockerfile);
    let in_root = normalize(Path::new(dockerfile), dockerfile);
    let places = [in_context, in_root];
    for place in places.iter().flatten() {
        if let Some(path) = resolve(&root, place, dockerfile)?
            && path.is_file()
        {
            return Ok(BuildPaths { context, dockerfile: path });
        }
    }
    match places {
        [Ok(in_context), Ok(in_root)] => Err(PathError::NoDockerfile {
            in_context: in_context.display().to_string(),
            in_root: in_root.display().to_string(),
        }),
        [Err(error), _] | [_, Err(error)] => Err(error),
    }
}

/// Takes `.` and `..` out of `path` by its text alone.
fn normalize(path: &Path, shown: &str) -> Result<PathBuf, PathError> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::CurDir => {}
            Component::ParentDir if normal.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(PathError::Outside(shown.to_owned()));
            }
        }
    }
    Ok(normal)
}

/// Follows symlinks. `None`: there is nothing at `path`.
fn resolve(root: &Path, path: &Path, shown: &str) -> Result<Option<PathBuf>, PathError> {
    match root.join(path).canonicalize() {
        Ok(found) if found.starts_with(root) => Ok(Some(found)),
        Ok(_) => Err(PathError::Outside(shown.to_owned())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(source) => Err(PathError::Io { path: shown.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn checkout(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "FROM scratch\n").unwrap();
        }
        folder
    }

    #[test]
    fn the_context_comes_first_and_the_root_second() {
        let folder = checkout(&["api/Dockerfile", "Dockerfile", "docker/web.Dockerfile"]);
        let root = folder.path().canonicalize().unwrap();
        let found = |context, dockerfile| {
            let paths = locate(&root, context, dockerfile).unwrap();
            paths.dockerfile.strip_prefix(&root).unwrap().display().to_string()
        };
        assert_eq!(found("./api", "Dockerfile"), "api/Dockerfile");
        assert_eq!(found(".", "Dockerfile"), "Dockerfile");
        assert_eq!(found("api", "docker/web.Dockerfile"), "docker/web.Dockerfile");
        assert_eq!(found("docker", "../Dockerfile"), "Dockerfile");
        assert_eq!(found("", "api/../api/Dockerfile"), "api/Dockerfile");
    }

    #[test]
    fn a_missing_dockerfile_names_both_places() {
        let folder = checkout(&["api/main.c"]);
        let error = locate(folder.path(), "api", "Dockerfile").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no Dockerfile: neither `api/Dockerfile` nor `Dockerfile` is a file of the repository"
        );
    }

    #[test]
    fn nothing_leads_out() {
        let folder = checkout(&["api/Dockerfile"]);
        symlink("/etc", folder.path().join("etc")).unwrap();
        symlink("/etc/passwd", folder.path().join("api/passwd")).unwrap();
        symlink("api", folder.path().join("inside")).unwrap();
        let refused = |context, dockerfile| {
            matches!(locate(folder.path(), context, dockerfile), Err(PathError::Outside(_)))
        };
        assert!(refused("..", "Dockerfile"));
        assert!(refused("/etc", "passwd"));
        assert!(refused("etc", "passwd"));
        assert!(refused("api", "passwd"));
        assert!(refused("api", "../../Dockerfile"));
        assert!(locate(folder.path(), "inside", "Dockerfile").is_ok());
    }

    #[test]
    fn a_context_must_be_a_folder_that_exists() {
        let folder = checkout(&["api/Dockerfile"]);
        assert!(matches!(locate(folder.path(), "web", "x"), Err(PathError::NoContext(_))));
        let file = locate(folder.path(), "api/Dockerfile", "x");
        assert!(matches!(file, Err(PathError::NotAFolder(_))));
    }
}
