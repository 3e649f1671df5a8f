//! Reads `docker buildx build --progress=rawjson` and writes it as `BuildKit`'s own plain style.
//!
//! Source: `BuildKit`, `client.SolveStatus` and `util/progress/progressui`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use stagely_protocol::{LINE_BYTES_MAX, Step, Stream};

use super::vertex::{BaseImage, StepName};
use crate::mask::{MaskedStream, Masker};

/// A JSON object longer than this is none of `BuildKit`'s (its log pieces have 32 KiB).
const OBJECT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What `BuildKit` writes where it drops output.
const CLIP_MARK: &str = "[output clipped, log limit ";

/// How `BuildKit` names the import of a cache.
const CACHE_IMPORT: &str = "importing cache manifest from ";

/// The failing step's last lines that are kept for the error message.
const TAIL_LINES: usize = 20;

/// The client's own lines that wait for what follows them. Its last words are fewer.
const TEXTS_MAX: usize = 1_000;

/// One piece of the stream.
#[derive(Debug)]
pub(super) enum Event {
    /// A status of the build.
    Status(SolveStatus),
    /// A line between or after the statuses, without its end.
    Text(String),
}

/// What `BuildKit` reports at once.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SolveStatus {
    vertexes: Vec<Vertex>,
    statuses: Vec<VertexStatus>,
    logs: Vec<VertexLog>,
    warnings: Vec<VertexWarning>,
}

#[derive(Debug, Deserialize)]
struct Vertex {
    digest: String,
    #[serde(default)]
    name: String,
    #[serde(default, with = "go_time")]
    started: Option<SystemTime>,
    #[serde(default, with = "go_time")]
    completed: Option<SystemTime>,
    #[serde(default)]
    cached: bool,
    #[serde(default)]
    error: String,
}

#[derive(Debug, Deserialize)]
struct VertexStatus {
    id: String,
    vertex: String,
    #[serde(default)]
    total: i64,
    #[serde(default)]
    current: i64,
    #[serde(default, with = "go_time")]
    started: Option<SystemTime>,
    #[serde(default, with = "go_time")]
    completed: Option<SystemTime>,
}

#[derive(Debug, Deserialize)]
struct VertexLog {
    vertex: String,
    #[serde(default)]
    stream: i32,
    /// Base64.
    #[serde(default)]
    data: String,
    #[serde(default, with = "go_time")]
    timestamp: Option<SystemTime>,
}

#[derive(Debug, Deserialize)]
struct VertexWarning {
    /// Base64.
    #[serde(default)]
    short: String,
}

/// Go's times, which are RFC 3339.
mod go_time {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<std::borrow::Cow<'de, str>>::deserialize(from)?;
        // A time that cannot be read costs a duration, not the build.
        Ok(text.and_then(|text| humantime::parse_rfc3339(&text).ok()))
    }
}

/// Cuts a stream of JSON objects and plain lines apart.
#[derive(Debug, Default)]
pub(super) struct RawJson {
    buffer: Vec<u8>,
    /// How much of `buffer` was looked at, and in which state that left us.
    scanned: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl RawJson {
    /// Takes `bytes` and appends what is complete to `events`.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        self.buffer.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(end) = self.scan(start) {
            push_piece(&self.buffer[start..end], events);
            start = end;
            self.scanned = end;
        }
        self.buffer.drain(..start);
        self.scanned -= start;
    }

    /// Appends what is left when the stream ends.
    pub(super) fn finish(&mut self, events: &mut Vec<Event>) {
        push_piece(&std::mem::take(&mut self.buffer), events);
        *self = Self::default();
    }

    /// Where the piece that begins at `start` ends, if it does yet.
    fn scan(&mut self, start: usize) -> Option<usize> {
        let is_object = self.buffer.get(start) == Some(&b'{');
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            let ended = if is_object { self.step(byte) } else { byte == b'\n' };
            if ended || self.scanned - start >= OBJECT_BYTES_MAX {
                (self.depth, self.in_string, self.escaped) = (0, false, false);
                return Some(self.scanned);
            }
        }
        None
    }

    /// Moves on by one byte of an object; `true` after its last.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' => self.depth += 1,
            b'}' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}

