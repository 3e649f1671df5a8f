//! Previews of a compose file: what users expect of `docker compose`, and what is different.

use serde_json::json;
use stagely_protocol::{DeployProblem, FailureReason};

use crate::setup::{Setup, container, docker, get};

const COMPOSE: &str = r#"
name: shop
x-common: &common
  restart: unless-stopped
services:
  web:
    <<: *common
    build: .
    container_name: shop-web
    ports: ["8080:8080"]
    environment: {MODE: "${MODE}", FROM_FILE: "${FROM_FILE}", URL: "${APP_URL:-none}"}
    env_file: [conf/web.env]
    volumes: ["data:/data", "./conf:/conf:ro"]
    secrets: [key]
    depends_on: {prepare: {condition: service_completed_successfully}, cache: {condition: service_healthy}}
  prepare:
    image: busybox
    command: sh -c 'echo prepared >>/data/1'
    volumes: ["data:/data"]
  cache:
    image: busybox
    command: sleep 1000
    healthcheck: {test: test -e /ready || touch /ready, interval: 1s}
  worker:
    image: busybox
    command: sleep 1000
    scale: 2
  shell:
    image: busybox
    profiles: [tools]
secrets:
  key: {environment: STRIPE_KEY}
volumes:
  data: {name: shop-data}
"#;

#[tokio::test]
async fn services_start_in_order_with_files_and_variables_of_the_commit() {
    let setup = Setup::new("compose");
    let files = [
        ("compose.yaml", COMPOSE),
        (".env", "MODE=test\nFROM_FILE=5$$\nDOCKER_HOST=tcp://192.0.2.1:1\n"),
        ("conf/web.env", "EXTRA=1\n"),
    ];
    let fields = json!({
        "env": { "APP_URL": "http://pr-1.example", "MODE": "preview" },
        "secrets": { "STRIPE_KEY": "sk_0815_0815" },
        "migrate": { "service": "web", "command": ["sh", "-c", "echo migrated >>/data/2; ls /conf"] },
        "seed": { "service": "shell", "command": ["echo", "seeded by the service of a profile"] },
    });
    let address =
        setup.serves(setup.deploy_commit(1, &setup.web("one"), &files, fields.clone())).await;
    let variables = get(&address, "/cgi-bin/env").await;
    // The variables of stagely.yaml come before those of the compose file.
    for line in ["MODE=preview", "FROM_FILE=5$", "URL=http://pr-1.example", "EXTRA=1"] {
        assert!(variables.lines().any(|variable| variable == line), "{line}\n{variables}");
    }
    assert!(get(&address, "/cgi-bin/data").await.ends_with("migrated\n"));
    let log = setup.log();
    assert!(log.contains("web.env") && log.contains("seeded by the service"), "{log}");
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "cat", "/run/secrets/key"]), "sk_0815_0815");
    assert_eq!(
        docker(&["exec", "--user", "1000", &web, "cat", "/run/secrets/key"]),
        "sk_0815_0815"
    );
    assert_eq!(container(&setup.preview, "worker").lines().count(), 2);
    let names = docker(&["ps", "--all", "--format", "{{.Names}}", "--filter", "name=shop"]);
    assert_eq!(names, "");
    let volumes = docker(&["volume", "ls", "--format", "{{.Name}}", "--filter", "name=shop-data"]);
    assert_eq!(volumes, "");

    // A second preview of the same file does not touch the first one.
    let other = Setup::new("compose2");
    let second = other.serves(other.deploy_commit(1, &other.web("two"), &files, fields)).await;
    assert_eq!(get(&second, "/").await, "page two\n");
    assert_eq!(get(&address, "/").await, "page one\n");
}

