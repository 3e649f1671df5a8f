//! `stagely secret` with a core in a process of its own.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::person::{Ended, Person};
use crate::servers::Server;

const VALUE: &str = "value-of-nobody-else";

/// Runs `stagely secret set shop NAME` with `input` as standard input.
fn set(person: &Person, name: &str, input: &[u8]) -> Ended {
    let data = person.path("data");
    let mut command =
        person.stagely(&["secret", "set", "shop", name, "--data-dir", data.to_str().unwrap()]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // The command does not read the rest of a value that is too long.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

/// A core with the project `shop`.
fn start(person: &Person) -> (Server<'_>, String) {
    let server = Server::start_with(person, &[]);
    let admin = server.token("admin");
    // No server listens at port 1.
    let run = ["run", "http://127.0.0.1:1/owner/shop.git", "--project", "shop", "--detach"];
    let run = server.does(&admin, &run).with(0).stdout;
    server.does(&admin, &["cancel", run.trim()]).with(0);
    (server, admin)
}

#[test]
fn secrets_are_set_from_standard_input_listed_and_removed() {
    let person = Person::new("secrets");
    let (server, admin) = start(&person);
    let list = ["secret", "list", "shop"];
    assert_eq!(server.does(&admin, &list).with(0).stdout, "no secrets\n");

    let ended = set(&person, "KEY", format!("{VALUE}\n").as_bytes()).with(0);
    assert_eq!(ended.stdout, "KEY is set for the next deployments of shop\n");
    assert!(!ended.stderr.contains(VALUE), "{}", ended.stderr);
    set(&person, "LARGE", &vec![b'x'; 64 * 1024]).with(0);
    let listed = server.does(&admin, &list).with(0).stdout;
    assert!(listed.starts_with("SECRET  SET\nKEY     2"), "{listed}");
    assert!(!listed.contains(VALUE), "{listed}");
    let json = server.does(&admin, &["secret", "list", "shop", "--json"]).with(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["name"], "KEY");
    assert!(json[0]["set_at"].is_u64() && json[0].as_object().unwrap().len() == 2, "{json}");

    let line_ends = [b"x".repeat(64 * 1024), b"\n".repeat(10)].concat();
    set(&person, "LARGE", &line_ends).with(0);
    // More than the command reads.
    let cut = [b"x".repeat(64 * 1024), b"\n".repeat(80 * 1024), b"x".repeat(10)].concat();
    for (name, input, words) in [
        ("KEY", &b"\r\n"[..], "the value is empty"),
        ("KEY", &vec![b'x'; 64 * 1024 + 1], "the value is longer than 64 KiB"),
        ("KEY", &cut, "the value is longer than 64 KiB"),
        ("KEY", b"\xff", "is not UTF-8"),
        ("2KEY", b"x", "is not the name of an environment variable"),
    ] {
        let error = set(&person, name, input).with(4).stderr;
        assert!(error.contains(words), "{error}");
    }
    let gone = server.does(&admin, &["secret", "remove", "shop", "KEY"]).with(0).stdout;
    assert_eq!(gone, "KEY of shop is removed\n");
    let error = server.does(&admin, &["secret", "remove", "shop", "KEY"]).with(4).stderr;
    assert!(error.contains("there is no secret KEY"), "{error}");
    let error = server.does(&admin, &["secret", "list", "nobody"]).with(4).stderr;
    assert!(error.contains("there is no project nobody"), "{error}");
    let reader = server.token("read");
    let error = server.does(&reader, &list).with(4).stderr;
    assert!(error.contains("role `read`"), "{error}");
    server.ends();
}

#[test]
fn a_terminal_asks_for_the_value_and_does_not_show_it() {
    let person = Person::new("prompt");
    let (server, admin) = start(&person);
    let stagely = env!("CARGO_BIN_EXE_stagely");
    let command =
        format!("{stagely} secret set shop KEY --data-dir {}", person.path("data").display());
    let question = "Value of KEY (not shown):";

    let mut terminal = person.opens_terminal(&command);
    terminal.says(question);
    terminal.types(&format!("{VALUE}\n"));
    let ended = terminal.ends().with(0);
    assert!(ended.stderr.contains("KEY is set"), "{}", ended.stderr);
    assert!(!ended.stderr.contains(VALUE), "{}", ended.stderr);

    // The terminal shows again what is typed, also after Ctrl-C.
    let mut terminal = person.opens_terminal(&format!("trap : INT; {command}; stty -a"));
    terminal.says(question);
    terminal.types("\u{3}");
    let ended = terminal.ends().with(0);
    assert!(ended.stderr.contains("nothing is set"), "{}", ended.stderr);
    assert!(ended.stderr.contains(" echo "), "{}", ended.stderr);
    let listed = server.does(&admin, &["secret", "list", "shop"]).with(0).stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    server.ends();
}

#[test]
fn secrets_of_plain_runs_are_set_without_a_running_core() {
    let person = Person::new("own-secrets");
    person.commit(&[
        (
            "stagely.yaml",
            "builds: {app: {context: .}}\n\
             preview: {image: app, port: 8080, secrets: [GREETING]}\n",
        ),
        (
            "Dockerfile",
            "FROM busybox\n\
             RUN mkdir /www && echo page >/www/index.html\n\
             CMD test -n \"$GREETING\" && exec httpd -f -p 8080 -h /www\n",
        ),
    ]);
    let ended = person.does(&["run"]);
    let command = format!("`stagely secret set {} GREETING`", person.name);
    assert!(ended.code != 0 && ended.stdout.contains(&command), "{}", ended.stdout);

    let does = |arguments: &[&str]| person.does(&[&["secret"], arguments].concat());
    let mut set = person.stagely(&["secret", "set", &person.name, "GREETING"]);
    let mut child = set.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    Ended::from(child.wait_with_output().unwrap()).with(0);
    assert!(does(&["list", &person.name]).with(0).stdout.contains("GREETING"));
    person.does(&["run"]).with(0);

    does(&["remove", &person.name, "GREETING"]).with(0);
    assert_eq!(does(&["list", &person.name]).with(0).stdout, "no secrets\n");
    assert!(does(&["list", "elsewhere"]).with(4).stderr.contains("elsewhere"));
    person.leaves_nothing();
}
