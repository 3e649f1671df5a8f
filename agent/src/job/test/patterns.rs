//! Patterns of files in a container.

use std::path::{Component, Path};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// Characters that make a part of a pattern more than a name.
const SPECIAL: [char; 6] = ['*', '?', '[', ']', '{', '\\'];

/// A list of patterns, of which one must match. They are those of `paths` in `stagely.yaml`, but relative to a working
/// folder, or absolute.
#[derive(Clone, Debug)]
pub(super) struct Patterns {
    set: GlobSet,
    /// The absolute paths below which files may match. None is inside another one.
    roots: Vec<String>,
}

impl Patterns {
    /// Also returns a sentence for each pattern that cannot be used.
    pub(super) fn new(texts: &[String], folder: &str) -> (Self, Vec<String>) {
        let (mut set, mut roots) = (GlobSetBuilder::new(), Vec::new());
        let mut problems = Vec::new();
        for text in texts {
            let (pattern, root) = match absolute(text, folder) {
                Ok(absolute) => absolute,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            let below = if pattern.is_empty() { "**".to_owned() } else { format!("{pattern}/**") };
            match glob(&pattern).and_then(|itself| Ok([itself, glob(&below)?])) {
                Ok(globs) => {
                    for glob in globs {
                        set.add(glob);
                    }
                    roots.push(root);
                }
                Err(error) => {
                    problems.push(format!("`{text}` is not a pattern: {}", error.kind()));
                }
            }
        }
        let set = set.build().unwrap_or_else(|error| {
            problems.push(format!("the patterns are too large: {error}"));
            GlobSet::empty()
        });
        (Self { set, roots: outer(roots) }, problems)
    }

    pub(super) fn roots(&self) -> &[String] {
        &self.roots
    }

    /// Whether `path`, an absolute path, matches.
    pub(super) fn is_match(&self, path: &str) -> bool {
        self.set.is_match(path.trim_start_matches('/'))
    }
}

fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build()
}

/// The pattern from the root on, without its slash, and the absolute path of the folder that its first parts name.
fn absolute(text: &str, folder: &str) -> Result<(String, String), String> {
    let base = if text.starts_with('/') { "/" } else { folder };
    let names = |path| {
        let components = Path::new(path).components();
        components.filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
    };
    let mut parts: Vec<_> = names(base).map(globset::escape).collect();
    let mut root: Vec<_> = names(base).collect();
    let mut is_literal = true;
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(format!("`{text}` leads out of its folder"));
        }
        is_literal &= !part.contains(SPECIAL);
        if is_literal {
            root.push(part);
        }
        parts.push(part.to_owned());
    }
    Ok((parts.join("/"), format!("/{}", root.join("/"))))
}

/// Those that are not inside of others.
fn outer(mut roots: Vec<String>) -> Vec<String> {
    roots.sort();
    roots.dedup();
    let all = roots.clone();
    roots.retain(|root| {
        let mut others = all.iter().filter(|other| *other != root);
        !others.any(|other| Path::new(root).starts_with(other))
    });
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str], folder: &str) -> Patterns {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let (patterns, problems) = Patterns::new(&texts, folder);
        assert_eq!(problems, [""; 0]);
        patterns
    }

    #[test]
    fn patterns_are_relative_to_the_working_folder_or_absolute() {
        let found = patterns(&["results/*.xml", "./report", "/out/**/*.png"], "/app");
        assert_eq!(found.roots(), ["/app/report", "/app/results", "/out"]);
        for path in
            ["/app/results/a.xml", "/app/report/a/b", "/app/report", "/out/a.png", "/out/b/c.png"]
        {
            assert!(found.is_match(path), "{path}");
        }
        for path in ["/results/a.xml", "/app/results/a/b.xml", "/app/results", "/app/out/a.png"] {
            assert!(!found.is_match(path), "{path}");
        }
    }

    #[test]
    fn folders_inside_others_are_read_once() {
        let found = patterns(&["a/b/*.xml", "a/**", "ab/c", "/app/a/d"], "/app");
        assert_eq!(found.roots(), ["/app/a", "/app/ab/c"]);
        assert_eq!(patterns(&["**/*.xml", "a"], "/").roots(), ["/"]);
        assert_eq!(patterns(&["."], "/app").roots(), ["/app"]);
        assert!(patterns(&["."], "/app").is_match("/app/a/b"));
    }

    #[test]
    fn a_working_folder_is_no_pattern() {
        let found = patterns(&["*.xml"], "/a[bc]*");
        assert_eq!(found.roots(), ["/a[bc]*"]);
        assert!(found.is_match("/a[bc]*/x.xml") && !found.is_match("/abd/x.xml"));
    }

    #[test]
    fn patterns_that_lead_out_or_are_none_are_left_out() {
        let texts = ["../x", "a/../../b", "a[", "ok"].map(str::to_owned);
        let (found, problems) = Patterns::new(&texts, "/app");
        assert_eq!(found.roots(), ["/app/ok"]);
        assert_eq!(problems.len(), 3);
        assert_eq!(problems[0], "`../x` leads out of its folder");
        assert!(problems[2].starts_with("`a[` is not a pattern: "), "{problems:?}");
    }
}