#[tokio::test]
async fn mistakes_in_the_compose_file_are_explained() {
    let setup = Setup::new("mistakes");
    let image = setup.web("one");
    for (text, expected) in [
        ("services: {web: {imagee: x}}", "imagee"),
        ("services: [", "not valid YAML"),
        ("services: {api: {image: busybox}}", "`preview.images` names the service `web`"),
        ("services: {web: {build: .}, api: {build: .}}", "the service `api` has a `build`"),
        (
            "services: {web: {build: .}, db: {image: '127.0.0.1:5000/no/such-image:1'}}",
            "the service `db`: cannot pull 127.0.0.1:5000/no/such-image:1",
        ),
        ("services: {web: {build: ., depends_on: [nothing]}}", "nothing"),
        (
            "services: {web: {image: 'x', profiles: [dev]}}",
            "`web`, which only starts with a profile (dev)",
        ),
    ] {
        let status =
            setup.run(setup.deploy_commit(1, &image, &[("compose.yaml", text)], json!({}))).await;
        let error = Some(FailureReason::Deploy { problem: DeployProblem::Compose });
        assert_eq!(status.error, error, "{text}: {status:?}");
        let message = status.error_message.unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let fields = json!({ "compose_path": "deploy/compose.yaml" });
    let message = setup.deploy_commit(1, &image, &[("compose.yaml", "services: {}")], fields);
    let status = setup.run(message).await;
    assert!(status.error_message.unwrap().contains("no file `deploy/compose.yaml`"));
    assert_eq!(setup.left(), [""; 0]);
}

#[tokio::test]
async fn the_service_that_fails_is_named_and_not_the_one_that_waits_for_it() {
    let setup = Setup::new("failing");
    let image = setup.web("one");
    for (db, expected) in [
        (
            "command: sh -c 'echo bad password; exit 4'",
            "`db` ended with exit code 4; its last line: bad password",
        ),
        (
            "command: sh -c 'echo no; exit 5'\n    restart: always",
            "`db` ends again and again, with exit code 5; its last line: no",
        ),
        (
            "command: sleep 100\n    healthcheck: {test: exit 1, interval: 1s, retries: 1}",
            "`db` is unhealthy",
        ),
        ("command: /no/such/program", "/no/such/program"),
    ] {
        let text = format!(
            "services:\n  web: {{build: ., depends_on: {{db: {{condition: service_started}}}}}}\n  db:\n    \
             image: busybox\n    {db}\n"
        );
        let status =
            setup.run(setup.deploy_commit(1, &image, &[("compose.yaml", &text)], json!({}))).await;
        let error = Some(FailureReason::Deploy { problem: DeployProblem::Service });
        assert_eq!(status.error, error, "{db}: {status:?}\n{}", setup.log());
        let message = status.error_message.unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

/// A database of Debian's packages, which starts as a user of its own.
const POSTGRES: &str = "FROM debian:13-slim\n\
    RUN apt-get update && apt-get install -y --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/*\n\
    ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data\n\
    RUN install -d -o postgres -m 700 $PGDATA\n\
    USER postgres\n\
    CMD test -s $PGDATA/PG_VERSION || initdb --auth=trust >/dev/null; \
    grep -q ^host.all.all.all $PGDATA/pg_hba.conf || echo host all all all trust >>$PGDATA/pg_hba.conf; \
    exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp\n";

#[tokio::test]
async fn a_migration_runs_against_a_database_that_is_healthy() {
    let setup = Setup::new("postgres");
    let database = setup.image("db", POSTGRES);
    // The database's image also has a client.
    let web = setup.image("web", &format!("{}{}", POSTGRES.split("ENV").next().unwrap(), "CMD exec perl -MIO::Socket -e '\
        $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1); while ($c = $s->accept) { \
        <$c>; $r = qx(psql -h db -U postgres -Atc \"select name from items\"); \
        print $c \"HTTP/1.0 200 OK\\r\\n\\r\\n$r\"; close $c }'\n"));
    let compose = "services:\n  web: {build: ., depends_on: {db: {condition: service_healthy}}}\n  db:\n    build: db\n    \
        volumes: ['pg:/var/lib/postgresql/data']\n    \
        healthcheck: {test: psql -h 127.0.0.1 -U postgres -c 'select 1', interval: 1s, retries: 60}\nvolumes: {pg: }\n";
    let psql = |statement: &str| json!({ "service": "web", "command": ["psql", "-h", "db", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement] });
    let fields = json!({
        "images": { "web": web, "db": database },
        "migrate": psql("create table if not exists items (name text)"),
        "seed": psql("insert into items values ('seeded')"),
    });
    let address = setup
        .serves(setup.deploy_commit(1, &web, &[("compose.yaml", compose)], fields.clone()))
        .await;
    assert_eq!(get(&address, "/").await, "seeded\n");
    let db = container(&setup.preview, "db");
    // The same images again: the data and the database stay.
    let address =
        setup.serves(setup.deploy_commit(2, &web, &[("compose.yaml", compose)], fields)).await;
    assert_eq!(get(&address, "/").await, "seeded\n");
    assert!(!db.is_empty());
}
