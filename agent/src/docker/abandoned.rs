//! Kills the steps that an engine goes on with although their build was stopped.
//!
//! `BuildKit` before July 2024 (also that of Debian 13's Docker) loses a cancellation that reaches a step while
//! its container is being started. The container goes on, and `buildx` exits after it has waited 3 s for the end of
//! the step. Such a container started after `buildx` got SIGTERM. That time and the container's command distinguish
//! it from containers of other builds on the same machine. A container that another build may have started is left
//! alone.
//!
//! Source: <https://github.com/moby/buildkit/pull/5106>.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::job_log::JobLog;

/// A container may take this long to start, and then to end. This and the wait of `buildx` together are shorter
/// than an agent's grace.
const SEARCH_LIMIT: Duration = Duration::from_secs(3);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The longest time between a container's start and the engine's report of it.
const CLOCK_SLACK: Duration = Duration::from_millis(300);

/// Waits until none of `steps` runs on this machine any more, and kills those that the engine goes on with.
///
/// `steps` are the names of the steps that had begun and not ended. `buildx` got SIGTERM at `stopped_at` and has
/// exited. The log gets a warning if a step may go on.
pub(super) async fn kill_steps(steps: Vec<String>, stopped_at: Instant, log: &JobLog) {
    if steps.is_empty() {
        return;
    }
    let since = ticks_at(stopped_at.elapsed() + CLOCK_SLACK);
    let give_up = Instant::now() + SEARCH_LIMIT;
    let (mut was_seen, mut obstacle) = (false, "");
    while Instant::now() < give_up {
        let names = steps.clone();
        let running = spawn_blocking(move || containers_of(&names)).await.unwrap_or_default();
        if running.is_empty() && was_seen {
            return;
        }
        was_seen |= !running.is_empty();
        for container in running.iter().filter(|container| container.started_ticks >= since) {
            if container.is_shared {
                obstacle = ", or be that of another build here with the same command";
            } else if !container.kill() {
                obstacle = "; this agent may not kill it";
            }
        }
        sleep(POLL_INTERVAL).await;
    }
    if was_seen {
        let step = &steps[0];
        log.warn(&format!("the Docker engine did not stop {step:?}: it may still run{obstacle}"));
    }
}

/// A container of `BuildKit`, as `/proc` shows it.
#[derive(Debug, Default)]
struct StepContainer {
    processes: Vec<Pid>,
    /// When its first process started, in clock ticks since the machine booted.
    started_ticks: u64,
    /// The command of its first process.
    command: String,
    /// Whether another build on this machine may have started it.
    is_shared: bool,
}

impl StepContainer {
    /// Kills all processes. `false`: the agent may not kill one of them.
    fn kill(&self) -> bool {
        let mut results = self.processes.iter().map(|process| kill(*process, Signal::SIGKILL));
        results.all(|result| matches!(result, Ok(()) | Err(Errno::ESRCH)))
    }

    fn add(&mut self, process: Pid, started_ticks: u64, command: String) {
        if self.processes.is_empty() || started_ticks < self.started_ticks {
            (self.started_ticks, self.command) = (started_ticks, command);
        }
        self.processes.push(process);
    }
}

fn containers_of(steps: &[String]) -> Vec<StepContainer> {
    let mut containers: BTreeMap<String, StepContainer> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The files of a process that has just ended are missing.
        let read = |file: &str| fs::read(entry.path().join(file)).ok();
        let text =
            |file: &str| read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let id = text("cgroup").and_then(|groups| container_id(&groups).map(str::to_owned));
        let started = text("stat").and_then(|stat| start_ticks(&stat));
        if let (Some(id), Some(started), Some(command)) = (id, started, text("cmdline")) {
            containers.entry(id).or_default().add(Pid::from_raw(process), started, command);
        }
    }
    let is_ours = |container: &StepContainer| {
        steps.iter().any(|step| is_command_of(step, &container.command))
    };
    let mut containers: Vec<_> = containers.into_values().filter(is_ours).collect();
    if !containers.is_empty() {
        // Listed after the containers, so that the build that started one of them is listed or has ended.
        let dockerfiles = dockerfiles_of_running_builds();
        for container in &mut containers {
            container.is_shared =
                dockerfiles.iter().any(|text| may_run(text.as_deref(), &container.command));
        }
    }
    containers
}

