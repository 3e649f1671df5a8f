//! Sections `preview` that are refused, and the exact messages.

use super::{problem_of_preview, problems};

/// The problems of a file with the build `app`, the build `web` in two combinations, and the section `text`.
fn problems_of_section(text: &str) -> Vec<String> {
    problems(format!(
        "builds: {{app: {{context: .}}, web: {{context: ., matrix: {{NODE: [18, 20]}}}}}}\n\
         preview: {text}\n"
    ))
}

#[test]
fn all_mistakes_of_a_preview_are_listed_with_their_positions() {
    let text = "\
builds: {app: {context: .}}
preview:
  compose: ../compose.yaml
  images: {web: ap}
  endpoints:
    Web: {service: web, port: 80800}
    api: {service: api, health: {status: 900}}
  env: {URL: \"${PREVIEW_ULR} ${PREVIEW_URL_APII}\"}
  secrets: [URL]
  migrate: {command: bin/migrate --all}
  on: pull_request
  disc: 20GiB
  ttl: 31d
";
    assert_eq!(
        problems(text),
        [
            "3:12: preview.compose: `../compose.yaml` leads out of the repository",
            "4:17: preview.images.web: there is no build `ap`; did you mean `app`?",
            "6:5: preview.endpoints.Web: an endpoint's name is made of lower-case letters (a-z), \
             digits and `-`, and neither starts nor ends with `-`",
            "6:31: preview.endpoints.Web.port: `80800` is not a port: a number from 1 to 65535",
            "7:5: preview.endpoints.api.port: is missing; it is the port that the service listens \
             on, inside its container",
            "7:42: preview.endpoints.api.health.status: `900` is neither a status nor a range of \
             them: write `200` or `200-399`, with numbers from 100 to 599",
            "8:14: preview.env.URL: unknown variable `${PREVIEW_ULR}`; did you mean \
             `${PREVIEW_URL}`?",
            "8:14: preview.env.URL: unknown variable `${PREVIEW_URL_APII}`; did you mean \
             `${PREVIEW_URL_API}`?",
            "9:13: preview.secrets[0]: is in `env` too; keep one",
            "10:3: preview.migrate.service: is missing; it is the service of the compose file whose \
             image has the command",
            "10:22: preview.migrate.command: expected a list of texts, found text; write a list of \
             the program and its arguments, such as `[bin/migrate, --all]`",
            "11:7: preview.on: `pull_request` is not possible here; did you mean `pull_requests`?",
            "12:3: preview.disc: unknown key; did you mean `disk`?",
            "13:8: preview.ttl: `31d` is longer than 30d, the most that a preview may stay unused",
        ]
    );
}

#[test]
fn the_two_forms_are_not_mixed() {
    let endpoints = "endpoints: {web: {service: web, port: 80}}";
    for (section, expected) in [
        ("", vec!["2:1: preview: expected a map with `compose` or `image`, found nothing"]),
        ("app", vec!["2:10: preview: expected a map with `compose` or `image`, found text"]),
        ("{}", vec!["2:1: preview: needs `compose` with `endpoints`, or `image` with `port`"]),
        (
            "{compose: c, image: app, port: 80}",
            vec!["2:23: preview.image: `compose` and `image` are both given; keep one"],
        ),
        (
            "{compose: c}",
            vec![
                "2:1: preview.endpoints: is missing; it maps names to ports of services; the first \
                 is the preview's URL",
            ],
        ),
        (
            "{image: app}",
            vec!["2:1: preview.port: is missing; it is the port that the container listens on"],
        ),
        (
            &format!("{{compose: c, port: 80, health: {{}}, {endpoints}}}"),
            vec![
                "2:23: preview.port: goes with `image` alone; each endpoint has a `port` of its own",
                "2:33: preview.health: goes with `image` alone; each endpoint has a `health` of its \
                 own",
            ],
        ),
        (
            &format!("{{image: app, port: 80, images: {{}}, {endpoints}}}"),
            vec![
                "2:33: preview.images: goes with `compose` alone; `image` names the build",
                "2:45: preview.endpoints: goes with `compose` alone; with `image` there is one \
                 endpoint, at `port`",
            ],
        ),
        (
            "{image: app, port: 80, seed: {service: web, command: [x]}}",
            vec![
                "2:49: preview.seed.service: with `image` there is one service, `app`; leave this out",
            ],
        ),
    ] {
        assert_eq!(problems_of_section(section), expected, "{section}");
    }
}

#[test]
fn images_must_be_those_of_builds() {
    for (image, problem) in [
        ("wep", "there is no build `wep`; did you mean `web`?"),
        ("zzzzz", "there is no build `zzzzz`; there are `app` and `web`"),
        ("web-node-21", "there is no build `web-node-21`; did you mean `web-node-20`?"),
        (
            "web",
            "`web` has a matrix and makes several images; name one of them, such as `web-node-18`",
        ),
        ("''", "is empty"),
        ("5", "expected text, found a number; put it in quotes"),
    ] {
        let lines = problems_of_section(&format!("{{image: {image}, port: 80}}"));
        let [line] = &lines[..] else { panic!("not one problem: {lines:?}") };
        let (_, found) = line.split_once("preview.image: ").unwrap();
        // Both names of images differ from the misspelled one in one character.
        assert_eq!(found.replace("web-node-18`?", "web-node-20`?"), problem);
    }
    for (images, problem) in [
        (
            "{-x: app}",
            "images.-x: `-x` is not the name of a compose service: letters (a-z, A-Z), \
                       digits, `_`, `.` and `-`, and no `-` first",
        ),
        ("[app]", "images: expected a map of services to builds, found a list"),
    ] {
        assert_eq!(problem_of_preview(&format!("images: {images}")), problem);
    }
    // These mistakes would follow from others.
    assert_eq!(
        problems("builds: {app: x}\npreview: {image: app, port: 80}\n"),
        ["1:15: builds.app: expected a map with at least `context`, found text"]
    );
    assert_eq!(
        problems(
            "builds: {app: {context: ., matrix: {A: [1, 1]}}}\npreview: {image: app-a-1, port: 80}\n"
        ),
        ["1:44: builds.app.matrix.A[1]: `1` is named twice"]
    );
    assert_eq!(
        problems("preview: {image: app, port: 80}\n"),
        ["1:1: builds: is missing; it maps names to builds"]
    );
}

#[test]
fn invalid_endpoints_are_refused() {
    let of_section = |endpoints: &str| {
        let lines = problems_of_section(&format!("{{compose: c, endpoints: {endpoints}}}"));
        let [line] = &lines[..] else { panic!("not one problem: {lines:?}") };
        line.split_once("preview.endpoints").unwrap().1.to_owned()
    };
    for (endpoints, problem) in [
        ("{}", ": needs at least one endpoint; the first is the preview's URL"),
        ("[web]", ": expected a map of names to endpoints, found a list"),
        ("{web: 80}", ".web: expected a map with `service` and `port`, found a number"),
        (
            "{a23456789012345678901: {service: web, port: 80}}",
            ".a23456789012345678901: is longer than 20 characters",
        ),
        (
            "{web: {port: 80}}",
            ".web.service: is missing; it is the service of the compose file that listens",
        ),
        (
            "{web: {service: web, port: 80, path: /}}",
            ".web.path: unknown key; known here are `service`, `port` and `health`",
        ),
    ] {
        assert_eq!(of_section(endpoints), problem);
    }
    for name in ["-a", "a-", "a_b", "a.b", "É", "''"] {
        let problem = of_section(&format!("{{{name}: {{service: web, port: 80}}}}"));
        assert!(problem.contains("an endpoint's name is made of lower-case letters"), "{problem}");
    }
    let many: Vec<_> = (0..9).map(|index| format!("e{index}: {{service: s, port: 1}}")).collect();
    let problem = of_section(&format!("{{{}}}", many.join(", ")));
    assert_eq!(problem, ": at most 8 are allowed, found 9");
}

#[test]
fn invalid_ports_and_health_checks_are_refused() {
    let of_section = |keys: &str| {
        let lines = problems_of_section(&format!("{{image: app, {keys}}}"));
        let [line] = &lines[..] else { panic!("not one problem: {lines:?}") };
        line.split_once("preview.").unwrap().1.to_owned()
    };
    for port in ["0", "65536", "-1", "080", "80.0", "0x50", "+80", "80:80", "http", "''"] {
        let shown = port.trim_matches('\'');
        let problem = format!("port: `{shown}` is not a port: a number from 1 to 65535");
        assert_eq!(of_section(&format!("port: {port}")), problem);
    }
    for (port, problem) in [
        ("'80'", "port: expected a number, found text; write it without quotes"),
        ("[80]", "port: expected a number from 1 to 65535, found a list"),
    ] {
        assert_eq!(of_section(&format!("port: {port}")), problem);
    }
    for status in ["20", "99", "600", "2000", "2xx", "200-", "-200", "200-300-400", "200.0", "+20"]
    {
        let problem = of_section(&format!("port: 1, health: {{status: {status}}}"));
        assert!(problem.starts_with(&format!("health.status: `{status}` is neither")), "{problem}");
    }
    for (health, problem) in [
        ("/healthz", "health: expected a map with `path`, `status` or `timeout`, found text"),
        (
            "{status: 399-200}",
            "health.status: the first number of `399-200` is larger than the second",
        ),
        (
            "{status: [200]}",
            "health.status: expected a status such as `200`, or a range such as `200-399`, found a \
             list",
        ),
        ("{path: healthz}", "health.path: `healthz` does not start with `/`"),
        ("{path: ''}", "health.path: `` does not start with `/`"),
        (
            "{path: '/a b'}",
            "health.path: ` ` cannot stand here in the path of an address; write it percent-encoded",
        ),
        (
            "{path: \"/a\\r\\nX: y\"}",
            "health.path: `\\r` cannot stand here in the path of an address; write it percent-encoded",
        ),
        (
            "{path: '/#a'}",
            "health.path: `#` cannot stand here in the path of an address; write it percent-encoded",
        ),
        (
            "{path: /é}",
            "health.path: `é` cannot stand here in the path of an address; write it percent-encoded",
        ),
        (
            "{timeout: 16m}",
            "health.timeout: `16m` is longer than 15m, the most that a health check may take",
        ),
    ] {
        assert_eq!(of_section(&format!("port: 1, health: {health}")), problem);
    }
    let long = "x".repeat(1024);
    let problem = of_section(&format!("port: 1, health: {{path: /{long}}}"));
    assert_eq!(problem, "health.path: is longer than 1024 bytes");
}

#[test]
fn invalid_variables_and_secrets_are_refused() {
    for (rest, problem) in [
        (
            "env: {A-B: x}",
            "env.A-B: a variable's name is made of letters (a-z, A-Z), digits and `_`, and starts \
             with no digit",
        ),
        ("env: {A: }", "env.A: has no value; write `\"\"` for an empty one"),
        (
            "env: [A=1]",
            "env: expected a map of names to values, found a list; write `NAME: value` instead of \
             `- NAME=value`",
        ),
        (
            "env: {A: '${HOME}'}",
            "env.A: unknown variable `${HOME}`; the variables are `COMMIT_HASH`, `BRANCH`, \
             `PR_NUMBER`, `PROJECT_ID`, `STAGELY_HASH`, `PREVIEW_URL`, `PREVIEW_HOST` and \
             `PREVIEW_URL_WEB`; write `$${` for a literal `${`",
        ),
        ("secrets: A", "secrets: expected a list of names, found text; write `[…]` around it"),
        ("secrets: [A, A]", "secrets[1]: `A` is named twice"),
        (
            "secrets: [1A]",
            "secrets[0]: a secret's name is made of letters (a-z, A-Z), digits and `_`, and starts \
             with no digit",
        ),
        ("{<<: {env: {A: x}}, secrets: [B, A]}", "secrets[1]: is in `env` too; keep one"),
    ] {
        if let Some(keys) = rest.strip_prefix('{') {
            let keys = keys.strip_suffix('}').unwrap();
            let section = format!("{{image: app, port: 1, {keys}}}");
            let lines = problems_of_section(&section);
            assert!(lines.len() == 1 && lines[0].ends_with(problem), "{lines:?}");
        } else {
            assert_eq!(problem_of_preview(rest), problem);
        }
    }
    let names = |count| (0..count).map(|index| format!("S{index}")).collect::<Vec<_>>().join(", ");
    let problem = problem_of_preview(&format!("secrets: [{}]", names(65)));
    assert_eq!(problem, "secrets: at most 64 are allowed, found 65");
    let variables: Vec<_> = (0..129).map(|index| format!("V{index}: x")).collect();
    let problem = problem_of_preview(&format!("env: {{{}}}", variables.join(", ")));
    assert_eq!(problem, "env: at most 128 are allowed, found 129");
}

#[test]
fn invalid_commands_are_refused() {
    for (rest, problem) in [
        ("bin/seed", "seed: expected a map with `command`, found text"),
        (
            "{service: web}",
            "seed.command: is missing; it is a list of the program and its arguments",
        ),
        ("{service: web, command: []}", "seed.command: is empty; name a program"),
        ("{service: web, command: ['']}", "seed.command[0]: is empty"),
        (
            "{service: web, command: [sleep, 5]}",
            "seed.command[1]: expected text, found a number; put it in quotes",
        ),
        ("{service: web, command: [\"a\\0\"]}", "seed.command[0]: holds a control character"),
        (
            "{service: --rm, command: [a]}",
            "seed.service: `--rm` is not the name of a compose service: letters (a-z, A-Z), digits, \
             `_`, `.` and `-`, and no `-` first",
        ),
        (
            "{service: web, command: [a], timeout: 61m}",
            "seed.timeout: `61m` is longer than 1h, the most that a command may take",
        ),
        (
            "{service: web, command: [a], timeout: 10}",
            "seed.timeout: `10` has no unit; write `10m` for minutes or `10s` for seconds",
        ),
    ] {
        assert_eq!(problem_of_preview(&format!("seed: {rest}")), problem);
    }
    let texts = vec!["x"; 65].join(", ");
    let problem = problem_of_preview(&format!("migrate: {{service: web, command: [{texts}]}}"));
    assert_eq!(problem, "migrate.command: at most 64 are allowed, found 65");
}

#[test]
fn other_invalid_values_are_refused() {
    for (rest, problem) in [
        (
            "on: always",
            "on: `always` is not possible here; there are `pull_requests`, `label` and `manual`",
        ),
        ("on: true", "on: expected text, found a boolean; put it in quotes"),
        ("access: pubic", "access: `pubic` is not possible here; did you mean `public`?"),
        (
            "machine: huge",
            "machine: `huge` is not a machine size; there are `small`, `medium`, `large` and `xlarge`",
        ),
        ("disk: 20", "disk: `20` is not a size; write it like `20GiB`"),
        ("disk: 20GB", "disk: `20GB` is not a size; write it like `20GiB`"),
        ("disk: 020GiB", "disk: `020GiB` is not a size; write it like `20GiB`"),
        ("disk: +20GiB", "disk: `+20GiB` is not a size; write it like `20GiB`"),
        ("disk: 9GiB", "disk: `9GiB` is not between 10GiB and 200GiB"),
        ("disk: 201GiB", "disk: `201GiB` is not between 10GiB and 200GiB"),
        ("disk: [20GiB]", "disk: expected a size such as `20GiB`, found a list"),
        ("sleep_after: off", "sleep_after: `off` is neither `never` nor a time such as `20m`"),
        (
            "sleep_after: 4m59s",
            "sleep_after: `4m59s` is shorter than 5m, the least that is possible",
        ),
        (
            "sleep_after: 25h",
            "sleep_after: `25h` is longer than 24h, the most that a preview may wait; write `never` \
             for one that does not sleep",
        ),
        ("ttl: 59m", "ttl: `59m` is shorter than 1h, the least that is possible"),
        ("ttl: never", "ttl: `never` is not a time; write it like `45m`, `1h30m` or `90s`"),
        (
            "public_paths: /x",
            "public_paths: expected a list of paths, found text; write `[…]` around it",
        ),
        ("public_paths: [x]", "public_paths[0]: `x` does not start with `/`"),
        ("public_paths: ['*']", "public_paths[0]: `` does not start with `/`"),
        ("public_paths: [/*/x]", "public_paths[0]: `*` can only be the last character"),
        ("public_paths: [/x**]", "public_paths[0]: `*` can only be the last character"),
        (
            "public_paths: ['/x?y']",
            "public_paths[0]: `?` cannot stand here in the path of an address; write it \
             percent-encoded",
        ),
        ("public_paths: [/x, /x]", "public_paths[1]: `/x` is named twice"),
        (
            "reset_when: [/db]",
            "reset_when[0]: `/db` is absolute: paths are relative to the repository's root",
        ),
        ("reset_when: []", "reset_when: names no pattern; leave it out instead"),
        (
            "branches: ['!main']",
            "branches[0]: a pattern that begins with `!` is not supported; list the branch patterns \
             that count (`\\!` is the character itself)",
        ),
    ] {
        assert_eq!(problem_of_preview(rest), problem);
    }
    let paths: Vec<_> = (0..33).map(|index| format!("/{index}")).collect();
    let problem = problem_of_preview(&format!("public_paths: [{}]", paths.join(", ")));
    assert_eq!(problem, "public_paths: at most 32 are allowed, found 33");
}
