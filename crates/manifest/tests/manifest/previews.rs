//! Sections `preview` that are accepted, and what they mean.

use std::collections::BTreeMap;
use std::time::Duration;

use stagely_manifest::{
    Endpoint, Health, Preview, PreviewAccess, PreviewSource, PreviewTrigger, PreviewVariable,
    ServiceCommand, Variable,
};
use stagely_state::MachineSize;

use super::{FULL, accepted, preview};

fn endpoint(name: &str, service: &str, port: u16, health: Health) -> Endpoint {
    Endpoint { name: name.into(), service: service.into(), port, health }
}

fn filled(preview: &Preview, name: &str) -> String {
    preview.env[name].fill(|variable| match variable {
        PreviewVariable::Run(variable) => format!("<{}>", variable.as_str()),
        PreviewVariable::Url => "<url>".to_owned(),
        PreviewVariable::Host => "<host>".to_owned(),
        PreviewVariable::EndpointUrl(endpoint) => format!("<url of {endpoint}>"),
    })
}

#[test]
fn every_key_of_a_compose_preview_arrives() {
    let preview = accepted(FULL).preview.unwrap();
    let images = [("web", "app"), ("worker", "app")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let path = "deploy/compose.yaml".to_owned();
    assert_eq!(preview.source, PreviewSource::Compose { path, images: images.into() });
    let timeout = Duration::from_secs(90);
    let health = Health { path: "/healthz?full=1".to_owned(), status: 200..=299, timeout };
    let endpoints = [
        endpoint("web", "web", 8080, health),
        endpoint("mail-box", "mail", 8025, Health::default()),
    ];
    assert_eq!(preview.endpoints, endpoints);
    assert_eq!(filled(&preview, "APP_URL"), "<url>/<BRANCH>");
    assert_eq!(filled(&preview, "MAIL"), "<url of mail-box>");
    assert_eq!(filled(&preview, "DEBUG"), "1.10");
    assert_eq!(preview.secrets, ["STRIPE_TEST_KEY", "_x"]);
    let command = |command: &[&str], minutes| ServiceCommand {
        service: "web".to_owned(),
        command: command.iter().map(ToString::to_string).collect(),
        timeout: Duration::from_mins(minutes),
    };
    assert_eq!(preview.migrate, Some(command(&["bin/migrate", "--all"], 20)));
    assert_eq!(preview.seed, Some(command(&["sh", "-c", "bin/seed \"$SIZE\""], 10)));
    assert!(preview.reset_when.as_ref().unwrap().is_match("db/migrate/a/1.sql"));
    assert_eq!(preview.on, PreviewTrigger::Label);
    assert!(preview.branches.as_ref().unwrap().is_match("release/1"));
    assert_eq!((preview.machine, preview.disk_bytes), (MachineSize::Small, 40 << 30));
    assert_eq!(preview.access, PreviewAccess::Token);
    assert_eq!(preview.public_paths, ["/webhooks/*", "/status"]);
    assert_eq!(preview.sleep_after, None);
    assert_eq!(preview.ttl, Duration::from_hours(60));
}

#[test]
fn a_compose_file_and_an_endpoint_are_enough() {
    let preview = preview("");
    let path = "compose.yaml".to_owned();
    assert_eq!(preview.source, PreviewSource::Compose { path, images: BTreeMap::new() });
    let health =
        Health { path: "/".to_owned(), status: 200..=399, timeout: Duration::from_mins(2) };
    assert_eq!(preview.endpoints, [endpoint("web", "web", 80, health)]);
    assert!(preview.env.is_empty() && preview.secrets.is_empty());
    assert_eq!((&preview.migrate, &preview.seed), (&None, &None));
    assert_eq!((&preview.reset_when, &preview.branches), (&None, &None));
    assert_eq!(preview.on, PreviewTrigger::PullRequests);
    assert_eq!((preview.machine, preview.disk_bytes), (MachineSize::Medium, 20 << 30));
    assert_eq!(preview.access, PreviewAccess::Link);
    assert!(preview.public_paths.is_empty());
    assert_eq!(preview.sleep_after, Some(Duration::from_mins(20)));
    assert_eq!(preview.ttl, Duration::from_hours(7 * 24));
}

#[test]
fn one_container_has_the_service_and_the_endpoint_app() {
    let manifest = accepted(
        "builds: {Web: {context: .}}\npreview: {image: Web, port: 8080, health: {status: 204}, \
         migrate: {command: [m]}, seed: {service: app, command: [s]}, \
         env: {A: '${PREVIEW_URL_APP} ${PREVIEW_HOST} $${x}'}}\n",
    );
    let preview = manifest.preview.unwrap();
    assert_eq!(preview.source, PreviewSource::Image { variant: "Web".to_owned() });
    let health = Health { status: 204..=204, ..Health::default() };
    assert_eq!(preview.endpoints, [endpoint("app", "app", 8080, health)]);
    assert_eq!(preview.migrate.as_ref().unwrap().service, "app");
    assert_eq!(preview.seed.as_ref().unwrap().service, "app");
    assert_eq!(filled(&preview, "A"), "<url of app> <host> ${x}");
}

#[test]
fn a_file_without_the_section_has_no_preview() {
    assert_eq!(accepted("builds: {a: {context: .}}").preview, None);
}

#[test]
fn images_of_a_matrix_are_named_by_their_combination() {
    let builds = "builds: {app: {context: ., matrix: {NODE: [18, 20]}}}\n";
    let section = "preview: {image: app-node-20, port: 1}\n";
    let preview = accepted(&format!("{builds}{section}")).preview.unwrap();
    assert_eq!(preview.source, PreviewSource::Image { variant: "app-node-20".to_owned() });
}

#[test]
fn endpoints_keep_their_order_and_may_have_eight() {
    let names = ["z", "b", "a-1", "0", "y-y", "c", "x", "a2345678901234567890"];
    let entries = names.map(|name| format!("{name}: {{service: s, port: 65535}}")).join(", ");
    let text = format!(
        "builds: {{app: {{context: .}}}}\npreview: {{compose: c.yaml, endpoints: {{{entries}}}}}"
    );
    let preview = accepted(&text).preview.unwrap();
    let found: Vec<_> = preview.endpoints.iter().map(|endpoint| &*endpoint.name).collect();
    assert_eq!(found, names);
}

#[test]
fn statuses_sizes_and_times_are_read_to_their_limits() {
    let status = |status: &str| {
        let text = format!(
            "builds: {{app: {{context: .}}}}\npreview: {{image: app, port: 1, health: {{status: \
             {status}, timeout: 15m}}}}\n"
        );
        accepted(&text).preview.unwrap().endpoints[0].health.status.clone()
    };
    assert_eq!(status("200"), 200..=200);
    assert_eq!(status("'404'"), 404..=404);
    assert_eq!(status("100-599"), 100..=599);
    for (text, gib) in [("10GiB", 10), ("200GiB", 200)] {
        assert_eq!(preview(&format!("disk: {text}")).disk_bytes, gib << 30);
    }
    for (text, minutes) in [("5m", 5), ("24h", 24 * 60), ("1d", 24 * 60)] {
        let sleep_after = preview(&format!("sleep_after: {text}")).sleep_after;
        assert_eq!(sleep_after, Some(Duration::from_mins(minutes)));
    }
    for (text, hours) in [("1h", 1), ("30d", 720), ("1d1h", 25)] {
        assert_eq!(preview(&format!("ttl: {text}")).ttl, Duration::from_hours(hours));
    }
    let timeout = preview("seed: {service: s, command: [x], timeout: 60m}").seed.unwrap().timeout;
    assert_eq!(timeout, Duration::from_hours(1));
}

#[test]
fn every_variable_of_build_arguments_is_one_of_previews() {
    for variable in Variable::ALL {
        let name = variable.as_str();
        let preview = preview(&format!("env: {{A: '${{{name}}}'}}"));
        assert_eq!(filled(&preview, "A"), format!("<{name}>"));
    }
}
