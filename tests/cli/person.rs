//! A user with a home folder, a repository in it, and a shell.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_test_support::git::Repository;
use stagely_test_support::processes::processes_with;
use stagely_test_support::wait::eventually_blocking;
use tempfile::TempDir;

pub(crate) struct Person {
    /// The project's name, which also occurs in the commands of builds. Unique over all runs of the tests.
    pub(crate) name: String,
    repository: Repository,
    home: TempDir,
}

/// The result of a command.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().expect("a signal ended the command"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Ended {
    /// Fails unless the exit code is `code`.
    pub(crate) fn with(self, code: i32) -> Self {
        let Self { code: ended, stdout, stderr } = &self;
        assert_eq!(*ended, code, "--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }
}

impl Person {
    pub(crate) fn new(name: &str) -> Self {
        for setting in ["", "_USERNAME", "_PASSWORD_FILE"] {
            let setting = format!("STAGELY_REGISTRY{setting}");
            assert!(std::env::var_os(&setting).is_some(), "{setting} is not set: run scripts/test");
        }
        let unique: u32 = rand::random_range(0x1000_0000..u32::MAX);
        let name = format!("cli-{name}-{unique:x}");
        let home = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir().unwrap();
        for folder in ["tmp", "state"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        let repository = Repository::create(home.path().join(&name));
        Self { name, repository, home }
    }

    /// A folder of the project's name.
    pub(crate) fn repository(&self) -> PathBuf {
        self.repository.path.clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.repository.git(arguments)
    }

    pub(crate) fn write(&self, files: &[(&str, &str)]) {
        self.repository.write(files);
    }

    pub(crate) fn commit(&self, files: &[(&str, &str)]) {
        self.repository.commit(files);
    }

    /// `stagely` in the repository, with this home.
    pub(crate) fn stagely(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stagely"));
        command
            .args(arguments)
            .current_dir(self.repository())
            .env("HOME", self.home.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("TMPDIR", self.path("tmp"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts `stagely` on a terminal of its own. The output of the terminal is standard error here.
    pub(crate) fn starts_at_terminal(&self, arguments: &str) -> Running {
        let stagely = env!("CARGO_BIN_EXE_stagely");
        let line = format!("stty cols 100 rows 30; exec {stagely} {arguments}");
        self.terminal(&line, Stdio::null())
    }

    /// Runs a line of a shell on a terminal of its own, on which the test types. The output of the terminal is standard error
    /// here.
    pub(crate) fn opens_terminal(&self, line: &str) -> Running {
        self.terminal(line, Stdio::piped())
    }

    fn terminal(&self, line: &str, stdin: Stdio) -> Running {
        let mut script = Command::new("sh");
        script.args([
            "-c",
            "exec script --quiet --return --flush --command \"$0\" /dev/null >&2",
            line,
        ]);
        for (name, value) in self.stagely(&[]).get_envs() {
            script.env(name, value.unwrap_or_default());
        }
        script.env("TERM", "xterm").current_dir(self.repository()).stdin(stdin);
        script.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::of(script)
    }

    /// Runs `stagely` to its end.
    pub(crate) fn does(&self, arguments: &[&str]) -> Ended {
        self.stagely(arguments).output().unwrap().into()
    }

    pub(crate) fn starts(&self, arguments: &[&str]) -> Running {
        Running::of(self.stagely(arguments))
    }

    /// Checks that no process of this user's builds and no temporary file is left.
    pub(crate) fn leaves_nothing(&self) {
        eventually_blocking("no process is left", || {
            processes_with(&self.name).is_empty().then_some(())
        });
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let machines = self.path("state/stagely/machines");
        let left = fs::read_dir(machines).map_or(0, Iterator::count);
        assert_eq!(left, 0, "folders of machines are left");
    }
}

/// A running command, whose standard error is read in the background.
pub(crate) struct Running {
    child: Child,
    stderr: std::sync::Arc<std::sync::Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let stderr = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let text = std::sync::Arc::clone(&stderr);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, stderr, reader: Some(reader) }
    }

    /// Waits until standard error holds `text`.
    pub(crate) fn says(&self, text: &str) {
        let what = format!("standard error holds {text:?}");
        eventually_blocking(&what, || self.shown().contains(text).then_some(()));
    }

    /// The standard error so far.
    pub(crate) fn shown(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Types on the terminal of [`Person::opens_terminal`].
    pub(crate) fn types(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Sends the signal of Ctrl-C to a command that [`Person::starts_at_terminal`] started.
    pub(crate) fn interrupts_at_terminal(&self) {
        let parent = self.child.id().to_string();
        let sent = Command::new("pkill").args(["-INT", "-P", &parent]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn ends(mut self) -> Ended {
        let child = &mut self.child;
        let status = eventually_blocking("the command ends", || child.try_wait().unwrap());
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.reader.take().unwrap().join().unwrap();
        let stderr = self.stderr.lock().unwrap().clone();
        Ended { code: status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Failed tests leave no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("standard error:\n{}", self.shown());
        }
    }
}
