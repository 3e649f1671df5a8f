//! The commands with a core in a process of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stagely_test_support::ports::free_port;
use stagely_test_support::processes::processes_with;
use stagely_test_support::wait::eventually_blocking;

use crate::person::{Ended, Person, Running};

/// A core on a data folder of this user.
pub(crate) struct Server<'a> {
    person: &'a Person,
    pub(crate) url: String,
    process: Running,
}

impl<'a> Server<'a> {
    pub(crate) fn start(person: &'a Person) -> Self {
        Self::start_with(person, &[])
    }

    pub(crate) fn start_with(person: &'a Person, arguments: &[&str]) -> Self {
        Self::start_as(person, person.stagely(&[&["core"], arguments].concat()))
    }

    /// Starts `core`, a command without an address and a data folder.
    pub(crate) fn start_as(person: &'a Person, mut core: Command) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        core.args(["--listen", &listen, "--data-dir"]).arg(person.path("data"));
        let process = Running::of(core);
        eventually_blocking("core listens", || {
            fs::read_to_string(person.path("data/core.url")).ok()
        });
        Self { person, url: format!("http://{listen}"), process }
    }

    /// Creates a token with the admin token in the data folder.
    pub(crate) fn token(&self, role: &str) -> String {
        let data = self.person.path("data");
        let arguments =
            ["token", "create", "a test", "--role", role, "--data-dir", data.to_str().unwrap()];
        self.person.does(&arguments).with(0).stdout.trim().to_owned()
    }

    pub(crate) fn does(&self, token: &str, arguments: &[&str]) -> Ended {
        self.stagely(token, arguments).output().unwrap().into()
    }

    pub(crate) fn stagely(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = self.person.stagely(arguments);
        command.env("STAGELY_SERVER", &self.url).env("STAGELY_TOKEN", token);
        command
    }

    pub(crate) fn ends(self) -> Ended {
        self.process.send(Signal::SIGTERM);
        self.process.ends().with(0)
    }
}

#[test]
fn a_folder_is_built_by_a_core_on_the_same_machine() {
    let person = Person::new("server");
    let dockerfile = "FROM busybox\nRUN echo built there\n";
    person.commit(&[("stagely.yaml", "builds: {app: {context: .}}\n"), ("Dockerfile", dockerfile)]);
    let server = Server::start(&person);
    let writer = server.token("write");

    let ended = server.does(&writer, &["run"]).with(0);
    assert!(ended.stderr.contains(" built there"), "{}", ended.stderr);
    let runs = server.does(&server.token("read"), &["runs", "--json"]).with(0).stdout;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    assert_eq!(runs[0]["status"], "completed");

    let refused = server.does(&server.token("read"), &["run"]).with(4).stderr;
    assert!(refused.contains("a token of role `read` may not do this"), "{refused}");
    let refused = server.does(&writer, &["token", "create", "x", "--role", "admin"]).with(4).stderr;
    assert!(refused.contains("role `write`"), "{refused}");
    let refused = server.does("wrong", &["runs"]).with(4).stderr;
    assert!(refused.contains("stagely token create"), "{refused}");
    let unknown = ["logs", "-f", "job_01k9x3v5c8q2m4n6p8r0s2t4v6"];
    assert!(server.does(&writer, &unknown).with(4).stderr.contains("there is no job"));

    // The builder exports its layer cache after the run has ended, and outlives a stopped core.
    let machines = person.path("data/machines").display().to_string();
    eventually_blocking("no builder is left", || {
        processes_with(&machines).is_empty().then_some(())
    });
    server.ends();
    assert!(!person.path("data/core.url").exists());
    person.leaves_nothing();
}

#[test]
fn a_run_can_be_started_followed_and_cancelled_by_separate_commands() {
    let person = Person::new("detached");
    let server = Server::start(&person);
    let admin = server.token("admin");
    // A detached command cannot serve its folder.
    person.commit(&[("stagely.yaml", "builds: {app: {context: .}}\n")]);
    let refused = server.does(&admin, &["run", "--detach"]).with(4).stderr;
    assert!(refused.contains("no remote `origin`"), "{refused}");
    // This server takes connections and answers none, so the run waits until it is cancelled.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/r.git", silent.local_addr().unwrap());
    let started = server.does(&admin, &["run", &address, "--detach"]).with(0);
    let run = started.stdout.trim();
    assert!(run.starts_with("run_"), "{run}");
    let cancelled = server.does(&admin, &["cancel", run]).with(0).stdout;
    assert_eq!(cancelled, format!("{run} is cancelled\n"));
    let again = server.does(&admin, &["cancel", run]).with(0).stdout;
    assert_eq!(again, cancelled);
    server.ends();
}

