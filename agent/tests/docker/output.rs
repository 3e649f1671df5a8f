//! The output of builds, however much it is and however busy the machine is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stagely_agent::job::REGISTRY_RETRY_LIMIT;
use stagely_agent::job_log::LineSink;
use stagely_agent::spool::SpoolError;
use stagely_protocol::{FailureReason, StatusState, Stream};

use crate::setup::{Lines, Setup};

/// What `BuildKit` writes where it drops output.
const CLIP_MARK: &str = "[output clipped, log limit ";

#[tokio::test]
async fn every_line_arrives_or_the_user_is_warned() {
    let setup = Setup::new("lines");
    // The lines of a failed build matter most: people read them.
    for (end, state) in [(0, StatusState::Completed), (5, StatusState::Failed)] {
        setup.lines.text.lock().unwrap().clear();
        let dockerfile = format!(
            "FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 200000; exit {end}\n",
            setup.name
        );
        let status = setup.run(setup.build(&[("Dockerfile", &dockerfile)], json!({}))).await;
        assert_eq!(status.state, state, "{status:?}");
        let log = setup.log();
        let (mut next, mut torn) = (1, Vec::new());
        for line in log.lines() {
            let number =
                line.rsplit_once(" line ").and_then(|(_, number)| number.parse::<u32>().ok());
            match number {
                Some(number) if number == next => next += 1,
                _ if next > 1 => torn.push(line),
                _ => {}
            }
        }
        torn.truncate(10);
        if log.contains(CLIP_MARK) {
            // The engine was not set up by Stagely.
            let is_warned =
                status.warnings.iter().any(|text| text.contains("BUILDKIT_STEP_LOG_MAX_SIZE"));
            assert!(is_warned, "{:?}", status.warnings);
        } else {
            assert_eq!((next, &status.warnings[..]), (200_001, &[][..]), "{torn:#?}");
        }
    }
}

/// Accepts a step's output so slowly, the content of a pipe each 3 s, that `buildx` gives up its report before the end,
/// however long the build takes.
#[derive(Default)]
struct SlowLines(Lines);

impl LineSink for SlowLines {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        if lines.iter().any(|(_, line)| line.contains(" line ")) {
            let (_sender, nothing) = std::sync::mpsc::channel::<()>();
            nothing.recv_timeout(Duration::from_secs(3)).unwrap_err();
        }
        self.0.append(lines)
    }
}

#[tokio::test]
async fn a_build_whose_report_is_lost_on_a_busy_machine_completes() {
    let setup = Setup::new("busy");
    let dockerfile =
        format!("FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 400000\n", setup.name);
    let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
    let sink = Arc::new(SlowLines::default());
    let status = setup.run_to(message, REGISTRY_RETRY_LIMIT, sink.clone()).await;
    let log = sink.0.text.lock().unwrap().join("\n");
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{log}");
    assert!(status.digest.is_some());
    assert!(status.warnings[0].contains("too busy"), "{:?}", status.warnings);
}

#[tokio::test]
async fn a_failed_build_whose_report_is_lost_on_a_busy_machine_says_that_lines_are_missing() {
    let setup = Setup::new("busy-failure");
    let dockerfile =
        format!("FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 400000; exit 5\n", setup.name);
    let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
    let sink = Arc::new(SlowLines::default());
    let status = setup.run_to(message, REGISTRY_RETRY_LIMIT, sink.clone()).await;
    assert_eq!(status.state, StatusState::Failed, "{status:?}");
    assert!(matches!(status.error, Some(FailureReason::User { exit_code: 5, .. })), "{status:?}");
    let log = sink.0.text.lock().unwrap().join("\n");
    assert!(!log.contains(" line 400000\n"), "the report is not lost");
    let has_warning =
        status.warnings.iter().any(|text| text.contains("a part of its log is missing"));
    assert!(has_warning, "{:?}", status.warnings);
}
