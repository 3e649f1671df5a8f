//! A core, an agent and an app in this process, and requests to a preview.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::header::HOST;
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use stagely::api::AddMachine;
use stagely::client::Client;
use stagely::config::Config;
use stagely::core::previews::{Access, PreviewState, Route};
use stagely::core::{FolderCheck, Running};
use stagely_agent::endpoints::Endpoints;
use stagely_agent::run_with;
use stagely_agent::spot::SpotWatch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{Arch, WireId};
use stagely_state::ids::MachineId;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::app::App;

/// The key of the preview.
pub(crate) const KEY: &str = "key-of-pr-7";
pub(crate) const HOST_NAME: &str = "pr-7-app.preview.test";
pub(crate) const LABEL: &str = "pr-7-app";
const ENDPOINT: &str = "web";

/// A core with one preview, whose app is a part of this process.
pub(crate) struct World {
    pub(crate) core: Running,
    pub(crate) app: Arc<App>,
    pub(crate) machine: MachineId,
    pub(crate) endpoints: Endpoints,
    agent_config: AgentConfig,
    agent: Option<AbortOnDropHandle<()>>,
    routes: BTreeMap<String, Route>,
    pub(crate) http: reqwest::Client,
    _folder: TempDir,
}

pub(crate) fn preview_id() -> WireId {
    "prev_01jd7q3f5m8z9x2c4v6b8n0a1s".parse().unwrap()
}

impl World {
    /// A preview that serves, and opens with a link.
    pub(crate) async fn start() -> Self {
        let (app, address) = App::start("first").await;
        let mut world = Self::start_without_app(app).await;
        world.listen_at(address);
        world.set_state(world.serving(1));
        world
    }

    async fn start_without_app(app: Arc<App>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!(
            "core.listen = \"127.0.0.1:0\"\ncore.data-dir = \"{}\"\nbuilders.provider = \"none\"\n\
             previews.domain = \"preview.test\"\nagents.heartbeat-interval = \"1s\"\n",
            folder.path().join("core").display()
        );
        let config: Config = toml::from_str(&settings).unwrap();
        let core = stagely::core::start(config, FolderCheck::None).await.unwrap();
        let client = Client::new(core.url.clone(), core.admin_token.clone()).unwrap();
        let machine = AddMachine::new(Arch::of_this_program());
        let added = client.add_machine(&machine).await.unwrap();
        let mut agent_config: AgentConfig = serde_json::from_value(added.agent_json).unwrap();
        agent_config.work_dir = folder.path().join("work");
        let mut world = Self {
            core,
            app,
            machine: agent_config.agent_id.as_str().parse().unwrap(),
            endpoints: Endpoints::default(),
            agent_config,
            agent: None,
            routes: BTreeMap::new(),
            http: reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap(),
            _folder: folder,
        };
        world.start_agent();
        world
    }

    pub(crate) fn start_agent(&mut self) {
        let (config, endpoints) = (self.agent_config.clone(), self.endpoints.clone());
        let agent = async move {
            run_with(config, SpotWatch::none(), endpoints, CancellationToken::new()).await.unwrap();
        };
        self.agent = Some(AbortOnDropHandle::new(tokio::spawn(agent)));
    }

    /// Ends the agent at once, with all its connections.
    pub(crate) fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Makes the agent reach core at `address` from now on.
    pub(crate) async fn reach_core_at(&mut self, address: SocketAddr) {
        self.agent_config.core_url = format!("http://{address}").parse().unwrap();
        if let Some(agent) = self.agent.take() {
            agent.abort();
            agent.await.unwrap_err();
        }
        self.start_agent();
    }

    /// Makes the agent forward connections to `address`.
    pub(crate) fn listen_at(&self, address: SocketAddr) {
        self.endpoints.set(preview_id(), BTreeMap::from([(ENDPOINT.to_owned(), address)]));
    }

    pub(crate) fn serving(&self, generation: u64) -> PreviewState {
        PreviewState::Serving { machine: self.machine, generation }
    }

    pub(crate) fn set_state(&mut self, state: PreviewState) {
        self.change_route(|route| route.state = state);
    }

    /// Changes the preview's route, which is new at first.
    pub(crate) fn change_route(&mut self, change: impl FnOnce(&mut Route)) {
        let route = self.routes.entry(LABEL.to_owned()).or_insert_with(|| Route {
            preview: preview_id(),
            endpoint: ENDPOINT.to_owned(),
            access: Access::Link,
            access_key: KEY.into(),
            public_paths: vec!["/webhooks/*".to_owned()],
            state: PreviewState::Deploying { progress: String::new() },
        });
        change(route);
        self.core.preview_routes.change(&[], self.routes.clone());
    }

    /// Adds the route of another preview.
    pub(crate) fn add_route(&mut self, label: &str, change: impl FnOnce(&mut Route)) {
        let mut route = self.routes[LABEL].clone();
        change(&mut route);
        self.routes.insert(label.to_owned(), route);
        self.core.preview_routes.change(&[], self.routes.clone());
    }

    pub(crate) fn remove_route(&mut self) {
        self.routes.remove(LABEL);
        self.core.preview_routes.change(&[LABEL.to_owned()], BTreeMap::new());
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let url = &self.core.url;
        format!("{}:{}", url.host_str().unwrap(), url.port().unwrap()).parse().unwrap()
    }

    /// A request to core with this `Host`.
    pub(crate) fn request_to(&self, host: &str, method: Method, target: &str) -> RequestBuilder {
        let url = format!("http://{}{target}", self.address());
        self.http.request(method, url).header(HOST, host)
    }

    /// A request to the preview, without access.
    pub(crate) fn request(&self, method: Method, target: &str) -> RequestBuilder {
        self.request_to(HOST_NAME, method, target)
    }

    /// An authorized GET.
    pub(crate) fn get(&self, target: &str) -> RequestBuilder {
        self.request(Method::GET, target).header("x-stagely-access", KEY)
    }

    /// Sends an authorized GET until the preview answers.
    pub(crate) async fn is_reached(&self) {
        eventually("the preview answers", async || {
            let response = self.get("/").send().await.unwrap();
            response.status().is_success().then_some(())
        })
        .await;
    }

    /// Sends bytes, and returns all that comes until core closes the connection.
    pub(crate) async fn send_raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// What the app says about the request that it got.
pub(crate) async fn echo(response: Response) -> Echo {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
    Echo(serde_json::from_str(&text).unwrap())
}

#[derive(Debug)]
pub(crate) struct Echo(Value);

impl Echo {
    pub(crate) fn app(&self) -> &str {
        self.0["app"].as_str().unwrap()
    }

    pub(crate) fn target(&self) -> &str {
        self.0["target"].as_str().unwrap()
    }

    pub(crate) fn body(&self) -> &str {
        self.0["body"].as_str().unwrap()
    }

    /// The values of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let headers = self.0["headers"].as_array().unwrap().iter();
        headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
    }

    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }
}
