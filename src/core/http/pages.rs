//! The HTML pages that comments and commit statuses link to: a run, a job, a preview, and their logs.

pub(super) mod artifacts;
mod pictures;
mod previews;
mod results;

use std::borrow::Cow;

use askama::Template;
use axum::Router;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde::Deserialize;
use stagely_protocol::text::readable;
use stagely_protocol::{ErrorChain, FailureReason, Step};
use stagely_state::ids::{EnvironmentId, JobId, RunId};
use stagely_state::{Approval, Attempt};
use tracing::error;

use self::results::ResultsPart;
use super::{ApiState, log_streams, views};
use crate::api::{
    JobKindView, JobStatus, JobView, LostAttempt, PreviewView, Role, RunStatus, RunView,
};
use crate::core::costs;
use crate::core::github::report::view::seconds;
use crate::core::logs::{LogError, LogId, StoredLine};
use crate::core::previews::PreviewHosts;
use crate::core::store::StoreError;

/// Most lines of a log that a page shows.
const PAGE_LINES: usize = 2_000;

/// The longest line of a page, in characters. The plain text has whole lines.
const LINE_CHARS_MAX: usize = 2_000;

/// Browsers load and run nothing that a page names but core's own pictures, because its text may come from strangers.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) fn router() -> Router<ApiState> {
    Router::new()
        .route("/runs/{id}", get(run))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/log", get(log))
        .route("/jobs/{id}/pictures/{number}", get(pictures::show))
        .route("/previews", get(previews::list))
        .route("/previews/{id}", get(previews::show))
        .route("/previews/{id}/log", get(previews::log))
}

/// Proof that the client may read the pages of records whose ids it knows.
struct Visitor {
    /// The role of the client's token, if it has sent one.
    role: Option<Role>,
}

impl FromRequestParts<ApiState> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, Response> {
        let token = || parts.headers.get(AUTHORIZATION)?.to_str().ok().and_then(token_of);
        // Every role may read.
        let role = token().and_then(|token| api.tokens.role_of(&token));
        if api.config.core.open_logs || role.is_some() {
            return Ok(Self { role });
        }
        Err(needs_token())
    }
}

/// Proof that the client has a token.
struct Member {
    role: Role,
}

impl FromRequestParts<ApiState> for Member {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, Response> {
        let role = Visitor::from_request_parts(parts, api).await?.role;
        role.map(|role| Self { role }).ok_or_else(needs_token)
    }
}

fn needs_token() -> Response {
    let advice = "Give a token that `stagely token create` made as password, and any user name.";
    let mut response = refused(StatusCode::UNAUTHORIZED, "A token is needed", advice);
    let challenge = axum::http::HeaderValue::from_static("Basic realm=\"stagely\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// The token of a browser (Basic) or of a program (Bearer).
fn token_of(authorization: &str) -> Option<SecretString> {
    let (scheme, value) = authorization.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(SecretString::from(value));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    Some(SecretString::from(pair.split_once(':')?.1))
}

/// The unparsed id in a URL.
struct Id(String);

impl FromRequestParts<ApiState> for Id {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, Response> {
        let id = Path::<String>::from_request_parts(parts, api).await;
        id.map(|Path(id)| Self(id)).map_err(|_| not_found("page"))
    }
}

/// The query of a job's pages. The newest attempt is the default.
#[derive(Debug, Default, Deserialize)]
struct AttemptQuery {
    attempt: Option<u32>,
}

impl AttemptQuery {
    /// `None` if the job has no such attempt.
    fn attempt_of(&self, job: &JobView) -> Option<Attempt> {
        let number = match self.attempt {
            None => Some(job.attempt),
            Some(attempt) => (1..=job.attempt).contains(&attempt).then_some(attempt),
        };
        number.map(|number| Attempt { job: job.id, number })
    }
}

impl FromRequestParts<ApiState> for AttemptQuery {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, Response> {
        let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query);
        query.map_err(|_| {
            let advice = "`attempt` is a number, like `?attempt=1`.";
            refused(StatusCode::BAD_REQUEST, "This address is not right", advice)
        })
    }
}

#[derive(Template)]
#[template(path = "refused.html")]
struct Refused<'a> {
    title: &'a str,
    advice: &'a str,
    goes_on: bool,
}

