//! `stagely run` while core still exports the cache of an ended run.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use stagely_test_support::wait::eventually_blocking;

use crate::person::Person;
use crate::servers::Server;

/// A proxy of the registry that holds the uploads of caches until it is released or dropped.
pub(crate) struct HoldingProxy {
    pub(crate) address: String,
    is_released: Arc<(Mutex<bool>, Condvar)>,
}

impl HoldingProxy {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let is_released = Arc::new((Mutex::new(false), Condvar::new()));
        let released = Arc::clone(&is_released);
        thread::spawn(move || {
            for client in listener.incoming() {
                let server = TcpStream::connect(std::env::var("STAGELY_REGISTRY").unwrap());
                pass(client.unwrap(), server.unwrap(), &released);
            }
        });
        Self { address, is_released }
    }

    fn release(&self) {
        *self.is_released.0.lock().unwrap() = true;
        self.is_released.1.notify_all();
    }
}

impl Drop for HoldingProxy {
    fn drop(&mut self) {
        self.release();
    }
}

/// Passes a connection on, by two threads that end with it.
fn pass(mut client: TcpStream, mut server: TcpStream, released: &Arc<(Mutex<bool>, Condvar)>) {
    let (mut to_client, mut from_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let released = Arc::clone(released);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]);
            if text.starts_with("PUT ") && text.contains("/cache/manifests/") {
                let state = released.0.lock().unwrap();
                drop(released.1.wait_while(state, |is_released| !*is_released).unwrap());
            }
            if server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    });
}

fn built(person: &Person) {
    let dockerfile = format!("FROM busybox\nRUN echo built for {}\n", person.name);
    let yaml = "builds: {app: {context: .}}\n";
    person.commit(&[("stagely.yaml", yaml), ("Dockerfile", &dockerfile)]);
}

#[test]
fn the_command_waits_for_an_embedded_core_and_ctrl_c_leaves_with_the_exit_code_of_the_run() {
    let person = Person::new("cache");
    built(&person);
    let proxy = HoldingProxy::start();
    let run = person.starts(&["run", "--registry", &proxy.address]);
    // Printed after the result.
    run.says("Waiting for the cache export of app; press Ctrl-C to leave");
    run.send(Signal::SIGINT);
    let ended = run.ends().with(0);
    assert!(ended.stdout.contains("linux/amd64  completed  sha256:"), "{}", ended.stdout);
    assert!(ended.stdout.contains(":app-amd64@sha256:"), "{}", ended.stdout);
    assert!(ended.stderr.contains(" built for "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("Cancelling"), "{}", ended.stderr);
    // The next command does not wait for the builder.
    let begun = Instant::now();
    person.does(&["runs"]).with(0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    person.leaves_nothing();
}

#[test]
fn a_core_that_keeps_running_exports_the_cache_without_the_command() {
    let person = Person::new("cache-stays");
    built(&person);
    let proxy = HoldingProxy::start();
    let server = Server::start_with(&person, &["--registry", &proxy.address]);
    let admin = server.token("admin");
    let ended = server.does(&admin, &["run"]).with(0);
    assert!(ended.stdout.contains(":app-amd64@sha256:"), "{}", ended.stdout);
    assert!(ended.stderr.contains(" built for "), "{}", ended.stderr);
    let message = "Core still exports the cache of app\n";
    assert!(ended.stderr.ends_with(message), "{}", ended.stderr);
    proxy.release();
    eventually_blocking("the cache is exported", || {
        let machines = server.does(&admin, &["machines", "--json"]).with(0).stdout;
        let machines: Vec<Value> = serde_json::from_str(&machines).unwrap();
        machines.iter().all(|machine| machine["exporting_cache_of"].is_null()).then_some(())
    });
    server.ends();
}

#[test]
fn a_command_whose_output_is_not_read_after_the_result_exports_the_cache() {
    let person = Person::new("cache-unread");
    built(&person);
    let proxy = HoldingProxy::start();
    let mut run = person.stagely(&["run", "--registry", &proxy.address]).spawn().unwrap();
    // As `stagely run | head -1` does.
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap());
    let mut shown = String::new();
    while !shown.contains("Waiting for the cache export of app") {
        assert!(stderr.read_line(&mut shown).unwrap() > 0, "{shown}");
    }
    // Long enough for several checks of a reader.
    for _ in 0..10 {
        person.does(&["runs"]).with(0);
    }
    assert!(run.try_wait().unwrap().is_none(), "it did not wait for the export");
    proxy.release();
    stderr.read_to_string(&mut shown).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0), "{shown}");
    person.leaves_nothing();
}