/// The Dockerfiles of all builds whose client runs on this machine. `None` stands for one that cannot be read.
fn dockerfiles_of_running_builds() -> Vec<Option<String>> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let builds = processes.filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        let file = dockerfile_argument(&command.split_terminator('\0').collect::<Vec<_>>())?;
        // `join` returns an absolute path unchanged.
        Some(fs::read_to_string(process.path().join("cwd").join(file)).ok())
    });
    builds.collect()
}

/// The path of the Dockerfile, if the command `arguments` builds one.
fn dockerfile_argument(arguments: &[&str]) -> Option<String> {
    let (program, arguments) = arguments.split_first()?;
    let name = Path::new(program).file_name()?.to_str()?;
    let is_client = ["docker", "docker-buildx", "docker-compose", "buildctl"].contains(&name);
    if !is_client || !arguments.iter().take(3).any(|argument| ["build", "bake"].contains(argument))
    {
        return None;
    }
    let option = arguments.iter().position(|argument| ["-f", "--file"].contains(argument));
    let file = option.and_then(|index| arguments.get(index + 1).copied());
    let file =
        file.or_else(|| arguments.iter().find_map(|argument| argument.strip_prefix("--file=")));
    Some(file.map_or_else(|| format!("{}/Dockerfile", arguments[arguments.len() - 1]), Into::into))
}

/// Whether a build with this Dockerfile may run `command`.
fn may_run(dockerfile: Option<&str>, command: &str) -> bool {
    dockerfile.is_none_or(|text| is_within(&words(script(command)), &words(text)))
}

/// The id in `9:cpu:/docker/buildkit/xl9wv8huxl1xxty8z9noliqci`, or, where systemd runs, in
/// `0::/system.slice/system.slice:docker:xl9wv8huxl1xxty8z9noliqci`.
fn container_id(groups: &str) -> Option<&str> {
    let after = |mark| groups.split_once(mark).map(|(_, rest)| rest);
    let id = after("/buildkit/").or_else(|| after(".slice:docker:"))?;
    id.split(['/', '\n']).next().filter(|id| !id.is_empty())
}

/// The 22nd field of `stat`. The second field is the process's name in brackets, which may hold any character.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The time `ago`, in clock ticks since the machine booted.
fn ticks_at(ago: Duration) -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_whitespace().next().and_then(|text| text.parse().ok());
    // Without an uptime no container is new enough to be killed.
    let uptime = uptime.map_or(Duration::MAX, Duration::from_secs_f64);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let millis = u64::try_from(uptime.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX);
    millis.saturating_mul(u64::try_from(per_second).unwrap_or(100)) / 1_000
}

/// Whether the step runs `command`. Where the command has `$VERSION`, the step's name may have its value. The name
/// of a script (`RUN <<EOF (set -e...)`) holds only its first line.
fn is_command_of(step: &str, command: &str) -> bool {
    let Some((_, run)) = step.split_once("] RUN ") else { return false };
    let (command, run) = (words(script(command)), words(run));
    match run.iter().position(|word| word.starts_with("<<")) {
        Some(index) => is_within(&run[index + 1..], &command),
        None => is_within(&command, &run),
    }
}

/// The script that a shell runs; the whole command if there is no shell.
fn script(command: &str) -> &str {
    command.split_once("\0-c\0").map_or(command, |(_, script)| script)
}

/// The words of a command, without quotes, brackets and variables.
fn words(text: &str) -> Vec<&str> {
    let is_separator = |char: char| char.is_whitespace() || "\0\"'`[](){},;&|=".contains(char);
    let text = text.trim_end_matches("...)");
    text.split(is_separator).filter(|word| !word.is_empty() && !word.contains('$')).collect()
}

