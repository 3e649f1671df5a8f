//! Finds what no delivery told of: open pull requests are compared with what core believes, and what an app
//! failed to deliver is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, ProjectId};
use stagely_state::{DeliveryId, Event, Project, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::webhook::event::{self, Hook};
use super::{FailedDelivery, Github, GithubError, PullRequest, Repository};
use crate::config::Config;
use crate::core::clock::now;
use crate::core::intake::{Heard, Intake, github_events};
use crate::core::records::SharedRecords;

/// Projects that are compared at once. More would use up GitHub's limits for what is urgent.
const AT_ONCE: usize = 4;

/// Deliveries that may be left unanswered before the others are left for the next round: GitHub is away then.
const UNANSWERED_MAX: usize = 3;

/// The shortest time between two rounds.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// How long GitHub remembers what it failed to deliver.
const DELIVERIES: Duration = Duration::from_hours(3 * 24);

/// How a project was compared with its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastReconcile {
    /// When.
    pub(crate) at: Timestamp,
    /// Why it could not be, for people.
    pub(crate) problem: Option<String>,
}

/// How all projects were. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reconciled {
    inner: Arc<Mutex<Inner>>,
    wish: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    projects: BTreeMap<ProjectId, LastReconcile>,
    problem: Option<String>,
}

impl Reconciled {
    /// Lets projects be compared now.
    pub(crate) fn wake(&self) {
        self.wish.notify_one();
    }

    /// How `project` was last.
    pub(crate) fn last(&self, project: ProjectId) -> Option<LastReconcile> {
        self.lock().projects.get(&project).cloned()
    }

    /// Why failed deliveries cannot be read, for people.
    pub(crate) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked of GitHub here.
pub(crate) trait Source: Sync {
    fn repository(
        &self,
        project: &Project,
    ) -> impl Future<Output = Result<Repository, GithubError>> + Send;
    fn open_pull_requests(
        &self,
        project: &Project,
    ) -> impl Future<Output = Result<Vec<PullRequest>, GithubError>> + Send;
    fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> impl Future<Output = Result<PullRequest, GithubError>> + Send;
    fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> impl Future<Output = Result<Vec<FailedDelivery>, GithubError>> + Send;
    fn delivery(
        &self,
        id: u64,
    ) -> impl Future<Output = Result<(String, Vec<u8>), GithubError>> + Send;
}

impl Source for Github {
    async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        self.repository(project).await
    }
    async fn open_pull_requests(&self, project: &Project) -> Result<Vec<PullRequest>, GithubError> {
        self.open_pull_requests(project).await
    }
    async fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> Result<PullRequest, GithubError> {
        self.pull_request(project, number).await
    }
    async fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> Result<Vec<FailedDelivery>, GithubError> {
        self.failed_deliveries(since).await
    }
    async fn delivery(&self, id: u64) -> Result<(String, Vec<u8>), GithubError> {
        self.delivery(id).await
    }
}

/// What core believes of a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Believed {
    environment: EnvironmentId,
    /// The commit that it is at; `None`: nobody said.
    head: Option<CommitSha>,
    is_closed: bool,
}

impl Believed {
    /// The head of an open one.
    fn open_head(&self) -> Option<CommitSha> {
        self.head.clone().filter(|_| !self.is_closed)
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Differences<'a> {
    /// Open pull requests that core does not know, or knows at another commit, or as closed.
    moved: Vec<&'a PullRequest>,
    /// Numbers of pull requests that core believes to be open and that are not in the list.
    missing: Vec<u64>,
}

/// Compares what core believed before it asked with what GitHub then said.
fn compare<'a>(believed: &BTreeMap<u64, Believed>, listed: &'a [PullRequest]) -> Differences<'a> {
    let is_moved = |listed: &&PullRequest| {
        let known = believed.get(&listed.number).and_then(Believed::open_head);
        known.as_ref() != Some(&listed.head)
    };
    let numbers: BTreeSet<u64> = listed.iter().map(|listed| listed.number).collect();
    let open = believed.iter().filter(|(_, it)| !it.is_closed).map(|(number, _)| *number);
    Differences {
        moved: listed.iter().filter(is_moved).collect(),
        missing: open.filter(|number| !numbers.contains(number)).collect(),
    }
}

