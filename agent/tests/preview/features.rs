//! What users write into compose files.

use serde_json::json;
use stagely_protocol::{DeployProblem, FailureReason, StatusState};
use stagely_test_support::wait::eventually;

use crate::setup::{Setup, container, docker, get};

const COMPOSE: &str = r#"
x-defaults: &defaults
  restart: unless-stopped
  init: true
include: [deploy/database.yaml]
services:
  web:
    <<: *defaults
    extends: {file: deploy/base.yaml, service: base}
    build: .
    env_file: [web.env, {path: missing.env, required: false}]
    environment:
      DEFAULTED: "${NOT_SET:-fallback}"
      REQUIRED: "${FROM_DOTENV:?is needed}"
    configs:
      - {source: inline, target: /inline.conf}
      - {source: file, target: /file.conf}
      - {source: variable, target: /variable.conf}
    secrets: [token]
    tmpfs: [/scratch]
    extra_hosts: ["upstream:10.1.2.3"]
    volumes: [data:/data]
    deploy: {resources: {limits: {cpus: "0.5", memory: 64M}}}
    depends_on:
      prepare: {condition: service_completed_successfully}
      database: {condition: service_healthy}
  prepare:
    image: busybox
    command: sh -c 'echo prepared >/data/prepared'
    volumes: [data:/data]
  sidecar:
    <<: *defaults
    image: busybox
    network_mode: service:web
    pid: service:web
    command: sh -c 'until wget -qO /data/fetched http://127.0.0.1:8080/; do sleep 0.1; done; ps >/data/processes; sleep 1000'
    volumes: [data:/data]
    init: false
  workers:
    <<: *defaults
    image: busybox
    command: sleep 1000
    deploy: {replicas: 2}
  tool:
    image: busybox
    profiles: [tools]
    depends_on: {helper: {condition: service_started}}
    command: "true"
  helper:
    image: busybox
    profiles: [tools]
    command: sleep 1000
    init: true
  unused:
    image: "127.0.0.1:5000/no/such-image"
    profiles: [other]
configs:
  inline: {content: "inline ${FROM_DOTENV}\n"}
  file: {file: ./conf/app.conf}
  variable: {environment: SETTING}
secrets:
  token: {file: ./conf/token}
volumes:
  data:
"#;

const DATABASE: &str = "services:\n  database:\n    image: busybox\n    init: true\n    command: sh -c 'sleep 1; touch /ready; \
    sleep 1000'\n    healthcheck: {test: [CMD, test, -e, /ready], interval: 1s, start_period: 10s}\n";

const BASE: &str = "services:\n  base:\n    image: busybox\n    environment: {FROM_BASE: yes-it-is}\n    labels: {a: b}\n";

