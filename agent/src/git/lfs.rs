//! Fetches the files that Git LFS keeps outside the repository.
//!
//! Source: Git LFS documentation, `docs/api/batch.md` and `docs/api/basic-transfers.md`.

mod batch;
mod servers;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::task::JoinSet;
use tokio::time::sleep;
use url::Url;

use self::batch::{
    Action, Actions, BatchRequest, BatchResponse, Failure, OfferedObject, RequestedObject,
    ServerMessage,
};
use self::servers::endpoints;
use super::error::{CloneError, LargeFileProblem, without_credentials};
use super::filters::is_file_inside;
use super::pointer::Pointer;
use super::remote::TOKEN_USER;
use super::thread::BYTES_MAX;
use super::thread::SILENCE_MAX;
use crate::proxy::is_loopback;

/// The most objects of one request, as `git lfs` has it.
const BATCH_MAX: usize = 100;

/// The downloads at a time.
const DOWNLOADS_MAX: usize = 4;

/// The waits before the further attempts, where the server is at fault.
const RETRY_WAITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];

/// The most redirects of one request.
const REDIRECTS_MAX: usize = 5;

/// The largest answer to a batch request. An object takes some 1,000 bytes, most of them in a signed address.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// The large files of one checkout.
#[derive(Debug)]
pub(super) struct LargeFiles {
    /// The checkout.
    pub(super) root: PathBuf,
    /// The path of the checkout in that of the whole repository; empty unless it is a submodule.
    pub(super) prefix: PathBuf,
    /// The repository's address.
    pub(super) url: Url,
    pub(super) token: Option<SecretString>,
    /// Paths in the checkout.
    pub(super) pointers: Vec<(PathBuf, Pointer)>,
}

/// Checks how much would be written for all checkouts of a commit and its submodules. Several files may have one object.
///
/// # Errors
/// [`CloneError::TooLarge`]
pub(super) fn check_size(checkouts: &[LargeFiles]) -> Result<(), CloneError> {
    let pointers = checkouts.iter().flat_map(|files| &files.pointers);
    let bytes = pointers.map(|(_, pointer)| pointer.size).fold(0, u64::saturating_add);
    if bytes > BYTES_MAX {
        let gib = BYTES_MAX >> 30;
        return Err(CloneError::TooLarge(format!("has more than {gib} GiB of Git LFS files")));
    }
    Ok(())
}

/// Replaces the pointers by the files. Returns the number of bytes received.
///
/// # Errors
/// [`CloneError`]
pub(super) async fn fetch(files: LargeFiles) -> Result<u64, CloneError> {
    let mut paths: HashMap<Pointer, Vec<PathBuf>> = HashMap::new();
    for (path, pointer) in files.pointers.clone() {
        paths.entry(pointer).or_default().push(path);
    }
    let bytes = paths.keys().map(|pointer| pointer.size).sum();
    // In a fixed order, so that the same file is named in an error each time.
    let mut objects: Vec<Wanted> =
        paths.into_iter().map(|(pointer, paths)| Wanted { pointer, paths }).collect();
    objects.sort_by(|one, other| one.paths.cmp(&other.paths));
    let (mut result, files) = (Ok(()), Arc::new(files));
    for endpoint in endpoints(&files)? {
        result = fetch_from(endpoint, &files, &objects).await;
        // The server of a folder has what is in the folder; the rest may be where `.lfsconfig` says.
        let is_missing = |error: &CloneError| {
            matches!(error, CloneError::LargeFile { problem: LargeFileProblem::Missing, .. })
        };
        if !result.as_ref().is_err_and(is_missing) {
            break;
        }
    }
    result.map(|()| bytes)
}

async fn fetch_from(
    endpoint: Url,
    files: &Arc<LargeFiles>,
    objects: &[Wanted],
) -> Result<(), CloneError> {
    let transfer = Arc::new(Transfer::new(endpoint, Arc::clone(files))?);
    for batch in objects.chunks(BATCH_MAX) {
        let actions = transfer.ask(batch).await?;
        // Dropping the set stops the downloads.
        let mut downloads = JoinSet::new();
        for (wanted, action) in batch.iter().cloned().zip(actions) {
            if downloads.len() == DOWNLOADS_MAX {
                next(&mut downloads).await?;
            }
            let transfer = Arc::clone(&transfer);
            downloads.spawn(async move { transfer.get(&wanted, action).await });
        }
        while !downloads.is_empty() {
            next(&mut downloads).await?;
        }
    }
    Ok(())
}

/// Waits for the end of one download.
async fn next(downloads: &mut JoinSet<Result<(), CloneError>>) -> Result<(), CloneError> {
    match downloads.join_next().await {
        Some(Err(error)) => Err(CloneError::Internal(error.to_string())),
        Some(Ok(result)) => result,
        None => Ok(()),
    }
}