/// The comparing task.
pub(crate) struct Reconcile<S> {
    pub(crate) source: S,
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) intake: Intake,
    pub(crate) reconciled: Reconciled,
}

/// Why something was not compared, and until when GitHub answers nothing.
struct Failed {
    problem: String,
    until: Option<Timestamp>,
}

impl From<GithubError> for Failed {
    fn from(error: GithubError) -> Self {
        let until = match &error {
            GithubError::RateLimited { until } => Some(*until),
            _ => None,
        };
        Self { problem: error.to_string(), until }
    }
}

impl<S: Source> Reconcile<S> {
    /// Compares at once, after each interval, and when GitHub answers again, until `stop` fires.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let Some(until) = stop.run_until_cancelled(self.round()).await else { return };
            let interval = self.config.github.reconcile_interval;
            // What is allowed to one project need not wait for another, nor be asked in a loop.
            let wait = until.map_or(interval, |it| it.since(now()).max(PAUSE_MIN).min(interval));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.reconciled.wish.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Compares all projects once. Returns the moment before which GitHub answers nothing, if it said so.
    async fn round(&self) -> Option<Timestamp> {
        let projects: Vec<Project> = {
            let records = self.records.read();
            records.projects.values().filter(|it| it.github.is_some()).cloned().collect()
        };
        if projects.is_empty() {
            return None;
        }
        let compared = stream::iter(projects).map(|project| self.compared(project));
        let compared: Vec<_> = compared.buffer_unordered(AT_ONCE).collect().await;
        let mut until = None;
        let mut listed = Vec::new();
        for (project, failed) in compared {
            match &failed {
                Some(failed) => {
                    let (project, problem) = (&project.name, &failed.problem);
                    warn!(project, problem, "not compared with its repository");
                    until = until.max(failed.until);
                }
                None => listed.push(project.clone()),
            }
            let last = LastReconcile { at: now(), problem: failed.map(|it| it.problem) };
            self.reconciled.lock().projects.insert(project.id, last);
        }
        // After the lists: what these say of pull requests is newer.
        let failed = self.deliveries(&listed).await.err();
        until = until.max(failed.as_ref().and_then(|failed| failed.until));
        self.reconciled.lock().problem = failed.map(|it| it.problem);
        self.tell_again().await;
        until
    }

    /// Lets GitHub be told of what it refused before.
    async fn tell_again(&self) {
        let is_refused = {
            let records = self.records.read();
            records.environments.values().any(|it| it.report.problem.is_some())
        };
        if is_refused {
            // Core that ends begins with it when it is back.
            let _ = self.intake.hear(None, |_| Ok(Event::TellAgain)).await;
        }
    }

    async fn compared(&self, project: Project) -> (Project, Option<Failed>) {
        let failed = self.project(&project).await.err();
        (project, failed)
    }

    async fn project(&self, project: &Project) -> Result<(), Failed> {
        // Before it is asked, so that news that comes meanwhile is told from what is missing.
        let believed = self.believed(project.id);
        let listed = self.source.open_pull_requests(project).await?;
        let Differences { moved, missing } = compare(&believed, &listed);
        if !moved.is_empty() {
            let repository = self.source.repository(project).await?;
            for pull_request in moved {
                let head = believed.get(&pull_request.number).and_then(Believed::open_head);
                self.head_moved(repository.clone(), pull_request.clone(), head).await?;
            }
        }
        for number in missing {
            let pull_request = match self.source.pull_request(project, number).await {
                // A number that somebody gave a run of their own.
                Err(GithubError::NotFound(_)) => continue,
                answer => answer?,
            };
            if !pull_request.is_open {
                let environment = believed[&number].environment;
                let at = pull_request.closed_at.unwrap_or(pull_request.updated_at);
                self.hear(move |_| Ok(Event::PullRequestClosed { environment, at })).await?;
            }
        }
        Ok(())
    }

