//! `/v1/agent/archives`: agents store the volumes of previews, and get them back.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http_body_util::BodyExt as _;
use stagely_protocol::{ARCHIVES_PATH, Digest, StoredArchive};
use stagely_state::ids::PreviewId;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::super::auth::AgentMachine;
use super::super::error::ApiError;
use super::super::extract::ApiPath;
use super::AgentEndpoint;
use crate::core::archives::{ArchiveError, ArchiveUpload};

/// An agent that sends nothing more of an archive for this long is disconnected.
const STALL_LIMIT: Duration = Duration::from_mins(1);

/// How long the rest of a refused archive is read: an agent that still sends does not see the answer if the connection is
/// closed.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The bytes that are read from the file at a time.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) fn router() -> Router<AgentEndpoint> {
    Router::new()
        .route(&format!("{ARCHIVES_PATH}/{{preview}}"), put(store))
        .route(&format!("{ARCHIVES_PATH}/{{preview}}/{{digest}}"), get(read))
}

/// Stores the archive of a preview that is being archived.
async fn store(State(endpoint): State<AgentEndpoint>, request: Request) -> Response {
    let (mut parts, mut body) = request.into_parts();
    match store_body(&endpoint, &mut parts, &mut body).await {
        Ok(digest) => Json(StoredArchive { digest }).into_response(),
        Err(error) => {
            tokio::spawn(timeout(DRAIN_LIMIT, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
            error.into_response()
        }
    }
}

async fn store_body(
    endpoint: &AgentEndpoint,
    parts: &mut Parts,
    body: &mut Body,
) -> Result<Digest, ApiError> {
    let AgentMachine(machine) = AgentMachine::from_request_parts(parts, endpoint).await?;
    let ApiPath(preview) = ApiPath::<PreviewId>::from_request_parts(parts, endpoint).await?;
    let upload = endpoint.archives.begin(machine, preview).await?;
    let superseded = upload.superseded();
    let received = timeout(endpoint.archives.upload_limit(), receive(upload, body));
    match superseded.run_until_cancelled(received).await {
        None => Err(ArchiveError::Superseded.into()),
        Some(Err(_)) => Err(ApiError::too_slow()),
        Some(Ok(received)) => received,
    }
}

async fn receive(mut upload: ArchiveUpload, body: &mut Body) -> Result<Digest, ApiError> {
    while let Some(bytes) = next_bytes(body).await? {
        upload = upload.append(bytes).await?;
    }
    Ok(upload.finish().await?)
}

/// The next bytes of the body; `None` at its end.
pub(super) async fn next_bytes(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = timeout(STALL_LIMIT, body.frame()).await;
        let Some(frame) = frame.map_err(|_| ApiError::too_slow())? else { return Ok(None) };
        let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

/// Serves the archive that the record of a preview names to the machine that deploys it.
async fn read(
    State(endpoint): State<AgentEndpoint>,
    AgentMachine(machine): AgentMachine,
    ApiPath((preview, digest)): ApiPath<(PreviewId, Digest)>,
) -> Result<Response, ApiError> {
    let blob = endpoint.archives.open(machine, preview, digest).await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, blob.bytes.to_string()),
    ];
    let file = tokio::fs::File::from_std(blob.file);
    let body = Body::from_stream(ReaderStream::with_capacity(file, CHUNK_BYTES));
    Ok((headers, body).into_response())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use futures_util::{SinkExt as _, StreamExt as _, stream};
    use reqwest::{Client, RequestBuilder, StatusCode};
    use secrecy::{ExposeSecret as _, SecretString};
    use serde_json::{Value, json};
    use stagely_protocol::{CONNECT_PATH, MACHINE_HEADER};
    use stagely_state::ids::{EnvironmentId, MachineId, ProjectId};
    use stagely_state::{Environment, Machine, Preview, PreviewState, Project, Snapshot, State};
    use stagely_test_support::wait::eventually;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_util::sync::{CancellationToken, DropGuard};

    use super::*;
    use crate::config::{ByteSize, Config};
    use crate::core::archives::Archives;
    use crate::core::artifacts::Artifacts;
    use crate::core::blobs::BlobStore;
    use crate::core::disk::DiskGuard;
    use crate::core::fixtures::{self, RunningOrchestrator};
    use crate::core::http::WebSockets;
    use crate::core::logs::{LogSettings, LogStore};
    use crate::core::previews::PreviewReports;
    use crate::core::records::SharedRecords;
    use crate::core::sessions::Sessions;
    use crate::core::store::Store;

    const PREVIEW: PreviewId = PreviewId::from_bits(1);
    const MACHINE: MachineId = MachineId::from_bits(1);

    /// A core whose only preview is being archived by a registered machine.
    struct World {
        folder: TempDir,
        address: String,
        token: SecretString,
        records: SharedRecords,
        http: Client,
        _stop: DropGuard,
    }

    impl World {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.builders.provider = None;
            config.previews.archive_max = ByteSize(1 << 20);
            let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
            let state = State::load(config.limits(), snapshot());
            let orchestrator =
                fixtures::start_orchestrator(folder.path(), config.clone(), store, state);
            let RunningOrchestrator { records, events, secrets, stop, .. } = orchestrator;
            let blobs = BlobStore::open(folder.path().join("archives")).unwrap();
            let disk = DiskGuard::new(folder.path().to_owned(), 0);
            let archives = Archives::new(blobs, records.clone(), disk.clone(), &config);
            let blobs = BlobStore::open(folder.path().join("artifacts")).unwrap();
            let artifacts = Artifacts::new(blobs, records.clone(), disk, &config);
            let settings =
                LogSettings { job_bytes_max: 1024, cache_bytes: 1024, disk_free_min_bytes: 0 };
            let token = secrets.add_machine_token(MACHINE).unwrap();
            let endpoint = AgentEndpoint {
                heartbeat_interval: config.agents.heartbeat_interval,
                job_grace: config.builders.job_grace,
                records: records.clone(),
                events,
                logs: LogStore::open(&folder.path().join("logs.redb"), settings).unwrap(),
                sessions: Sessions::default(),
                secrets,
                preview_reports: PreviewReports::default(),
                archives,
                artifacts,
                sockets: WebSockets::new(CancellationToken::new(), Duration::from_secs(15)),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let router: Router = endpoint.router();
            tokio::spawn(async move { axum::serve(listener, router).await });
            let http = Client::builder().no_proxy().build().unwrap();
            Self { folder, address, token, records, http, _stop: stop.drop_guard() }
        }

        fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
            let request = request.bearer_auth(self.token.expose_secret());
            request.header(MACHINE_HEADER, MACHINE.to_string())
        }

        fn url(&self, path: &str) -> String {
            format!("http://{}{ARCHIVES_PATH}/{path}", self.address)
        }

        fn put(&self, preview: &str) -> RequestBuilder {
            self.authorized(self.http.put(self.url(preview)))
        }

        /// The files of archives, also unfinished ones.
        fn files(&self) -> usize {
            let folders = fs::read_dir(self.folder.path().join("archives")).unwrap();
            let files = |folder: std::io::Result<fs::DirEntry>| {
                fs::read_dir(folder.unwrap().path()).unwrap().count()
            };
            folders.map(files).sum()
        }

        /// Reports the archive as the preview's agent, and returns the preview afterwards.
        async fn report(&self, archive: &Digest) -> Preview {
            let url = format!("ws://{}{CONNECT_PATH}", self.address);
            let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
            let hello = json!({
                "type": "HELLO", "version": "0", "agent_id": MACHINE.to_string(),
                "token": self.token.expose_secret(), "jobs": [],
                "system_info": { "hostname": "h", "architecture": "amd64", "docker_version": "1" },
                "previews": [{ "preview_id": PREVIEW.to_string(), "generation": 1 }],
            });
            let report = json!({
                "type": "PREVIEW", "preview_id": PREVIEW.to_string(), "generation": 1,
                "state": "archived", "archive": archive, "archive_bytes": 7,
            });
            for message in [hello, report] {
                socket.send(Message::text(message.to_string())).await.unwrap();
            }
            let first = socket.next().await.unwrap().unwrap();
            let first: Value = serde_json::from_str(first.to_text().unwrap()).unwrap();
            assert_eq!(first["type"], "HELLO_ACK", "{first}");
            let preview = eventually("the preview sleeps", async || {
                let preview = self.records.read().previews[&PREVIEW].clone();
                (preview.state == PreviewState::Asleep).then_some(preview)
            })
            .await;
            drop(socket);
            eventually("the session has ended", async || {
                (!self.records.read().machines[&MACHINE].connected).then_some(())
            })
            .await;
            preview
        }
    }

    fn snapshot() -> Snapshot {
        let project =
            Project::new(ProjectId::from_bits(1), "app".to_owned(), "https://h/r".to_owned());
        let environment =
            Environment::new(EnvironmentId::from_bits(1), project.id, "pr-7".to_owned());
        let preview = Preview::new(PREVIEW, project.id, environment.id, crate::core::clock::now());
        let since = crate::core::clock::now();
        let state = PreviewState::Archiving { machine: MACHINE, since, wakes: false };
        let machine = Machine { serves: Some(PREVIEW), ..fixtures::machine(1) };
        Snapshot {
            projects: [(project.id, project)].into(),
            environments: [(environment.id, environment)].into(),
            machines: [(MACHINE, machine)].into(),
            previews: [(PREVIEW, Preview { state, ..preview })].into(),
            ..Snapshot::default()
        }
    }

    async fn refused(request: RequestBuilder) -> (StatusCode, String) {
        let response = request.send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    #[tokio::test]
    async fn a_stored_archive_is_recorded_and_read_back() {
        let world = World::start().await;
        let body = vec![7_u8; 300_000];
        let pieces: Vec<_> =
            body.chunks(10_000).map(<[u8]>::to_vec).map(Ok::<_, std::io::Error>).collect();
        let stream = reqwest::Body::wrap_stream(stream::iter(pieces));
        let stored = world.put(&PREVIEW.to_string()).body(stream).send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::OK);
        let StoredArchive { digest } = stored.json().await.unwrap();

        let preview = world.report(&digest).await;

        let archive = preview.archive.unwrap();
        assert_eq!((&archive.digest, archive.bytes), (&digest, 300_000));
        assert_eq!(preview.problem, None);
        // The machine of the next deployment has it from the record.
        world.records.write(|records| {
            records.machines.get_mut(&MACHINE).unwrap().serves = Some(PREVIEW);
        });
        let url = world.url(&format!("{PREVIEW}/{digest}"));
        let response = world.authorized(world.http.get(url)).send().await.unwrap();
        assert_eq!(response.content_length(), Some(300_000));
        assert_eq!(response.bytes().await.unwrap(), body);
    }

    #[tokio::test]
    async fn an_archive_that_core_does_not_have_is_not_recorded() {
        let world = World::start().await;
        let preview = world.report(&fixtures::digest()).await;
        assert_eq!(preview.archive, None);
        assert!(preview.problem.unwrap().contains("core does not have the archive"));
    }

    #[tokio::test]
    async fn refused_archives_get_an_answer_and_leave_nothing() {
        let world = World::start().await;
        let large = vec![0_u8; 4 << 20];
        let put = |preview: &str| world.put(preview).body(large.clone());

        let (status, text) = refused(put(&PREVIEW.to_string())).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(text.contains("previews.archive-max (1MiB)"), "{text}");
        let (status, text) = refused(put(&PreviewId::from_bits(2).to_string())).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
        let (status, text) = refused(put("nonsense")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        let stranger = world.http.put(world.url(&PREVIEW.to_string())).bearer_auth("wrong");
        let stranger = stranger.header(MACHINE_HEADER, MACHINE.to_string()).body(large.clone());
        assert_eq!(refused(stranger).await.0, StatusCode::UNAUTHORIZED);
        let digest = fixtures::digest();
        let get = |digest: &str| {
            world.authorized(world.http.get(world.url(&format!("{PREVIEW}/{digest}"))))
        };
        assert_eq!(refused(get(digest.as_str())).await.0, StatusCode::FORBIDDEN);
        assert_eq!(refused(get("..")).await.0, StatusCode::NOT_FOUND);
        assert_eq!(refused(get("..%2f..%2fsecrets.key")).await.0, StatusCode::BAD_REQUEST);
        assert_eq!(world.files(), 0);
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_leaves_nothing() {
        let world = World::start().await;
        let mut stream = TcpStream::connect(&world.address).await.unwrap();
        let head = format!(
            "PUT {ARCHIVES_PATH}/{PREVIEW} HTTP/1.1\r\nhost: core\r\nauthorization: Bearer {}\r\n\
             {MACHINE_HEADER}: {MACHINE}\r\ntransfer-encoding: chunked\r\n\r\n4\r\ndata\r\n",
            world.token.expose_secret()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        eventually("the upload has begun", async || (world.files() == 1).then_some(())).await;

        stream.shutdown().await.unwrap();

        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(!answer.contains(" 200 "), "{answer}");
        eventually("nothing is left", async || (world.files() == 0).then_some(())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_whose_rest_does_not_come_is_given_up() {
        let first = stream::iter([Ok::<_, std::io::Error>("data")]);
        let mut body = Body::from_stream(first.chain(stream::pending()));
        assert_eq!(next_bytes(&mut body).await.unwrap().unwrap(), "data");
        let error = next_bytes(&mut body).await.unwrap_err().into_response();
        assert_eq!(error.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
