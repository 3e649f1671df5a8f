//! Finds a build's context and Dockerfile and a preview's compose file, and keeps them inside the repository.
//!
//! Used by the agent after each checkout, and by `stagely validate` before a commit exists.

use std::io;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// The ignore file of a context, and the end of the name of a Dockerfile's own one.
const IGNORE_FILE: &str = ".dockerignore";

/// The files of a build. All paths are absolute, without symlinks, and inside the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPaths {
    /// The folder that is sent to the engine.
    pub context: PathBuf,
    pub dockerfile: DockerfilePaths,
}

/// A Dockerfile and its ignore file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerfilePaths {
    pub file: PathBuf,
    /// `NAME.dockerignore` beside the Dockerfile, or else the context's `.dockerignore`. Docker takes the requested
    /// name and folder, even if a symlink there leads to another file.
    pub ignore_file: Option<PathBuf>,
}

/// A context, Dockerfile or compose file that cannot be used. Paths are shown as in `stagely.yaml`.
#[derive(Debug, Error)]
pub enum PathError {
    #[error("`{0}` is absolute: paths are relative to the repository's root")]
    Absolute(String),
    /// `..` or a symlink leads out of the repository.
    #[error("`{0}` leads out of the repository")]
    Outside(String),
    #[error("the context `{0}` is not in the repository")]
    NoContext(String),
    #[error("the context `{0}` is not a folder")]
    NotAFolder(String),
    #[error("no Dockerfile: {} a file of the repository", are_not(candidates))]
    NoDockerfile {
        /// The candidates, relative to the repository's root: two, or one if both are the same.
        candidates: Vec<PathBuf>,
    },
    #[error("the compose file `{0}` is not a file of the repository")]
    NoComposeFile(String),
    #[error("cannot look at `{path}`")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Finds the context and the Dockerfile of a build in `checkout_root`.
///
/// # Errors
/// [`PathError`], also where a symlink or `..` would leave the checkout.
pub fn locate(
    checkout_root: &Path,
    context_path: &str,
    dockerfile: &str,
) -> Result<BuildPaths, PathError> {
    let context = find_context(checkout_root, context_path)?;
    let dockerfile = find_dockerfile(checkout_root, context_path, dockerfile)?;
    Ok(BuildPaths { context, dockerfile })
}

/// # Errors
/// [`PathError`].
pub fn find_context(checkout_root: &Path, context_path: &str) -> Result<PathBuf, PathError> {
    let root = canonical(checkout_root)?;
    let context = resolve(&root, &normalize(context_path)?, context_path)?
        .ok_or_else(|| PathError::NoContext(context_path.to_owned()))?;
    if context.is_dir() { Ok(context) } else { Err(PathError::NotAFolder(context_path.to_owned())) }
}

/// Looks in the context, then in the repository's root. Like Docker, accepts `dockerfile` if there is no `Dockerfile`.
///
/// # Errors
/// [`PathError`].
pub fn find_dockerfile(
    checkout_root: &Path,
    context_path: &str,
    dockerfile: &str,
) -> Result<DockerfilePaths, PathError> {
    let root = canonical(checkout_root)?;
    let candidates = dockerfile_candidates(context_path, dockerfile)?;
    for candidate in &candidates {
        for name in [Some(candidate.clone()), in_lower_case(candidate)].into_iter().flatten() {
            if let Some(file) = resolve_file(&root, &name, dockerfile)? {
                let in_context = normalize(context_path)?.join(IGNORE_FILE);
                let names = [ignore_file_of(candidate), ignore_file_of(&name), in_context];
                let ignore_file = find_ignore_file(&root, &names)?;
                return Ok(DockerfilePaths { file, ignore_file });
            }
        }
    }
    Err(PathError::NoDockerfile { candidates })
}

/// Finds a compose file, which may be a symlink inside the checkout.
///
/// # Errors
/// [`PathError`].
pub fn find_compose_file(checkout_root: &Path, path: &str) -> Result<PathBuf, PathError> {
    let root = canonical(checkout_root)?;
    let found = resolve_file(&root, &normalize(path)?, path)?;
    found.ok_or_else(|| PathError::NoComposeFile(path.to_owned()))
}

fn in_lower_case(candidate: &Path) -> Option<PathBuf> {
    candidate.ends_with("Dockerfile").then(|| candidate.with_file_name("dockerfile"))
}

/// The first of `names` that is a file.
fn find_ignore_file(root: &Path, names: &[PathBuf]) -> Result<Option<PathBuf>, PathError> {
    for name in names {
        if let Some(file) = resolve_file(root, name, &name.to_string_lossy())? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The ignore file of `dockerfile` alone, beside it.
pub fn ignore_file_of(dockerfile: &Path) -> PathBuf {
    let mut name = dockerfile.as_os_str().to_owned();
    name.push(IGNORE_FILE);
    name.into()
}

fn resolve_file(root: &Path, path: &Path, shown: &str) -> Result<Option<PathBuf>, PathError> {
    Ok(resolve(root, path, shown)?.filter(|found| found.is_file()))
}

fn are_not(candidates: &[PathBuf]) -> String {
    let candidates: Vec<_> =
        candidates.iter().map(|candidate| format!("`{}`", candidate.display())).collect();
    match &candidates[..] {
        [candidate] => format!("{candidate} is not"),
        candidates => format!("neither {} is", candidates.join(" nor ")),
    }
}

/// Resolves `.` and `..` in the text of `path`, without the file system.
///
/// # Errors
/// [`PathError::Absolute`] and [`PathError::Outside`].
pub fn normalize(path: &str) -> Result<PathBuf, PathError> {
    if Path::new(path).is_absolute() {
        return Err(PathError::Absolute(path.to_owned()));
    }
    fold(Path::new(path)).ok_or_else(|| PathError::Outside(path.to_owned()))
}

/// The paths at which a Dockerfile is looked for, in this order. `../Dockerfile` may lie inside the repository
/// relative to the context, and outside relative to the root: then there is one candidate.
///
/// # Errors
/// [`PathError::Absolute`], and [`PathError::Outside`] when no candidate is left.
pub fn dockerfile_candidates(
    context_path: &str,
    dockerfile: &str,
) -> Result<Vec<PathBuf>, PathError> {
    if Path::new(dockerfile).is_absolute() {
        return Err(PathError::Absolute(dockerfile.to_owned()));
    }
    let in_context = normalize(context_path)?.join(dockerfile);
    let mut candidates: Vec<_> =
        [&*in_context, Path::new(dockerfile)].into_iter().filter_map(fold).collect();
    candidates.dedup();
    if candidates.is_empty() {
        Err(PathError::Outside(dockerfile.to_owned()))
    } else {
        Ok(candidates)
    }
}

/// `None`: the path is absolute, or `..` leads above its start.
fn fold(path: &Path) -> Option<PathBuf> {
    let mut folded = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => folded.push(name),
            Component::CurDir => {}
            Component::ParentDir if folded.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(folded)
}

fn canonical(root: &Path) -> Result<PathBuf, PathError> {
    root.canonicalize().map_err(|source| PathError::Io { path: ".".to_owned(), source })
}

/// Follows symlinks. `None`: `path` does not exist.
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
            paths.dockerfile.file.strip_prefix(&root).unwrap().display().to_string()
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
        for (context, dockerfile) in [("api", "../Dockerfile"), (".", "Dockerfile")] {
            let error = locate(folder.path(), context, dockerfile).unwrap_err();
            assert_eq!(
                error.to_string(),
                "no Dockerfile: `Dockerfile` is not a file of the repository"
            );
        }
    }

    #[test]
    fn no_path_leads_out_of_the_repository() {
        let folder = checkout(&["api/Dockerfile"]);
        symlink("/etc", folder.path().join("etc")).unwrap();
        symlink("/etc/passwd", folder.path().join("api/passwd")).unwrap();
        symlink("api", folder.path().join("inside")).unwrap();
        let refused = |context, dockerfile| {
            matches!(locate(folder.path(), context, dockerfile), Err(PathError::Outside(_)))
        };
        assert!(refused("..", "Dockerfile"));
        assert!(refused("etc", "passwd"));
        assert!(refused("api", "passwd"));
        assert!(refused("api", "../../Dockerfile"));
        assert!(locate(folder.path(), "inside", "Dockerfile").is_ok());
        for (context, dockerfile) in [("/etc", "passwd"), ("api", "/etc/passwd")] {
            let absolute = locate(folder.path(), context, dockerfile);
            assert!(matches!(absolute, Err(PathError::Absolute(_))));
        }
    }

    #[test]
    fn the_ignore_file_has_the_name_that_was_asked_for() {
        let folder = checkout(&[
            "app/Dockerfile.prod",
            "app/Dockerfile.dockerignore",
            "app/Dockerfile.prod.dockerignore",
            "docker/prod",
            "docker/prod.dockerignore",
        ]);
        let at = |path: &str| folder.path().join(path);
        let root = folder.path().canonicalize().unwrap();
        let found = |context, dockerfile| {
            let dockerfile = locate(&root, context, dockerfile).unwrap().dockerfile;
            let inside = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
            (inside(dockerfile.file), dockerfile.ignore_file.map(inside))
        };
        let paths = |file: &str, ignore: &str| (file.to_owned(), Some(ignore.to_owned()));
        for target in ["Dockerfile.prod", "../docker/prod"] {
            let _ = fs::remove_file(at("app/Dockerfile"));
            symlink(target, at("app/Dockerfile")).unwrap();
            let (_, ignore_file) = found("app", "Dockerfile");
            assert_eq!(ignore_file.as_deref(), Some("app/Dockerfile.dockerignore"), "{target}");
        }
        let prod = paths("app/Dockerfile.prod", "app/Dockerfile.prod.dockerignore");
        assert_eq!(found("app", "Dockerfile.prod"), prod);
        symlink("docker", at("link")).unwrap();
        assert_eq!(found("app", "link/prod"), paths("docker/prod", "docker/prod.dockerignore"));
        symlink("../docker/prod.dockerignore", at("app/Dockerfile.web.dockerignore")).unwrap();
        symlink("Dockerfile.prod", at("app/Dockerfile.web")).unwrap();
        let web = paths("app/Dockerfile.prod", "docker/prod.dockerignore");
        assert_eq!(found("app", "Dockerfile.web"), web);
        // Docker silently skips an ignore file that leads out of the context.
        symlink("../docker/prod.dockerignore", at("app/.dockerignore")).unwrap();
        fs::copy(at("docker/prod"), at("app/plain")).unwrap();
        assert_eq!(found("app", "plain"), paths("app/plain", "docker/prod.dockerignore"));
        symlink("/etc/hostname", at("docker/other.dockerignore")).unwrap();
        symlink("prod", at("docker/other")).unwrap();
        assert!(matches!(locate(&root, "app", "docker/other"), Err(PathError::Outside(_))));
    }

    #[test]
    fn a_dockerfile_in_lower_case_is_taken_where_there_is_no_other() {
        let folder = checkout(&["api/dockerfile", "api/Dockerfile.dockerignore", "web/x"]);
        let root = folder.path().canonicalize().unwrap();
        let found = locate(&root, "api", "Dockerfile").unwrap().dockerfile;
        assert_eq!(found.file, root.join("api/dockerfile"));
        assert_eq!(found.ignore_file, Some(root.join("api/Dockerfile.dockerignore")));
        assert!(matches!(locate(&root, "web", "X"), Err(PathError::NoDockerfile { .. })));
    }

    #[test]
    fn a_context_must_be_a_folder_that_exists() {
        let folder = checkout(&["api/Dockerfile"]);
        assert!(matches!(locate(folder.path(), "web", "x"), Err(PathError::NoContext(_))));
        let file = locate(folder.path(), "api/Dockerfile", "x");
        assert!(matches!(file, Err(PathError::NotAFolder(_))));
    }
}