#[derive(Template)]
#[template(path = "login.html")]
struct Login<'a> {
    title: &'a str,
    advice: &'a str,
    goes_on: bool,
    action: &'a str,
    next: &'a str,
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    goes_on: bool,
    status: &'static str,
    wait: Option<String>,
    took: Option<String>,
    cost: Option<String>,
    reason: Option<String>,
    error: Option<String>,
    jobs: Vec<JobRow>,
    /// Each build with the reason.
    skipped: Vec<(String, String)>,
    images: Vec<String>,
    warnings: Vec<String>,
    /// The environment's preview, and what it shows if that is another commit.
    preview: Option<PreviewView>,
    other_commit: Option<String>,
    run: RunView,
}

struct JobRow {
    id: JobId,
    name: String,
    platforms: String,
    class: &'static str,
    state: String,
    /// Empty for a job that does not wait.
    waits_for: String,
    took: String,
    cached: String,
}

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    goes_on: bool,
    status: String,
    class: &'static str,
    platforms: String,
    waits_for: String,
    took: String,
    reason: Option<String>,
    error: Option<String>,
    warnings: Vec<String>,
    steps: Vec<StepRow>,
    /// Each earlier attempt with the reason why it was lost.
    lost: Vec<(u32, String)>,
    attempt: u32,
    first_line: u64,
    log: Vec<String>,
    preview: Option<PreviewView>,
    results: Option<ResultsPart>,
    /// The address of what a test has left.
    artifacts_url: Option<String>,
    job: JobView,
}

struct StepRow {
    name: String,
    took: String,
}

async fn run(State(api): State<ApiState>, visitor: Visitor, Id(id): Id) -> Response {
    let Ok(id) = id.parse::<RunId>() else { return not_found("run") };
    let found = api.history.with_run(id, |records, run| {
        let wait = records.wait_of_run(run).map(|wait| readable(&wait.text()));
        (views::run(records, run), run.approval.clone(), wait)
    });
    let (run, approval, wait) = match found.await {
        Ok(Some(found)) => found,
        Ok(None) => return not_found("run"),
        Err(error) => return unreadable(&error),
    };
    let preview = preview_of(&api, run.environment_id, &visitor);
    let shown = preview.as_ref().and_then(|preview| preview.commit.as_ref());
    let other_commit =
        shown.filter(|shown| run.commit.as_ref() != Some(*shown)).map(ToString::to_string);
    let awaits = approval == Approval::Awaited && !run.status.is_final();
    let status = match run.status {
        _ if awaits => "waits for approval",
        RunStatus::Pending => "reading stagely.yaml",
        status => status.as_str(),
    };
    page(&RunPage {
        goes_on: !run.status.is_final(),
        status,
        wait,
        took: run.ended_at.map(|ended| seconds(ended.since(run.created_at))),
        cost: run.cost.and_then(|cost| costs::sentence(&cost.spending())),
        reason: run.reason.as_ref().map(|reason| readable(&reason.to_string())),
        error: run.error.as_deref().map(readable_lines),
        jobs: run.jobs.iter().map(row).collect(),
        skipped: run
            .skipped
            .iter()
            .map(|skipped| (readable(&skipped.build), readable(&skipped.reason)))
            .collect(),
        images: images(&run),
        warnings: run.jobs.iter().flat_map(named_warnings).collect(),
        preview,
        other_commit,
        run,
    })
}

/// The preview of an environment, unless it is over.
fn preview_of(
    api: &ApiState,
    environment: EnvironmentId,
    visitor: &Visitor,
) -> Option<PreviewView> {
    let records = api.records.read();
    let preview = records.preview_of(environment)?;
    let view = api.previews(&records, visitor.role).view(preview);
    view.status.is_open().then_some(view)
}

