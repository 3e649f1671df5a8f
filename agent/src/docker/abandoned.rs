//! Ends the steps that an engine goes on with although their build was stopped.
//!
//! `BuildKit` before July 2024 (Debian 13's Docker has it) loses a cancellation that reaches a step
//! while its container is being started: nobody kills the container, and `buildx` leaves after
//! waiting 3 s for an end that does not come. Such a container began after `buildx` was told to
//! stop; by that, and by its command, it is told from those of other builds on the same machine. One
//! that another build may have started as well is left alone.
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

/// A container may take this long to be started, and then to be gone. What `buildx` waited comes on
/// top, and all of it stays below an agent's grace.
const LIMIT: Duration = Duration::from_secs(3);

const POLL: Duration = Duration::from_millis(50);

/// The time between a container's start and what the engine says of it.
const CLOCK_SLACK: Duration = Duration::from_millis(300);

/// Waits until none of `steps` runs on this machine any more, and kills what the engine forgot to.
///
/// `steps` are the names of those that had begun and not ended; `stopped` is when `buildx` was told
/// to stop, and it is gone. What may not be killed may go on, and the log says so.
pub(super) async fn end_steps(steps: Vec<String>, stopped: Instant, log: &JobLog) {
    if steps.is_empty() {
        return;
    }
    let since = ticks_at(stopped.elapsed() + CLOCK_SLACK);
    let give_up = Instant::now() + LIMIT;
    let (mut was_seen, mut why) = (false, "");
    while Instant::now() < give_up {
        let names = steps.clone();
        let running = spawn_blocking(move || containers_of(&names)).await.unwrap_or_default();
        if running.is_empty() && was_seen {
            return;
        }
        was_seen |= !running.is_empty();
        for container in running.iter().filter(|container| container.began >= since) {
            if container.is_shared {
                why = ", or be that of another build here with the same command";
            } else if !container.kill() {
                why = "; this agent may not kill it";
            }
        }
        sleep(POLL).await;
    }
    if was_seen {
        log.warn(&format!("the Docker engine did not stop {:?}: it may still run{why}", steps[0]));
    }
}

/// A container of `BuildKit`, as /proc shows it.
#[derive(Debug, Default)]
struct Container {
    processes: Vec<Pid>,
    /// When its first process was started, in clock ticks since the machine's boot.
    began: u64,
    /// The command of its first process.
    command: String,
    /// Whether another build on this machine may have started it.
    is_shared: bool,
}

impl Container {
    /// Whether it may be killed, or is gone.
    fn kill(&self) -> bool {
        let mut results = self.processes.iter().map(|process| kill(*process, Signal::SIGKILL));
        results.all(|result| matches!(result, Ok(()) | Err(Errno::ESRCH)))
    }

    fn add(&mut self, process: Pid, began: u64, command: String) {
        if self.processes.is_empty() || began < self.began {
            (self.began, self.command) = (began, command);
        }
        self.processes.push(process);
    }
}

fn containers_of(steps: &[String]) -> Vec<Container> {
    let mut containers: BTreeMap<String, Container> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends meanwhile has none of these files.
        let read = |file: &str| fs::read(entry.path().join(file)).ok();
        let text = |file: &str| read(file).map(|it| String::from_utf8_lossy(&it).into_owned());
        let id = text("cgroup").and_then(|groups| container_id(&groups).map(str::to_owned));
        let began = text("stat").and_then(|stat| start_ticks(&stat));
        if let (Some(id), Some(began), Some(command)) = (id, began, text("cmdline")) {
            containers.entry(id).or_default().add(Pid::from_raw(process), began, command);
        }
    }
    let is_ours = |container: &Container| steps.iter().any(|it| is_command(&container.command, it));
    let mut containers: Vec<_> = containers.into_values().filter(is_ours).collect();
    if !containers.is_empty() {
        // Later than the containers: whoever started one of them is there, or has ended it.
        let builds = running_builds();
        for container in &mut containers {
            container.is_shared =
                builds.iter().any(|build| may_run(build.as_deref(), &container.command));
        }
    }
    containers
}

/// The Dockerfiles of all builds whose client runs on this machine; `None`: it cannot be read.
fn running_builds() -> Vec<Option<String>> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let builds = processes.filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        let file = dockerfile(&command.split_terminator('\0').collect::<Vec<_>>())?;
        // One that is given by its full path replaces the folder.
        Some(fs::read_to_string(process.path().join("cwd").join(file)).ok())
    });
    builds.collect()
}

