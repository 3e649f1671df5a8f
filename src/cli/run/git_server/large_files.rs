//! Serves the files that Git LFS keeps on this machine, by its batch API.
//!
//! Source: Git LFS documentation, `docs/api/batch.md` and `docs/api/basic-transfers.md`.

use std::io;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::{ServedPath, failed};

const NOT_THERE: &str = "it is not in this clone: `git lfs fetch` gets it";

#[derive(Deserialize)]
struct BatchRequest {
    objects: Vec<RequestedObject>,
}

#[derive(Deserialize)]
struct RequestedObject {
    oid: String,
    size: u64,
}

/// Answers a request for `object`, which is the name of one, or `batch`.
pub(super) async fn serve(served: &ServedPath, object: &str, request: Request) -> Response {
    if object != "batch" {
        return content(served, object).await;
    }
    let (address, headers) = (request.uri().path().to_owned(), request.headers().clone());
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let batch: BatchRequest = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(error) => return (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response(),
    };
    let mut objects = Vec::new();
    for object in &batch.objects {
        objects.push(offer(served, object, &address, &headers).await);
    }
    let body = Json(json!({ "transfer": "basic", "objects": objects }));
    ([(CONTENT_TYPE, "application/vnd.git-lfs+json")], body).into_response()
}

/// Where the object is.
async fn offer(
    served: &ServedPath,
    object: &RequestedObject,
    address: &str,
    headers: &HeaderMap,
) -> Value {
    let RequestedObject { oid, size } = object;
    if open(served, oid).await.is_err() {
        let error = json!({ "code": 404, "message": NOT_THERE });
        return json!({ "oid": oid, "size": size, "error": error });
    }
    let text = |name| headers.get(&name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let folder = address.trim_end_matches("batch");
    let download = json!({
        "href": format!("http://{}{folder}{oid}", text(HOST)),
        "header": { "Authorization": text(AUTHORIZATION) },
    });
    json!({ "oid": oid, "size": size, "actions": { "download": download } })
}

async fn content(served: &ServedPath, object: &str) -> Response {
    let file = match open(served, object).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return (StatusCode::NOT_FOUND, NOT_THERE).into_response();
        }
        Err(error) => return failed(&error.to_string()),
    };
    match file.metadata().await {
        Ok(metadata) => {
            let headers = [(CONTENT_LENGTH, metadata.len())];
            (headers, Body::from_stream(ReaderStream::new(file))).into_response()
        }
        Err(error) => failed(&error.to_string()),
    }
}

/// Opens the object with this name.
async fn open(served: &ServedPath, object: &str) -> io::Result<File> {
    // A name is a SHA-256, so it cannot lead out of the folder.
    if object.len() != 64 || !object.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    for folder in &served.large_files {
        let path = folder.join(&object[..2]).join(&object[2..4]).join(object);
        match File::open(path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