fn push_piece(piece: &[u8], events: &mut Vec<Event>) {
    if piece.starts_with(b"{")
        && let Ok(status) = serde_json::from_slice(piece)
    {
        events.push(Event::Status(status));
        return;
    }
    let text = String::from_utf8_lossy(piece);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    events.extend(lines.map(|line| Event::Text(line.to_owned())));
}

/// What is known of one vertex.
struct Known {
    /// Its place in `Progress::order`, from 1; 0 before it was shown.
    number: usize,
    name: String,
    ended: bool,
    /// How it ended was shown, and nothing of it since.
    end_shown: bool,
    started: Option<SystemTime>,
    seconds: f64,
    cached: bool,
    error: String,
    outputs: [Output; 2],
    tail: Vec<String>,
    /// Names of its statuses that were shown as begun and as done.
    statuses: HashMap<String, bool>,
}

/// One output of one vertex: pieces on their way to lines.
struct Output {
    masked: MaskedStream,
    line: Vec<u8>,
    seconds: f64,
}

/// The state of a build, as far as it was reported.
pub(super) struct Progress {
    masker: Masker,
    known: HashMap<String, Known>,
    /// In the order in which they were begun.
    order: Vec<String>,
    /// Ended vertexes whose end is not shown yet.
    ended: Vec<String>,
    /// Lines that are no reports, until another report or the end shows where they belong.
    texts: Vec<String>,
    clipped: bool,
}

/// The step that made a build fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FailedStep {
    /// Its name, masked.
    pub name: String,
    /// `BuildKit`'s error, masked.
    pub error: String,
    /// The last lines of its output, masked.
    pub tail: Vec<String>,
}

impl Progress {
    /// Begins with nothing known.
    pub(super) fn new(masker: Masker) -> Self {
        Self {
            masker,
            known: HashMap::new(),
            order: Vec::new(),
            ended: Vec::new(),
            texts: Vec::new(),
            clipped: false,
        }
    }

    /// Takes one report and appends its lines, masked.
    pub(super) fn apply(&mut self, status: SolveStatus, lines: &mut Vec<(Stream, String)>) {
        self.show_texts(lines);
        // BuildKit ends a vertex and begins it again in the next report, for one when its cache was
        // looked up first; and on a busy machine a vertex's last words come several reports after
        // its end. So an end is shown once a report says nothing more of its vertex.
        let begun = |digest: &String| {
            status.vertexes.iter().any(|it| it.digest == *digest && it.completed.is_none())
        };
        let speaks = |digest: &String| status.logs.iter().any(|log| log.vertex == *digest);
        self.ended.retain(|digest| !begun(digest));
        let (waiting, over) = std::mem::take(&mut self.ended).into_iter().partition(speaks);
        self.ended = waiting;
        self.show_ends(over, lines);
        for vertex in status.vertexes {
            self.apply_vertex(vertex, lines);
        }
        for status in status.statuses {
            self.apply_status(&status, lines);
        }
        for log in &status.logs {
            self.apply_log(log, lines);
        }
        for warning in status.warnings {
            let text = STANDARD.decode(warning.short).unwrap_or_default();
            let text = self.masker.mask(&String::from_utf8_lossy(&text));
            lines.push((Stream::Stderr, format!("WARNING: {text}")));
        }
    }

    /// Takes a masked line that is no report: a warning of the client's, or its last words.
    pub(super) fn text(&mut self, text: String, lines: &mut Vec<(Stream, String)>) {
        self.texts.push(text);
        if self.texts.len() > TEXTS_MAX {
            self.show_texts(lines);
        }
    }

