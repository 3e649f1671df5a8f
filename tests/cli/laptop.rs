//! `stagely run` with what a person has set up for Docker and Git.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;
use stagely_protocol::Arch;
use stagely_test_support::certificates::SelfSigned;
use stagely_test_support::git::{GitServer, Repository};
use stagely_test_support::http_proxy::{HttpProxy, PASSWORD};
use stagely_test_support::ports::free_port;
use stagely_test_support::wait::eventually_blocking;
use url::Url;

use crate::person::{Ended, Person, Running};
use crate::servers::Server;

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
pub(crate) fn docker(person: &Person, arguments: &[&str]) {
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

/// A repository that builds an image of two submodules.
fn create_repository(server: &GitServer, person: &Person) -> Repository {
    server.repository("lib", true).commit(&[("text", "of the submodule")]);
    let repository = server.repository(&person.name, true);
    let url = server.url("open", "lib/.git");
    let lib = server.folder().join("lib").display().to_string();
    repository.git(&[
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        &lib,
        "lib",
    ]);
    repository.git(&["submodule", "--quiet", "set-url", "lib", &url]);
    repository.commit(&[
        ("stagely.yaml", YAML),
        ("Dockerfile", "FROM busybox\nCOPY lib/text /\nRUN grep submodule /text\n"),
    ]);
    repository
}

#[test]
fn repositories_are_cloned_through_the_proxy_of_the_environment() {
    let person = Person::new("proxy");
    let proxy = HttpProxy::start();
    // Only the proxy finds this name.
    let server = GitServer::start_at("127.0.0.1", "git.invalid");
    create_repository(&server, &person);
    let url = server.url("open", &format!("{}/.git", person.name));
    let run = |password: &str| {
        let mut run = person.stagely(&["run", &url]);
        run.env("HTTP_PROXY", proxy.url(password)).env("STAGELY_LOG", "trace");
        Ended::from(run.output().unwrap())
    };

    let ended = run(PASSWORD).with(0);
    let requests = proxy.requests();
    assert!(requests.contains(&format!("POST {url}/git-upload-pack")), "{requests}");
    assert!(requests.contains("/open/lib/.git/git-upload-pack"), "{requests}");
    // Core and the registry are on this machine.
    assert!(!requests.contains("127.0.0.1") && !requests.contains("localhost"), "{requests}");
    assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);

    let refused = run("wrong-password").with(3);
    assert!(refused.stdout.contains("through the proxy 127.0.0.1:"), "{}", refused.stdout);
    assert!(refused.stdout.contains("refuses its user name and password"), "{}", refused.stdout);
    assert!(!(refused.stdout + &refused.stderr).contains("wrong-password"));
    person.leaves_nothing();
}

#[test]
fn an_agent_reaches_core_through_the_proxy_of_the_environment() {
    let person = Person::new("agent-proxy");
    let proxy = HttpProxy::start();
    let server = Server::start_with(&person, &[]);
    let admin = server.token("admin");
    let arch = Arch::of_this_program().to_string();
    let added =
        server.does(&admin, &["machines", "add", "--arch", &arch, "--name", "desk"]).with(0);
    let mut agent: Value = serde_json::from_str(&added.stdout).unwrap();
    agent["core_url"] = server.url.replace("127.0.0.1", "core.invalid").into();
    agent["work_dir"] = person.path("work").display().to_string().into();
    let config = person.path("agent.json");
    std::fs::write(&config, agent.to_string()).unwrap();
    let mut command = person.stagely(&["agent", "--config", config.to_str().unwrap()]);
    command.env("http_proxy", proxy.url(PASSWORD));
    let running = Running::of(command);

    eventually_blocking("the agent is connected", || {
        let machines = server.does(&admin, &["machines", "--json"]).with(0).stdout;
        let machines: Vec<Value> = serde_json::from_str(&machines).unwrap();
        machines.iter().any(|machine| machine["connected"] == true).then_some(())
    });
    assert!(proxy.requests().starts_with("CONNECT core.invalid:"), "{}", proxy.requests());
    assert!(!running.shown().contains(PASSWORD), "{}", running.shown());
    drop(running);
    server.ends();
}

