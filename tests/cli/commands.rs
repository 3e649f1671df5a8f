//! Commands without a run: help, completions, mistakes on the command line, `doctor`.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::person::{Ended, Person, Running};

#[test]
fn every_command_has_help() {
    let person = Person::new("help");
    let help = person.does(&["--help"]).with(0).stdout;
    assert!(person.does(&["--version"]).with(0).stdout.starts_with("stagely "));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for command in [
        "run",
        "rebuild",
        "warm",
        "validate",
        "runs",
        "jobs",
        "logs",
        "explain",
        "cancel",
        "approve",
        "project",
        "secret",
        "github",
        "environments",
        "machines",
        "previews",
        "sweep",
        "fleets",
        "doctor",
    ] {
        assert!(commands.contains(&command), "{command} is not in {commands:?}");
    }
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = person.does(&[command, "--help"]).with(0).stdout;
        assert!(help.contains("Usage: stagely"), "{command}: {help}");
    }
    for command in ["run", "rebuild", "warm"] {
        let help = person.does(&[command, "--help"]).with(0).stdout;
        assert!(help.contains("130  the run was cancelled"), "{help}");
        assert!(help.contains("--clone-token-file") && help.contains("--detach"), "{help}");
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    let person = Person::new("shells");
    for shell in ["bash", "zsh", "fish"] {
        let script = person.does(&["completions", shell]).with(0).stdout;
        assert!(script.contains("stagely") && script.contains("clone-token-file"), "{shell}");
        assert!(script.contains("dry-run") && script.contains("fleets"), "{shell}");
    }
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    let person = Person::new("mistakes");
    for arguments in [
        &["rum"][..],
        &["run", "--dirty", "--ref", "main"],
        &["run", "--set", "NOT_IN_THE_ENVIRONMENT"],
        &["run", "--pull-request", "7", "--environment", "mine"],
        &["logs", "not-a-job"],
        &["explain", "not-a-job"],
        &["rebuild", "not-a-run"],
        &["warm", "--branch", "main"],
        &["environments", "close"],
        &["cancel"],
        &["machines", "add", "--arch", "mips"],
        &["machines", "add", "--arch", "amd64", "--fleet", "builders"],
        &["previews", "sleep"],
        &["previews", "logs", "pr-7", "--tail", "all"],
        &["token", "create", "ci", "--role", "owner"],
        &["secret", "set", "shop"],
        &["secret", "set", "shop", "KEY", "value"],
        &["secret", "list"],
    ] {
        let error = person.does(arguments).with(2).stderr;
        assert!(error.starts_with("error: "), "{arguments:?}: {error}");
    }
}