    /// Shows all that is still to be shown. The stream of reports is over.
    pub(super) fn finish(&mut self, lines: &mut Vec<(Stream, String)>) {
        // Not earlier, not even with a vertex's end: half a line may hold half a secret, and the
        // other half may be on its way.
        for digest in self.order.clone() {
            self.show_rest(&digest, lines);
        }
        let ended = std::mem::take(&mut self.ended);
        self.show_ends(ended, lines);
        self.show_texts(lines);
    }

    fn show_ends(&mut self, ended: Vec<String>, lines: &mut Vec<(Stream, String)>) {
        for digest in ended {
            self.show_end(&digest, lines);
        }
    }

    fn show_texts(&mut self, lines: &mut Vec<(Stream, String)>) {
        lines.extend(self.texts.drain(..).map(|text| (Stream::Stderr, text)));
    }

    /// The steps of the Dockerfile that have ended, in `BuildKit`'s order. FROM is none: no cache holds
    /// it, and a build whose steps all come from the cache counts as such.
    pub(super) fn steps(&self) -> Vec<Step> {
        let known = self.order.iter().filter_map(|digest| self.known.get(digest));
        let mut steps: Vec<Step> = Vec::new();
        for vertex in known.filter(|vertex| vertex.ended && is_step(&vertex.name)) {
            // On a named context BuildKit solves a step in parts, all of one name.
            if let Some(step) = steps.iter_mut().find(|step| step.name == vertex.name) {
                step.seconds = step.seconds.max(vertex.seconds);
                step.cached &= vertex.cached;
            } else {
                let (name, seconds) = (vertex.name.clone(), vertex.seconds);
                steps.push(Step { name, seconds, cached: vertex.cached });
            }
        }
        steps
    }

    /// The images that the build used.
    pub(super) fn base_images(&self) -> Vec<BaseImage> {
        self.known.values().filter_map(|vertex| BaseImage::parse(&vertex.name)).collect()
    }

    /// Whether any cache could be imported.
    pub(super) fn cache_found(&self) -> bool {
        let mut imports = self.known.values().filter(|it| it.name.starts_with(CACHE_IMPORT));
        imports.any(|vertex| vertex.ended && vertex.error.is_empty())
    }

    /// The names of the vertexes that have begun and not ended.
    pub(super) fn unended(&self) -> Vec<String> {
        let known = self.order.iter().filter_map(|digest| self.known.get(digest));
        let begun = known.filter(|vertex| vertex.started.is_some() && !vertex.ended);
        begun.map(|vertex| vertex.name.clone()).collect()
    }

    /// The step that failed of itself, not because another one did.
    pub(super) fn failed_step(&self) -> Option<FailedStep> {
        let known = self.order.iter().filter_map(|digest| self.known.get(digest));
        // A cache that cannot be read or written never fails a build.
        let failed = known.filter(|it| !it.error.is_empty() && !it.name.contains("porting cache "));
        let failed = failed.min_by_key(|vertex| vertex.error.contains("context canceled"))?;
        Some(FailedStep {
            name: failed.name.clone(),
            error: failed.error.clone(),
            tail: failed.tail.clone(),
        })
    }

    /// Why the layer cache was not exported, masked. It does not make the build fail.
    pub(super) fn cache_export_error(&self) -> Option<&str> {
        let known = self.order.iter().filter_map(|digest| self.known.get(digest));
        let mut failed = known.filter(|it| it.name.starts_with("exporting cache "));
        failed.find(|vertex| !vertex.error.is_empty()).map(|vertex| vertex.error.as_str())
    }

    /// Whether the engine dropped a part of the output.
    pub(super) const fn is_clipped(&self) -> bool {
        self.clipped
    }