#[test]
fn a_private_certificate_authority_is_trusted_if_the_user_says_so() {
    let person = Person::new("authority");
    let certificate = person.path("certificate.pem");
    std::fs::write(&certificate, SelfSigned::for_host("git.invalid").pem()).unwrap();
    let server = GitServer::start_with_tls("git.invalid", &certificate);
    let proxy = HttpProxy::start();
    create_repository(&server, &person);
    let url = server.url("open", &format!("{}/.git", person.name));
    let run = |variable: Option<&str>| {
        let mut run = person.stagely(&["run", &url]);
        run.env("HTTPS_PROXY", proxy.url(PASSWORD));
        run.envs(variable.map(|name| (name, &certificate)));
        Ended::from(run.output().unwrap())
    };

    let refused = run(None).with(3);
    assert!(refused.stdout.contains("certificate verify failed"), "{}", refused.stdout);
    run(Some("SSL_CERT_FILE")).with(0);
    assert!(proxy.requests().contains("CONNECT git.invalid:"), "{}", proxy.requests());
    // Its environment names the file.
    drop(server);
    person.leaves_nothing();
}

#[test]
fn launched_agents_use_the_proxy_of_the_settings() {
    let person = Person::new("settings");
    let certificate = person.path("certificate.pem");
    std::fs::write(&certificate, SelfSigned::for_host("git.invalid").pem()).unwrap();
    let server = GitServer::start_with_tls("git.invalid", &certificate);
    create_repository(&server, &person);
    let url = server.url("open", &format!("{}/.git", person.name));
    let (of_core, of_agents) = (HttpProxy::start(), HttpProxy::start());
    let port = free_port();
    let settings = |authorities: &str| {
        let config = person.path("stagely.toml");
        let text = format!(
            "[core]\nlisten = \"127.0.0.1:{port}\"\npublic-url = \"http://core.invalid:{port}\"\n[agents]\n\
             environment = {{ HTTP_PROXY = \"{proxy}\", HTTPS_PROXY = \"{proxy}\" }}\n{authorities}",
            proxy = of_agents.url(PASSWORD)
        );
        std::fs::write(&config, text).unwrap();
        config.to_str().unwrap().to_owned()
    };
    let authorities = |file: &Path| format!("certificate-authorities = \"{}\"\n", file.display());
    let start = |config: &str| {
        let data = person.path("data");
        let arguments = ["core", "--config", config, "--data-dir", data.to_str().unwrap()];
        let mut core = person.stagely(&arguments);
        core.env("HTTPS_PROXY", of_core.url(PASSWORD)).env("SSL_CERT_FILE", &certificate);
        Running::of(core)
    };

    let none = person.path("none.pem");
    std::fs::write(&none, "no certificate").unwrap();
    let refused = start(&settings(&authorities(&none))).ends();
    assert!(refused.code != 0 && refused.stderr.contains("none.pem holds no certificate"));

    let core = start(&settings(&authorities(&certificate)));
    let admin_file = person.path("data/admin.token");
    let admin = eventually_blocking("core is up", || {
        person.path("data/core.url").exists().then(|| std::fs::read_to_string(&admin_file).unwrap())
    });
    let mut run = person.stagely(&["run", &url]);
    run.env("STAGELY_SERVER", format!("http://127.0.0.1:{port}"))
        .env("STAGELY_TOKEN", admin.trim());
    let ended = Ended::from(run.output().unwrap()).with(0);
    let requests = of_agents.requests();
    for server in ["core.invalid:", "git.invalid:"] {
        assert!(requests.contains(&format!("CONNECT {server}")), "{requests}");
    }
    core.send(Signal::SIGTERM);
    let core = core.ends().with(0);
    for shown in [ended.stdout, ended.stderr, core.stdout, core.stderr] {
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}

#[test]
fn requests_to_clouds_use_the_proxy_and_the_authorities_of_the_environment() {
    let person = Person::new("clouds");
    let proxy = HttpProxy::start();
    let certificate = person.path("certificate.pem");
    std::fs::write(&certificate, SelfSigned::for_host("cloud.invalid").pem()).unwrap();
    // It answers 404 to requests for the APIs.
    let server = GitServer::start_with_tls("cloud.invalid", &certificate);
    let url: Url = server.url("", "").parse().unwrap();
    let url = url.origin().ascii_serialization();
    let config = person.path("stagely.toml");
    let text = format!(
        "[aws]\nregion = \"eu-central-1\"\nendpoint = \"{url}\"\n[digitalocean]\napi-url = \"{url}\"\n\
         regions = [\"fra1\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    for cloud in ["aws", "digitalocean"] {
        let before = proxy.requests().len();
        let shown = |authorities: Option<&Path>| {
            let arguments = ["doctor", cloud, "--config", config.to_str().unwrap()];
            let mut doctor = person.stagely(&arguments);
            doctor.env("HTTPS_PROXY", proxy.url(PASSWORD)).env("AWS_MAX_ATTEMPTS", "1");
            doctor.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
            doctor.env("AWS_ENDPOINT_URL_STS", &url).env("DIGITALOCEAN_TOKEN", "test");
            doctor.envs(authorities.map(|file| ("SSL_CERT_FILE", file)));
            let ended = Ended::from(doctor.output().unwrap());
            ended.stdout + &ended.stderr
        };
        let (refused, trusted) = (shown(None), shown(Some(&certificate)));
        assert!(refused.contains("certificate verify failed"), "{refused}");
        assert!(!trusted.contains("certificate verify failed"), "{trusted}");
        assert!(!refused.contains(PASSWORD) && !trusted.contains(PASSWORD), "{trusted}");
        let requests = &proxy.requests()[before..];
        assert!(requests.starts_with("CONNECT cloud.invalid:"), "{requests}");
    }
    // Its environment names the file.
    drop(server);
}

#[test]
fn a_registry_that_cannot_hold_images_is_refused_when_it_is_read() {
    let person = Person::new("registry");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM busybox\n")]);
    let registry = "127.0.0.1:5000/Team";
    let error = person.does(&["run", "--registry", registry]).with(2).stderr;
    assert!(error.contains("names of repositories are in lower case; write \"team\""), "{error}");
    let config = person.path("stagely.toml");
    std::fs::write(&config, format!("[registry]\nurl = \"{registry}\"\n")).unwrap();
    let mut run = person.stagely(&["run", "--config", config.to_str().unwrap()]);
    let error = Ended::from(run.env_remove("STAGELY_REGISTRY").output().unwrap()).with(4).stderr;
    assert!(error.contains("registry.url: ") && error.contains("lower case"), "{error}");
}

#[test]
fn a_named_registry_is_used_also_at_the_address_that_is_the_default_of_core() {
    let person = Person::new("named-registry");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM scratch\nCOPY stagely.yaml /\n")]);
    let config = person.path("stagely.toml");
    std::fs::write(&config, "registry.url = \"127.0.0.1:5000\"\n").unwrap();
    let without_registry = |arguments: &[&str]| {
        let mut command = person.stagely(arguments);
        for setting in ["", "_USERNAME", "_PASSWORD_FILE"] {
            command.env_remove(format!("STAGELY_REGISTRY{setting}"));
        }
        command
    };
    let mut by_variable = without_registry(&["doctor"]);
    by_variable.env("STAGELY_REGISTRY", "127.0.0.1:5000");
    let by_option = without_registry(&["doctor", "--registry", "127.0.0.1:5000"]);
    let by_file = without_registry(&["doctor", "--config", config.to_str().unwrap()]);
    for mut command in [by_variable, by_option, by_file] {
        let shown = Ended::from(command.output().unwrap()).stdout;
        assert!(shown.contains("registry      127.0.0.1:5000: "), "{shown}");
    }
    let ended = Ended::from(without_registry(&["doctor"]).output().unwrap()).stdout;
    assert!(ended.contains("none is configured"), "{ended}");

    // The registry of the tests wants a login, and none is configured here.
    let registry = std::env::var("STAGELY_REGISTRY").unwrap();
    let ended = without_registry(&["run", "--registry", &registry]).output().unwrap();
    let ended = Ended::from(ended).with(3);
    assert!(!ended.stderr.contains("starting one"), "{}", ended.stderr);
    assert!(ended.stderr.contains("with --registry-username and"), "{}", ended.stderr);
}

#[test]
fn a_registry_or_an_engine_that_cannot_be_reached_is_found_before_the_build() {
    let person = Person::new("unreachable");
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", "FROM scratch\nCOPY stagely.yaml /\n")]);
    let registry = format!("127.0.0.1:{}", free_port());
    let error = person.does(&["run", "--registry", &registry]).with(4).stderr;
    assert!(error.contains(&format!("the registry {registry} cannot be reached")), "{error}");
    assert!(!error.contains("Building"), "{error}");
    let socket = format!("unix://{}", person.path("no.sock").display());
    let mut run = person.stagely(&["run", "--docker-host", &socket]);
    let error = Ended::from(
        run.env_remove("STAGELY_REGISTRY")
            .env_remove("STAGELY_REGISTRY_USERNAME")
            .env_remove("STAGELY_REGISTRY_PASSWORD_FILE")
            .output()
            .unwrap(),
    )
    .with(4)
    .stderr;
    assert!(error.contains("stagely doctor") && !error.contains("--registry"), "{error}");
}