/// Whether `many` has all of `few`, in the same order.
fn is_within(few: &[&str], many: &[&str]) -> bool {
    let mut many = many.iter();
    !few.is_empty() && few.iter().all(|word| many.any(|other| other == word))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_command_belongs_to_the_step_that_runs_it() {
        let runs = |command: &str, name: &str| is_command_of(name, &command.replace(' ', "\0"));
        assert!(is_command_of("[2/2] RUN npm ci && sleep 5", "/bin/sh\0-c\0npm ci && sleep 5\0"));
        assert!(is_command_of("[b 2/9] RUN get http://c/a -o x", "/bin/sh\0-c\0get $URL/a -o x\0"));
        assert!(is_command_of(
            "[2/2] RUN --mount=type=cache,target=/c make",
            "/bin/sh\0-c\0make\0"
        ));
        assert!(runs(
            "/bin/busybox --install -s",
            r#"[2/2] RUN ["/bin/busybox", "--install", "-s"]"#
        ));
        assert!(is_command_of("[2/2] RUN <<EOF (set -e...)", "/bin/sh\0-c\0set -e\nmake\n\0"));
        assert!(!is_command_of("[2/2] RUN sleep 5", "/bin/sh\0-c\0sleep 6\0"));
        assert!(!is_command_of("[2/2] RUN <<EOF (set -e...)", "/bin/sh\0-c\0set -x\nmake\n\0"));
        assert!(!is_command_of("[2/2] RUN make", "/bin/sh\0-c\0$X\0"));
        assert!(!is_command_of("[2/2] COPY make /", "/bin/sh\0-c\0make\0"));
    }

    #[test]
    fn commands_of_another_build_are_recognized() {
        let may_run = |file: &str, command| may_run(Some(file), command);
        let file =
            "FROM a\nRUN npm ci && \\\n  # why\n  get $URL/a\nRUN <<EOF\nset -e\nmake\nEOF\n";
        assert!(may_run(file, "/bin/sh\0-c\0npm ci &&   get $URL/a\0"));
        assert!(may_run(file, "/bin/sh\0-c\0set -e\nmake\n\0"));
        assert!(!may_run(file, "/bin/sh\0-c\0npm test\0"));
        assert!(super::may_run(None, "/bin/sh\0-c\0npm test\0"));

        let dockerfile = |text: &str| dockerfile_argument(&text.split(' ').collect::<Vec<_>>());
        let buildx = "/usr/libexec/docker/cli-plugins/docker-buildx buildx build";
        for options in ["--push --file /x/File -- /x", "-f /x/File .", "--file=/x/File ."] {
            assert_eq!(dockerfile(&format!("{buildx} {options}")).unwrap(), "/x/File");
        }
        assert_eq!(dockerfile("docker build api").unwrap(), "api/Dockerfile");
        assert_eq!(dockerfile("docker-compose compose up"), None);
        assert_eq!(dockerfile("make build"), None);
    }

    #[test]
    fn a_running_build_is_found_with_its_dockerfile() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("File"), "RUN echo found\n").unwrap();
        let mut client = Command::new("sh");
        let script = "echo begun; read line";
        client.arg0("docker-buildx").args(["-c", script, "build", "--file", "File", "."]);
        let client = client.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = client.spawn().unwrap();
        // The kernel does not show the arguments before the program runs.
        let begun = client.stdout.take().unwrap().read_exact(&mut [0; 6]);
        begun.unwrap();
        let dockerfiles = dockerfiles_of_running_builds();
        drop(client.stdin.take());
        client.wait().unwrap();
        assert!(dockerfiles.contains(&Some("RUN echo found\n".to_owned())), "{dockerfiles:?}");
    }

    #[test]
    fn files_of_proc_are_parsed() {
        let id = |text| container_id(text);
        assert_eq!(id("9:x:/other\n8:pids:/docker/buildkit/abc\n"), Some("abc"));
        assert_eq!(id("0::/system.slice/docker.service/buildkit/abc/init\n"), Some("abc"));
        assert_eq!(id("0::/system.slice/system.slice:docker:abc\n"), Some("abc"));
        assert_eq!(id("8:pids:/my.slice:docker:abc/init\n0::/\n"), Some("abc"));
        assert_eq!(id("0::/docker/abc\n"), None);
        assert_eq!(id("0::/system.slice/docker-abc.scope\n"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let started = start_ticks(&own).unwrap();
        assert!(started > 0 && started <= ticks_at(Duration::ZERO));
        assert_eq!(ticks_at(Duration::MAX), 0);
    }
}
