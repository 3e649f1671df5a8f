//! Updates of the head of one pull request, or of the default branch, of project 1.

use super::*;

/// The environment of the pull request, or of the branch that is reported.
pub(super) const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);
pub(super) const PROJECT: ProjectId = ProjectId::from_bits(1);
pub(super) const REPORT: Effect = Effect::Report { environment: ENVIRONMENT };

/// GitHub's clock, in seconds.
pub(super) const fn second(second: u64) -> Timestamp {
    Timestamp(second * 1000)
}

pub(super) fn commit(digit: &str) -> CommitSha {
    digit.repeat(40).parse().unwrap()
}

/// The contents of [`Event::HeadMoved`].
#[derive(Clone)]
pub(super) struct HeadUpdate {
    head: Head,
    trigger: Trigger,
    source: HeadSource,
    pull_request: Option<u64>,
    from_fork: bool,
}

impl HeadUpdate {
    /// The pull request was opened, reopened, or marked as ready for review.
    pub(super) fn opened(digit: &str, at: u64) -> Self {
        let head = Head { commit: commit(digit), before: None, at: second(at), is_first: false };
        Self {
            head,
            trigger: Trigger::PrOpened,
            source: HeadSource::Delivery,
            pull_request: Some(7),
            from_fork: false,
        }
    }

    /// The pull request is new.
    pub(super) fn first(digit: &str, at: u64) -> Self {
        let mut update = Self::opened(digit, at);
        update.head.is_first = true;
        update
    }

    /// Commits were pushed to the pull request.
    pub(super) fn pushed(before: &str, digit: &str, at: u64) -> Self {
        let mut update = Self { trigger: Trigger::PrSynchronized, ..Self::opened(digit, at) };
        update.head.before = Some(commit(before));
        update
    }

    /// Commits were pushed to the default branch.
    pub(super) fn on_branch(digit: &str, at: u64) -> Self {
        Self { trigger: Trigger::Push, pull_request: None, ..Self::opened(digit, at) }
    }

    /// Core found the pull request in GitHub's list. It knew the head `believed` before.
    pub(super) fn listed(believed: Option<&str>, digit: &str, at: u64) -> Self {
        let source = HeadSource::Listing { believed: believed.map(commit) };
        Self { source, ..Self::opened(digit, at) }
    }

    pub(super) fn of_fork(self) -> Self {
        Self { from_fork: true, ..self }
    }
}

impl Core {
    /// A core with a linked project.
    pub(super) fn linked() -> Self {
        let mut core = amd64(5);
        core.step(Event::ProjectSet { project: linked_project() });
        core
    }

    /// The event of the update, and its run.
    pub(super) fn head_event(&mut self, update: HeadUpdate) -> (RunId, Event) {
        let id = RunId::from_bits(self.id());
        let mut environment = Environment::new(ENVIRONMENT, PROJECT, "pr-7".to_owned());
        environment.pull_request = update.pull_request;
        let github = GithubRun { default_branch: "main".to_owned(), is_private: false };
        let approval = if update.from_fork { Approval::Awaited } else { Approval::NotNeeded };
        let run = Run {
            trigger: update.trigger,
            requested_ref: Some(update.head.commit.to_string()),
            from_fork: update.from_fork,
            github: Some(github),
            ..Run::new(id, &environment, String::new(), self.now)
        };
        let (run, head, source) =
            (Box::new(run.with_approval(approval)), update.head, update.source);
        (id, Event::HeadMoved { run, environment, head, source })
    }

    /// The new run of the update; `None` if the update is outdated or known.
    pub(super) fn update_head(&mut self, update: HeadUpdate) -> Option<RunId> {
        let (run, event) = self.head_event(update);
        self.step(event);
        self.state.runs.contains_key(&run).then_some(run)
    }

    /// The new run of an update that counts.
    pub(super) fn new_run_of(&mut self, update: HeadUpdate) -> RunId {
        self.update_head(update).expect("the update counts")
    }

    /// GitHub closes the pull request.
    pub(super) fn close(&mut self, at: u64) -> Vec<Effect> {
        self.step(Event::PullRequestClosed { environment: ENVIRONMENT, at: second(at) })
    }

    /// Closes the environment by request.
    pub(super) fn close_by_hand(&mut self) {
        self.step(Event::EnvironmentClosed { environment: ENVIRONMENT });
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.state.environments[&ENVIRONMENT]
    }

    /// The known head, and whether the environment is open.
    pub(super) fn head(&self) -> (CommitSha, bool) {
        let environment = self.environment();
        (environment.head.as_ref().unwrap().commit.clone(), !environment.state.is_closed())
    }

    /// Why the run was cancelled, if it was.
    pub(super) fn stopped(&self, run: RunId) -> Option<CancelReason> {
        match self.run_state(run) {
            RunState::Cancelled { reason } => Some(*reason),
            _ => None,
        }
    }

    pub(super) fn is_in_outbox(&self, effect: &Effect) -> bool {
        self.state.outbox.values().any(|pending| pending == effect)
    }

    /// Completes the pending report, if there is one.
    pub(super) fn report_all(&mut self) -> Vec<Effect> {
        let wanted = self.environment().report.wanted;
        self.reported(wanted, Ok(PublishedReport::default()))
    }

    pub(super) fn reported(
        &mut self,
        wanted: u64,
        result: Result<PublishedReport, String>,
    ) -> Vec<Effect> {
        self.step(Event::Reported { environment: ENVIRONMENT, wanted, result })
    }

    /// Plans a run of one build with a run-independent reference.
    pub(super) fn plan_tagged(&mut self, run: RunId) -> JobId {
        let tag = Some("registry/app:latest".parse().unwrap());
        let build = PlannedJob { tag, ..self.build(Arch::Amd64) };
        self.plan(run, std::slice::from_ref(&build));
        build.id
    }

    /// As [`plan_tagged`](Self::plan_tagged), and starts the job.
    pub(super) fn build_tagged(&mut self, run: RunId) -> (JobId, MachineId) {
        let job = self.plan_tagged(run);
        let machine = self.launched(job);
        self.connect(machine, &[]);
        self.start(machine, job, 1);
        (job, machine)
    }
}

pub(super) fn linked_project() -> Project {
    let link = GithubLink {
        repository: "acme/shop".parse().unwrap(),
        forks: ForkPolicy::Approval,
        is_configured: false,
    };
    Project { github: Some(link), ..Project::new(PROJECT, "shop".to_owned(), String::new()) }
}
