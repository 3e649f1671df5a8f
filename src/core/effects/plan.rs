//! Plans a run: reads `stagely.yaml` at its commit.

mod base;
mod failure;
mod preview;
mod repository;

use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use stagely_agent::git::{FetchRequest, ResolvedRef};
use stagely_manifest::Manifest;
use stagely_protocol::{CloneProblem, CommitSha, FailureReason, Submodules};
use stagely_state::ids::{JobId, RunId};
use stagely_state::{
    Environment, Event, PlanFailure, PlannedRun, Project, Run, Timestamp, Trigger,
};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::base::{BaseComparison, PlanSource};
use self::failure::{GITHUB_WAIT, NotPlanned, failed};
use self::preview::PreviewInputs;
pub(crate) use self::repository::RepositoryReader;
use super::CloneTokens;
use crate::config::Config;
use crate::core::clock::{new_id, now};
use crate::core::disk::DiskGuard;
use crate::core::github::{Github, GithubError};
use crate::core::plan::{Plan, PlanContext, plan};
use crate::core::previews::PreviewHosts;
use crate::core::records::{Records, SharedRecords};
use crate::core::secrets::{SecretStore, SecretsOf};
use crate::core::wait::Waiter;
use crate::core::waits;

const AUTHENTICATION: FailureReason =
    FailureReason::Clone { problem: CloneProblem::Authentication };

const FORK_OF_PRIVATE: &str = "the build of a fork of a private repository takes a token that opens this \
                               repository alone, and only a GitHub App makes such: set github.app-id and \
                               github.private-key-file, and install the app for the repository";

/// The time limit of one request to GitHub with all its attempts.
const GITHUB_LIMIT: Duration = Duration::from_secs(100);

/// The run to plan, with its project and environment.
#[derive(Clone)]
struct Subject {
    run: Run,
    project: Project,
    environment: Environment,
}

impl Subject {
    /// The branch that is built. A rebuild asks for a commit, and has its branch from the run that it repeats.
    fn branch<'a>(&'a self, resolved: &'a ResolvedRef) -> Option<&'a str> {
        self.run.branch.as_deref().or_else(|| resolved.branch())
    }

    /// Whether the default branch is built, whose caches all environments read. A pull request is its
    /// own environment, whatever its branch is called.
    fn is_default_branch(&self, resolved: &ResolvedRef) -> bool {
        let branch = self.branch(resolved);
        let is_named = branch.is_some() && branch == resolved.default_branch.as_deref();
        let is_asked_for = matches!(self.run.requested_ref.as_deref(), None | Some("HEAD"));
        let is_foreign = self.run.from_fork || self.environment.pull_request.is_some();
        (is_named || is_asked_for) && !is_foreign
    }
}

/// Reading that takes longer is shown as a wait, because the other side may not answer at all.
const SHOWN_AFTER: Duration = Duration::from_millis(1_500);
const READING: &str = "reading stagely.yaml from the repository";

#[derive(Debug)]
pub(crate) struct Planner {
    registry_url: String,
    hosts: PreviewHosts,
    planning_limit: Duration,
    records: SharedRecords,
    secrets: SecretStore,
    github: Github,
    clone_tokens: CloneTokens,
    disk: DiskGuard,
    reader: Arc<RepositoryReader>,
}

impl Planner {
    pub(crate) fn new(
        config: &Config,
        reader: Arc<RepositoryReader>,
        records: &SharedRecords,
        secrets: &SecretStore,
        github: &Github,
        clone_tokens: &CloneTokens,
        disk: &DiskGuard,
    ) -> Self {
        Self {
            registry_url: config.registry.url().to_owned(),
            hosts: PreviewHosts::new(config),
            planning_limit: config.builders.planning_limit,
            records: records.clone(),
            secrets: secrets.clone(),
            github: github.clone(),
            clone_tokens: clone_tokens.clone(),
            disk: disk.clone(),
            reader,
        }
    }

    /// When a planning that begins now ends at the latest.
    pub(super) fn give_up_at(&self) -> Timestamp {
        now().after(self.planning_limit)
    }

    /// Plans `run`. Stops early when the run has ended.
    pub(super) async fn plan(&self, run: RunId) -> Event {
        let cancel = CancellationToken::new();
        // The run may be cancelled, or its planning may have timed out.
        let has_ended =
            |records: &Records| records.runs.get(&run).is_none_or(|run| run.state.is_final());
        let mut planning = pin!(self.try_plan(run, &cancel));
        let give_up_at = self.give_up_at();
        let shown = async {
            sleep(SHOWN_AFTER).await;
            waits::note_slow(&self.records, Waiter::Run(run), READING, give_up_at);
            pending::<Infallible>().await
        };
        let plan = tokio::select! {
            plan = &mut planning => plan,
            () = self.records.wait_until(has_ended) => {
                cancel.cancel();
                planning.await
            }
            never = shown => match never {},
        };
        let plan = match plan {
            Err(NotPlanned::Later { retry_at, reason }) => {
                waits::note(&self.records, Waiter::Run(run), reason, retry_at, None);
                return Event::PlanDeferred { run, until: retry_at };
            }
            Err(NotPlanned::Failed(failure)) => Err(failure),
            Ok(plan) => Ok(plan),
        };
        match &plan {
            Ok(plan) => info!(%run, commit = %plan.commit, jobs = plan.jobs.len(), "planned"),
            Err(PlanFailure { reason, message }) => info!(%run, %reason, message, "not planned"),
        }
        Event::RunPlanned { run, plan }
    }

