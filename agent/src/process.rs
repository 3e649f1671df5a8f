//! The one place where child processes start, and where they are sure to end.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use secrecy::{ExposeSecret, SecretString};
use stagely_protocol::{MACHINE_VARIABLE, Stream, WireId};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Bytes read at once from each output: the size of a Linux pipe.
const READ_BYTES: usize = 64 * 1024;

/// How long an output that is empty may stay open once the whole group is dead. Only a process that
/// left the group can hold it, and nobody waits for that one.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The most that a dead group can have left in its two pipes, each of the largest size that Linux
/// allows. What comes after it is from a process that left the group.
const DRAIN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A child process that could not be run to its end.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program is missing or may not be executed.
    #[error("cannot start `{program}`")]
    Spawn {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An output could not be read, or the end not be awaited.
    #[error("lost `{program}`")]
    Io {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller asked for the end. The whole process group is gone.
    #[error("`{program}` was stopped")]
    Stopped {
        /// Its name.
        program: String,
        /// When it was told to stop.
        told: Instant,
    },
}

/// A program to run, with everything it is given.
pub(crate) struct Invocation {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, Option<OsString>)>,
    stdin: Option<SecretString>,
}

/// Variables may be secret, and so may arguments that somebody adds by mistake.
impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.arguments.len();
        write!(f, "{} with {arguments} arguments", self.program.display())
    }
}

impl Invocation {
    /// Runs `program` for the machine `machine`.
    pub(crate) fn new(program: impl Into<OsString>, machine: &WireId) -> Self {
        let variables = vec![(MACHINE_VARIABLE.into(), Some(machine.as_str().into()))];
        Self { program: program.into(), arguments: Vec::new(), variables, stdin: None }
    }

