//! `stagely previews` with a preview of one image.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use stagely_test_support::ports::free_port;
use stagely_test_support::registry::PrivateRegistry;
use stagely_test_support::wait::eventually_blocking;

use crate::person::{Ended, Person, Running};
use crate::servers::{GitDaemon, Server};

const MANIFEST: &str = "builds: {app: {context: .}}\n\
    preview: {image: app, port: 8080, env: {API_TOKEN: correct-horse-battery}}\n";

const DOCKERFILE: &str = "FROM busybox\n\
    RUN mkdir /www && echo the page >/www/index.html\n\
    CMD [\"sh\", \"-c\", \"echo begins with $API_TOKEN; exec httpd -f -v -p 8080 -h /www\"]\n";

/// The answer to a GET request of the page at `link`, with the key as a header.
fn get(link: &str) -> String {
    let (host, target) = link.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (_, port) = host.split_once(':').unwrap();
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let head = format!("GET /{target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    let key = target.split_once("stagely-access=").map_or("", |(_, key)| key);
    let head = head.replace(&format!("?stagely-access={key}"), "");
    let request = format!("{head}x-stagely-access: {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_preview_is_listed_opened_used_put_to_sleep_woken_and_ended() {
    let person = Person::new("previews");
    person.commit(&[("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE)]);
    let git = GitDaemon::of(&person);
    let server = Server::start(&person);
    let (admin, reader) = (server.token("admin"), server.token("read"));
    let does = |arguments: &[&str]| server.does(&admin, &[&["previews"], arguments].concat());
    assert_eq!(does(&[]).with(0).stdout, "no previews\n");
    let run = ["run", &git.url(&person), "--project", &person.name, "--pull-request", "7"];
    let ran = server.does(&admin, &run).with(0).stdout;
    let direct = ran.split_once("\n  direct: ").expect("both addresses").1.lines().next().unwrap();
    assert!(get(direct).ends_with("the page\n"), "{}", get(direct));

    let listed = does(&[]).with(0).stdout;
    assert!(listed.contains("  live  ") && !listed.contains("stagely-access"), "{listed}");
    let url = |token: &str| {
        let listed = server.does(token, &["previews", "--json"]).with(0).stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed[0]["url"].as_str().unwrap().to_owned()
    };
    assert!(!url(&reader).contains("stagely-access"));
    let link = does(&["open", "pr-7"]).with(0).stdout.trim().to_owned();
    assert_eq!(link, url(&admin));
    assert!(get(&link).ends_with("the page\n"), "{}", get(&link));
    assert!(get(&url(&reader)).starts_with("HTTP/1.1 40"), "{}", get(&url(&reader)));

    eventually_blocking("the log has the request", || {
        let log = does(&["logs", "pr-7"]).with(0).stdout;
        assert!(!log.contains("correct-horse"), "{log}");
        (log.contains("app | begins with ***\n") && log.contains("200")).then_some(())
    });
    let last = does(&["logs", "--tail", "1", "pr-7"]).with(0).stdout;
    assert_eq!(last.lines().count(), 1, "{last}");
    let following = Running::of(server.stagely(&admin, &["previews", "logs", "-f", "pr-7"]));

    commands_run(&server, &admin);

    let error = does(&["sleep", "pr-8"]).with(4).stderr;
    assert!(error.contains("did you mean pr-7?"), "{error}");
    assert!(does(&["sleep", "--wait", "pr-7"]).with(0).stdout.ends_with(" is asleep\n"));
    does(&["sleep", "pr-7"]).with(0);
    let error = does(&["exec", "pr-7", "app", "true"]).with(4).stderr;
    assert!(error.contains("is asleep: wake it first"), "{error}");
    assert!(does(&["wake", "--wait", "pr-7"]).with(0).stdout.ends_with(" is live\n"));
    assert!(get(&link).ends_with("the page\n"), "{}", get(&link));

    let error = does(&["extend", "pr-7", "60d"]).with(2).stderr;
    assert!(error.contains("'60d'") && error.contains("at most 30 days"), "{error}");
    let extended = does(&["extend", "pr-7", "3d"]).with(0).stdout;
    assert!(extended.contains(" ends at 20"), "{extended}");
    assert!(does(&["reset", "--wait", "pr-7"]).with(0).stdout.ends_with(" is live\n"));
    let renewed = does(&["open", "pr-7"]).with(0).stdout.trim().to_owned();
    assert!(get(&renewed).ends_with("the page\n"), "{}", get(&renewed));
    assert!(get(&link).starts_with("HTTP/1.1 40"), "its key was of before the reset");
    assert!(does(&["end", "--wait", "pr-7"]).with(0).stdout.ends_with(" is ended\n"));
    let followed = following.ends().with(0).stdout;
    assert!(followed.matches("app | begins with ***\n").count() >= 2, "{followed}");
    assert_eq!(does(&[]).with(0).stdout, "no previews\n");
    assert!(does(&["--all"]).with(0).stdout.contains("  ended"));
    let error = does(&["open", "pr-7"]).with(4).stderr;
    assert!(error.contains("is ended"), "{error}");
    let log = server.ends().stderr;
    assert!(log.contains("a command runs in a preview") && !log.contains("exit 7"), "{log}");
}

fn commands_run(server: &Server<'_>, admin: &str) {
    let exec = ["previews", "exec", "pr-7", "app", "--"];
    let script = "cat; echo error >&2; exit 7";
    let mut command = server.stagely(admin, &[&exec[..], &["sh", "-c", script]].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let input = "x".repeat(1_000_000);
    let mut stdin = child.stdin.take().unwrap();
    let writer = {
        let input = input.clone();
        std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap())
    };
    let ended = Ended::from(child.wait_with_output().unwrap()).with(7);
    writer.join().unwrap();
    assert_eq!((ended.stdout == input, &*ended.stderr), (true, "error\n"));

    let error = server.does(admin, &["previews", "exec", "pr-7", "db", "true"]).with(4).stderr;
    assert!(error.contains("has no service `db`; it has `app`"), "{error}");
    let error = server.does(admin, &[&exec[..], &["no-such-program"]].concat());
    assert!(matches!(error.code, 126 | 127), "{}: {}", error.code, error.stderr);

    // An open command without input is use, too.
    let active_at = || {
        let listed = server.does(admin, &["previews", "--json"]).with(0).stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed[0]["active_at"].as_u64().unwrap()
    };
    let before = active_at();
    let mut waiting = server.stagely(admin, &[&exec[..], &["cat"]].concat());
    let mut waiting = waiting.stdin(Stdio::piped()).spawn().unwrap();
    eventually_blocking("the command is use", || (active_at() > before).then_some(()));
    drop(waiting.stdin.take());
    Ended::from(waiting.wait_with_output().unwrap()).with(0);

    abandoned_commands_end(server, admin);

    let reader = server.token("read");
    let error = server.does(&reader, &["previews", "exec", "pr-7", "app", "true"]).with(4).stderr;
    assert!(error.contains("role `read`"), "{error}");
}

/// The engine lets commands run on whose output nobody reads.
fn abandoned_commands_end(server: &Server<'_>, admin: &str) {
    let exec = ["previews", "exec", "pr-7", "app", "--"];
    let runs = |what: &str| {
        let processes = server.does(admin, &[&exec[..], &["ps"]].concat()).with(0).stdout;
        processes.contains(what)
    };
    let start = |script: &str| {
        let mut command = server.stagely(admin, &[&exec[..], &["sh", "-c", script]].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut writes = start("cat /dev/zero; true");
    let mut some = vec![0; 100_000];
    writes.stdout.take().unwrap().read_exact(&mut some).unwrap();
    writes.wait().unwrap();
    eventually_blocking("the command that writes has ended", || {
        (!runs("cat /dev/zero")).then_some(())
    });
    let mut is_quiet = start("echo begins; sleep 4321; true");
    is_quiet.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    assert!(runs("sleep 4321"));
    is_quiet.kill().unwrap();
    is_quiet.wait().unwrap();
    eventually_blocking("the quiet command has ended", || (!runs("sleep 4321")).then_some(()));
}

/// Sends a request without a body to a server of this machine. Returns the first line of the answer.
fn request(address: &str, method: &str, target: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn images_that_the_registry_has_lost_are_built_again_when_the_preview_wakes() {
    let person = Person::new("lost-images");
    person.commit(&[("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE)]);
    let git = GitDaemon::of(&person);
    let registry = PrivateRegistry::start(([127, 0, 0, 1], free_port()).into(), None, true);
    let address = registry.address().to_string();
    let config = person.path("stagely.toml");
    std::fs::write(&config, format!("registry.url = \"{address}\"\n")).unwrap();
    let mut core = person.stagely(&["core", "--config", config.to_str().unwrap()]);
    for setting in ["", "_USERNAME", "_PASSWORD_FILE"] {
        core.env_remove(format!("STAGELY_REGISTRY{setting}"));
    }
    let server = Server::start_as(&person, core);
    let admin = server.token("admin");
    let does = |arguments: &[&str]| server.does(&admin, &[&["previews"], arguments].concat());
    let run = ["run", &git.url(&person), "--project", &person.name, "--pull-request", "7"];
    server.does(&admin, &run).with(0);
    let link = does(&["open", "pr-7"]).with(0).stdout.trim().to_owned();
    let lose = || {
        let listed: Value = serde_json::from_str(&does(&["--json"]).with(0).stdout).unwrap();
        let image = listed[0]["images"]["app"].as_str().unwrap().to_owned();
        assert!(does(&["sleep", "--wait", "pr-7"]).with(0).stdout.ends_with(" is asleep\n"));
        let (repository, digest) = image.split_once('/').unwrap().1.split_once('@').unwrap();
        let target = format!("/v2/{repository}/manifests/{digest}");
        assert!(request(&address, "DELETE", &target).contains(" 202 "));
        eventually_blocking("the engine has no copy", || {
            let removed = Command::new("docker").args(["image", "rm", "--force", &image]).output();
            let error = String::from_utf8(removed.unwrap().stderr).unwrap();
            (error.is_empty() || error.contains("No such image")).then_some(())
        });
    };
    lose();
    assert!(does(&["wake", "--wait", "pr-7"]).with(0).stdout.ends_with(" is live\n"));
    assert!(get(&link).ends_with("the page\n"), "{}", get(&link));
    let triggers = || {
        let runs = server.does(&admin, &["runs", "--json"]).with(0).stdout;
        let runs: Value = serde_json::from_str(&runs).unwrap();
        let runs = runs.as_array().unwrap().iter();
        runs.map(|run| run["trigger"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(triggers(), ["images_gone", "wake", "manual"]);

    // It is no more than that: the commit, the data and the address are the same.
    lose();
    assert!(get(&link).starts_with("HTTP/1.1 "), "a visit wakes it, too");
    eventually_blocking("the page is there", || get(&link).ends_with("the page\n").then_some(()));
    assert_eq!(triggers()[..2], ["images_gone", "wake"]);
    does(&["end", "--wait", "pr-7"]).with(0);
    server.ends();
}

/// What the engine has of containers, networks and volumes whose description contains `text`.
fn left_on_engine(text: &str) -> String {
    let list = |arguments: &[&str]| {
        let listed = Command::new("docker").args(arguments).output().unwrap().stdout;
        let listed = String::from_utf8(listed).unwrap();
        listed.lines().filter(|line| line.contains(text)).collect::<Vec<_>>().join("\n")
    };
    list(&["ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.Image}}"])
        + &list(&["network", "ls", "--format", "{{.Name}}"])
        + &list(&["volume", "ls", "--format", "{{.Name}}"])
}

#[test]
fn a_preview_of_a_killed_command_ends_with_the_next_one() {
    let person = Person::new("killed-preview");
    person.commit(&[("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE)]);
    let run = person.starts(&["run", "--keep-preview"]);
    run.says("The preview runs until");
    assert!(!left_on_engine(&person.name).is_empty(), "the preview has containers");
    run.send(Signal::SIGKILL);
    drop(run);

    // Another repository, without a preview.
    person.commit(&[("stagely.yaml", "builds: {app: {context: .}}\n")]);
    let ended = person.does(&["run"]).with(0);
    assert!(!ended.stdout.contains("Preview "), "{}", ended.stdout);
    assert_eq!(left_on_engine(&person.name), "");
    let runs = person.does(&["runs", "--json"]).with(0).stdout;
    assert!(!runs.contains("\"wake\""), "{runs}");
}