    async fn try_plan(
        &self,
        run: RunId,
        cancel: &CancellationToken,
    ) -> Result<PlannedRun, NotPlanned> {
        // A checkout could use up the space that the records need.
        self.disk.check_reserve().await.map_err(|full| failed(FailureReason::DiskFull, full))?;
        let subject = self.subject(run)?;
        let of_run = SecretsOf::run(&self.records.read(), &subject.run);
        let secrets = self.secrets.clone();
        let secrets = spawn_blocking(move || secrets.open(of_run)).await;
        let secrets = secrets.expect("reading secrets does not panic");
        let own_token = secrets.map_err(anyhow::Error::from)?.clone_token;
        if own_token.is_none() && self.clone_tokens.lacks_foreign_token(&subject.run) {
            return Err(failed(AUTHENTICATION, FORK_OF_PRIVATE));
        }
        if let Some(resolved) = known_to_github(&subject)
            && let Some(planned) = self.plan_by_api(&subject, &resolved, cancel).await?
        {
            return Ok(planned);
        }
        let token = match own_token {
            Some(token) => Some(token),
            None => {
                with_github_timeout(
                    self.clone_tokens.repository_token(&subject.run, &subject.project),
                )
                .await?
            }
        };
        let is_githubs = known_to_github(&subject).is_some();
        match self.plan_by_git(subject, token, cancel).await {
            // GitHub does not answer.
            Err(NotPlanned::Failed(PlanFailure {
                reason: FailureReason::Clone { problem: CloneProblem::Network },
                message,
            })) if is_githubs => {
                Err(NotPlanned::Later { retry_at: now().after(GITHUB_WAIT), reason: message })
            }
            planned => planned,
        }
    }

    /// Plans without git, with the file from GitHub's API. `None` if the changes since other commits matter, which only
    /// git can find out.
    async fn plan_by_api(
        &self,
        subject: &Subject,
        resolved: &ResolvedRef,
        cancel: &CancellationToken,
    ) -> Result<Option<PlannedRun>, NotPlanned> {
        let (file, commit) = (stagely_manifest::FILE_NAME, &resolved.commit);
        let bytes = with_github_timeout(self.github.file(&subject.project, file, commit)).await?;
        let Some(bytes) = bytes else {
            let misnamed = self.github.file(&subject.project, stagely_manifest::MISNAMED, commit);
            let advice = match with_github_timeout(misnamed).await? {
                Some(_) => stagely_manifest::MISNAMED_ADVICE,
                None => stagely_manifest::MISSING_ADVICE,
            };
            let message = format!("{file} cannot be read at {commit}: {advice}");
            return Err(failed(FailureReason::Manifest, message));
        };
        // The agents check contexts and Dockerfiles, because they have the files.
        let manifest = stagely_manifest::parse(file, &bytes)
            .map_err(|problems| failed(FailureReason::Manifest, problems))?;
        let preview = PreviewInputs::new(&self.hosts, &self.records, subject);
        if manifest.builds.iter().any(|build| build.paths.is_some()) {
            return Ok(None);
        }
        let source = PlanSource { subject, resolved, token: None, bytes_max: 0, cancel };
        let comparison = self.without_comparing(&source);
        let registry = self.registry_url.clone();
        let (subject, resolved) = (subject.clone(), resolved.clone());
        let plan = spawn_blocking(move || {
            make_plan(&manifest, &registry, &subject, &resolved, &comparison, &preview)
        });
        Ok(Some(plan.await.map_err(anyhow::Error::from)??))
    }

