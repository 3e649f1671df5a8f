//! `stagely run` with what a person has set up for Docker and Git.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::person::{Ended, Person};

const YAML: &str = "builds: {app: {context: .}}\n";

/// A further socket of the Docker engine.
struct EngineSocket {
    path: PathBuf,
    connections: Arc<AtomicUsize>,
}

impl EngineSocket {
    fn listen(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let engine = UnixStream::connect("/var/run/docker.sock").unwrap();
                let client = client.unwrap();
                let (from, to) = (client.try_clone().unwrap(), engine.try_clone().unwrap());
                thread::spawn(move || copy(from, to));
                thread::spawn(move || copy(engine, client));
            }
        });
        Self { path, connections }
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// `docker` with the home of `person`.
fn docker(person: &Person, arguments: &[&str]) {
    let mut docker = Command::new("docker");
    docker.args(arguments).env("HOME", person.path(""));
    let output = docker.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn create_context(person: &Person, name: &str, socket: &Path) {
    let host = format!("host=unix://{}", socket.display());
    docker(person, &["context", "create", name, "--docker", &host]);
}

#[test]
fn the_current_docker_context_is_used_and_named_by_doctor() {
    let person = Person::new("context");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\nRUN true\n")]);
    let engine = EngineSocket::listen(person.path("engine.sock"));
    create_context(&person, "desktop", &engine.path);
    docker(&person, &["context", "use", "desktop"]);

    let shown = person.does(&["doctor"]).with(0).stdout;
    let expected = format!("unix://{} (context desktop of", engine.path.display());
    assert!(shown.contains(&expected), "{shown}");
    let before = engine.connections.load(Ordering::Relaxed);
    person.does(&["run"]).with(0);
    // The agent's own requests, and those of buildx.
    assert!(engine.connections.load(Ordering::Relaxed) > before + 3);

    // DOCKER_HOST comes before DOCKER_CONTEXT, and that before `docker context use`.
    create_context(&person, "gone", &person.path("nowhere.sock"));
    let mut doctor = person.stagely(&["doctor"]);
    let other = Ended::from(doctor.env("DOCKER_CONTEXT", "gone").output().unwrap()).with(1).stdout;
    assert!(other.contains("nowhere.sock (context gone of DOCKER_CONTEXT)"), "{other}");
    let named = doctor.env("DOCKER_HOST", "unix:///var/run/docker.sock").output().unwrap();
    let named = Ended::from(named).with(0).stdout;
    assert!(named.contains("unix:///var/run/docker.sock (DOCKER_HOST)"), "{named}");
}

#[test]
fn a_docker_context_that_does_not_exist_is_an_error_at_once() {
    let person = Person::new("no-context");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\n")]);
    let mut run = person.stagely(&["run"]);
    let ended = Ended::from(run.env("DOCKER_CONTEXT", "elsewhere").output().unwrap()).with(4);
    assert!(ended.stderr.contains("no Docker context \"elsewhere\""), "{}", ended.stderr);
}