#[test]
fn an_unreachable_core_is_reported_with_advice() {
    let person = Person::new("nobody");
    let error = person.does(&["machines"]).with(4).stderr;
    assert!(error.contains("no core runs on") && error.contains("--server"), "{error}");
    let error = person.does(&["runs", "--server", "http://127.0.0.1:1"]).with(4).stderr;
    assert!(error.contains("STAGELY_TOKEN"), "{error}");
    let mut command = person.stagely(&["runs", "--server", "http://127.0.0.1:1"]);
    let output = command.env("STAGELY_TOKEN", "token-of-nobody").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is `stagely core` running there?"), "{error}");
    assert!(!error.contains("token-of-nobody"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_built_is_reported() {
    let person = Person::new("folders");
    let registry = ["--registry", "127.0.0.1:1"];
    let run =
        |folder: &str| person.does(&[&["run", folder][..], &registry].concat()).with(4).stderr;
    assert!(run(".").contains("has no commit yet"), "{}", run("."));
    let error = run(person.path("tmp").to_str().unwrap());
    assert!(error.contains("is not in a Git repository"), "{error}");
    person.commit(&[("stagely.yaml", "builds: {}\n")]);
    person.write(&[("more", "")]);
    let error = run(".");
    assert!(error.contains("1 file is changed and not committed: more"), "{error}");
    assert!(error.contains("--dirty"), "{error}");
}

#[test]
fn wrong_settings_of_the_engine_are_reported_at_once() {
    let person = Person::new("engine");
    person.commit(&[("stagely.yaml", "builds: {a: {context: .}}\n"), ("Dockerfile", "FROM a\n")]);
    let missing = person.path("no-certificates");
    let missing = missing.to_str().unwrap();
    let tls = [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_HOST", "tcp://127.0.0.1:2376")];
    let cases = [
        (vec![("DOCKER_HOST", "nonsense")], "\"nonsense\" (DOCKER_HOST) is no address"),
        (tls.to_vec(), "DOCKER_CERT_PATH"),
        ([&tls[..], &[("DOCKER_CERT_PATH", missing)]].concat(), missing),
    ];
    for (variables, words) in cases {
        let started = Instant::now();
        let mut command = person.stagely(&["run"]);
        let ended = Ended::from(command.envs(variables).output().unwrap()).with(4);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn validate_prints_every_mistake_and_exits_with_1() {
    let person = Person::new("validate");
    let yaml = "builds:\n  a: {context: ., platfrom: linux/amd64}\n  b: {context: ../up}\n";
    person.write(&[("stagely.yaml", yaml), ("Dockerfile", "FROM scratch\n")]);
    let mistakes = person.does(&["validate"]).with(1).stdout;
    assert!(mistakes.contains("stagely.yaml:2:"), "{mistakes}");
    assert!(mistakes.contains("did you mean `platform`"), "{mistakes}");
    assert!(mistakes.contains("stagely.yaml:3:"), "{mistakes}");
    let report = person.does(&["validate", "--json"]).with(1).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["valid"], false);
    let schema: Value = serde_json::from_str(&person.does(&["schema"]).with(0).stdout).unwrap();
    assert_eq!(schema["title"], "stagely.yaml");
}

#[test]
fn doctor_reports_working_and_broken_parts() {
    let person = Person::new("doctor");
    let findings = |arguments: &[&str], code| -> Vec<Value> {
        let report =
            person.does(&[&["doctor", "--json"][..], arguments].concat()).with(code).stdout;
        serde_json::from_str(&report).unwrap()
    };
    let verdict = |findings: &[Value], check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check).unwrap();
        finding["verdict"].as_str().unwrap().to_owned()
    };
    let found = findings(&[], 0);
    for check in
        ["docker", "buildx", "compose", "cache export", "emulation", "registry", "git", "disk"]
    {
        assert_eq!(verdict(&found, check), "ok", "{found:#?}");
    }
    let wrong = ["--docker-host", "unix:///nowhere.sock", "--registry", "127.0.0.1:1"];
    let found = findings(&wrong, 1);
    for check in ["docker", "registry"] {
        assert_eq!(verdict(&found, check), "error", "{found:#?}");
    }
    assert!(
        found.iter().all(|finding| finding["verdict"] == "ok" || finding["fix"].is_string()),
        "{found:#?}"
    );
    let text = person.does(&["doctor"]).with(0).stdout;
    assert!(text.contains("ok       docker"), "{text}");
}

#[test]
fn a_silent_core_is_waited_for_with_a_word() {
    let person = Person::new("silent");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let mut command = person.stagely(&["runs", "--server", &server]);
    command.env("STAGELY_TOKEN", "token");
    let begun = Instant::now();
    let run = Running::of(command);
    run.says(&format!("Waiting for core at {server}/, for 1m at most"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
    let ended = run.ends().with(4);
    assert!(ended.stderr.contains("cannot reach core"), "{}", ended.stderr);
}

#[test]
fn fleets_shows_the_machines_of_a_configuration_and_refuses_an_invalid_one() {
    let person = Person::new("fleets");
    let settings = "core.public-url = \"https://core.example\"\nregistry.url = \"registry.example\"\n\
                    builders = { provider = \"aws\", market = \"spot-first\" }\n";
    person.write(&[
        ("right.toml", settings),
        ("wrong.toml", "aws.builders.amd64.large = [\"c5.2xlagre\"]\n"),
    ]);
    let shown = person.does(&["fleets", "--config", "right.toml"]).with(0).stdout;
    let row = |line: &&str| line.starts_with("builder") && line.contains(" large ");
    let row = shown.lines().find(row).unwrap();
    for word in ["amd64", "aws", "spot-first", "c5.2xlarge $0.340"] {
        assert!(row.contains(word), "{word}: {shown}");
    }
    let json = person.does(&["fleets", "--config", "right.toml", "--json"]).with(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["arch"], "arm64");
    assert_eq!(json[1]["sizes"][0]["instance_types"][0]["price_per_hour_usd"], 0.0168);
    let error = person.does(&["fleets", "--config", "wrong.toml"]).with(4).stderr;
    assert!(error.contains("amd64.large names c5.2xlagre"), "{error}");
    assert!(person.does(&["fleets"]).with(0).stdout.contains("core's own host"));
}