fn row(job: &JobView) -> JobRow {
    let cached = format!("{}/{}", job.cached_steps, job.steps.len());
    JobRow {
        id: job.id,
        name: job.name.clone(),
        platforms: platforms(job),
        class: job.status.as_str(),
        state: match &job.reason {
            Some(reason @ FailureReason::DependencyFailed { .. }) => reason.to_string(),
            _ => job_status(job).to_owned(),
        },
        waits_for: waits_for(job),
        took: took(job),
        cached: if job.steps.is_empty() { String::new() } else { cached },
    }
}

fn waits_for(job: &JobView) -> String {
    let wait = job.wait.as_ref().map(|wait| &wait.reason);
    let reason = job.queue.as_ref().map(|queue| &queue.reason).or(wait);
    reason.map(|reason| readable(reason)).unwrap_or_default()
}

fn job_status(job: &JobView) -> &'static str {
    match job.status {
        _ if job.reused_from.is_some() => "reused from an earlier run",
        JobStatus::Provisioning => "starting",
        status => status.as_str(),
    }
}

fn platforms(job: &JobView) -> String {
    let names: Vec<String> = job.platforms.iter().map(ToString::to_string).collect();
    names.join(", ") + if job.emulated { " (emulated)" } else { "" }
}

fn took(job: &JobView) -> String {
    let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
    took.unwrap_or_default()
}

fn named_warnings(job: &JobView) -> impl Iterator<Item = String> {
    job.warnings.iter().map(|warning| format!("{}: {}", job.name, readable(warning)))
}

/// The images of the run: an index instead of the images that it joins.
fn images(run: &RunView) -> Vec<String> {
    let is_merge = |job: &JobView| job.kind == JobKindView::Merge;
    let is_joined = |job: &JobView| {
        !is_merge(job)
            && run.jobs.iter().any(|other| is_merge(other) && other.variant == job.variant)
    };
    let named = |job: &JobView| {
        let reference = job.tag.as_ref().or(job.image.as_ref())?;
        Some(format!("{reference}@{}", job.digest.as_ref()?))
    };
    run.jobs.iter().filter(|job| !is_joined(job)).filter_map(named).collect()
}

async fn job(
    State(api): State<ApiState>,
    visitor: Visitor,
    Id(id): Id,
    query: AttemptQuery,
) -> Response {
    let job = match find_job(&api, &id).await {
        Ok(job) => job,
        Err(refused) => return refused,
    };
    let Some(attempt) = query.attempt_of(&job) else { return not_found("attempt") };
    let (first_line, lines) = match api.logs.tail(attempt, PAGE_LINES).await {
        Ok(tail) => tail,
        Err(error) => return broken(attempt.into(), &error),
    };
    let preview = match job.kind {
        JobKindView::Deploy => preview_of_run(&api, job.run_id, &visitor).await,
        JobKindView::Build | JobKindView::Merge | JobKindView::Test => None,
    };
    let artifacts_url =
        if results::has_left_files(&job) { artifacts_url(&api, &job).await } else { None };
    page(&JobPage {
        goes_on: !job.status.is_final(),
        status: job_status(&job).to_owned(),
        class: job.status.as_str(),
        platforms: platforms(&job),
        waits_for: waits_for(&job),
        took: took(&job),
        reason: job.reason.as_ref().map(|reason| readable(&reason.to_string())),
        error: job.error.as_deref().map(readable_lines),
        warnings: job.warnings.iter().map(|warning| readable(warning)).collect(),
        steps: job.steps.iter().map(step_row).collect(),
        lost: job.lost_attempts.iter().map(lost_attempt).collect(),
        attempt: attempt.number,
        first_line,
        log: shown_lines(&lines),
        preview,
        results: results::of(&job),
        artifacts_url,
        job,
    })
}

async fn artifacts_url(api: &ApiState, job: &JobView) -> Option<String> {
    let environment = api.history.with_run(job.run_id, |_, run| run.environment).await.ok()??;
    let url = PreviewHosts::new(&api.config).artifacts_url(environment, job.id);
    Some(url.into())
}

async fn preview_of_run(api: &ApiState, run: RunId, visitor: &Visitor) -> Option<PreviewView> {
    let environment = api.history.with_run(run, |_, run| run.environment).await.ok().flatten()?;
    preview_of(api, environment, visitor)
}

