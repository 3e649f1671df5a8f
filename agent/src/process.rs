//! Starts the agent's child processes, and makes sure that they end. Nothing else in the agent starts one.

mod environment;
mod group;
mod guard;
mod leftovers;
mod outputs;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use stagely_protocol::{MACHINE_VARIABLE, Stream, WireId};
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::environment::is_inherited;
use self::group::{ChildExit, ProcessGroup, wait_for_exit};
pub use self::guard::{GUARD_COMMAND, Guard, guard_children};
use self::leftovers::AGENT_VARIABLE;
pub(crate) use self::leftovers::kill_leftovers;
use self::outputs::Outputs;
pub(crate) use self::outputs::last_line;

/// Why a child process did not run to its end.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program is missing or may not be executed.
    #[error("cannot start `{program}`")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    /// Reading an output or waiting for the end failed.
    #[error("lost `{program}`")]
    Io {
        program: String,
        #[source]
        source: io::Error,
    },
    /// The caller stopped it. No process of its group is left.
    #[error("`{program}` was stopped")]
    Stopped {
        program: String,
        /// When the process group got SIGTERM.
        stopped_at: Instant,
    },
}

/// A program to run, with its arguments, environment and input.
pub(crate) struct Invocation {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    /// The only variables that it inherits; `None`: those that all children inherit.
    inherits: Option<&'static [&'static str]>,
    stdin: Option<SecretString>,
    current_directory: Option<PathBuf>,
}

/// Shows neither variables nor arguments: a variable may be secret, and so may an argument by mistake.
impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.arguments.len();
        write!(f, "{} with {arguments} arguments", self.program.display())
    }
}

impl Invocation {
    /// Runs `program` for the machine `machine`.
    pub(crate) fn new(program: impl Into<OsString>, machine: &WireId) -> Self {
        let variables = vec![
            (MACHINE_VARIABLE.into(), machine.as_str().into()),
            (AGENT_VARIABLE.into(), std::process::id().to_string().into()),
        ];
        Self {
            program: program.into(),
            arguments: Vec::new(),
            variables,
            inherits: None,
            stdin: None,
            current_directory: None,
        }
    }

    #[must_use]
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub(crate) fn args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets one variable of the environment, beside those of [`environment`].
    #[must_use]
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Inherits none of the variables that children inherit but these.
    #[must_use]
    pub(crate) const fn inherit_only(mut self, names: &'static [&'static str]) -> Self {
        self.inherits = Some(names);
        self
    }

    /// Writes `text` to its standard input. All passwords are passed this way.
    #[must_use]
    pub(crate) fn stdin(mut self, text: SecretString) -> Self {
        self.stdin = Some(text);
        self
    }

    /// Runs the program in `directory`, not in the agent's own current directory.
    #[must_use]
    pub(crate) fn current_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.current_directory = Some(directory.into());
        self
    }

    /// Runs the program to its end and passes every piece of output to `on_output`.
    ///
    /// When `stop` fires the process group gets SIGTERM, and SIGKILL after `grace`. No process of the group is left
    /// when this ends, also if the future is dropped.
    ///
    /// # Errors
    /// [`ProcessError`]; an exit status other than 0 is not an error.
    pub(crate) async fn run(
        self,
        grace: Duration,
        stop: &CancellationToken,
        mut on_output: impl FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus, ProcessError> {
        let program = self.program.to_string_lossy().into_owned();
        if stop.is_cancelled() {
            return Err(ProcessError::Stopped { program, stopped_at: Instant::now() });
        }
        let io_error = |source| ProcessError::Io { program: program.clone(), source };
        let mut child = self
            .command()
            .spawn()
            .map_err(|source| ProcessError::Spawn { program: program.clone(), source })?;
        let group = ProcessGroup::of(&child).map_err(io_error)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(io_error(io::Error::other("an output is not piped")));
        };

        let mut outputs = Outputs::new(stdout, stderr);
        let exit = wait_for_exit(&mut child, &group, grace, stop);
        let exit = async { tokio::join!(feed(stdin, self.stdin.as_ref()), exit).1 };
        tokio::pin!(exit);
        let exit = loop {
            tokio::select! {
                exit = &mut exit => break exit.map_err(io_error)?,
                piece = outputs.next(), if outputs.is_open() => {
                    if let Some((stream, bytes)) = piece.map_err(io_error)? {
                        on_output(stream, bytes);
                    }
                }
            }
        };
        // The leader has ended. Its background processes must end as well.
        group.signal(Signal::SIGKILL);
        outputs.read_rest(&mut on_output).await.map_err(io_error)?;
        match exit {
            ChildExit::Exited(status) => Ok(status),
            ChildExit::Stopped { stopped_at } => Err(ProcessError::Stopped { program, stopped_at }),
        }
    }

    fn command(&self) -> Command {
        let mut command = piped(&self.program);
        if let Some(names) = self.inherits {
            let is_wanted = |name: &OsStr| names.iter().any(|wanted| *wanted == name);
            let all = environment::inherited().into_iter();
            command.env_clear().envs(all.filter(|(name, _)| is_wanted(name)));
        }
        command
            .args(&self.arguments)
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.current_directory {
            command.current_dir(directory);
        }
        command
    }
}

/// A command with pipes for its outputs, the variables that children inherit, and a process group of its own.
fn piped(program: impl AsRef<OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the one place where children start")]
    let mut command = Command::new(program);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .env_clear()
        .envs(environment::inherited());
    command
}

/// Starts `program` with pipes for its input and its outputs. Dropping the child ends it.
pub(crate) fn piped_child(
    program: &str,
    arguments: &[&str],
    variables: &[(&'static str, String)],
) -> io::Result<Child> {
    let mut command = piped(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .spawn()
}

async fn feed(stdin: Option<ChildStdin>, text: Option<&SecretString>) {
    if let (Some(mut stdin), Some(text)) = (stdin, text)
        && let Err(error) = stdin.write_all(text.expose_secret().as_bytes()).await
    {
        // A program that ends without reading its input explains that in its own output.
        tracing::debug!(%error, "a child process did not read its input");
    }
}

#[cfg(test)]
mod tests;
