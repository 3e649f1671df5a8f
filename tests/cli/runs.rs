//! `stagely run` without a server: core and the folder's Git server inside the command.

use std::fs::OpenOptions;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use stagely_test_support::git::Repository;
use stagely_test_support::processes::processes_with;
use stagely_test_support::wait::eventually_blocking;

use crate::person::{Ended, Person};

const YAML: &str = "builds:\n  app: {context: .}\n";

#[test]
fn a_folder_is_built_pushed_and_reported() {
    let person = Person::new("folder");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\nRUN echo built here\n")]);

    let ended = person.does(&["run"]).with(0);

    assert!(ended.stderr.contains("app | "), "{}", ended.stderr);
    assert!(ended.stderr.contains(" built here"), "{}", ended.stderr);
    assert!(!ended.stdout.contains(" built here"), "{}", ended.stdout);
    assert!(ended.stdout.contains("linux/amd64  completed  sha256:"), "{}", ended.stdout);
    let project = format!("{}/main:app-amd64@sha256:", person.name);
    let image = ended.stdout.lines().find(|line| line.contains(&project)).expect("an image");
    inspect(image);

    // The records are available to later commands.
    let runs: Value =
        serde_json::from_str(&person.does(&["runs", "--json"]).with(0).stdout).unwrap();
    let run = runs[0]["id"].as_str().unwrap();
    assert_eq!(runs[0]["project"], person.name.as_str());
    assert!(person.does(&["runs"]).with(0).stdout.contains("completed"));
    let jobs = person.does(&["jobs", run, "--json"]).with(0).stdout;
    let jobs: Value = serde_json::from_str(&jobs).unwrap();
    let job = jobs[0]["id"].as_str().unwrap();
    assert!(person.does(&["jobs", run]).with(0).stdout.contains(job));
    let log = person.does(&["logs", job]).with(0).stdout;
    assert!(log.contains(" built here\n"), "{log}");
    assert_eq!(person.does(&["logs", "--follow", job]).with(0).stdout, log);
    let explained = person.does(&["explain", run]).with(0).stdout;
    assert!(explained.contains("] RUN echo built here"), "{explained}");
    assert_eq!(person.does(&["explain", job]).with(0).stdout, explained);
    assert_eq!(person.does(&["explain", run, "app"]).with(0).stdout, explained);
    let json = person.does(&["explain", job, "--json"]).with(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["id"], job);
    let error = person.does(&["explain", run, "web"]).with(4).stderr;
    assert!(error.contains("has no job \"web\""), "{error}");
    let later = person.does(&["logs", "--from", "3", job]).with(0).stdout;
    assert_eq!(later.lines().next(), log.lines().nth(3));
    person.leaves_nothing();
}

#[test]
fn a_completed_run_whose_result_cannot_be_printed_is_no_success() {
    let person = Person::new("full");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\n")]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut run = person.stagely(&["run", "--json"]);
    let ended = Ended::from(run.stdout(full).output().unwrap()).with(4);
    assert!(ended.stderr.contains("error: the result cannot be printed: "), "{}", ended.stderr);
    person.leaves_nothing();
}

#[test]
fn a_folders_run_that_is_rebuilt_after_its_command_has_ended_fails_at_once() {
    let person = Person::new("rebuilt");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\nRUN false\n")]);
    person.does(&["run"]).with(1);
    let runs: Value =
        serde_json::from_str(&person.does(&["runs", "--json"]).with(0).stdout).unwrap();
    let started = Instant::now();

    let ended = person.does(&["rebuild", runs[0]["id"].as_str().unwrap()]).with(3);

    let words = "The run was made from a folder, by a command that has ended: start it again with `stagely run`";
    assert!(ended.stdout.contains(words), "{}\n{}", ended.stdout, ended.stderr);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    person.leaves_nothing();
}

#[test]
fn an_unknown_base_is_reported_before_core_starts() {
    let person = Person::new("base");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\n")]);
    let error = person.does(&["run", "--base", "nowhere"]).with(4).stderr;
    assert!(error.contains("no branch, tag or commit \"nowhere\""), "{error}");
}

