//! Every message has one golden file, which parses and comes back the same.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;
use stagely_protocol::{
    AgentMessage, CoreMessage, Emulation, HealthCheck, Notice, ParseError, Shard, StatusState,
    TunnelMessage,
};

const FROM_AGENT: [&str; 17] = [
    "error",
    "heartbeat",
    "hello",
    "hello_preview",
    "interrupted",
    "log",
    "log_services",
    "preview_archived",
    "preview_degraded",
    "status_cancelled",
    "status_completed",
    "status_deployed",
    "status_exporting",
    "status_failed",
    "status_running",
    "status_test_failed",
    "status_tested",
];

const FROM_CORE: [&str; 16] = [
    "build",
    "build_full",
    "cancel",
    "deploy",
    "deploy_full",
    "dial",
    "error",
    "hello_ack",
    "hello_ack_services",
    "log_ack",
    "merge",
    "sleep",
    "status_ack",
    "terminate",
    "test",
    "test_full",
];

/// What other agents send, and ours does not.
const FROM_SIMPLE_AGENTS: [&str; 1] = ["log_line"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/protocol_examples")
}

fn example(name: &str) -> String {
    fs::read_to_string(folder().join(format!("{name}.json"))).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn messages_of_the_agent_come_back_the_same() {
    for name in FROM_AGENT {
        let text = example(name);
        let message = AgentMessage::parse(&text).unwrap();
        assert_eq!(json(&message.to_json()), json(&text), "{name}");
    }
}

#[test]
fn messages_of_core_come_back_the_same() {
    for name in FROM_CORE {
        let text = example(name);
        let message = CoreMessage::parse(&text).unwrap();
        assert_eq!(json(&message.to_json()), json(&text), "{name}");
    }
}

/// An agent that knows only one image and one port can run it, and a DEPLOY of an earlier version has nothing else.
#[test]
fn a_deploy_with_only_an_image_has_defaults() {
    let deploy = r#"{"type":"DEPLOY","job_id":"j","preview_id":"p","image":"r/a:b","endpoints":[{"name":"app","port":80}]}"#;
    let CoreMessage::Deploy(deploy) = CoreMessage::parse(deploy).unwrap() else { panic!() };
    assert_eq!(deploy.endpoints[0].health, HealthCheck::default());
    assert_eq!((deploy.timeout_seconds, deploy.fresh, deploy.generation), (1800, false, 0));
}

#[test]
fn a_test_with_only_an_image_has_defaults() {
    let test = r#"{"type":"TEST","job_id":"j","image":"r/a:b"}"#;
    let CoreMessage::Test(test) = CoreMessage::parse(test).unwrap() else { panic!() };
    assert_eq!((test.timeout_seconds, test.retries, test.shard), (1800, 0, Shard::ALL));
    assert!(test.command.is_empty() && test.preview.is_none() && test.artifacts.is_empty());
}

#[test]
fn secrets_of_a_test_stay_out_of_debug() {
    let debug = format!("{:?}", CoreMessage::parse(&example("test_full")).unwrap());
    assert!(debug.contains("STRIPE_TEST_KEY") && debug.contains("x-stagely-access"), "{debug}");
    for secret in ["sk_test", "access-key", "staging", "reg_token"] {
        assert!(!debug.contains(secret), "{debug}");
    }
}

#[test]
fn secrets_of_a_preview_stay_out_of_debug() {
    let message = CoreMessage::parse(&example("deploy_full")).unwrap();
    let debug = format!("{message:?}");
    assert!(debug.contains("STRIPE_TEST_KEY") && !debug.contains("sk_test"), "{debug}");
    assert!(!debug.contains("ghs_") && !debug.contains("https://pr-7-app"), "{debug}");
}

#[test]
fn messages_of_tunnels_come_back_the_same() {
    let messages = [
        r#"{"type":"OPEN","preview_id":"prev_01jd7q","endpoint":"web"}"#,
        r#"{"type":"OPENED"}"#,
        r#"{"type":"REFUSED","message":"web does not listen"}"#,
        r#"{"type":"END"}"#,
        r#"{"type":"EXEC","preview_id":"prev_01jd7q","service":"web","command":["ls","-l"]}"#,
        r#"{"type":"EXEC","preview_id":"prev_01jd7q","service":"web","command":["sh"],"terminal":{"columns":80,"rows":24}}"#,
        r#"{"type":"RESIZE","columns":100,"rows":30}"#,
        r#"{"type":"EXITED","code":7}"#,
    ];
    for text in messages {
        assert_eq!(TunnelMessage::parse(text).unwrap().to_json(), text);
    }
    assert!(TunnelMessage::parse(r#"{"type":"OPEN"}"#).is_err());
}

#[test]
fn every_example_is_tested() {
    let files = fs::read_dir(folder()).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let all = FROM_AGENT.iter().chain(&FROM_CORE).chain(&FROM_SIMPLE_AGENTS);
    let tested = all.map(|name| (*name).to_owned());
    assert_eq!(files, tested.collect());
}

#[test]
fn unknown_fields_are_ignored() {
    for name in FROM_AGENT.iter().chain(&FROM_CORE).chain(&FROM_SIMPLE_AGENTS) {
        let mut message = json(&example(name));
        message["from_a_later_version"] = json(r#"{"deep": [1]}"#);
        let text = message.to_string();
        if FROM_CORE.contains(name) {
            CoreMessage::parse(&text).unwrap();
        } else {
            AgentMessage::parse(&text).unwrap();
        }
    }
}

#[test]
fn an_unknown_type_is_told_apart_from_a_malformed_message() {
    let unknown = r#"{"type":"DANCE","job_id":1}"#;
    assert!(
        matches!(CoreMessage::parse(unknown), Err(ParseError::UnknownType(name)) if name == "DANCE")
    );
    assert!(matches!(AgentMessage::parse(unknown), Err(ParseError::UnknownType(_))));
    let malformed =
        ["", "[]", "{}", r#"{"type":"CANCEL"}"#, r#"{"type":"CANCEL","job_id":"../x"}"#];
    for text in malformed {
        assert!(matches!(CoreMessage::parse(text), Err(ParseError::Malformed { .. })), "{text}");
    }
}

#[test]
fn messages_without_the_later_fields_say_nothing_of_a_lease_and_name_a_certain_end() {
    let ack = r#"{"type":"HELLO_ACK","heartbeat_interval":15}"#;
    let CoreMessage::HelloAck(hello) = CoreMessage::parse(ack).unwrap() else { panic!("{ack}") };
    let ack = r#"{"type":"STATUS_ACK","job_id":"job_build_xk82"}"#;
    let CoreMessage::StatusAck(status) = CoreMessage::parse(ack).unwrap() else { panic!("{ack}") };
    assert_eq!((hello.lease_seconds, status.lease_seconds), (None, None));
    // Nor do they name what they do not say.
    assert!(!CoreMessage::StatusAck(status).to_json().contains("lease"));
    let end = r#"{"type":"INTERRUPTED","at":1767225600000}"#;
    let AgentMessage::Interrupted(end) = AgentMessage::parse(end).unwrap() else { panic!("{end}") };
    assert_eq!(end.notice, Notice::Certain);
}

#[test]
fn what_is_wrong_is_said_without_quoting_a_value() {
    let wrong = [
        (r#"{"type":"BUILD","registry_auth":"hunter2"}"#, "a value of the wrong kind"),
        (r#"{"type":"BUILD","context":{"commit_hash":"hunter2"}}"#, "a value of the wrong kind"),
        (r#"{"type":"CANCEL","job_id":"missing field `hunter2`"}"#, "a value of the wrong kind"),
        (r#"{"type":"BUILD","hunter2":1,"context":{}}"#, "no field `repo_url`"),
        (r#"{"type":"BUILD",hunter2"#, "no JSON"),
        (r#"{"type":"BUILD","x":"hunter2"#, "JSON without its end"),
    ];
    for (text, problem) in wrong {
        let error = CoreMessage::parse(text).unwrap_err();
        let shown = format!("{error}, {error:?}");
        assert!(shown.contains(problem) && !shown.contains("hunter2"), "{shown}");
        assert!(std::error::Error::source(&error).is_none());
    }
}

#[test]
fn the_simplest_shapes_are_understood() {
    let line = example("log_line");
    let AgentMessage::Log(log) = AgentMessage::parse(&line).unwrap() else { panic!("no LOG") };
    assert_eq!((log.first, &*log.lines[0].data), (None, "#5 [2/5] RUN npm install"));

    let status = r#"{"type":"STATUS","job_id":"job_build_xk82","state":"completed","exit_code":0,
        "artifact_url":"registry.internal/proj-123/env-456:backend-amd64"}"#;
    let AgentMessage::Status(status) = AgentMessage::parse(status).unwrap() else {
        panic!("no STATUS")
    };
    assert_eq!((status.state, status.exit_code), (StatusState::Completed, Some(0)));

    let merge = r#"{"type":"MERGE","job_id":"job_merge_xk82","source_images":[
        "registry.internal/proj/env:app-amd64","registry.internal/proj/env:app-arm64"],
        "target_image":"registry.internal/proj/env:app",
        "registry_auth":{"username":"stagely","password":"x"}}"#;
    let CoreMessage::Merge(merge) = CoreMessage::parse(merge).unwrap() else { panic!("no MERGE") };
    assert!(merge.platforms.is_empty());
}

#[test]
fn secrets_stay_out_of_debug_output() {
    for name in ["build", "merge"] {
        let shown = format!("{:?}", CoreMessage::parse(&example(name)).unwrap());
        for secret in ["github_pat_x", "reg_token_x", "staging"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    let hello = example("hello");
    assert!(!format!("{:?}", AgentMessage::parse(&hello).unwrap()).contains("agent-token"));
}

#[test]
fn a_build_without_the_later_fields_is_pushed_and_may_be_emulated() {
    let CoreMessage::Build(build) = CoreMessage::parse(&example("build")).unwrap() else {
        panic!("no BUILD")
    };
    let config = build.build_config;
    assert!(config.push && config.emulation == Emulation::Allow);
    assert!(build.context.submodules.is_all());
    assert!(config.build_contexts.is_empty() && config.native_steps.is_empty());
    assert!(config.previous_fingerprint.is_none());
}

#[test]
fn a_status_without_the_later_fields_is_the_last_one() {
    let text = example("status_completed");
    let AgentMessage::Status(status) = AgentMessage::parse(&text).unwrap() else {
        panic!("no STATUS")
    };
    assert!(!status.exporting_cache && status.cache_miss.is_none() && status.fingerprint.is_none());
    // Nor does it name them, so that it looks as it always has.
    let text = AgentMessage::Status(status).to_json();
    assert!(!["exporting", "miss", "fingerprint"].iter().any(|word| text.contains(word)), "{text}");
}

#[test]
fn who_knows_nothing_of_the_later_fields_sees_a_completed_job() {
    #[derive(serde::Deserialize)]
    struct OldStatus {
        state: String,
        digest: String,
    }
    let status: OldStatus = serde_json::from_str(&example("status_exporting")).unwrap();
    assert!(status.state == "completed" && status.digest.starts_with("sha256:"));
}

/// What stands in the place of some bytes of a damaged message.
const TOKENS: [&str; 22] = [
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[[[[[[[[",
    "{{{{",
    "}",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "true",
    "0.0000001",
    "\n",
    "\r",
    "\"type\":",
    "\u{202e}",
    "=",
    "AAAA",
];

proptest! {
    /// `PROPTEST_CASES` sets how many messages are tried.
    #[test]
    fn a_damaged_message_is_read_or_refused(
        example in prop::sample::select([&FROM_AGENT[..], &FROM_CORE, &FROM_SIMPLE_AGENTS].concat()),
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..30_usize, prop::sample::select(&TOKENS[..])), 1..4,
        ),
    ) {
        let mut text = fs::read_to_string(folder().join(format!("{example}.json"))).unwrap();
        for (at, length, token) in damage {
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary(text.len().min(at + length));
            text.replace_range(at..end, token);
        }
        // What is read is written again in a form that is read.
        if let Ok(message) = AgentMessage::parse(&text) {
            prop_assert!(AgentMessage::parse(&message.to_json()).is_ok(), "{}", text);
        }
        if let Ok(message) = CoreMessage::parse(&text) {
            prop_assert!(CoreMessage::parse(&message.to_json()).is_ok(), "{}", text);
        }
    }
}