    /// Adds one argument.
    #[must_use]
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub(crate) fn args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets one variable of the environment, which is this process's own otherwise.
    #[must_use]
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes one variable from the environment.
    #[must_use]
    pub(crate) fn without_env(mut self, name: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), None));
        self
    }

    /// Writes `text` to its standard input: the way of every password.
    #[must_use]
    pub(crate) fn stdin(mut self, text: SecretString) -> Self {
        self.stdin = Some(text);
        self
    }

    /// Runs it to its end and hands every piece of output to `on_output` as it is read.
    ///
    /// When `stop` fires the process group gets SIGTERM, and SIGKILL after `grace`. However this
    /// ends, also by dropping the future, no process of the group is left.
    ///
    /// # Errors
    /// [`ProcessError`]; a bad exit status is not an error.
    pub(crate) async fn run(
        self,
        grace: Duration,
        stop: &CancellationToken,
        mut on_output: impl FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus, ProcessError> {
        let program = self.program.to_string_lossy().into_owned();
        if stop.is_cancelled() {
            return Err(ProcessError::Stopped { program, told: Instant::now() });
        }
        let io_error = |source| ProcessError::Io { program: program.clone(), source };
        let mut child = self
            .command()
            .spawn()
            .map_err(|source| ProcessError::Spawn { program: program.clone(), source })?;
        let group = Group::of(&child).map_err(io_error)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(io_error(io::Error::other("an output is not piped")));
        };

        let mut outputs = Outputs::new(stdout, stderr);
        let end = wait_for_end(&mut child, &group, grace, stop);
        let end = async { tokio::join!(feed(stdin, self.stdin.as_ref()), end).1 };
        tokio::pin!(end);
        let end = loop {
            tokio::select! {
                end = &mut end => break end.map_err(io_error)?,
                piece = outputs.next(), if outputs.is_open() => {
                    if let Some((stream, bytes)) = piece.map_err(io_error)? {
                        on_output(stream, bytes);
                    }
                }
            }
        };
        // The leader is gone; what it started and did not wait for goes with it.
        group.signal(Signal::SIGKILL);
        outputs.read_rest(&mut on_output).await.map_err(io_error)?;
        match end {
            End::Exited(status) => Ok(status),
            End::Stopped { told } => Err(ProcessError::Stopped { program, told }),
        }
    }

    fn command(&self) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the one place where children start")]
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// Kills what a former agent of `machine` started and, killed itself, could not end. Only processes
/// that carry the machine's name, and neither this one nor the one that started it.
pub(crate) fn kill_leftovers(machine: &WireId) {
    let entry = OsString::from(format!("{MACHINE_VARIABLE}={machine}"));
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => return tracing::warn!(%error, "cannot look for a former agent's processes"),
    };
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always).without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    for (pid, process) in system.processes() {
        let pid = i32::try_from(pid.as_u32()).map_or(Pid::this(), Pid::from_raw);
        if process.environ().contains(&entry) && pid != Pid::this() && pid != Pid::parent() {
            tracing::info!(%pid, "a former agent's process is killed");
            // One that has just ended cannot be killed again.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// A child's process group. Dropping it kills whatever is left in it.
struct Group(Pid);

impl Group {
    fn of(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        id.map(|id| Self(Pid::from_raw(id))).ok_or_else(|| io::Error::other("it has no process id"))
    }

    fn signal(&self, signal: Signal) {
        match killpg(self.0, signal) {
            // ESRCH: everyone has gone already.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(group = %self.0, %signal, %error, "cannot signal a group"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader may be reaped by now. Its id is not given away again while the group has
        // members, and with none left this is ESRCH.
        self.signal(Signal::SIGKILL);
    }
}

enum End {
    Exited(ExitStatus),
    Stopped { told: Instant },
}

async fn wait_for_end(
    child: &mut Child,
    group: &Group,
    grace: Duration,
    stop: &CancellationToken,
) -> io::Result<End> {
    tokio::select! {
        status = child.wait() => return Ok(End::Exited(status?)),
        () = stop.cancelled() => {}
    }
    let told = Instant::now();
    group.signal(Signal::SIGTERM);
    if timeout(grace, child.wait()).await.is_err() {
        group.signal(Signal::SIGKILL);
        child.wait().await?;
    }
    Ok(End::Stopped { told })
}

async fn feed(stdin: Option<ChildStdin>, text: Option<&SecretString>) {
    if let (Some(mut stdin), Some(text)) = (stdin, text)
        && let Err(error) = stdin.write_all(text.expose_secret().as_bytes()).await
    {
        // A program that ended without reading says why in its own output.
        tracing::debug!(%error, "a child did not read its input");
    }
}

/// Both outputs, read in turn so that neither pipe can fill and stop the child.
struct Outputs {
    stdout: Output<ChildStdout>,
    stderr: Output<ChildStderr>,
}

struct Output<R> {
    pipe: R,
    buffer: Vec<u8>,
    is_open: bool,
}

impl<R: AsyncRead + Unpin> Output<R> {
    fn new(pipe: R) -> Self {
        Self { pipe, buffer: vec![0; READ_BYTES], is_open: true }
    }

    /// Reads a piece, and returns its length. 0: it has ended.
    async fn read(&mut self) -> io::Result<usize> {
        let length = self.pipe.read(&mut self.buffer).await?;
        self.is_open = length > 0;
        Ok(length)
    }
}

impl Outputs {
    fn new(stdout: ChildStdout, stderr: ChildStderr) -> Self {
        Self { stdout: Output::new(stdout), stderr: Output::new(stderr) }
    }

    const fn is_open(&self) -> bool {
        self.stdout.is_open || self.stderr.is_open
    }

    /// The next piece. `None`: one of them has ended. May be dropped and called again.
    async fn next(&mut self) -> io::Result<Option<(Stream, &[u8])>> {
        let (stream, length) = tokio::select! {
            length = self.stdout.read(), if self.stdout.is_open => (Stream::Stdout, length?),
            length = self.stderr.read(), if self.stderr.is_open => (Stream::Stderr, length?),
            else => return Ok(None),
        };
        let buffer = match stream {
            Stream::Stdout => &self.stdout.buffer,
            Stream::Stderr => &self.stderr.buffer,
        };
        Ok((length > 0).then(|| (stream, &buffer[..length])))
    }

    /// Reads what a dead process group has left, however long `on_output` takes over it.
    async fn read_rest(&mut self, on_output: &mut impl FnMut(Stream, &[u8])) -> io::Result<()> {
        let mut left = DRAIN_BYTES_MAX;
        while self.is_open() && left > 0 {
            match timeout(DRAIN_LIMIT, self.next()).await {
                Ok(Ok(Some((stream, bytes)))) => {
                    on_output(stream, bytes);
                    left = left.saturating_sub(bytes.len());
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Invocation {
        Invocation::new("sh", &"vm_test".parse().unwrap()).arg("-c").arg(script)
    }

    fn is_running(marker: &str) -> bool {
        let output = std::process::Command::new("pgrep").args(["-f", marker]).output().unwrap();
        output.status.success()
    }

    #[tokio::test]
    async fn both_outputs_arrive_whole_and_the_status_is_the_childs() {
        let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; cat; exit 3";
        let (mut stdout, mut stderr) = (0, 0);
        let status = shell(script)
            .stdin("input".into())
            .run(Duration::from_secs(1), &CancellationToken::new(), |stream, bytes| match stream {
                Stream::Stdout => stdout += bytes.len(),
                Stream::Stderr => stderr += bytes.len(),
            })
            .await
            .unwrap();
        assert_eq!((status.code(), stdout, stderr), (Some(3), 300_005, 300_000));
    }

    #[tokio::test]
    async fn a_slow_reader_loses_nothing() {
        let (stop, mut length) = (CancellationToken::new(), 0);
        let run = shell("head -c 60000 /dev/zero >&2; head -c 60000 /dev/zero");
        // As on a disk that does not keep up. Longer than the dead may hold their pipes.
        let slow = |_, bytes: &[u8]| {
            length += bytes.len();
            let (_sender, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(DRAIN_LIMIT + Duration::from_millis(100));
        };
        run.run(Duration::ZERO, &stop, slow).await.unwrap();
        assert_eq!(length, 120_000);
    }

    #[tokio::test]
    async fn who_left_the_group_and_goes_on_writing_is_not_waited_for() {
        let stop = CancellationToken::new();
        let run = shell("setsid sh -c 'exec 2>/dev/null; while echo 7918; do :; done' & exit 0");
        timeout(Duration::from_mins(1), run.run(Duration::ZERO, &stop, |_, _| {}))
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn the_machine_is_named_in_the_environment() {
        let mut text = Vec::new();
        let stop = CancellationToken::new();
        let run = shell("printf %s $STAGELY_MACHINE");
        run.run(Duration::ZERO, &stop, |_, bytes| text.extend_from_slice(bytes)).await.unwrap();
        assert_eq!(text, b"vm_test");
    }

    #[tokio::test]
    async fn stopping_kills_also_what_ignores_sigterm() {
        let stop = CancellationToken::new();
        let started = Instant::now();
        let run = shell("trap '' TERM; (trap '' TERM; sleep 7913) & wait; sleep 7913");
        let (result, ()) =
            tokio::join!(run.run(Duration::from_millis(200), &stop, |_, _| {}), async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                stop.cancel();
            });
        assert!(matches!(result, Err(ProcessError::Stopped { .. })));
        assert!(started.elapsed() < Duration::from_mins(1));
        assert!(!is_running("sleep 7913"));
    }

    #[tokio::test]
    async fn a_background_process_does_not_outlive_its_leader() {
        let stop = CancellationToken::new();
        let status = shell("sleep 7914 & exit 0").run(Duration::ZERO, &stop, |_, _| {}).await;
        assert!(status.unwrap().success());
        assert!(!is_running("sleep 7914"));
    }

    #[tokio::test]
    async fn dropping_the_future_leaves_nothing() {
        let stop = CancellationToken::new();
        let run = shell("sleep 7915 & sleep 7915").run(Duration::ZERO, &stop, |_, _| {});
        timeout(Duration::from_millis(300), run).await.unwrap_err();
        // A killed process may take a moment to be gone.
        let started = Instant::now();
        while is_running("sleep 7915") {
            assert!(started.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_a_killed_agent_left_is_killed_and_nothing_else() {
        let sleep = |machine: &str, seconds| {
            #[expect(
                clippy::disallowed_methods,
                reason = "stands in for one that a killed agent left"
            )]
            let mut command = Command::new("sleep");
            command.arg(seconds).env(MACHINE_VARIABLE, machine).kill_on_drop(true).spawn().unwrap()
        };
        let mut left = sleep("vm_left", "7916");
        let mut other = sleep("vm_left_2", "7917");
        kill_leftovers(&"vm_left".parse().unwrap());
        assert!(!left.wait().await.unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let run = shell("env").env("NPM_TOKEN", "hunter2").stdin("hunter2".into());
        assert_eq!(format!("{run:?}"), "sh with 2 arguments");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let run = Invocation::new("no-such-program", &"vm_test".parse().unwrap());
        let error = run.run(Duration::ZERO, &CancellationToken::new(), |_, _| {}).await;
        assert_eq!(error.unwrap_err().to_string(), "cannot start `no-such-program`");
    }
}