/// Checks that the registry has the image.
fn inspect(image: &str) {
    let config = tempfile::tempdir().unwrap();
    let setting = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let password = std::fs::File::open(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
    let username = setting("STAGELY_REGISTRY_USERNAME");
    let mut login = Command::new("docker");
    login.args(["login", "--username", &username, "--password-stdin"]);
    login.arg(setting("STAGELY_REGISTRY")).stdin(password).env("DOCKER_CONFIG", config.path());
    assert!(login.output().unwrap().status.success());
    let mut inspect = Command::new("docker");
    inspect.args(["buildx", "imagetools", "inspect", image]).env("DOCKER_CONFIG", config.path());
    let output = inspect.output().unwrap();
    assert!(output.status.success(), "{image}: {output:?}");
}

#[test]
fn dirty_includes_uncommitted_changes_and_json_is_the_only_output() {
    let person = Person::new("dirty");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\nCOPY said /\n")]);
    person.write(&[("said", "not committed")]);
    let run: Value =
        serde_json::from_str(&person.does(&["run", "--dirty", "--json"]).with(0).stdout).unwrap();
    assert_eq!(run["status"], "completed");
    assert_eq!(run["jobs"][0]["status"], "completed");
    assert_eq!(person.git(&["status", "--short"]), "?? said");
    // The commit lacks the file.
    let ended = person.does(&["run", "--ref", "main"]).with(1);
    assert!(ended.stdout.contains("app failed: "), "{}", ended.stdout);
}

#[test]
fn secrets_of_the_command_line_reach_the_build_and_nothing_else() {
    let person = Person::new("secrets");
    let dockerfile = "FROM busybox\nARG API_TOKEN\nARG PLAIN\nRUN echo \"$API_TOKEN $PLAIN\" | \
                      tee /said && test $(wc -c < /said) = 27\n";
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", dockerfile)]);
    let mut command = person.stagely(&["run", "--set", "API_TOKEN", "--set", "PLAIN=value"]);
    let output = command.env("API_TOKEN", "s3cr3t-of-20-letters").output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("*** value") && !text.contains("s3cr3t-of"), "{text}");
}

#[test]
fn the_exit_code_depends_on_the_cause_of_a_failure() {
    let person = Person::new("failures");
    let yaml = "builds:\n  good: {context: good}\n  bad: {context: bad}\n";
    person.commit(&[
        ("stagely.yaml", yaml),
        ("good/Dockerfile", "FROM busybox\nRUN sleep 1\n"),
        ("bad/Dockerfile", "FROM busybox\nRUN echo the reason; exit 9\n"),
    ]);
    let ended = person.does(&["run"]).with(1);
    assert!(ended.stdout.contains("bad failed: "), "{}", ended.stdout);
    assert!(ended.stdout.contains("the reason"), "{}", ended.stdout);
    assert!(ended.stdout.contains("exit code: 9"), "{}", ended.stdout);
    assert!(ended.stdout.contains("stagely logs job_"), "{}", ended.stdout);
    assert!(ended.stdout.contains("good  linux/amd64  completed"), "{}", ended.stdout);

    person.commit(&[("bad/Dockerfile", "FROM busybox\nRUN exit 137\n")]);
    let killed = person.does(&["run", "--build", "bad"]).with(1).stdout;
    assert!(
        killed.contains("memory probably ran out, and a larger `machine` has more"),
        "{killed}"
    );

    // Nobody's registry, so neither a user's mistake nor worth a wait.
    person.commit(&[("bad/Dockerfile", "FROM registry.invalid/team/base:1\n")]);
    let begun = Instant::now();
    let away = person.does(&["run", "--build", "bad"]).with(3).stdout;
    assert!(away.contains("registry.invalid"), "{away}");
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());

    let ended = person.does(&["run", "--build", "god"]).with(1);
    assert!(ended.stdout.contains("did you mean `good`"), "{}", ended.stdout);
    person.commit(&[("stagely.yaml", "builds:\n  good: {contxt: good}\n")]);
    let ended = person.does(&["run"]).with(1);
    assert!(ended.stdout.contains("stagely.yaml:2:"), "{}", ended.stdout);

    // A wrong password is not a failure of the build.
    person.commit(&[("stagely.yaml", yaml)]);
    let wrong = person.path("password");
    std::fs::write(&wrong, "wrong").unwrap();
    let wrong = wrong.to_str().unwrap();
    let ended = person.does(&["run", "--build", "good", "--registry-password-file", wrong]).with(3);
    assert!(ended.stdout.contains("cannot log in to"), "{}", ended.stdout);
    person.leaves_nothing();
}