#[test]
fn a_core_goes_on_without_a_reader_of_its_log() {
    let person = Person::new("unread");
    let data = person.path("data");
    let mut core = person.stagely(&["core", "--listen", "127.0.0.1:0", "--data-dir"]);
    let mut core = core.arg(&data).spawn().unwrap();
    // As in `stagely core 2>&1 | logger` after the end of `logger`.
    drop((core.stdout.take(), core.stderr.take()));
    eventually_blocking("core listens", || fs::read_to_string(person.path("data/core.url")).ok());
    // Long enough for several checks of a reader.
    for _ in 0..10 {
        person.does(&["runs", "--data-dir", data.to_str().unwrap()]).with(0);
    }
    let pid = Pid::from_raw(i32::try_from(core.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(core.wait().unwrap().code(), Some(0));
}

/// Serves the repositories in a user's home with Git's own server, until it is dropped.
pub(crate) struct GitDaemon(Child, u16);

impl GitDaemon {
    pub(crate) fn of(person: &Person) -> Self {
        let port = free_port();
        person.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
        let mut daemon = Command::new("git");
        daemon.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]);
        daemon.arg(format!("--port={port}"));
        daemon.arg(format!("--base-path={}", person.path("").display()));
        daemon.env("HOME", person.path("")).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Self(daemon.spawn().unwrap(), port);
        eventually_blocking("git daemon listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        daemon
    }

    pub(crate) fn url(&self, person: &Person) -> String {
        format!("git://127.0.0.1:{}/{}", self.1, person.name)
    }
}

impl Drop for GitDaemon {
    fn drop(&mut self) {
        // `git` forwards signals to the daemon that it started.
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn rebuild_failed_builds_only_failed_jobs_with_new_arguments() {
    let person = Person::new("rebuild");
    person.commit(&[
        ("stagely.yaml", "builds:\n  good: {context: good}\n  bad: {context: bad}\n"),
        ("good/Dockerfile", "FROM busybox\nRUN echo good\n"),
        ("bad/Dockerfile", "FROM busybox\nARG WORD=no\nRUN test \"$WORD\" = yes\n"),
    ]);
    let git = GitDaemon::of(&person);
    let server = Server::start(&person);
    let admin = server.token("admin");
    let url = git.url(&person);
    let first = server.does(&admin, &["run", &url, "--set", "WORD=no", "--json"]).with(1).stdout;
    let first: Value = serde_json::from_str(&first).unwrap();
    let id = first["id"].as_str().unwrap();

    let again = server.does(&admin, &["rebuild", id, "--failed", "--set", "WORD=yes"]).with(0);
    let reused = format!("good reused from {id}");
    assert!(again.stdout.contains(&reused), "{}", again.stdout);
    assert!(again.stdout.contains("bad   linux/amd64  completed"), "{}", again.stdout);
    let all = server.does(&admin, &["rebuild", id, "--set", "WORD=no"]).with(1);
    assert!(!all.stdout.contains("reused"), "{}", all.stdout);

    server.ends();
}

#[test]
fn caches_are_filled_and_environments_listed_and_closed() {
    let person = Person::new("warm");
    let dockerfile = "FROM busybox\nRUN echo warm\n";
    person.commit(&[("stagely.yaml", "builds: {app: {context: .}}\n"), ("Dockerfile", dockerfile)]);
    let git = GitDaemon::of(&person);
    let server = Server::start(&person);
    let admin = server.token("admin");
    let schedule = server.does(&admin, &["warm"]).with(0).stdout;
    assert!(schedule.starts_with("no warm-up is scheduled"), "{schedule}");
    let unknown = server.does(&admin, &["warm", "nobody"]).with(4).stderr;
    assert!(unknown.contains("nobody"), "{unknown}");

    let project = person.name.as_str();
    let run = ["run", &git.url(&person), "--project", project, "--pull-request", "7"];
    server.does(&admin, &run).with(0);
    let filled = server.does(&admin, &["warm", project]).with(0).stdout;
    assert!(filled.contains("caches filled: app\n") && !filled.contains("@sha256"), "{filled}");

    let listed = server.does(&admin, &["environments", "--project", project]).with(0).stdout;
    assert!(
        listed.contains("pr-7") && listed.contains("#7") && listed.contains("open"),
        "{listed}"
    );
    let closed = server.does(&admin, &["environments", "close", project, "pr-7"]).with(0).stdout;
    assert!(closed.contains("these cache refs are deleted:\n"), "{closed}");
    assert!(closed.contains(".pr-7\n") && closed.contains("is closed\n"), "{closed}");
    let error = server.does(&admin, &["environments", "close", project, "pr-8"]).with(4).stderr;
    assert!(error.contains("there is no environment pr-8"), "{error}");

    server.ends();
}

#[test]
fn a_missing_repository_is_not_a_failure_of_the_build() {
    let person = Person::new("nowhere");
    let server = Server::start(&person);
    let admin = server.token("admin");
    // Core is not a Git server: it responds with 404.
    let ended = server.does(&admin, &["run", &format!("{}/r.git", server.url)]).with(3);
    assert!(ended.stdout.contains("was not found"), "{}", ended.stdout);
    server.ends();
}

#[test]
fn machines_are_registered_and_removed() {
    let person = Person::new("machines");
    let server = Server::start(&person);
    let admin = server.token("admin");
    let added = server.does(&admin, &["machines", "add", "--arch", "arm64", "--name", "desk"]);
    let added = added.with(0);
    // A folder on the command line takes precedence over an address in the environment.
    let data = person.path("data");
    let mut elsewhere = person.stagely(&["machines", "--data-dir", data.to_str().unwrap()]);
    let elsewhere = elsewhere.env("STAGELY_SERVER", "http://127.0.0.1:1").output().unwrap();
    assert!(Ended::from(elsewhere).with(0).stdout.contains("desk"));
    assert!(added.stderr.contains("/etc/stagely/agent.json"), "{}", added.stderr);
    let agent: Value = serde_json::from_str(&added.stdout).unwrap();
    let id = agent["agent_id"].as_str().unwrap();
    assert_eq!(agent["core_url"].as_str().unwrap().trim_end_matches('/'), server.url);
    let listed = server.does(&admin, &["machines"]).with(0).stdout;
    assert!(listed.contains(id) && listed.contains("desk") && listed.contains("arm64"), "{listed}");
    assert!(!listed.contains("FLEET"), "{listed}");
    let arguments = ["machines", "add", "--arch", "amd64", "--fleet", "preview"];
    let preview: Value =
        serde_json::from_str(&server.does(&admin, &arguments).with(0).stdout).unwrap();
    let listed = server.does(&admin, &["machines"]).with(0).stdout;
    assert!(listed.contains("  preview") && listed.contains("  builder"), "{listed}");
    server.does(&admin, &["machines", "remove", preview["agent_id"].as_str().unwrap()]).with(0);
    server.does(&admin, &["machines", "remove", id]).with(0);
    assert_eq!(server.does(&admin, &["machines"]).with(0).stdout, "no machines\n");
    let all = server.does(&admin, &["machines", "--all"]).with(0).stdout;
    assert!(all.contains(id) && all.contains("terminated"), "{all}");
    let error = server.does(&admin, &["machines", "remove", id]).with(4).stderr;
    assert!(error.contains("there is no machine"), "{error}");
    server.ends();
}

#[test]
fn every_role_may_do_a_dry_sweep_and_only_an_admin_a_real_one() {
    let person = Person::new("sweeper");
    let server = Server::start(&person);
    let (reader, writer) = (server.token("read"), server.token("write"));
    let planned = server.does(&reader, &["sweep", "--dry-run", "--json"]).with(0).stdout;
    let planned: Value = serde_json::from_str(&planned).unwrap();
    assert_eq!(planned["dry_run"], true);
    assert_eq!(planned["providers"][0]["provider"], "local");
    assert_eq!(planned["providers"][0]["error"], Value::Null);
    let refused = server.does(&writer, &["sweep"]).with(4).stderr;
    assert!(refused.contains("a token of role `write` may not do this"), "{refused}");
    let swept = server.does(&server.token("admin"), &["sweep"]).with(0).stdout;
    assert!(swept.starts_with("PROVIDER  LISTED  RECORDED  DIFFERENT\nlocal "), "{swept}");
    server.ends();
}
