//! Patterns of branch names and of file paths.

use std::fmt;

use globset::{Error, Glob, GlobBuilder, GlobSet};
use stagely_protocol::paths::normalize;

use super::limits::GLOB_BYTES_MAX;
use super::mistake::Mistake;

/// A list of patterns; one of them must match. `*`, `?` and `[…]` match within one path component, `**`
/// matches across slashes, and `{a,b}` is an alternative.
#[derive(Clone)]
pub struct Globs {
    texts: Vec<String>,
    set: GlobSet,
}

impl Globs {
    /// Compiles patterns of branch names.
    pub(super) fn of_branches(texts: &[String]) -> Result<Self, Mistake> {
        let globs = texts.iter().map(|text| glob(text)).collect::<Result<Vec<_>, _>>();
        Self::new(texts, globs)
    }

    /// Compiles patterns of paths that were [`patterns`](Self::patterns) of a manifest. `None` if they are none.
    pub fn of_known_paths(texts: &[String]) -> Option<Self> {
        Self::of_paths(texts).ok()
    }

    /// The patterns as they stand in `stagely.yaml`.
    pub fn patterns(&self) -> &[String] {
        &self.texts
    }

    /// Compiles patterns of paths from the repository's root. A folder stands for everything in it.
    pub(super) fn of_paths(texts: &[String]) -> Result<Self, Mistake> {
        let globs = texts.iter().flat_map(|text| path_globs(text)).collect::<Result<Vec<_>, _>>();
        Self::new(texts, globs)
    }

    fn new(texts: &[String], globs: Result<Vec<Glob>, Error>) -> Result<Self, Mistake> {
        let set = globs.and_then(|globs| {
            let mut set = GlobSet::builder();
            for glob in globs {
                set.add(glob);
            }
            set.build()
        });
        match set {
            Ok(set) => Ok(Self { texts: texts.to_vec(), set }),
            Err(error) => Err(bad_glob(&texts.join(", "), &error)),
        }
    }

    /// Whether one of the patterns matches `text`, a branch's name or a path. A path that ends in `/` is a
    /// folder with unknown contents, such as a submodule: it matches if a pattern may match something in it.
    pub fn is_match(&self, text: &str) -> bool {
        match text.strip_suffix('/') {
            Some(folder) => self.texts.iter().any(|pattern| may_match_in(pattern, folder)),
            None => self.set.is_match(text),
        }
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl fmt::Debug for Globs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Globs").field(&self.texts).finish()
    }
}

/// Checks one pattern of branch names.
pub(super) fn check_branch(text: &str) -> Result<(), Mistake> {
    check(text, "branch")?;
    glob(text).map(|_| ()).map_err(|error| bad_glob(text, &error))
}

/// Checks one pattern of paths.
pub(super) fn check_path(text: &str) -> Result<(), Mistake> {
    check(text, "path")?;
    normalize(text).map_err(Mistake::Path)?;
    for glob in path_globs(text) {
        glob.map_err(|error| bad_glob(text, &error))?;
    }
    Ok(())
}

/// Checks one pattern of files in a container, relative to a working folder or absolute.
pub(super) fn check_file(text: &str) -> Result<(), Mistake> {
    check(text, "file")?;
    let relative = text.trim_start_matches('/');
    normalize(relative).map_err(Mistake::Path)?;
    for glob in path_globs(relative) {
        glob.map_err(|error| bad_glob(text, &error))?;
    }
    Ok(())
}

fn check(text: &str, what: &'static str) -> Result<(), Mistake> {
    if text.is_empty() {
        return Err(Mistake::EmptyText { hint: None });
    }
    if text.len() > GLOB_BYTES_MAX {
        return Err(Mistake::TooLong { max: GLOB_BYTES_MAX, unit: "bytes" });
    }
    if text.chars().any(char::is_control) {
        return Err(Mistake::ControlCharacter);
    }
    if text.starts_with('!') { Err(Mistake::GlobNegated { what }) } else { Ok(()) }
}

fn bad_glob(text: &str, error: &Error) -> Mistake {
    Mistake::Glob { text: text.to_owned(), problem: error.kind().to_string() }
}

fn glob(text: &str) -> Result<Glob, Error> {
    GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build()
}

/// The pattern itself, and everything below a folder that it matches. `text` stays inside the repository.
fn path_globs(text: &str) -> Vec<Result<Glob, Error>> {
    let path = normalize(text).unwrap_or_default();
    match path.to_string_lossy() {
        root if root.is_empty() || root == "." => vec![glob("**")],
        path if text.ends_with('/') => vec![glob(&format!("{path}/**"))],
        path => vec![glob(&path), glob(&format!("{path}/**"))],
    }
}

/// Whether the path pattern `text` matches `folder`, or may match something in it.
fn may_match_in(text: &str, folder: &str) -> bool {
    let pattern = normalize(text).unwrap_or_default();
    let pattern = pattern.to_string_lossy();
    for (part, name) in pattern.split('/').zip(folder.split('/')) {
        // `**` spans any number of components, and alternatives may contain slashes.
        if part.is_empty() || part == "." || part.contains("**") || part.contains('{') {
            return true;
        }
        if !glob(part).is_ok_and(|glob| glob.compile_matcher().is_match(name)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pattern: &str, path: &str) -> bool {
        check_path(pattern).unwrap();
        Globs::of_paths(&[pattern.to_owned()]).unwrap().is_match(path)
    }

    #[test]
    fn a_folder_stands_for_everything_in_it() {
        for pattern in ["api", "api/", "./api", "api/**", "a*", "{api,web}", "**/api", ".", "**"] {
            assert!(path(pattern, "api/src/main.c"), "{pattern}");
        }
        for pattern in ["api", "api/", "*/api", "web"] {
            assert!(!path(pattern, "apis/main.c"), "{pattern}");
        }
        assert!(path("api", "api") && !path("api/", "api"));
    }

    #[test]
    fn a_submodule_matches_if_a_pattern_may_match_something_in_it() {
        for pattern in
            ["libs/x", "libs/x/", "libs/x/src/*.c", "libs", "l*/?", "**/*.c", ".", "{a,b}/c"]
        {
            assert!(path(pattern, "libs/x/"), "{pattern}");
        }
        for pattern in ["libs/y", "libs/xy", "*.c", "libs/*.c", "api/**"] {
            assert!(!path(pattern, "libs/x/"), "{pattern}");
        }
    }

    #[test]
    fn one_star_matches_within_a_component_and_two_match_across_slashes() {
        assert!(path("*.c", "main.c") && !path("*.c", "src/main.c"));
        assert!(path("**/*.c", "main.c") && path("**/*.c", "a/b/main.c"));
        assert!(path("src/*/x", "src/a/x") && !path("src/*/x", "src/a/b/x"));
        let branches = Globs::of_branches(&["main".into(), "release/*".into()]).unwrap();
        assert!(branches.is_match("main") && branches.is_match("release/1"));
        assert!(!branches.is_match("main/x") && !branches.is_match("release/1/x"));
    }
}