/// Commits a build that sleeps until it is stopped and can be found among the processes.
fn sleeping(person: &Person) {
    let dockerfile = format!("FROM busybox\nRUN echo asleep; sleep 3600 # {}\n", person.name);
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", &dockerfile)]);
}

#[test]
fn the_first_ctrl_c_cancels_and_cleans_up() {
    let person = Person::new("interrupt");
    sleeping(&person);
    let run = person.starts(&["run"]);
    run.says(" asleep");
    run.send(Signal::SIGINT);
    let ended = run.ends().with(130);
    assert!(ended.stderr.contains("press Ctrl-C again to leave at once"), "{}", ended.stderr);
    assert!(ended.stdout.contains("cancelled"), "{}", ended.stdout);
    person.leaves_nothing();
}

#[test]
fn the_second_ctrl_c_leaves_at_once_and_the_next_command_ends_the_build() {
    let person = Person::new("leave");
    sleeping(&person);
    let run = person.starts(&["run"]);
    run.says(" asleep");
    let begun = Instant::now();
    run.send(Signal::SIGINT);
    run.says("Cancelling");
    run.send(Signal::SIGINT);
    run.ends().with(130);
    assert!(begun.elapsed() < Duration::from_secs(30));
    eventually_blocking("the builder is ended", || {
        person.does(&["runs"]).with(0);
        processes_with(&person.name).is_empty().then_some(())
    });
    assert!(person.does(&["runs"]).with(0).stdout.contains("cancelled"));
    person.leaves_nothing();
}

#[test]
fn the_next_run_cancels_a_killed_run() {
    let person = Person::new("killed");
    sleeping(&person);
    let run = person.starts(&["run"]);
    run.says(" asleep");
    run.send(Signal::SIGKILL);
    run.ends();
    // Builders end with their command.
    eventually_blocking("the builder is ended", || {
        processes_with(&person.name).is_empty().then_some(())
    });
    person.commit(&[("Dockerfile", "FROM busybox\n")]);
    person.does(&["run"]).with(0);
    let runs: Value =
        serde_json::from_str(&person.does(&["runs", "--json"]).with(0).stdout).unwrap();
    assert_eq!(
        (&runs[0]["status"], &runs[1]["status"]),
        (&"completed".into(), &"cancelled".into())
    );
}

#[test]
fn a_run_whose_output_nobody_reads_any_more_is_cancelled() {
    let person = Person::new("pipe");
    sleeping(&person);
    // Standard output has no line before the end of the run.
    for rest in ["2>&1 | head -c 1", "2>/dev/null | sleep 4"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{} run {rest}", env!("CARGO_BIN_EXE_stagely"))]);
        for (name, value) in person.stagely(&[]).get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let begun = Instant::now();
        shell.current_dir(person.repository()).output().unwrap();
        assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
        person.leaves_nothing();
        let runs = person.does(&["runs", "--json"]).with(0).stdout;
        let runs: Value = serde_json::from_str(&runs).unwrap();
        assert_eq!(runs[0]["status"], "cancelled");
    }
}

