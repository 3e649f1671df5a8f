//! A client of core's HTTP API, used by the commands.

mod connection;
mod error;
mod exec;
mod follow;
pub(crate) mod retry;

use std::time::Duration;

use reqwest::{Method, Response};
use secrecy::SecretString;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};
use url::{Url, form_urlencoded};

use crate::api::{
    AddMachine, AddProject, AddedMachine, AllowBudget, BudgetView, CreateRun, CreateToken,
    CreateWarmUp, CreatedToken, EnvironmentView, ExecRequest, ExtendPreview, GetCost, GithubView,
    JobView, ListEnvironments, ListMachines, ListPreviews, ListRuns, LogRange, MachineView,
    MonthCostView, PreviewLogRange, PreviewView, ProjectView, QueueView, RebuildEnvironment,
    RebuildRun, RunView, SecretView, SetSecret, SweepView, WarmUpView,
};
use connection::{Connection, REQUEST_LIMIT};

pub use error::ClientError;
pub use exec::{ExecEvent, ExecInput, ExecOutput};
pub use follow::{LogEvent, LogFollower, RunFollower, ServiceLogFollower};

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

    /// This client, which gives `print` a line when it waits for core.
    #[must_use]
    pub fn with_waits_printed(mut self, print: fn(&str)) -> Self {
        self.connection.waits.print = print;
        self
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

    /// Lists previews, the oldest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn previews(&self, which: &ListPreviews) -> Result<Vec<PreviewView>, ClientError> {
        let request = self.connection.request(Method::GET, "previews").query(which);
        self.connection.json(request.timeout(REQUEST_LIMIT)).await
    }

    /// Gets a preview, also from a core that restarts.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn preview(&self, id: PreviewId) -> Result<PreviewView, ClientError> {
        let path = format!("previews/{id}");
        self.connection.waits.retry(|| self.connection.get(&path)).await
    }

    /// Puts a preview to sleep.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn sleep_preview(&self, id: PreviewId) -> Result<PreviewView, ClientError> {
        self.connection.post(&format!("previews/{id}/sleep"), &()).await
    }

    /// Wakes a preview.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn wake_preview(&self, id: PreviewId) -> Result<PreviewView, ClientError> {
        self.connection.post(&format!("previews/{id}/wake"), &()).await
    }

    /// Deploys what a preview shows once more, with fresh data.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn reset_preview(&self, id: PreviewId) -> Result<PreviewView, ClientError> {
        self.connection.post(&format!("previews/{id}/reset"), &()).await
    }

    /// Lets a preview stay unused for longer.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn extend_preview(
        &self,
        id: PreviewId,
        extend: &ExtendPreview,
    ) -> Result<PreviewView, ClientError> {
        self.connection.post(&format!("previews/{id}/extend"), extend).await
    }

    /// Ends a preview.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn end_preview(&self, id: PreviewId) -> Result<PreviewView, ClientError> {
        let request = self.connection.request(Method::DELETE, &format!("previews/{id}"));
        self.connection.json(request.timeout(REQUEST_LIMIT)).await
    }

    /// Reads the log of a preview's services as text.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn service_log(
        &self,
        id: PreviewId,
        range: &PreviewLogRange,
    ) -> Result<Response, ClientError> {
        let request = self.connection.request(Method::GET, &format!("previews/{id}/logs"));
        self.connection.send(request.query(range)).await
    }

    /// Follows the log of a preview's services.
    pub fn follow_service_log(&self, id: PreviewId, range: PreviewLogRange) -> ServiceLogFollower {
        ServiceLogFollower::new(self.connection.clone(), id, range)
    }

    /// Starts a command in the container of a preview.
    ///
    /// # Errors
    /// [`ClientError`], also if the agent cannot start it.
    pub async fn exec(
        &self,
        id: PreviewId,
        request: &ExecRequest,
    ) -> Result<(ExecInput, ExecOutput), ClientError> {
        exec::exec(self.connection.clone(), id, request).await
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

    /// Lists the secrets of a project, without their values.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn secrets(&self, project: &str) -> Result<Vec<SecretView>, ClientError> {
        self.connection.get(&format!("projects/{}/secrets", path_part(project))).await
    }

    /// Sets a secret of a project.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn set_secret(
        &self,
        project: &str,
        name: &str,
        secret: &SetSecret,
    ) -> Result<SecretView, ClientError> {
        let request = self.connection.request(Method::PUT, &secret_path(project, name));
        self.connection.json(request.timeout(REQUEST_LIMIT).json(secret)).await
    }

    /// Removes a secret of a project.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_secret(&self, project: &str, name: &str) -> Result<(), ClientError> {
        let request = self.connection.request(Method::DELETE, &secret_path(project, name));
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

    /// Reads what a test has left, as a tar archive.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn artifacts(&self, id: JobId) -> Result<Response, ClientError> {
        self.connection
            .send(self.connection.request(Method::GET, &format!("jobs/{id}/artifacts")))
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

    /// Gets what a month has cost.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn cost(&self, which: &GetCost) -> Result<MonthCostView, ClientError> {
        let request = self.connection.request(Method::GET, "cost").query(which);
        self.connection.json(request.timeout(REQUEST_LIMIT)).await
    }

    /// Allows a project or a pull request more than its budget.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn allow_budget(&self, allow: &AllowBudget) -> Result<BudgetView, ClientError> {
        self.connection.post("budget", allow).await
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

fn secret_path(project: &str, name: &str) -> String {
    format!("projects/{}/secrets/{}", path_part(project), path_part(name))
}

/// Encodes text as one component of a path. Paths write a space as `%20`, forms as `+`.
fn path_part(text: &str) -> String {
    let part: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    part.replace('+', "%20")
}
