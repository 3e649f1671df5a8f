//! The hosts of artifacts: what tests have left, to be looked at in a browser.
//!
//! Scripts of a report run, but on a host on which nothing is but the artifacts of one environment: neither core nor a preview.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use askama::Template;
use axum::extract::{Extension, Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use axum::{Router, http};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use stagely_protocol::{ErrorChain, StoredArtifacts};
use stagely_state::ids::EnvironmentId;
use tracing::error;

use super::{ApiState, Visitor, find_job, not_found, page, readable, refused, unreadable};
use crate::api::JobView;
use crate::core::artifacts::{Extent, FileIndex, Found};
use crate::core::http::artifacts::ranged;

/// A report loads what lies beside it and nothing from elsewhere, and its forms send nothing. Its links may lead away.
const POLICY: &str = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; \
                      form-action 'none'; frame-ancestors 'self'";

/// The artifacts of a job never change. They may be kept by the one who has seen them, as long as a day.
const CACHING: &str = "private, max-age=86400, immutable";

const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");

/// What is escaped in the name of a file in a link.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The index of a folder that has one of its own.
const INDEX: &str = "index.html";

/// The router of all hosts of artifacts. Requests have the host's [`EnvironmentId`] as extension.
pub(in crate::core::http) fn router() -> Router<ApiState> {
    Router::new()
        .route("/{job}", get(show))
        .route("/{job}/", get(show))
        .route("/{job}/{*path}", get(show))
        .fallback(async || not_found("page"))
}

#[derive(Template)]
#[template(path = "artifacts.html")]
struct FolderPage {
    goes_on: bool,
    job: String,
    folder: String,
    /// Each name, with its address relative to the folder, and its size.
    files: Vec<(String, String, String)>,
}

async fn show(
    State(api): State<ApiState>,
    Extension(environment): Extension<EnvironmentId>,
    _: Visitor,
    Path(parts): Path<HashMap<String, String>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let job = match find_job(&api, parts.get("job").map_or("", String::as_str)).await {
        Ok(job) => job,
        Err(refused) => return refused,
    };
    let owner = api.history.with_run(job.run_id, |_, run| run.environment).await;
    match owner {
        Ok(Some(owner)) if owner == environment => {}
        Ok(_) => return not_found("job"),
        Err(error) => return unreadable(&error),
    }
    let artifacts = job.test.as_ref().and_then(|test| test.artifacts.as_ref());
    let Some(artifacts) = artifacts else { return not_found("file") };
    // A job that reuses the result of another one has its artifacts.
    let owner = job.reused_from.unwrap_or(job.id);
    let (file, index) = match api.artifacts.files(owner, artifacts.digest.clone()).await {
        Ok(Some(found)) => found,
        Ok(None) => return gone(&api),
        Err(error) => return failed(&job, &error),
    };
    let path = parts.get("path").map_or("", String::as_str);
    match index.find(path) {
        Found::File(extent) => serve(&job, artifacts, (path, extent), file, &headers).await,
        Found::Folder(_) if !uri.path().ends_with('/') => {
            // The path begins with the id of a job, so it leads to this host.
            Redirect::temporary(&format!("{}/", uri.path())).into_response()
        }
        Found::Folder(inside) => match own_index(&index, path) {
            Some(found) => serve(&job, artifacts, (INDEX, found), file, &headers).await,
            None => folder(&job, path, &inside),
        },
        Found::Nothing => not_found("file"),
    }
}

fn own_index(index: &FileIndex, folder: &str) -> Option<Extent> {
    index.file(&format!("{folder}{INDEX}"))
}

async fn serve(
    job: &JobView,
    artifacts: &StoredArtifacts,
    (path, extent): (&str, Extent),
    file: File,
    headers: &HeaderMap,
) -> Response {
    let fixed = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, CACHING),
        (ROBOTS, "noindex"),
    ];
    let fixed = fixed.into_iter().map(|(name, text)| (name, HeaderValue::from_static(text)));
    let mut answer: http::HeaderMap = fixed.collect();
    answer.insert(CONTENT_TYPE, content_type(path));
    let tag = format!("\"{}-{}\"", artifacts.digest, extent.first);
    match ranged(file, extent, &tag, headers, answer).await {
        Ok(response) => response,
        Err(error) => failed(job, &error),
    }
}

/// By the end of the name. Texts are taken for UTF-8.
fn content_type(path: &str) -> HeaderValue {
    let guessed = mime_guess::from_path(path).first_or_octet_stream();
    let text = guessed.essence_str();
    let kind =
        if text.starts_with("text/") { format!("{text}; charset=utf-8") } else { text.to_owned() };
    HeaderValue::try_from(kind).expect("media types are plain")
}

fn folder(job: &JobView, path: &str, inside: &BTreeMap<&str, Option<u64>>) -> Response {
    let row = |(name, bytes): (&&str, &Option<u64>)| {
        let address = match name.strip_suffix('/') {
            Some(folder) => format!("{}/", utf8_percent_encode(folder, ESCAPED)),
            None => utf8_percent_encode(name, ESCAPED).to_string(),
        };
        (
            readable(name),
            address,
            bytes.map(|bytes| format!("{} KiB", bytes.div_ceil(1024))).unwrap_or_default(),
        )
    };
    page(&FolderPage {
        goes_on: false,
        job: job.name.clone(),
        folder: readable(&format!("/{path}")),
        files: inside.iter().map(row).collect(),
    })
}

fn gone(api: &ApiState) -> Response {
    let kept = humantime::format_duration(api.config.retention.artifacts);
    let advice = format!("Artifacts are kept for {kept} (retention.artifacts).");
    refused(StatusCode::NOT_FOUND, "These artifacts are not stored any more", &advice)
}

fn failed(job: &JobView, error: &std::io::Error) -> Response {
    error!(job = %job.id, error = %ErrorChain(error), "artifacts cannot be read");
    refused(StatusCode::INTERNAL_SERVER_ERROR, "This cannot be read", "Core's own log says why.")
}
