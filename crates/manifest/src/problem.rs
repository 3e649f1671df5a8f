//! Mistakes with their positions, collected while reading goes on.

use std::error::Error;
use std::fmt;

use serde::Serialize;

/// A position in the file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// The start of a file.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One mistake and its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The dotted path of the value (`builds.worker.platform`); empty for the whole file.
    pub path: String,
    /// The mistake and how to correct it, for people.
    pub message: String,
}

/// All mistakes of one file, in the order of the lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file's name as given by the caller.
    pub file: String,
    /// The first 100 problems.
    pub problems: Vec<Problem>,
    /// The number of further problems.
    pub more: usize,
}

impl fmt::Display for Problems {
    /// One line for each problem: `stagely.yaml:7:5: builds.worker.platform: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, column, path, message }) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{line}:{column}: ", self.file)?;
            if !path.is_empty() {
                write!(f, "{path}: ")?;
            }
            f.write_str(message)?;
        }
        if self.more > 0 {
            write!(f, "\n{}: and {} more problems", self.file, self.more)?;
        }
        Ok(())
    }
}

impl Error for Problems {}

/// Collects problems while reading goes on.
#[derive(Debug, Default)]
pub(super) struct Collector {
    problems: Vec<Problem>,
    more: usize,
}

impl Collector {
    /// The most problems listed. A hostile file can have one for each byte.
    const PROBLEMS_MAX: usize = 100;

    pub(super) fn add(
        &mut self,
        at: Position,
        path: impl Into<String>,
        mistake: impl fmt::Display,
    ) {
        if self.problems.len() == Self::PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        let Position { line, column } = at;
        let (path, message) = (path.into(), mistake.to_string());
        self.problems.push(Problem { line, column, path, message });
    }

    pub(super) const fn count(&self) -> usize {
        self.problems.len() + self.more
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.problems.iter().any(|problem| problem.path == path)
    }

    pub(super) fn has_below(&self, path: &str) -> bool {
        self.problems.iter().any(|problem| problem.path.starts_with(path))
    }

    pub(super) fn into_result<T>(mut self, file_name: &str, value: T) -> Result<T, Problems> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        let Self { problems, more } = self;
        Err(Problems { file: file_name.to_owned(), problems, more })
    }
}
