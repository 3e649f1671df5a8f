//! Follows a build by `BuildKit`'s status reports, and writes them as `BuildKit`'s own plain style.
//!
//! Source: `BuildKit`, `util/progress/progressui`.

mod rawjson;
mod vertex_progress;

use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stagely_protocol::{Digest, Step, Stream};

pub(crate) use self::rawjson::{OutputItem, RawJsonDecoder, SolveStatus};
use self::rawjson::{Vertex, VertexLog, VertexStatus, VertexWarning};
use self::vertex_progress::{VertexProgress, seconds_between};
use super::vertex::{BaseImage, StepName};
use crate::mask::Masker;

/// The prefix of the vertexes that import a cache.
const CACHE_IMPORT: &str = "importing cache manifest from ";

/// The prefix of the vertexes that export a cache.
const CACHE_EXPORT: &str = "exporting cache ";

/// The prefix of the status that says which image is pushed, `REFERENCE@DIGEST`.
///
/// Source: `BuildKit`, `util/push/push.go`.
const PUSHING_MANIFEST: &str = "pushing manifest for ";

/// `BuildKit`'s error of a vertex that was cancelled, for example because another one failed.
const CANCELED: &str = "context canceled";

/// The most lines of the client that wait for the next report. Its error message is shorter.
const CLIENT_LINES_MAX: usize = 1_000;

/// The state of a build, as far as `BuildKit` has reported it.
pub(crate) struct Progress {
    masker: Masker,
    /// By digest.
    vertexes: HashMap<String, VertexProgress>,
    /// The digests of the vertexes that have begun, in that order.
    order: Vec<String>,
    /// The digests of vertexes that have ended and whose end is not logged yet.
    unlogged_ends: Vec<String>,
    /// Lines of the client. The next report, or the end of the output, shows where they belong.
    client_lines: Vec<String>,
    is_clipped: bool,
    /// The image whose manifest was sent to the registry.
    sent: Option<SentImage>,
}

/// An image whose manifest was sent. Only the end of its vertex says whether the registry took it: `BuildKit` completes the
/// status also after a refusal.
///
/// Source: `BuildKit`, `util/progress/progress.go`, `OneOff`.
struct SentImage {
    /// The digest of the vertex that pushes it.
    vertex: String,
    digest: Digest,
}

/// The step that made a build fail. All texts are masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FailedStep {
    pub name: String,
    /// `BuildKit`'s error.
    pub error: String,
    /// The last lines of the step's output.
    pub tail: Vec<String>,
}

impl Progress {
    pub(crate) fn new(masker: Masker) -> Self {
        Self {
            masker,
            vertexes: HashMap::new(),
            order: Vec::new(),
            unlogged_ends: Vec::new(),
            client_lines: Vec::new(),
            is_clipped: false,
            sent: None,
        }
    }

    /// Applies one report and appends its log lines, masked.
    pub(crate) fn apply(&mut self, report: SolveStatus, lines: &mut Vec<(Stream, String)>) {
        self.log_client_lines(lines);
        self.log_settled_ends(&report, lines);
        for vertex in report.vertexes {
            self.apply_vertex(vertex, lines);
        }
        for status in report.statuses {
            self.apply_status(&status, lines);
        }
        for log in &report.logs {
            self.apply_log(log, lines);
        }
        for warning in report.warnings {
            self.log_warning(&warning, lines);
        }
    }

    /// Logs the end of each vertex that has ended and that `report` does not mention.
    ///
    /// `BuildKit` may end a vertex and begin it again in the next report, for example when it looks the cache
    /// up first. On a busy machine the last output of a vertex comes several reports after its end.
    fn log_settled_ends(&mut self, report: &SolveStatus, lines: &mut Vec<(Stream, String)>) {
        let begins_again = |digest: &String| {
            let mut vertexes = report.vertexes.iter();
            vertexes.any(|vertex| vertex.digest == *digest && vertex.completed.is_none())
        };
        let has_output = |digest: &String| report.logs.iter().any(|log| log.vertex == *digest);
        self.unlogged_ends.retain(|digest| !begins_again(digest));
        let ends = std::mem::take(&mut self.unlogged_ends).into_iter();
        let (unsettled, settled) = ends.partition(has_output);
        self.unlogged_ends = unsettled;
        self.log_ends(settled, lines);
    }

    /// Adds a masked line of the client: a warning, or its error message.
    pub(crate) fn push_client_line(&mut self, line: String, lines: &mut Vec<(Stream, String)>) {
        self.client_lines.push(line);
        if self.client_lines.len() > CLIENT_LINES_MAX {
            self.log_client_lines(lines);
        }
    }

