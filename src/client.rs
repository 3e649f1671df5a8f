//! A client of core's HTTP API, used by the commands.

mod connection;
mod error;
mod follow;
pub(crate) mod retry;

use std::time::Duration;

use reqwest::{Method, Response};
use secrecy::SecretString;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, RunId};
use url::{Url, form_urlencoded};

use crate::api::{
    AddMachine, AddProject, AddedMachine, CreateRun, CreateToken, CreateWarmUp, CreatedToken,
    EnvironmentView, GithubView, JobView, ListEnvironments, ListMachines, ListRuns, LogRange,
    MachineView, ProjectView, QueueView, RebuildEnvironment, RebuildRun, RunView, SweepView,
    WarmUpView,
};
use connection::{Connection, REQUEST_LIMIT};

pub use error::ClientError;
pub use follow::{LogEvent, LogFollower, RunFollower};

/// The time limit of a sweep, which reads all pages of the providers' lists and ends machines.
const SWEEP_LIMIT: Duration = Duration::from_mins(10);

/// A client of one core. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// A client of the core at `server`.
    ///
    /// # Errors
    /// [`ClientError::UnexpectedResponse`] if TLS cannot be set up on this machine.
    pub fn new(server: Url, token: SecretString) -> Result<Self, ClientError> {
        Ok(Self { connection: Connection::new(server, token)? })
    }

    /// Core's address.
    pub const fn server(&self) -> &Url {
        self.connection.server()
    }

    /// Starts a run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_run(&self, run: &CreateRun) -> Result<RunView, ClientError> {
        self.connection.post("runs", run).await
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn runs(&self, which: &ListRuns) -> Result<Vec<RunView>, ClientError> {
        let request = self.connection.request(Method::GET, "runs").query(which);
        self.connection.json(request.timeout(REQUEST_LIMIT)).await
    }

    /// Gets a run and its jobs.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn run(&self, id: RunId) -> Result<RunView, ClientError> {
        self.connection.get(&format!("runs/{id}")).await
    }

    /// Stops a run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn cancel(&self, id: RunId) -> Result<RunView, ClientError> {
        self.connection.post(&format!("runs/{id}/cancel"), &()).await
    }

    /// Rebuilds a run: starts a new run of the same commit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn rebuild(&self, id: RunId, rebuild: &RebuildRun) -> Result<RunView, ClientError> {
        self.connection.post(&format!("runs/{id}/rebuild"), rebuild).await
    }

    /// Starts a run that fills the caches of `project`.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_warm_up(
        &self,
        project: &str,
        warm_up: &CreateWarmUp,
    ) -> Result<RunView, ClientError> {
        self.connection.post(&format!("projects/{}/warm-ups", path_part(project)), warm_up).await
    }

    /// Gets the schedule of warm-ups.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn warm_up(&self) -> Result<WarmUpView, ClientError> {
        self.connection.get("warm-up").await
    }

    /// Lists environments.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn environments(
        &self,
        which: &ListEnvironments,
    ) -> Result<Vec<EnvironmentView>, ClientError> {
        let request = self.connection.request(Method::GET, "environments").query(which);
        self.connection.json(request.timeout(REQUEST_LIMIT)).await
    }

    /// Closes an environment: its runs are cancelled and its cache refs deleted.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn close_environment(
        &self,
        id: EnvironmentId,
    ) -> Result<EnvironmentView, ClientError> {
        self.connection.post(&format!("environments/{id}/close"), &()).await
    }

    /// Rebuilds the newest run of an environment.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn rebuild_environment(
        &self,
        id: EnvironmentId,
        rebuild: &RebuildEnvironment,
    ) -> Result<RunView, ClientError> {
        self.connection.post(&format!("environments/{id}/rebuild"), rebuild).await
    }

    /// Approves a run of a commit from a fork.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn approve(&self, id: RunId) -> Result<RunView, ClientError> {
        self.connection.post(&format!("runs/{id}/approve"), &()).await
    }

    /// Lists projects.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn projects(&self) -> Result<Vec<ProjectView>, ClientError> {
        self.connection.get("projects").await
    }

    /// Adds a project, whose pull requests are built from now on.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn add_project(&self, project: &AddProject) -> Result<ProjectView, ClientError> {
        self.connection.post("projects", project).await
    }

    /// Removes a project from GitHub builds: its pull requests are no longer built.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_project(&self, name: &str) -> Result<(), ClientError> {
        let request =
            self.connection.request(Method::DELETE, &format!("projects/{}", path_part(name)));
        self.connection.send(request.timeout(REQUEST_LIMIT)).await.map(drop)
    }

    /// Gets the state of the connection with GitHub.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn github(&self) -> Result<GithubView, ClientError> {
        self.connection.get("github").await
    }

    /// Gets a job.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn job(&self, id: JobId) -> Result<JobView, ClientError> {
        self.connection.get(&format!("jobs/{id}")).await
    }

    /// Reads a job's log as text.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn log(&self, id: JobId, range: &LogRange) -> Result<Response, ClientError> {
        self.connection
            .send(self.connection.request(Method::GET, &format!("jobs/{id}/logs")).query(range))
            .await
    }

    /// Lists machines, oldest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn machines(&self, which: &ListMachines) -> Result<Vec<MachineView>, ClientError> {
        self.connection
            .json(
                self.connection
                    .request(Method::GET, "machines")
                    .timeout(REQUEST_LIMIT)
                    .query(which),
            )
            .await
    }

    /// Compares the providers' machines with the records, and acts on differences unless `dry_run`.
    ///
    /// # Errors
    /// [`ClientError`]. A provider that could not be queried is not an error; the response names it.
    pub async fn sweep(&self, dry_run: bool) -> Result<SweepView, ClientError> {
        let method = if dry_run { Method::GET } else { Method::POST };
        self.connection.json(self.connection.request(method, "sweep").timeout(SWEEP_LIMIT)).await
    }

    /// Registers a machine.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn add_machine(&self, machine: &AddMachine) -> Result<AddedMachine, ClientError> {
        self.connection.post("machines", machine).await
    }

    /// Removes a registered machine.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_machine(&self, id: MachineId) -> Result<(), ClientError> {
        let request = self.connection.request(Method::DELETE, &format!("machines/{id}"));
        self.connection.send(request.timeout(REQUEST_LIMIT)).await.map(drop)
    }

    /// Gets the waiting jobs.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn queue(&self) -> Result<QueueView, ClientError> {
        self.connection.get("queue").await
    }

    /// Creates a bearer token.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.connection.post("tokens", token).await
    }

    /// Follows a run until it has ended and its machines are terminated.
    pub fn follow_run(&self, id: RunId) -> RunFollower {
        RunFollower::new(self.connection.clone(), id)
    }

    /// Follows a job's log to the job's end: stored and new lines of all attempts from `range.attempt` on
    /// (default: the newest).
    pub fn follow_log(&self, id: JobId, range: LogRange) -> LogFollower {
        LogFollower::new(self.connection.clone(), id, range)
    }
}

/// Encodes text as one component of a path. Paths write a space as `%20`, forms as `+`.
fn path_part(text: &str) -> String {
    let part: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    part.replace('+', "%20")
}