fn lost_attempt(lost: &LostAttempt) -> (u32, String) {
    let message =
        if lost.message.is_empty() { String::new() } else { format!(": {}", lost.message) };
    (lost.attempt, readable_lines(&format!("{}{message}", lost.reason)))
}

fn step_row(step: &Step) -> StepRow {
    let took = if step.cached { "cached".to_owned() } else { format!("{:.1}s", step.seconds) };
    StepRow { name: readable(&step.name), took }
}

fn shown_lines(lines: &[StoredLine]) -> Vec<String> {
    lines.iter().map(|line| shown_line(&line.data)).collect()
}

fn shown_line(line: &str) -> String {
    let line = readable(line);
    match line.char_indices().nth(LINE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn readable_lines(text: &str) -> String {
    text.lines().map(readable).collect::<Vec<_>>().join("\n")
}

/// A whole log as plain text, read from the store as fast as the client takes it.
async fn log(State(api): State<ApiState>, _: Visitor, Id(id): Id, query: AttemptQuery) -> Response {
    let job = match find_job(&api, &id).await {
        Ok(job) => job,
        Err(refused) => return refused,
    };
    let Some(attempt) = query.attempt_of(&job) else { return not_found("attempt") };
    plain_log(&api, attempt)
}

fn plain_log(api: &ApiState, log: impl Into<LogId>) -> Response {
    let reader = match api.log_readers.page() {
        Ok(reader) => reader,
        Err(refused) => return refused.into_response(),
    };
    let kind = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    let text = log_streams::text(&api.logs, reader, log, 0, readable_text);
    (security_headers(), kind, text).into_response()
}

fn readable_text(line: &str) -> Cow<'_, str> {
    readable(line).into()
}

async fn find_job(api: &ApiState, id: &str) -> Result<JobView, Response> {
    let Ok(id) = id.parse::<JobId>() else { return Err(not_found("job")) };
    let found = api.history.with_job(id, views::job).await.map_err(|error| unreadable(&error))?;
    found.ok_or_else(|| not_found("job"))
}

fn page(template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (security_headers(), Html(html)).into_response(),
        Err(error) => {
            error!(error = %ErrorChain(&error), "a page cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn not_found(what: &str) -> Response {
    let title = format!("There is no such {what}");
    let advice = "It may have been deleted: core keeps what has ended for a while only. Look at the \
                  newest commit of the pull request.";
    refused(StatusCode::NOT_FOUND, &title, advice)
}

fn unreadable(error: &StoreError) -> Response {
    error!(error = %ErrorChain(error), "a record cannot be read");
    let advice = "Core's own log says why.";
    refused(StatusCode::INTERNAL_SERVER_ERROR, "This cannot be read", advice)
}

fn broken(log: LogId, error: &LogError) -> Response {
    error!(%log, error = %ErrorChain(error), "a log cannot be read");
    let advice = "Core's own log says why.";
    refused(StatusCode::INTERNAL_SERVER_ERROR, "The log cannot be read", advice)
}

/// A page that asks for a token, which the browser sends to `action`.
pub(super) fn login(
    status: StatusCode,
    title: &str,
    advice: &str,
    action: &str,
    next: &str,
) -> Response {
    let mut response = page(&Login { title, advice, goes_on: false, action, next });
    *response.status_mut() = status;
    let policy = POLICY.replace("form-action 'none'", "form-action 'self'");
    let policy = axum::http::HeaderValue::try_from(policy).expect("it was a header's value before");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// A page that says why there is nothing else to show.
pub(super) fn refused(status: StatusCode, title: &str, advice: &str) -> Response {
    let mut response = page(&Refused { title, advice, goes_on: false });
    *response.status_mut() = status;
    response
}

/// Headers that protect the reader, because a part of the text comes from strangers.
fn security_headers() -> HeaderMap {
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    let value = axum::http::HeaderValue::from_static;
    headers.into_iter().map(|(name, text)| (name, value(text))).collect()
}
