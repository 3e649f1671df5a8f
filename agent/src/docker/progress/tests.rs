//! Tests that render rawjson output as log lines.

use proptest::prelude::*;
use stagely_protocol::LINE_BYTES_MAX;

use super::*;
use crate::mask::MaskerBuilder;

fn render(json: &str, secret: &str, piece: usize) -> (Vec<String>, Progress) {
    let mut secrets = MaskerBuilder::default();
    secrets.credential(secret);
    let mut progress = Progress::new(secrets.build().unwrap());
    let (mut decoder, mut items, mut lines) = (RawJsonDecoder::default(), Vec::new(), Vec::new());
    for bytes in json.as_bytes().chunks(piece) {
        decoder.push(bytes, &mut items);
    }
    decoder.finish(&mut items);
    for item in items {
        match item {
            OutputItem::Status(status) => progress.apply(status, &mut lines),
            OutputItem::Text(text) => progress.push_client_line(text, &mut lines),
        }
    }
    progress.finish(&mut lines);
    (lines.into_iter().map(|(_, line)| line).collect(), progress)
}

fn example() -> String {
    let log = |text: &str, time: &str| {
        let data = STANDARD.encode(text);
        format!(
            r#"{{"logs":[{{"vertex":"b","stream":1,"data":"{data}","timestamp":"2026-01-01T00:00:0{time}Z"}}]}}"#
        )
    };
    [
        r#"{
 "vertexes": [{"digest":"a","name":"[1/2] FROM busybox"},{"digest":"b","name":"[2/2] RUN echo {\"x"}]
}"#
        .to_owned(),
        r#"{"vertexes":[{"digest":"a","name":"[1/2] FROM busybox","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:00Z","cached":true}]}"#.to_owned(),
        r#"{"vertexes":[{"digest":"b","name":"[2/2] RUN echo {\"x","started":"2026-01-01T00:00:01Z"}]}"#.to_owned(),
        log("one\ntwo hun", "1.25"),
        log("ter22 three\n10%\r20%\n", "1.5"),
        log("end [output clipped, log limit 2MiB reached]", "1.75"),
        r#"{"vertexes":[{"digest":"b","started":"2026-01-01T00:00:01Z","completed":"2026-01-01T00:00:03.5Z","error":"process \"/bin/sh -c x\" did not complete successfully: exit code: 3"}]}"#.to_owned(),
        "------\n > [2/2] RUN echo:\n------\nERROR: failed to solve".to_owned(),
    ]
    .join("\n")
}

#[test]
fn any_cut_of_the_stream_gives_the_same_plain_lines() {
    for piece in [1, 7, 64, 100_000] {
        let (lines, progress) = render(&example(), "hunter22", piece);
        assert_eq!(
            lines,
            [
                "#1 [1/2] FROM busybox",
                "#1 CACHED",
                "#2 [2/2] RUN echo {\"x",
                "#2 0.250 one",
                "#2 0.500 two *** three",
                "#2 0.500 20%",
                "#2 0.750 end [output clipped, log limit 2MiB reached]",
                "#2 ERROR: process \"/bin/sh -c x\" did not complete successfully: exit code: 3",
                "------",
                " > [2/2] RUN echo:",
                "------",
                "ERROR: failed to solve",
            ]
        );
        let failed = progress.failed_step().unwrap();
        assert_eq!(failed.name, "[2/2] RUN echo {\"x");
        assert_eq!(failed.tail.len(), 4);
        assert!(progress.is_clipped());
        let cached: Vec<_> = progress.steps().iter().map(|step| step.cached).collect();
        assert_eq!(cached, [false]);
    }
}