    fn apply_vertex(&mut self, vertex: Vertex, lines: &mut Vec<(Stream, String)>) {
        let (name, error) = (self.masker.mask(&vertex.name), self.masker.mask(&vertex.error));
        let known = self.vertex(&vertex.digest);
        if known.name.is_empty() {
            known.name = name;
        }
        known.cached |= vertex.cached;
        known.started = vertex.started.or(known.started);
        known.ended &= vertex.started.is_none() || vertex.completed.is_some();
        let is_end = vertex.completed.is_some() && !known.ended;
        if let (Some(completed), true) = (vertex.completed, is_end) {
            known.ended = true;
            known.seconds += seconds_between(known.started, completed);
            known.error = error;
        }
        if known.started.is_some() {
            self.number(&vertex.digest, lines);
        }
        if is_end {
            self.ended.push(vertex.digest);
        }
    }

    /// The vertex's number. The first time it is asked for, the vertex is shown.
    fn number(&mut self, digest: &str, lines: &mut Vec<(Stream, String)>) -> usize {
        let next = self.order.len() + 1;
        let known = self.vertex(digest);
        if known.number > 0 {
            return known.number;
        }
        known.number = next;
        lines.push((Stream::Stdout, format!("#{next} {}", known.name)));
        self.order.push(digest.to_owned());
        next
    }

    fn apply_status(&mut self, status: &VertexStatus, lines: &mut Vec<(Stream, String)>) {
        let id = self.masker.mask(&status.id);
        let known = self.vertex(&status.vertex);
        let is_transfer = status.total > 0 || status.current > 0;
        let done = status.completed.is_some();
        let before = known.statuses.insert(id.clone(), done);
        let is_news = before != Some(true) && (done || (before.is_none() && !is_transfer));
        if !is_news {
            return;
        }
        known.end_shown = false;
        let mut line = format!("#{} {id}", self.number(&status.vertex, lines));
        if is_transfer {
            let size = status.current.max(status.total);
            // Writing to a String cannot fail.
            let _ = write!(line, " {}", bytes(u64::try_from(size).unwrap_or(0)));
        }
        if let Some(completed) = status.completed {
            let _ = write!(line, " {:.1}s done", seconds_between(status.started, completed));
        }
        lines.push((Stream::Stdout, line));
    }

    fn apply_log(&mut self, log: &VertexLog, lines: &mut Vec<(Stream, String)>) {
        let Ok(data) = STANDARD.decode(&log.data) else { return };
        self.number(&log.vertex, lines);
        let known = self.vertex(&log.vertex);
        let stream = if log.stream == 2 { Stream::Stderr } else { Stream::Stdout };
        let output = &mut known.outputs[usize::from(stream == Stream::Stderr)];
        if let Some(timestamp) = log.timestamp {
            output.seconds = seconds_between(known.started, timestamp);
        }
        let mut masked = Vec::with_capacity(data.len());
        output.masked.push(&data, &mut masked);
        known.end_shown = false;
        self.clipped |= take_lines(known, stream, &masked, lines);
    }

    /// Lets go of a vertex's unfinished lines.
    fn show_rest(&mut self, digest: &str, lines: &mut Vec<(Stream, String)>) {
        let known = self.vertex(digest);
        let mut clipped = false;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let output = &mut known.outputs[usize::from(stream == Stream::Stderr)];
            let mut rest = Vec::new();
            output.masked.finish(&mut rest);
            if !rest.is_empty() || !output.line.is_empty() {
                rest.push(b'\n');
            }
            clipped |= take_lines(known, stream, &rest, lines);
        }
        self.clipped |= clipped;
    }

    /// Says how a vertex ended.
    fn show_end(&mut self, digest: &str, lines: &mut Vec<(Stream, String)>) {
        let number = self.number(digest, lines);
        let known = self.vertex(digest);
        let was_shown = std::mem::replace(&mut known.end_shown, true);
        if known.error.is_empty() {
            known.tail = Vec::new();
            let end =
                if known.cached { "CACHED".into() } else { format!("DONE {:.1}s", known.seconds) };
            if !was_shown {
                lines.push((Stream::Stdout, format!("#{number} {end}")));
            }
        } else if known.error.contains("context canceled") {
            lines.push((Stream::Stderr, format!("#{number} CANCELED")));
        } else {
            lines.push((Stream::Stderr, format!("#{number} ERROR: {}", known.error)));
        }
    }

    fn vertex(&mut self, digest: &str) -> &mut Known {
        self.known.entry(digest.to_owned()).or_insert_with(|| Known::new(&self.masker))
    }
}