    fn believed(&self, project: ProjectId) -> BTreeMap<u64, Believed> {
        let records = self.records.read();
        let of_project = records.environments.values().filter(|it| it.project == project);
        let believed = of_project.filter_map(|it| {
            let head = it.head.as_ref().map(|head| head.commit.clone());
            let believed = Believed { environment: it.id, head, is_closed: it.closed };
            Some((it.pull_request?, believed))
        });
        believed.collect()
    }

    async fn head_moved(
        &self,
        repository: Repository,
        pull_request: PullRequest,
        believed: Option<CommitSha>,
    ) -> Result<(), Failed> {
        let config = Arc::clone(&self.config);
        let number = pull_request.number;
        let make = move |records: &_| {
            github_events::listed(records, &config.github, &repository, &pull_request, believed)
        };
        if let Heard::Accepted(_) = self.hear(make).await? {
            info!(number, "found a pull request that no delivery told of");
        }
        Ok(())
    }

    async fn hear(
        &self,
        make: impl FnOnce(&crate::core::records::Records) -> Result<Event, github_events::Unused>
        + Send
        + 'static,
    ) -> Result<Heard, Failed> {
        let heard = self.intake.hear(None, make).await;
        heard.map_err(|error| Failed { problem: error.to_string(), until: None })
    }

    /// Takes what an app failed to deliver. What it says of pull requests in `listed` is outdated.
    async fn deliveries(&self, listed: &[Project]) -> Result<(), Failed> {
        let since = now().0.saturating_sub(u64::try_from(DELIVERIES.as_millis()).unwrap_or(0));
        let mut unread = Unread::default();
        for failed in self.source.failed_deliveries(Timestamp(since)).await? {
            if self.records.read().deliveries.contains_key(&failed.delivery) {
                continue;
            }
            match self.source.delivery(failed.id).await {
                Ok((event, payload)) => {
                    self.take_delivery(failed.delivery, &event, &payload, listed).await?;
                }
                Err(error) => unread.note(failed.id, error)?,
            }
        }
        unread.problem.map_or(Ok(()), |problem| Err(Failed { problem, until: None }))
    }

    async fn take_delivery(
        &self,
        delivery: DeliveryId,
        event: &str,
        payload: &[u8],
        listed: &[Project],
    ) -> Result<(), Failed> {
        let hook = event::parse(event, payload).unwrap_or_else(|error| {
            warn!(%error, "a failed delivery");
            Hook::Ignored(error.to_string())
        });
        let hook = if is_listed(&hook, listed) {
            Hook::Ignored("the list of pull requests says more".to_owned())
        } else {
            hook
        };
        let config = Arc::clone(&self.config);
        let make = move |records: &_| github_events::late_event(records, &config.github, &hook);
        let heard = self.intake.hear(Some(delivery), make).await;
        heard.map_err(|error| Failed { problem: error.to_string(), until: None })?;
        Ok(())
    }
}

/// The failed deliveries that GitHub does not show.
#[derive(Default)]
struct Unread {
    unanswered: usize,
    problem: Option<String>,
}

impl Unread {
    /// Takes note of one, so that the others are read all the same. It is asked for again in each round.
    fn note(&mut self, id: u64, error: GithubError) -> Result<(), Failed> {
        let may_go_on = match &error {
            GithubError::NotFound(_)
            | GithubError::Refused { .. }
            | GithubError::TooLarge { .. } => true,
            GithubError::Unavailable(_) => {
                self.unanswered += 1;
                self.unanswered < UNANSWERED_MAX
            }
            GithubError::RateLimited { .. } | GithubError::Credentials(_) => false,
        };
        if !may_go_on {
            return Err(error.into());
        }
        warn!(id, %error, "a failed delivery cannot be read");
        self.problem = Some(format!("a failed delivery cannot be read: {error}"));
        Ok(())
    }
}

/// Whether the list of pull requests has told all that `hook` does.
fn is_listed(hook: &Hook, listed: &[Project]) -> bool {
    let (Hook::Head { repository, .. } | Hook::Closed { repository, .. }) = hook else {
        return false;
    };
    let mut links = listed.iter().filter_map(|project| project.github.as_ref());
    links.any(|link| link.repository.is(repository.full_name.as_str()))
}

#[cfg(test)]
mod tests;