/// The Dockerfile that the command `arguments` builds, if it is one that builds.
fn dockerfile(arguments: &[&str]) -> Option<String> {
    let (program, arguments) = arguments.split_first()?;
    let name = Path::new(program).file_name()?.to_str()?;
    let is_client = ["docker", "docker-buildx", "docker-compose", "buildctl"].contains(&name);
    if !is_client || !arguments.iter().take(3).any(|it| ["build", "bake"].contains(it)) {
        return None;
    }
    let option = arguments.iter().position(|it| ["-f", "--file"].contains(it));
    let file = option.and_then(|at| arguments.get(at + 1).copied());
    let file = file.or_else(|| arguments.iter().find_map(|it| it.strip_prefix("--file=")));
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

/// The 22nd field of `stat`. The second is the process's name in brackets, which may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The time `ago`, in clock ticks since the machine's boot.
fn ticks_at(ago: Duration) -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_whitespace().next().and_then(|text| text.parse().ok());
    // Without it nothing is new enough to be killed.
    let uptime = uptime.map_or(Duration::MAX, Duration::from_secs_f64);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let millis = u64::try_from(uptime.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX);
    millis.saturating_mul(u64::try_from(per_second).unwrap_or(100)) / 1_000
}

/// Whether `command` is what the step `name` runs. The command has `$VERSION` where the name may have
/// its value, and the name of a script (`RUN <<EOF (set -e...)`) holds its first line alone.
fn is_command(command: &str, name: &str) -> bool {
    let Some((_, run)) = name.split_once("] RUN ") else { return false };
    let (command, run) = (words(script(command)), words(run));
    match run.iter().position(|word| word.starts_with("<<")) {
        Some(script) => is_within(&run[script + 1..], &command),
        None => is_within(&command, &run),
    }
}

/// What a shell is given to run; all of a command without a shell.
fn script(command: &str) -> &str {
    command.split_once("\0-c\0").map_or(command, |(_, script)| script)
}

/// The words of a command, without quotes, brackets, and what a variable stands for.
fn words(text: &str) -> Vec<&str> {
    let is_between = |it: char| it.is_whitespace() || "\0\"'`[](){},;&|=".contains(it);
    let text = text.trim_end_matches("...)");
    text.split(is_between).filter(|word| !word.is_empty() && !word.contains('$')).collect()
}

/// Whether `few` are all among `many`, in the same order.
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
    fn a_command_is_told_from_others() {
        let is = |command: &str, name: &str| is_command(&command.replace(' ', "\0"), name);
        assert!(is_command("/bin/sh\0-c\0npm ci && sleep 5\0", "[2/2] RUN npm ci && sleep 5"));
        assert!(is_command("/bin/sh\0-c\0get $URL/a -o x\0", "[b 2/9] RUN get http://c/a -o x"));
        assert!(is_command("/bin/sh\0-c\0make\0", "[2/2] RUN --mount=type=cache,target=/c make"));
        assert!(is(
            "/bin/busybox --install -s",
            r#"[2/2] RUN ["/bin/busybox", "--install", "-s"]"#
        ));
        assert!(is_command("/bin/sh\0-c\0set -e\nmake\n\0", "[2/2] RUN <<EOF (set -e...)"));
        assert!(!is_command("/bin/sh\0-c\0sleep 6\0", "[2/2] RUN sleep 5"));
        assert!(!is_command("/bin/sh\0-c\0set -x\nmake\n\0", "[2/2] RUN <<EOF (set -e...)"));
        assert!(!is_command("/bin/sh\0-c\0$X\0", "[2/2] RUN make"));
        assert!(!is_command("/bin/sh\0-c\0make\0", "[2/2] COPY make /"));
    }

    #[test]
    fn another_builds_command_is_known() {
        let may_run = |file: &str, command| may_run(Some(file), command);
        let file =
            "FROM a\nRUN npm ci && \\\n  # why\n  get $URL/a\nRUN <<EOF\nset -e\nmake\nEOF\n";
        assert!(may_run(file, "/bin/sh\0-c\0npm ci &&   get $URL/a\0"));
        assert!(may_run(file, "/bin/sh\0-c\0set -e\nmake\n\0"));
        assert!(!may_run(file, "/bin/sh\0-c\0npm test\0"));
        assert!(super::may_run(None, "/bin/sh\0-c\0npm test\0"));

        let dockerfile = |text: &str| dockerfile(&text.split(' ').collect::<Vec<_>>());
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
        // The kernel does not show its arguments before it runs.
        let begun = client.stdout.take().unwrap().read_exact(&mut [0; 6]);
        begun.unwrap();
        let builds = running_builds();
        drop(client.stdin.take());
        client.wait().unwrap();
        assert!(builds.contains(&Some("RUN echo found\n".to_owned())), "{builds:?}");
    }

    #[test]
    fn the_kernels_words_are_read() {
        let id = |text| container_id(text);
        assert_eq!(id("9:x:/other\n8:pids:/docker/buildkit/abc\n"), Some("abc"));
        assert_eq!(id("0::/system.slice/docker.service/buildkit/abc/init\n"), Some("abc"));
        assert_eq!(id("0::/system.slice/system.slice:docker:abc\n"), Some("abc"));
        assert_eq!(id("8:pids:/my.slice:docker:abc/init\n0::/\n"), Some("abc"));
        assert_eq!(id("0::/docker/abc\n"), None);
        assert_eq!(id("0::/system.slice/docker-abc.scope\n"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let began = start_ticks(&own).unwrap();
        assert!(began > 0 && began <= ticks_at(Duration::ZERO));
        assert_eq!(ticks_at(Duration::MAX), 0);
    }
}