impl Known {
    fn new(masker: &Masker) -> Self {
        let output = || Output { masked: masker.stream(), line: Vec::new(), seconds: 0.0 };
        Self {
            number: 0,
            name: String::new(),
            ended: false,
            end_shown: false,
            started: None,
            seconds: 0.0,
            cached: false,
            error: String::new(),
            outputs: [output(), output()],
            tail: Vec::new(),
            statuses: HashMap::new(),
        }
    }
}

/// Appends `data` to the output's line and moves out what is complete. Returns whether `BuildKit`
/// said that it dropped something.
fn take_lines(
    known: &mut Known,
    stream: Stream,
    data: &[u8],
    lines: &mut Vec<(Stream, String)>,
) -> bool {
    let output = &mut known.outputs[usize::from(stream == Stream::Stderr)];
    let mut clipped = false;
    for piece in data.split_inclusive(|&byte| byte == b'\n') {
        // What exceeds the longest line would be cut by the spool anyhow; one byte more makes sure
        // that it is marked.
        let room = (LINE_BYTES_MAX + 1).saturating_sub(output.line.len());
        output.line.extend_from_slice(&piece[..piece.len().min(room)]);
        if !piece.ends_with(b"\n") {
            break;
        }
        let text = String::from_utf8_lossy(&output.line);
        // A progress bar redraws its line: what stays on a terminal is its last state.
        let text = text.trim_end_matches(['\n', '\r']);
        let text = text.rsplit_once('\r').map_or(text, |(_, last)| last);
        clipped |= text.contains(CLIP_MARK);
        known.tail.push(text.to_owned());
        lines.push((stream, format!("#{} {:.3} {text}", known.number, output.seconds)));
        output.line.clear();
    }
    let excess = known.tail.len().saturating_sub(TAIL_LINES);
    known.tail.drain(..excess);
    clipped
}

/// `[2/5] RUN …` is a step of the Dockerfile; `[internal] …`, `[auth] …` and `exporting …` are not.
fn is_step(name: &str) -> bool {
    StepName::parse(name).is_some_and(|step| step.is_cacheable())
}

fn seconds_between(from: Option<SystemTime>, to: SystemTime) -> f64 {
    from.and_then(|from| to.duration_since(from).ok()).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "two digits of it are shown")]
fn bytes(size: u64) -> String {
    match size {
        0..1_000 => format!("{size}B"),
        1_000..1_000_000 => format!("{:.2}kB", size as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}MB", size as f64 / 1e6),
        _ => format!("{:.2}GB", size as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Secrets;

    fn render(json: &str, secret: &str, piece: usize) -> (Vec<String>, Progress) {
        let mut secrets = Secrets::default();
        secrets.credential(secret);
        let mut progress = Progress::new(Masker::new(secrets).unwrap());
        let (mut decoder, mut events, mut lines) = (RawJson::default(), Vec::new(), Vec::new());
        for bytes in json.as_bytes().chunks(piece) {
            decoder.push(bytes, &mut events);
        }
        decoder.finish(&mut events);
        for event in events {
            match event {
                Event::Status(status) => progress.apply(status, &mut lines),
                Event::Text(text) => progress.text(text, &mut lines),
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
    fn words_that_come_long_after_a_steps_end_are_whole_and_masked() {
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
            "ERROR: last words".to_owned(),
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
                "ERROR: last words",
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
}