    async fn plan_by_git(
        &self,
        subject: Subject,
        token: Option<SecretString>,
        cancel: &CancellationToken,
    ) -> Result<PlannedRun, NotPlanned> {
        let wanted = subject.run.requested_ref.clone().unwrap_or_else(|| "HEAD".to_owned());
        let url = subject.run.repository.clone();
        let mut resolved = self.reader.resolve(&url, &wanted, token.clone(), cancel).await?;
        // A commit is not looked up, so no branch is known yet.
        if let Some(github) = &subject.run.github {
            resolved.default_branch.get_or_insert_with(|| github.default_branch.clone());
        }
        if resolved.default_branch.is_none() && subject.run.branch.is_some() {
            let head = self.reader.resolve(&url, "HEAD", token.clone(), cancel).await?;
            resolved.default_branch = head.default_branch;
        }
        let bytes_max = self.reader.bytes_max().await;
        let request = FetchRequest {
            url,
            commit: resolved.commit.clone(),
            branch: subject.branch(&resolved).map(str::to_owned),
            token: token.clone(),
            // Only a build needs them.
            submodules: Submodules::None,
            large_files: false,
            bytes_max,
        };
        let checkout = self.reader.check_out(request, cancel).await?;
        let (root, commit) = (checkout.root(), resolved.commit.clone());
        let manifest = spawn_blocking(move || read_manifest(&root, &commit))
            .await
            .map_err(anyhow::Error::from)??;
        let source =
            PlanSource { subject: &subject, resolved: &resolved, token, bytes_max, cancel };
        let comparison = self.compare(&source, &manifest, &checkout.objects()).await?;
        let preview = PreviewInputs::new(&self.hosts, &self.records, &subject);
        let registry = self.registry_url.clone();
        // Matching many patterns with many changed files takes long.
        let plan = spawn_blocking(move || {
            make_plan(&manifest, &registry, &subject, &resolved, &comparison, &preview)
        });
        plan.await.map_err(anyhow::Error::from)?
    }

    fn subject(&self, id: RunId) -> anyhow::Result<Subject> {
        let records = self.records.read();
        let run = records.runs.get(&id).context("the run has no record")?.clone();
        let project = records.projects.get(&run.project).context("its project has no record")?;
        let environment =
            records.environments.get(&run.environment).context("its environment has no record")?;
        Ok(Subject { project: project.clone(), environment: environment.clone(), run })
    }
}

/// The commit of a run that GitHub reported, with its branches. `None` for a run that git must resolve: of a
/// branch, or cloned from elsewhere.
fn known_to_github(subject: &Subject) -> Option<ResolvedRef> {
    let Subject { run, project, .. } = subject;
    let is_there = project.github.is_some() && run.repository == project.repository;
    let github = run.github.as_ref().filter(|_| is_there)?;
    Some(ResolvedRef {
        commit: run.requested_commit()?,
        name: run.branch.as_ref().map(|branch| format!("refs/heads/{branch}")),
        default_branch: Some(github.default_branch.clone()),
    })
}

/// A GitHub that accepts connections and does not answer must not use up the run's time for planning.
async fn with_github_timeout<T>(
    request: impl Future<Output = Result<T, GithubError>>,
) -> Result<T, GithubError> {
    let silent = || GithubError::Unavailable("it takes too long".to_owned());
    tokio::time::timeout(GITHUB_LIMIT, request).await.unwrap_or_else(|_| Err(silent()))
}

fn read_manifest(root: &Path, commit: &CommitSha) -> Result<Manifest, NotPlanned> {
    let bytes = stagely_manifest::read_checkout(root).map_err(|error| {
        let file = stagely_manifest::FILE_NAME;
        failed(FailureReason::Manifest, format!("{file} cannot be read at {commit}: {error}"))
    })?;
    stagely_manifest::validate(stagely_manifest::FILE_NAME, &bytes, root)
        .map_err(|problems| failed(FailureReason::Manifest, problems))
}

fn make_plan(
    manifest: &Manifest,
    registry: &str,
    subject: &Subject,
    resolved: &ResolvedRef,
    comparison: &BaseComparison,
    preview: &PreviewInputs,
) -> Result<PlannedRun, NotPlanned> {
    let Subject { run, project, environment } = subject;
    let context = PlanContext {
        registry,
        project,
        environment,
        run: run.id,
        requested_at: run.created_at,
        commit: &resolved.commit,
        branch: subject.branch(resolved),
        is_default_branch: subject.is_default_branch(resolved),
        push: run.trigger != Trigger::WarmUp,
        pull_request: environment.pull_request,
        from_fork: run.from_fork,
        only_builds: &run.only_builds,
        wanted_tests: run.wanted_tests,
        good_images: &comparison.good_images,
        base: comparison.base.as_ref(),
        preview: preview.context(),
    };
    let Plan { jobs, skipped, own_cache_refs } = plan(manifest, &context, &mut job_ids())
        .map_err(|error| failed(error.reason(), format!("{error:#}")))?;
    let branch = context.branch.map(str::to_owned);
    Ok(PlannedRun { commit: resolved.commit.clone(), branch, jobs, skipped, own_cache_refs })
}

/// New ids that sort in the order in which they are handed out, also within one millisecond.
fn job_ids() -> impl FnMut() -> JobId {
    let mut next = new_id::<JobId>().bits();
    move || {
        let id = JobId::from_bits(next);
        next += 1;
        id
    }
}