#[test]
fn output_that_comes_long_after_a_steps_end_is_whole_and_masked() {
    let log = |vertex: &str, text: &str| {
        let data = STANDARD.encode(text);
        format!(r#"{{"logs":[{{"vertex":"{vertex}","stream":1,"data":"{data}"}}]}}"#)
    };
    let vertex = |name: &str, times: &str| {
        format!(r#"{{"vertexes":[{{"digest":"{name}","name":"[1/2] RUN {name}",{times}}}]}}"#)
    };
    let begun = r#""started":"2026-01-01T00:00:00Z""#;
    let ended = format!(r#"{begun},"completed":"2026-01-01T00:00:01Z""#);
    let json = [
        vertex("a", begun),
        vertex("b", begun),
        log("a", "one\ntwo hun"),
        vertex("a", &ended),
        log("a", ""),
        log("b", "of b\n"),
        "a warning of the client\n".to_owned(),
        log("a", "ter22 three\nno end hunt"),
        vertex("b", &ended),
        "ERROR: last line".to_owned(),
    ];
    let (lines, _) = render(&json.join("\n"), "hunter22", 7);
    assert_eq!(
        lines,
        [
            "#1 [1/2] RUN a",
            "#2 [1/2] RUN b",
            "#1 0.000 one",
            "#1 DONE 1.0s",
            "#2 0.000 of b",
            "a warning of the client",
            "#1 0.000 two *** three",
            "#1 0.000 no end hunt",
            "#2 DONE 1.0s",
            "ERROR: last line",
        ]
    );
}

#[test]
fn a_line_without_an_end_does_not_fill_the_memory() {
    let data = STANDARD.encode("x".repeat(30_000));
    let log = format!(r#"{{"logs":[{{"vertex":"b","stream":1,"data":"{data}"}}]}}"#);
    let (lines, _) = render(&log.repeat(20), "hunter22", 10_000);
    assert_eq!(lines[1].len(), "#1 0.000 ".len() + LINE_BYTES_MAX + 1);
}

fn redrawn(states: &[(String, u32)]) -> Vec<String> {
    let vertex =
        r#"{"vertexes":[{"digest":"b","name":"[1/1] RUN b","started":"2026-01-01T00:00:00Z"}]}"#;
    let logs = states.iter().map(|(text, seconds)| {
        let (data, time) = (STANDARD.encode(text), format!("2026-01-01T00:00:{seconds:02}Z"));
        format!(r#"{{"logs":[{{"vertex":"b","stream":1,"data":"{data}","timestamp":"{time}"}}]}}"#)
    });
    let json: Vec<String> = std::iter::once(vertex.to_owned()).chain(logs).collect();
    render(&json.join("\n"), "hunter22", 10_000).0.split_off(1)
}

#[test]
fn the_last_state_of_a_line_that_is_overwritten_is_logged() {
    let state = |percent: usize| format!("\rdownload {percent:>4} of 4000 {}", ".".repeat(20));
    let long: String = (0..4000).map(state).collect();
    let pieces = long.as_bytes().chunks(32_000);
    let mut pieces: Vec<_> =
        pieces.map(|piece| (String::from_utf8(piece.to_vec()).unwrap(), 1)).collect();
    pieces.push(("\rdownload FINISHED checksum=abc\nnext\r\n\r".to_owned(), 1));
    pieces.push(("100%\r\n".to_owned(), 1));

    let lines = redrawn(&pieces);

    assert_eq!(
        lines,
        ["#1 1.000 download FINISHED checksum=abc", "#1 1.000 next", "#1 1.000 100%"]
    );
}

#[test]
fn a_line_that_is_overwritten_for_long_is_logged_every_few_seconds() {
    let states: Vec<_> = (0..14).map(|second| (format!("\r{second} s"), second)).collect();
    let lines = redrawn(&states);
    assert_eq!(lines, ["#1 5.000 4 s", "#1 10.000 9 s", "#1 13.000 13 s"]);
}

#[test]
fn a_step_whose_layers_cannot_be_loaded_and_that_runs_is_not_cached() {
    let vertex = |cached: bool| {
        format!(
            r#"{{"vertexes":[{{"digest":"b","name":"[2/2] RUN b","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:01Z","cached":{cached}}}]}}"#
        )
    };
    let data = STANDARD.encode("running\n");
    let log = format!(r#"{{"logs":[{{"vertex":"b","stream":1,"data":"{data}"}}]}}"#);
    let cached = |json: &[&str]| render(&json.join("\n"), "hunter22", 10_000).1.steps()[0].cached;
    assert!(cached(&[&vertex(true), &vertex(false)]));
    assert!(!cached(&[&vertex(true), &log, &vertex(false)]));
}

proptest! {
    /// Nothing panics, and the log is not much longer than the output.
    #[test]
    fn damaged_output_is_shown(
        damage in prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                0..60_usize,
                "null|-1|1e999|18446744073709551616|\"\"|\\[|\\{|\\}|,|:|\"|\n|\r|9999-01-01|\\\\u0000|[a-zA-Z0-9+/=]{1,9}",
            ),
            1..6,
        ),
        piece in 1..300_usize,
    ) {
        let mut text = example();
        for (at, length, token) in damage {
            let at = at.index(text.len() + 1);
            text.replace_range(at..text.len().min(at + length), &token);
        }
        let (lines, progress) = render(&text, "hunter22", piece);
        let bytes: usize = lines.iter().map(String::len).sum();
        prop_assert!(bytes <= 4 * text.len() + 1_000, "{} bytes of {}", bytes, text);
        prop_assert!(progress.steps().iter().all(|step| step.seconds >= 0.0));
    }
}