    /// Logs everything that is not logged yet: the output has ended.
    pub(crate) fn finish(&mut self, lines: &mut Vec<(Stream, String)>) {
        // An unfinished line must wait until here, even if its vertex has ended: it may hold half a secret
        // whose other half is still to come.
        for digest in self.order.clone() {
            let is_clipped = self.vertex(&digest).finish_output(lines);
            self.is_clipped |= is_clipped;
        }
        let ends = std::mem::take(&mut self.unlogged_ends);
        self.log_ends(ends, lines);
        self.log_client_lines(lines);
    }

    /// The steps of the Dockerfile that have ended, in `BuildKit`'s order. FROM is not a step: caches do not
    /// hold it, and a build whose other steps all come from the cache counts as fully cached.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for vertex in self.begun().filter(|vertex| vertex.has_ended && is_step(&vertex.name)) {
            // With a named context, BuildKit solves a step in several vertexes of the same name.
            if let Some(step) = steps.iter_mut().find(|step| step.name == vertex.name) {
                step.seconds = step.seconds.max(vertex.seconds);
                step.cached &= vertex.is_cached();
            } else {
                let (name, seconds) = (vertex.name.clone(), vertex.seconds);
                steps.push(Step { name, seconds, cached: vertex.is_cached() });
            }
        }
        steps
    }

    /// The images that the build used.
    pub(crate) fn base_images(&self) -> Vec<BaseImage> {
        self.vertexes.values().filter_map(|vertex| BaseImage::parse(&vertex.name)).collect()
    }

    pub(crate) fn has_imported_cache(&self) -> bool {
        let mut imports =
            self.vertexes.values().filter(|vertex| vertex.name.starts_with(CACHE_IMPORT));
        imports.any(|vertex| vertex.has_ended && vertex.error.is_empty())
    }

    /// The names of the vertexes that have begun and not ended.
    pub(super) fn running_vertexes(&self) -> Vec<String> {
        let running = self.begun().filter(|vertex| vertex.started.is_some() && !vertex.has_ended);
        running.map(|vertex| vertex.name.clone()).collect()
    }

    /// The step that caused the build's failure. Steps that were cancelled because of it come after it.
    pub(super) fn failed_step(&self) -> Option<FailedStep> {
        // A failing import or export of a cache does not fail a build.
        let is_cache = |name: &str| name.contains("porting cache ");
        let failed = self.begun().filter(|vertex| !vertex.error.is_empty());
        let failed = failed.filter(|vertex| !is_cache(&vertex.name));
        let failed = failed.min_by_key(|vertex| vertex.error.contains(CANCELED))?;
        Some(FailedStep {
            name: failed.name.clone(),
            error: failed.error.clone(),
            tail: failed.tail.clone(),
        })
    }

    /// Why the layer cache was not exported, masked. The build does not fail because of that.
    pub(super) fn cache_export_error(&self) -> Option<&str> {
        let mut exports = self.begun().filter(|vertex| vertex.name.starts_with(CACHE_EXPORT));
        let failed = exports.find(|vertex| !vertex.error.is_empty())?;
        Some(&failed.error)
    }

    /// The digest of the image that the registry has. The vertex that pushes it ends before the cache is exported.
    pub(super) fn pushed_digest(&self) -> Option<&Digest> {
        let sent = self.sent.as_ref()?;
        let vertex = self.vertexes.get(&sent.vertex)?;
        (vertex.has_ended && vertex.error.is_empty()).then_some(&sent.digest)
    }

    /// Whether the report of a failed build ends before the failure. Buildx waits 3 s for the rest of the report and
    /// then leaves.
    ///
    /// Source: `BuildKit`, `client/solve.go`.
    pub(super) fn is_cut_off(&self) -> bool {
        let has_cause = self.failed_step().is_some_and(|step| !step.error.contains(CANCELED));
        !has_cause && !self.running_vertexes().is_empty()
    }

    /// Whether the engine dropped a part of the output.
    pub(super) const fn is_clipped(&self) -> bool {
        self.is_clipped
    }

    /// The vertexes that have begun, in that order.
    fn begun(&self) -> impl Iterator<Item = &VertexProgress> {
        self.order.iter().filter_map(|digest| self.vertexes.get(digest))
    }

    fn vertex(&mut self, digest: &str) -> &mut VertexProgress {
        let masker = &self.masker;
        self.vertexes.entry(digest.to_owned()).or_insert_with(|| VertexProgress::new(masker))
    }

    fn apply_vertex(&mut self, vertex: Vertex, lines: &mut Vec<(Stream, String)>) {
        let (name, error) = (self.masker.mask(&vertex.name), self.masker.mask(&vertex.error));
        let progress = self.vertex(&vertex.digest);
        if progress.name.is_empty() {
            progress.name = name;
        }
        progress.report_cached(vertex.cached);
        progress.started = vertex.started.or(progress.started);
        progress.has_ended &= vertex.started.is_none() || vertex.completed.is_some();
        let ends_now = vertex.completed.is_some() && !progress.has_ended;
        if let (Some(completed), true) = (vertex.completed, ends_now) {
            progress.has_ended = true;
            progress.seconds += seconds_between(progress.started, completed);
            progress.error = error;
        }
        if progress.started.is_some() {
            self.number(&vertex.digest, lines);
        }
        if ends_now {
            self.unlogged_ends.push(vertex.digest);
        }
    }

    /// The vertex's number. The first call for a vertex logs its name.
    fn number(&mut self, digest: &str, lines: &mut Vec<(Stream, String)>) -> usize {
        let next = self.order.len() + 1;
        let vertex = self.vertex(digest);
        if vertex.number > 0 {
            return vertex.number;
        }
        vertex.number = next;
        lines.push((Stream::Stdout, format!("#{next} {}", vertex.name)));
        self.order.push(digest.to_owned());
        next
    }

    fn apply_status(&mut self, status: &VertexStatus, lines: &mut Vec<(Stream, String)>) {
        let id = self.masker.mask(&status.id);
        let is_transfer = status.total > 0 || status.current > 0;
        let is_done = status.completed.is_some();
        if let Some(image) = status.id.strip_prefix(PUSHING_MANIFEST).filter(|_| is_done) {
            let digest = image.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
            let sent = digest.map(|digest| SentImage { vertex: status.vertex.clone(), digest });
            self.sent = sent.or(self.sent.take());
        }
        let vertex = self.vertex(&status.vertex);
        let was_done = vertex.statuses.insert(id.clone(), is_done);
        let is_new = was_done != Some(true) && (is_done || (was_done.is_none() && !is_transfer));
        if !is_new {
            return;
        }
        vertex.is_end_logged = false;
        let mut line = format!("#{} {id}", self.number(&status.vertex, lines));
        if is_transfer {
            let size = status.current.max(status.total);
            // Writing to a String cannot fail.
            let _ = write!(line, " {}", format_size(u64::try_from(size).unwrap_or(0)));
        }
        if let Some(completed) = status.completed {
            let _ = write!(line, " {:.1}s done", seconds_between(status.started, completed));
        }
        lines.push((Stream::Stdout, line));
    }

    fn apply_log(&mut self, log: &VertexLog, lines: &mut Vec<(Stream, String)>) {
        let Ok(data) = STANDARD.decode(&log.data) else { return };
        self.number(&log.vertex, lines);
        let stream = if log.stream == 2 { Stream::Stderr } else { Stream::Stdout };
        let vertex = self.vertex(&log.vertex);
        let is_clipped = vertex.push_output(stream, &data, log.timestamp, lines);
        self.is_clipped |= is_clipped;
    }

    fn log_warning(&self, warning: &VertexWarning, lines: &mut Vec<(Stream, String)>) {
        let text = STANDARD.decode(&warning.short).unwrap_or_default();
        let text = self.masker.mask(&String::from_utf8_lossy(&text));
        lines.push((Stream::Stderr, format!("WARNING: {text}")));
    }

    fn log_ends(&mut self, ended: Vec<String>, lines: &mut Vec<(Stream, String)>) {
        for digest in ended {
            self.log_end(&digest, lines);
        }
    }

    fn log_end(&mut self, digest: &str, lines: &mut Vec<(Stream, String)>) {
        let number = self.number(digest, lines);
        let vertex = self.vertex(digest);
        let was_logged = std::mem::replace(&mut vertex.is_end_logged, true);
        if vertex.error.is_empty() {
            vertex.tail = Vec::new();
            let end = if vertex.is_cached() {
                "CACHED".to_owned()
            } else {
                format!("DONE {:.1}s", vertex.seconds)
            };
            if !was_logged {
                lines.push((Stream::Stdout, format!("#{number} {end}")));
            }
        } else if vertex.error.contains(CANCELED) {
            lines.push((Stream::Stderr, format!("#{number} CANCELED")));
        } else {
            lines.push((Stream::Stderr, format!("#{number} ERROR: {}", vertex.error)));
        }
    }

    fn log_client_lines(&mut self, lines: &mut Vec<(Stream, String)>) {
        lines.extend(self.client_lines.drain(..).map(|line| (Stream::Stderr, line)));
    }
}

/// `[2/5] RUN …` is a step of the Dockerfile; `[internal] …`, `[auth] …` and `exporting …` are not.
fn is_step(name: &str) -> bool {
    StepName::parse(name).is_some_and(|step| step.is_cacheable())
}

#[expect(clippy::cast_precision_loss, reason = "two digits of it are shown")]
fn format_size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{:.2}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}MB", bytes as f64 / 1e6),
        _ => format!("{:.2}GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests;