#[test]
fn runs_of_one_folder_at_the_same_time_can_be_listed_and_cancelled_and_are_found_later() {
    let person = Person::new("two");
    sleeping(&person);
    let first = person.starts(&["run"]);
    first.says(" asleep");
    let second = person.starts(&["run"]);
    second.says(" asleep");
    let runs = || -> Vec<Value> {
        serde_json::from_str(&person.does(&["runs", "--json"]).with(0).stdout).unwrap()
    };
    let both = runs();
    assert_eq!(both.len(), 2);
    assert!(both.iter().all(|run| run["status"] == "building"), "{both:?}");
    let machines = person.does(&["machines"]).with(0).stdout;
    assert_eq!(machines.matches("connected").count(), 2, "{machines}");
    assert!(person.does(&["queue"]).with(0).stdout.contains("2 of "));
    // The newest is that of the second command, whose core is not the first one's.
    let cancelled = person.does(&["cancel", both[0]["id"].as_str().unwrap()]).with(0).stdout;
    assert!(cancelled.contains("is cancelled"), "{cancelled}");
    second.ends().with(130);
    first.send(Signal::SIGTERM);
    first.ends().with(130);

    for run in runs() {
        assert_eq!(run["status"], "cancelled");
        let jobs = person.does(&["jobs", run["id"].as_str().unwrap(), "--json"]).with(0).stdout;
        let jobs: Value = serde_json::from_str(&jobs).unwrap();
        let job = jobs[0]["id"].as_str().unwrap();
        assert!(person.does(&["logs", job]).with(0).stdout.contains(" asleep"));
        person.does(&["explain", job]).with(0);
    }
    let unknown = person.does(&["jobs", "run_01k9x3v5c8q2m4n6p8r0s2t4v6"]).with(4).stderr;
    assert!(unknown.contains("there is no run"), "{unknown}");
    person.leaves_nothing();
}

#[test]
fn on_a_terminal_each_job_has_one_line_even_if_it_is_retried() {
    let person = Person::new("terminal");
    sleeping(&person);
    let run = person.starts_at_terminal("run");
    run.says("RUN echo asleep");
    let machines = person.path("state/stagely/machines");
    let mut agents = processes_with(machines.to_str().unwrap());
    agents.retain(|process| process.arguments.iter().any(|argument| argument == "agent"));
    assert_eq!(agents.len(), 1, "{agents:?}");
    agents[0].kill();
    run.says("attempt 1 was lost");
    run.says("starting");
    eventually_blocking("the second attempt sleeps", || {
        let shown = run.shown();
        let (_, second) = shown.split_once("starting")?;
        second.contains("RUN echo asleep").then_some(())
    });
    run.interrupts_at_terminal();
    let ended = run.ends().with(130);
    assert!(ended.stderr.contains("- app cancelled"), "{}", ended.stderr);
    assert!(ended.stderr.contains("JOB  PLATFORM"), "{}", ended.stderr);
    person.leaves_nothing();
}

#[test]
fn a_trace_log_contains_no_secret() {
    let person = Person::new("trace");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\n")]);
    let output = person.stagely(&["run"]).env("STAGELY_LOG", "trace").output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && log.contains(" DEBUG "), "{log}");
    let password = std::env::var("STAGELY_REGISTRY_PASSWORD_FILE").unwrap();
    let password = std::fs::read_to_string(password).unwrap();
    let token = std::fs::read_to_string(person.path("state/stagely/admin.token")).unwrap();
    for secret in ["stagely_vm_", password.trim(), token.trim()] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[test]
fn a_folder_is_built_whole_whatever_is_checked_out() {
    let person = Person::new("whole");
    let lib = Repository::create(person.path("lib"));
    lib.commit(&[("text", "of the submodule")]);
    person.git(&["lfs", "install", "--local"]);
    person.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../lib"]);
    let whole = "the model, the shared file, of the submodule";
    let files = "model.bin shared/file lib/text";
    let dockerfile = format!(
        "FROM busybox\nWORKDIR /src\nCOPY . .\nRUN test \"$(cat {files})\" = \"{whole}\"\n"
    );
    person.commit(&[
        ("stagely.yaml", YAML),
        ("Dockerfile", &dockerfile),
        (".gitattributes", "*.bin filter=lfs -text\n"),
        ("model.bin", "the model, "),
        ("shared/file", "the shared file, "),
        ("app/file", ""),
    ]);
    person.git(&["sparse-checkout", "set", "--cone", "--sparse-index", "app"]);
    assert!(!person.repository().join("shared").exists());
    for arguments in [&["run"][..], &["run", "--dirty"]] {
        let mut command = person.stagely(arguments);
        // As in a hook of another repository.
        command.env("GIT_DIR", "/nowhere/.git").env("GIT_INDEX_FILE", "/nowhere/index");
        Ended::from(command.output().unwrap()).with(0);
    }

    let without = format!("submodules: false\n{YAML}");
    person.write(&[("stagely.yaml", &without)]);
    let ended = person.does(&["run", "--dirty"]).with(1);
    assert!(ended.stderr.contains("can't open 'lib/text'"), "{}", ended.stderr);
}
