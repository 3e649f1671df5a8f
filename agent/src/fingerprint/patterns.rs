//! Docker's path patterns: in `.dockerignore`, and in the sources of COPY and ADD.
//!
//! Source: `github.com/moby/patternmatcher` and Go's `path/filepath.Match`.

use regex::Regex;

/// A path pattern. It matches a path if it matches the path itself or a folder above it.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// The text before the first special character.
    literal: String,
    /// Whether the pattern is the context itself, which matches every file.
    is_all: bool,
}

impl Pattern {
    /// Parses a line of `.dockerignore`, where `**` matches any number of folders. `None`: the line is not a pattern,
    /// or the pattern is the context itself, which matches no file for Docker.
    pub(super) fn ignore(text: &str) -> Option<Self> {
        Self::new(text, true).filter(|pattern| !pattern.is_all)
    }

    /// Parses a source of COPY or ADD, where `**` means the same as `*`.
    pub(super) fn source(text: &str) -> Option<Self> {
        Self::new(text, false)
    }

    fn new(text: &str, is_deep: bool) -> Option<Self> {
        let text = clean(text);
        let regex = Regex::new(&translate(&text, is_deep)).ok()?;
        let literal = text.split(['*', '?', '[', '\\']).next().unwrap_or_default().to_owned();
        Some(Self { regex, literal, is_all: text == "." })
    }

    /// Whether the pattern matches `path` or a folder above it. A path that ends in `/` stands for all files of that
    /// folder; it matches if any of them may match.
    pub(super) fn matches(&self, path: &str) -> bool {
        if self.is_all {
            return true;
        }
        let folder = path.strip_suffix('/');
        let name = folder.unwrap_or(path);
        let parents = name.match_indices('/').map(|(index, _)| &name[..index]);
        if parents.chain([name]).any(|path| self.regex.is_match(path)) {
            return true;
        }
        match path {
            "./" => !self.literal.contains('/'),
            _ => folder.is_some() && self.literal.starts_with(path),
        }
    }
}

/// Removes `.`, `..`, and slashes at both ends from `text`, like Go's `filepath.Clean`.
pub(super) fn clean(text: &str) -> String {
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

fn translate(text: &str, is_deep: bool) -> String {
    let mut regex = String::from("^");
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '*' if rest.next_if_eq(&'*').is_some() && is_deep => {
                rest.next_if_eq(&'/');
                regex.push_str(if rest.peek().is_none() { ".*" } else { "(.*/)?" });
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => regex.push('['),
            ']' => regex.push(']'),
            // Inside brackets these have the same meaning as in a regular expression.
            '^' | '-' => regex.push(character),
            '\\' => regex.push_str(&regex::escape(&rest.next().unwrap_or('\\').to_string())),
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
    }
    regex + "$"
}

/// The rules of one `.dockerignore`.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    /// In order, each with whether it is an exception.
    rules: Vec<(Pattern, bool)>,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        let rules = lines.filter(|line| !line.is_empty()).filter_map(|line| {
            let (pattern, is_exception) = match line.strip_prefix('!') {
                Some(pattern) => (pattern.trim(), true),
                None => (line, false),
            };
            Some((Pattern::ignore(pattern)?, is_exception))
        });
        Self { rules: rules.collect() }
    }

    /// Whether `path` is excluded from the build. The last rule that matches decides.
    pub(super) fn ignores(&self, path: &str) -> bool {
        let last = self.rules.iter().rev().find(|(pattern, _)| pattern.matches(path));
        last.is_some_and(|(_, is_exception)| !is_exception)
    }

    /// Whether an ignored folder may hold files that are not ignored.
    pub(super) fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(_, is_exception)| *is_exception)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerignore_rules_match_like_dockers() {
        let ignore = Ignore::parse(
            "\u{feff}# a comment\n\n/build/\n*.log\n**/tmp\nnode_modules\n docs/*.md \n!docs/README.md\n\
             !  keep.log\na{b}\nx?z\nv[0-9]\n**/*.o\n  # no comment\nc\\*d\n",
        );
        for path in [
            "build",
            "build/a/b",
            "a.log",
            "tmp",
            "a/b/tmp/c",
            "node_modules/x/y",
            "docs/a.md",
            "a{b}",
            "xyz",
            "v7",
            "deep/er/a.o",
            "a.o",
            "# no comment",
            "c*d",
        ] {
            assert!(ignore.ignores(path), "{path}");
        }
        for path in [
            "rebuild",
            "a/build",
            "sub/a.log",
            "atmp",
            "docs/README.md",
            "docs/sub/a.md",
            "keep.log",
            "ab",
            "x/z",
            "vx",
            "a.oo",
            "cxd",
            "a/node_modules",
        ] {
            assert!(!ignore.ignores(path), "{path}");
        }
        let all = Ignore::parse("*\n!src\nsrc/secret\n");
        assert!(all.ignores("README") && !all.ignores("src/a.c") && all.ignores("src/secret/key"));
        for text in [".\n", "/\n", "./\n"] {
            assert!(!Ignore::parse(text).ignores("README"), "{text}");
        }
        for text in [".*\n", ".?*\n", ".[a-z]*\n"] {
            let hidden = Ignore::parse(text);
            assert!(hidden.ignores(".env/a") && !hidden.ignores("README"), "{text}");
        }
        assert!(all.has_exceptions() && !Ignore::parse("*.o").has_exceptions());
    }

    #[test]
    fn a_source_matches_files_below_it_and_whole_folders() {
        let source = |text| Pattern::source(text).unwrap();
        assert!(source("src/").matches("src/a/b.c") && !source("src").matches("src2/b.c"));
        assert!(source("./").matches("anything") && source("/").matches("a/"));
        assert!(source("src/*.c").matches("src/a.c") && !source("src/*.c").matches("src/x/a.c"));
        assert!(source("../README").matches("README"));
        assert!(source(".*").matches(".env") && !source(".*").matches("README"));
        // Folders, where files are not recorded.
        assert!(source("src/main.c").matches("src/") && source("*.c").matches("./"));
        assert!(source("README").matches("./") && !source("src/main.c").matches("lib/"));
        assert!(!source("src/main.c").matches("src/lib/"));
    }
}