#[tokio::test]
async fn services_get_what_compose_files_promise_them() {
    let setup = Setup::new("features");
    let files = [
        ("compose.yaml", COMPOSE),
        ("deploy/database.yaml", DATABASE),
        ("deploy/base.yaml", BASE),
        (".env", "FROM_DOTENV=dotted\n"),
        ("web.env", "FROM_ENV_FILE=1\n"),
        ("conf/app.conf", "a file\n"),
        ("conf/token", "a token"),
    ];
    let fields = json!({
        "env": { "SETTING": "a variable" },
        "seed": { "service": "tool", "command": ["true"] },
    });
    let image = setup.web("one");
    let address = setup.serves(setup.deploy_commit(1, &image, &files, fields.clone())).await;
    let variables = get(&address, "/cgi-bin/env").await;
    for line in ["DEFAULTED=fallback", "REQUIRED=dotted", "FROM_BASE=yes-it-is", "FROM_ENV_FILE=1"]
    {
        assert!(variables.lines().any(|variable| variable == line), "{line}\n{variables}");
    }
    let web = container(&setup.preview, "web");
    let read = |script: &str| docker(&["exec", &web, "sh", "-c", script]);
    assert_eq!(
        read("cat /inline.conf /file.conf /variable.conf"),
        "inline dotted\na file\na variable"
    );
    assert_eq!(read("cat /run/secrets/token"), "a token");
    assert!(read("cat /etc/hosts").contains("10.1.2.3\tupstream"));
    assert!(read("mount").contains("tmpfs on /scratch"));
    assert!(read("cat /proc/1/cmdline").contains("init"));
    assert_eq!(read("cat /data/prepared"), "prepared\n");
    let limits =
        docker(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", &web]);
    assert_eq!(limits, "67108864 500000000\n");
    eventually("the sidecar shares network and processes", async || {
        let fetched = read("cat /data/fetched /data/processes 2>/dev/null || true");
        (fetched.starts_with("page one") && fetched.contains("httpd -f")).then_some(())
    })
    .await;
    assert_eq!(container(&setup.preview, "workers").lines().count(), 2);
    assert_eq!(container(&setup.preview, "unused"), "", "a service of a profile does not start");

    // Files that compose copies or mounts are those of the new commit.
    let two = files.map(|(path, text)| match path {
        "conf/app.conf" => (path, "another file\n"),
        ".env" => (path, "FROM_DOTENV=changed\n"),
        _ => (path, text),
    });
    setup.serves(setup.deploy_commit(2, &image, &two, fields)).await;
    let web = container(&setup.preview, "web");
    let files = docker(&["exec", &web, "cat", "/inline.conf", "/file.conf"]);
    assert_eq!(files, "inline changed\nanother file\n");
}

#[tokio::test]
async fn variables_need_not_be_utf8() {
    let setup = Setup::new("latin");
    let latin = [b"# caf\xe9\nPAGE=two\n".as_slice(), b"NAME=caf\xe9\n"].concat();
    std::fs::write(setup.repository.path.join(".env"), latin).unwrap();
    let text = "services: {web: {build: ., environment: {PAGE: '$PAGE', NAME: '$NAME'}}}";
    let message = setup.deploy_commit(1, &setup.web("one"), &[("compose.yaml", text)], json!({}));
    let address = setup.serves(message).await;
    let variables = get(&address, "/cgi-bin/env").await;
    assert!(variables.contains("PAGE=two\n") && variables.contains("NAME=caf"), "{variables}");

    let large = "A=1\n".repeat(300_000);
    let files = [("compose.yaml", text), (".env", &large)];
    let status = setup.run(setup.deploy_commit(2, &setup.web("two"), &files, json!({}))).await;
    let error = FailureReason::Deploy { problem: DeployProblem::Compose };
    assert_eq!(status.error, Some(error), "{status:?}");
    assert!(status.error_message.unwrap().starts_with("`.env` is too large"));
}

#[tokio::test]
async fn an_endpoint_may_have_several_containers() {
    let setup = Setup::new("replicas");
    let image = setup.web("one");
    for replicas in ["deploy: {replicas: 2}", "scale: 3"] {
        let compose = format!("services: {{web: {{build: ., {replicas}}}}}");
        let message = setup.deploy_commit(1, &image, &[("compose.yaml", &compose)], json!({}));
        let address = setup.serves(message).await;
        assert_eq!(get(&address, "/").await, "page one\n");
    }
    assert_eq!(container(&setup.preview, "web").lines().count(), 3);
}

#[tokio::test]
async fn what_a_compose_file_lacks_is_named() {
    let setup = Setup::new("lacks");
    let image = setup.web("one");
    let compose = DeployProblem::Compose;
    for (text, problem, expected) in [
        (
            "services: {web: {build: ., environment: {A: '${NEEDED:?set it in .env}'}}}",
            compose,
            "NEEDED is missing a value: set it in .env",
        ),
        ("include: [other.yaml]\nservices: {web: {build: .}}", compose, "other.yaml"),
        (
            "services: {web: {build: ., extends: {file: other.yaml, service: a}}}",
            compose,
            "other.yaml",
        ),
        ("services: {web: {build: ., env_file: other.env}}", compose, "other.env"),
        ("services: {web: {build: ., volumes: ['data:/data']}}", compose, "undefined volume data"),
        ("services: {web: {build: ., networks: [back]}}", compose, "undefined network back"),
        ("services: {web: {build: ., depends_on: [web]}}", compose, "cycle"),
        (
            "services: {web: {build: ., secrets: [token]}}\nsecrets: {token: {file: ./token}}",
            compose,
            "the secret `token` has `file: token`, which the repository does not have",
        ),
        (
            "services: {web: {build: ., configs: [app]}}\nconfigs: {app: {file: ./conf/app}}",
            compose,
            "the config `app` has `file: conf/app`, which the repository does not have",
        ),
        (
            "services: {web: {build: ., secrets: [token]}}\nsecrets: {token: {environment: TOKEN}}",
            compose,
            "the secret `token` has `environment: TOKEN`, which neither `preview`",
        ),
        (
            "services: {web: {build: ., network_mode: 'service:vpn'}, vpn: {image: busybox, command: sleep 1000}}",
            compose,
            "the endpoint `web` names the service `web`, which has no ports of its own",
        ),
        (
            "services: {web: {build: ., depends_on: {one: {condition: service_completed_successfully}}}, \
             one: {image: busybox, command: sh -c 'echo no; exit 3'}}",
            DeployProblem::Service,
            "the service `one` ended with exit code 3; its last line: no",
        ),
        (
            "services: {web: {build: ., depends_on: {one: {condition: service_healthy}}}, \
             one: {image: busybox, init: true, command: sleep 1000, healthcheck: {test: 'false', interval: 1s, retries: 1}}}",
            DeployProblem::Service,
            "the service `one` is unhealthy",
        ),
        (
            "services: {web: {build: .}, one: {image: busybox, init: true, command: sleep 1000, user: nobody-there}}",
            DeployProblem::Service,
            "the service `one` cannot be started: ",
        ),
        (
            "services: {web: {build: ., volumes: ['data:/data']}}\nvolumes: {data: {driver_opts: {type: nfs, device: ':/x'}}}",
            DeployProblem::Forbidden,
            "the volume `data` has `driver` or `driver_opts`",
        ),
        (
            "services: {web: {build: .}}\nnetworks: {default: {external: true, name: shared}}",
            DeployProblem::Forbidden,
            "the network `default` is `external`",
        ),
    ] {
        let message = setup.deploy_commit(1, &image, &[("compose.yaml", text)], json!({}));
        let status = setup.run(message).await;
        assert_eq!(status.state, StatusState::Failed, "{text}");
        let message = status.error_message.clone().unwrap();
        assert_eq!(status.error, Some(FailureReason::Deploy { problem }), "{text}: {status:?}");
        assert!(message.contains(expected), "{expected}: {message}");
    }
    assert_eq!(setup.left(), [""; 0]);
}