/// One object, and the files that have it as their content.
#[derive(Clone, Debug)]
struct Wanted {
    pointer: Pointer,
    paths: Vec<PathBuf>,
}

struct Transfer {
    files: Arc<LargeFiles>,
    /// The address of the LFS server, `…/info/lfs`.
    endpoint: Url,
    client: Client,
}

impl Transfer {
    fn new(endpoint: Url, files: Arc<LargeFiles>) -> Result<Self, CloneError> {
        let mut builder = Client::builder()
            // The token and the headers of an object must not follow to another server.
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(30))
            .read_timeout(SILENCE_MAX);
        if is_loopback(&endpoint) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| CloneError::Internal(error.to_string()))?;
        Ok(Self { files, endpoint, client })
    }

    /// Asks where the objects of one batch are.
    async fn ask(&self, batch: &[Wanted]) -> Result<Vec<Action>, CloneError> {
        let mut waits = RETRY_WAITS.iter();
        let answer = loop {
            match self.ask_once(batch).await {
                Err(Failure { problem: LargeFileProblem::Network, .. }) if waits.len() > 0 => {
                    sleep(*waits.next().expect("it was counted")).await;
                }
                result => break result.map_err(|failure| self.error(&batch[0], failure))?,
            }
        };
        let mut offered: HashMap<String, OfferedObject> = answer
            .objects
            .into_iter()
            .map(|object| (object.oid.to_ascii_lowercase(), object))
            .collect();
        let actions = batch.iter().map(|wanted| {
            let action = match offered.remove(&wanted.pointer.id) {
                None => Err(Failure::missing("the server does not mention it")),
                Some(OfferedObject { error: Some(error), .. }) => {
                    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::NOT_FOUND);
                    Err(Failure::of_status(status, &error.message))
                }
                Some(OfferedObject {
                    actions: Some(Actions { download: Some(action) }), ..
                }) => Ok(action),
                Some(_) => Err(Failure::missing("the server offers no download")),
            };
            action.map_err(|failure| self.error(wanted, failure))
        });
        actions.collect()
    }

    async fn ask_once(&self, batch: &[Wanted]) -> Result<BatchResponse, Failure> {
        let objects = batch
            .iter()
            .map(|wanted| RequestedObject { oid: &wanted.pointer.id, size: wanted.pointer.size });
        let request = BatchRequest {
            operation: "download",
            transfers: ["basic"],
            objects: objects.collect(),
            hash_algo: "sha256",
        };
        let body = serde_json::to_vec(&request).map_err(|error| Failure::network(&error))?;
        let mut url = self.endpoint.clone();
        url.set_path(&format!("{}/objects/batch", url.path().trim_end_matches('/')));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        let response = self.send(Method::POST, url, headers, Some(body)).await?;
        let bytes = read_limited(response, ANSWER_BYTES_MAX).await?;
        let answer: BatchResponse = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::missing(format!("its answer is not one of a Git LFS server ({error})"))
        })?;
        match &answer.transfer {
            Some(transfer) if transfer != "basic" => {
                Err(Failure::missing(format!("it insists on the transfer {transfer:?}")))
            }
            _ => Ok(answer),
        }
    }

    /// Writes an object into all its files.
    async fn get(&self, wanted: &Wanted, action: Action) -> Result<(), CloneError> {
        let mut waits = RETRY_WAITS.iter();
        loop {
            match self.get_once(wanted, &action).await {
                Err(GetError::Failed(Failure { problem: LargeFileProblem::Network, .. }))
                    if waits.len() > 0 =>
                {
                    sleep(*waits.next().expect("it was counted")).await;
                }
                Err(GetError::Failed(failure)) => return Err(self.error(wanted, failure)),
                Err(GetError::File(path, error)) => {
                    return Err(CloneError::from_file("write", &path, &error));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn get_once(&self, wanted: &Wanted, action: &Action) -> Result<(), GetError> {
        let url = action.href.parse().map_err(|_| Failure::missing("it names no address"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &action.header {
            let pair = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()));
            if let (Ok(name), Ok(value)) = pair {
                headers.insert(name, value);
            }
        }
        let response = self.send(Method::GET, url, headers, None).await?;
        let Some((first, others)) = wanted.paths.split_first() else { return Ok(()) };
        let file = |path: &Path| self.files.root.join(path);
        self.write(response, &wanted.pointer, first).await?;
        for other in others {
            let failed = |error| GetError::File(other.clone(), error);
            let mut from = File::open(file(first)).await.map_err(failed)?;
            let mut to = self.open(other).await.map_err(failed)?;
            tokio::io::copy(&mut from, &mut to).await.map_err(failed)?;
            to.flush().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Writes the body of a response to the file at `path`, and checks it.
    async fn write(
        &self,
        mut response: Response,
        pointer: &Pointer,
        path: &Path,
    ) -> Result<(), GetError> {
        let failed = |error| GetError::File(path.to_owned(), error);
        let mut file = BufWriter::with_capacity(256 * 1024, self.open(path).await.map_err(failed)?);
        let (mut hash, mut size) = (Sha256::new(), 0);
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::network(&error))? {
            size += chunk.len() as u64;
            if size > pointer.size {
                break;
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        if size != pointer.size {
            let detail = format!("it has {size} bytes or more, not {}", pointer.size);
            return Err(Failure::missing(detail).into());
        }
        let digest = hex(&hash.finalize());
        if digest != pointer.id {
            let detail = format!("its SHA-256 is {digest}, not {}", pointer.id);
            return Err(Failure::missing(detail).into());
        }
        Ok(())
    }

    /// Opens the pointer file, whose mode stays. The commit may try to lead out of the checkout by links.
    async fn open(&self, path: &Path) -> io::Result<File> {
        if !is_file_inside(&self.files.root, path) {
            return Err(io::Error::other("it is no regular file"));
        }
        OpenOptions::new().write(true).truncate(true).open(self.files.root.join(path)).await
    }

    /// Sends a request, follows redirects, and adds the token where the server wants one. Headers go only to the origin
    /// of `url`, the token only to that of the repository.
    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<Response, Failure> {
        let (origin, mut url, mut with_token) = (url.origin(), url, false);
        for _ in 0..=REDIRECTS_MAX {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(Failure::missing(format!(
                    "it is at {}",
                    without_credentials(url.as_str())
                )));
            }
            let mut request = self.client.request(method.clone(), url.clone());
            if url.origin() == origin {
                request = request.headers(headers.clone());
            }
            if let Some(token) = self.token_for(&url).filter(|_| with_token) {
                request = request.basic_auth(TOKEN_USER, Some(token.expose_secret()));
            }
            if let Some(body) = &body {
                request = request.body(body.clone());
            }
            let response =
                request.send().await.map_err(|error| Failure::network(&error.without_url()))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status.is_redirection()
                && let Some(target) = location(&response)
            {
                url = target;
                continue;
            }
            // Some servers deny that a private repository exists.
            let may_need_token = matches!(status.as_u16(), 401 | 403 | 404);
            if may_need_token
                && !with_token
                && !headers.contains_key(AUTHORIZATION)
                && self.token_for(&url).is_some()
            {
                with_token = true;
                continue;
            }
            let words = read_limited(response, 64 * 1024).await.unwrap_or_default();
            let words = serde_json::from_slice(&words).map(|words: ServerMessage| words.message);
            return Err(Failure::of_status(status, &words.unwrap_or_default()));
        }
        Err(Failure::missing("it redirects too often"))
    }

    fn token_for(&self, url: &Url) -> Option<&SecretString> {
        self.files.token.as_ref().filter(|_| url.origin() == self.files.url.origin())
    }

    fn error(&self, wanted: &Wanted, failure: Failure) -> CloneError {
        let path = wanted.paths.first().map_or(Path::new(""), PathBuf::as_path);
        CloneError::LargeFile {
            path: self.files.prefix.join(path).display().to_string(),
            url: without_credentials(self.endpoint.as_str()),
            detail: failure.detail,
            problem: failure.problem,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// Why an object is not in its files.
enum GetError {
    Failed(Failure),
    File(PathBuf, io::Error),
}

impl From<Failure> for GetError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn location(response: &Response) -> Option<Url> {
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(target).ok()
}

async fn read_limited(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| Failure::network(&error.without_url()))?
    {
        if bytes.len() + chunk.len() > limit {
            return Err(Failure::missing("its answer is too long"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_all_checkouts_have_one_limit() {
        let checkout = |paths: &[&str]| LargeFiles {
            root: PathBuf::new(),
            prefix: PathBuf::new(),
            url: "https://git.example/app".parse().unwrap(),
            token: None,
            pointers: paths
                .iter()
                .map(|path| {
                    let pointer = Pointer { id: "0".repeat(64), size: BYTES_MAX / 2 };
                    (PathBuf::from(path), pointer)
                })
                .collect(),
        };
        check_size(&[checkout(&["one"]), checkout(&["two"])]).unwrap();
        for checkouts in [
            &[checkout(&["one", "two", "three"])][..],
            &[checkout(&["one", "two"]), checkout(&["three"])],
        ] {
            let error = check_size(checkouts).unwrap_err().to_string();
            assert_eq!(error, "the repository has more than 64 GiB of Git LFS files");
        }
    }
}
