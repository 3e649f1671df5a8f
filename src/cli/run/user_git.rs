//! Runs the user's own `git`, which reads everything that Git can read: sparse and shallow clones, worktrees, reftable.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use thiserror::Error;

/// The most bytes of git's words in an error.
const WORDS_MAX: usize = 2_000;

/// The inherited variables of git, as beginnings of names. The others say where a repository is, as in a hook, or change
/// what git prints.
const INHERITED: [&str; 8] = [
    "GIT_SSH",
    "GIT_SSL_",
    "GIT_PROXY_",
    "GIT_HTTP_",
    "GIT_CONFIG_",
    "GIT_EXEC_PATH",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
];

/// Git asks nobody: neither on the terminal nor in a window. `LANGUAGE` only changes the language of messages.
const SET: [(&str, &str); 5] = [
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ASKPASS", ""),
    ("SSH_ASKPASS_REQUIRE", "never"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("LANGUAGE", "en"),
];

/// Why git did not answer.
#[derive(Debug, Error)]
pub(super) enum GitError {
    #[error("cannot start git, which reads the folder and serves it to the builders; install it")]
    NotStarted(#[source] io::Error),
    #[error("`git {command}` failed: {words}")]
    Failed {
        /// The subcommand.
        command: String,
        /// What git wrote to its standard error.
        words: String,
    },
}

/// Git in one folder.
#[derive(Clone, Debug)]
pub(super) struct UserGit {
    folder: PathBuf,
    variables: Vec<(OsString, OsString)>,
}

impl UserGit {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), variables: Vec::new() }
    }

    /// Git without the configuration of the user and the machine, for a repository of ours.
    pub(super) fn isolated(folder: &Path) -> Self {
        Self::in_folder(folder)
            .with("GIT_CONFIG_GLOBAL", "/dev/null")
            .with("GIT_CONFIG_NOSYSTEM", "1")
            .with("GIT_CONFIG_COUNT", "0")
    }

    /// Sets a variable.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The standard output of `git` with `arguments`.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        self.feed(arguments, b"")
    }

    /// Like [`Self::run`], with `input` as its standard input.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn feed(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, GitError> {
        let output = self.output(arguments, input)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed(arguments, &output))
    }

    /// Like [`Self::run`], but an exit with 1, git's answer for "none", is an empty output.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn run_or_nothing(&self, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        let output = self.output(arguments, b"")?;
        match output.status.code() {
            Some(0 | 1) => Ok(output.stdout),
            _ => Err(failed(arguments, &output)),
        }
    }

    /// One line of output, or `None` if git exits with 1, its answer for "no".
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Option<String>, GitError> {
        let output = self.output(arguments, b"")?;
        match output.status.code() {
            Some(0) => Ok(Some(line_of(&output.stdout))),
            Some(1) => Ok(None),
            _ => Err(failed(arguments, &output)),
        }
    }

    /// One line of output.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn line(&self, arguments: &[&str]) -> Result<String, GitError> {
        self.run(arguments).map(|output| line_of(&output))
    }

    fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Output, GitError> {
        let mut command = self.command(arguments);
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(GitError::NotStarted)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // Git may write before it has read everything.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output().map_err(GitError::NotStarted)
        })
    }

    /// The command, for callers that stream its output.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("GIT_") && !INHERITED.iter().any(|known| text.starts_with(known)) {
                command.env_remove(name);
            }
        }
        // The `-c` options of a git that has started this command.
        command.env_remove("GIT_CONFIG_PARAMETERS");
        command.envs(SET).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.arg("-C").arg(&self.folder).args(arguments);
        command
    }
}

fn line_of(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim_end_matches('\n').to_owned()
}

fn failed(arguments: &[&str], output: &Output) -> GitError {
    let mut words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.is_empty() {
        words = output.status.to_string();
    }
    // The last words say why.
    let start = words.ceil_char_boundary(words.len().saturating_sub(WORDS_MAX));
    words.drain(..start);
    // Options of git itself come before the subcommand.
    let mut arguments = arguments.iter();
    let mut command = arguments.next().copied().unwrap_or_default();
    while command == "-c" {
        command = arguments.nth(1).copied().unwrap_or_default();
    }
    GitError::Failed { command: command.to_owned(), words }
}
