//! Invariants of pull requests, of the runs of forks, and of reports to GitHub.

use std::collections::{BTreeMap, BTreeSet};

use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{
    Approval, CommandKind, CommandVerdict, Effect, Environment, Event, Head, HeadSource, Run,
    RunState, State,
};

use crate::github::{PullRequest, ReportContent};
use crate::transitions::is_of_github;
use crate::world::{World, is_superseded};

/// Which commits were approved, and which runs are never reported.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    /// Commits of forks.
    agreed: BTreeSet<(EnvironmentId, CommitSha)>,
    /// The runs of environments whose project was not linked. They are never reported.
    untold: BTreeMap<EnvironmentId, Option<RunId>>,
    /// The environment that an outdated event must not move.
    settled: Option<Settled>,
    /// The environments that each project's default branch had. Retention forgets an environment with its head, so an
    /// older push counts as new for the next one.
    branches: BTreeMap<ProjectId, BTreeSet<EnvironmentId>>,
}

/// An environment whose head the step must not move.
#[derive(Clone)]
struct Settled {
    environment: EnvironmentId,
    head: Option<Head>,
    is_closed: bool,
}

impl Settled {
    /// `None` where `event` may move the environment.
    fn of(core: &State, event: &Event) -> Option<Self> {
        let (id, at, believed) = match event {
            Event::Delivered { delivery, event: Some(event) } => {
                let is_new = !core.deliveries.contains_key(delivery);
                return Self::of(core, event).filter(|_| is_new);
            }
            Event::HeadMoved { environment, head, source, .. } => match source {
                HeadSource::Delivery => (environment.id, head.at, None),
                HeadSource::Listing { believed } => (environment.id, head.at, Some(believed)),
            },
            Event::PullRequestClosed { environment, at } => (*environment, *at, None),
            _ => return None,
        };
        let environment = core.environments.get(&id)?;
        let (head, is_closed) = (environment.head.clone()?, environment.state.is_closed());
        let is_old = match believed {
            Some(believed) => (!is_closed).then_some(&head.commit) != believed.as_ref(),
            None => head.at > at,
        };
        is_old.then_some(Self { environment: id, head: Some(head), is_closed })
    }

    fn check(&self, core: &State) {
        let after = &core.environments[&self.environment];
        let is_left = after.head == self.head && after.state.is_closed() == self.is_closed;
        assert!(is_left, "an outdated event moves {}", after.id);
    }
}

impl Memory {
    /// Notes the contents of `event` before the step.
    pub(crate) fn note(&mut self, world: &World, event: &Event) {
        self.settled = Settled::of(&world.core, event);
        match event {
            Event::RunApproved { run, .. } => {
                if let Some(run) = world.core.runs.get(run)
                    && let Some(commit) = run.requested_commit()
                {
                    self.agreed.insert((run.environment, commit));
                }
            }
            Event::CommandChecked { environment, command, verdict }
                if matches!(command.kind, CommandKind::Approve { .. })
                    && *verdict == CommandVerdict::Accepted =>
            {
                let commits = world.github.approved_by(command).into_iter();
                self.agreed.extend(commits.map(|commit| (*environment, commit)));
            }
            _ => {}
        }
    }

    pub(crate) fn check(&mut self, world: &World) {
        let core = &world.core;
        if let Some(settled) = self.settled.take() {
            settled.check(core);
        }
        for environment in core.environments.values() {
            if !world.is_linked(environment.project) {
                self.untold.insert(environment.id, environment.report.run);
            }
            if environment.pull_request.is_none() {
                self.branches.entry(environment.project).or_default().insert(environment.id);
            }
            check_environment(core, environment);
            if self.is_published(world, environment) {
                check_report(core, environment);
            }
        }
        for run in core.runs.values() {
            self.check_approval(core, run);
        }
    }

    /// Whether the environment's project was linked since its newest run was requested.
    fn is_published(&self, world: &World, environment: &Environment) -> bool {
        let run = environment.report.run;
        let was_untold = self.untold.get(&environment.id) == Some(&run);
        let is_there = run.is_some_and(|run| world.core.runs.contains_key(&run));
        is_there && !was_untold && world.is_linked(environment.project)
    }

    /// A run without approval is not planned, and only a commit that somebody has seen is approved.
    fn check_approval(&self, core: &State, run: &Run) {
        if run.approval == Approval::Awaited {
            let is_waiting = run.state == RunState::AwaitingApproval;
            let is_cancelled = matches!(run.state, RunState::Cancelled { .. });
            assert!(is_waiting || is_cancelled, "{} was not approved", run.id);
            assert_eq!(core.jobs_of(run.id).count(), 0, "{} has jobs unapproved", run.id);
            let is_planned =
                core.outbox.values().any(|effect| *effect == Effect::Plan { run: run.id });
            assert!(!is_planned, "{} is planned unapproved", run.id);
        } else if run.from_fork {
            let commit = run.requested_commit().expect("a fork's run has a commit");
            let is_agreed = self.agreed.contains(&(run.environment, commit));
            assert!(is_agreed, "{run:?} was not approved");
        }
    }

    /// At rest core knows the head of every pull request, and GitHub shows the end of every reported run.
    pub(crate) fn check_at_rest(&self, world: &World) {
        for pull_request in &world.github.pull_requests {
            if world.is_linked(pull_request.project) {
                check_pull_request(world, pull_request);
            }
        }
        for (project, branch) in &world.github.branches {
            let mut environments = world.core.environments.values();
            let is_match = |environment: &&Environment| {
                (environment.project, environment.pull_request) == (*project, None)
            };
            let known =
                environments.find(is_match).and_then(|environment| environment.head.as_ref());
            if let Some(known) = known.filter(|_| self.was_linked(world, *project)) {
                assert_eq!(Some(&known.commit), branch.head.as_ref(), "a push was missed");
            }
        }
        for environment in world.core.environments.values() {
            if environment.state.is_closed() && environment.pull_request.is_some() {
                let is_clean = environment.images.is_empty() && !environment.has_images;
                assert!(is_clean, "images of {} are left", environment.id);
            }
            if self.is_published(world, environment) {
                let target = (environment.project, environment.pull_request);
                let run = &world.core.runs[&environment.report.run.expect("the run is reported")];
                assert_eq!(
                    world.github.shown.get(&target),
                    Some(&ReportContent::of(run)),
                    "GitHub says else"
                );
            }
        }
    }

    /// Whether the project was always linked and its branch's environment never forgotten. Core does not look for
    /// pushes that it missed otherwise.
    fn was_linked(&self, world: &World, project: ProjectId) -> bool {
        let environments =
            world.core.environments.values().filter(|environment| environment.project == project);
        let mut ids = environments.map(|environment| environment.id);
        let was_forgotten = self.branches.get(&project).is_some_and(|ids| ids.len() > 1);
        let was_unheard = world.github.unlinked.contains(&project) || was_forgotten;
        world.is_linked(project) && !was_unheard && !ids.any(|id| self.untold.contains_key(&id))
    }
}

/// 6. Of the runs that supersede each other only the newest is open.
fn check_environment(core: &State, environment: &Environment) {
    let reported = environment.report.run;
    let newest = reported.and_then(|run| core.runs.get(&run));
    assert!(!newest.is_some_and(is_superseded), "{reported:?} is reported and was superseded");
    assert!(environment.report.published <= environment.report.wanted);
    let of_it = core.runs.values().filter(|run| run.environment == environment.id);
    for run in of_it.filter(|run| !run.state.is_final()) {
        assert!(!environment.state.is_closed(), "{} goes on in a closed environment", run.id);
        // On a branch, runs that people started since may be newer than the reported run.
        let is_branch = environment.pull_request.is_none();
        let is_other = || newest.is_none_or(|newest| newest.original() != run.original());
        let is_older_once_more = run.rebuilds.is_some() && (is_branch || is_other());
        if is_of_github(core, run) && !is_older_once_more {
            assert_eq!(reported, Some(run.id), "{} goes on beside a newer one", run.id);
        }
    }
}

/// A change that is not published yet is being reported.
fn check_report(core: &State, environment: &Environment) {
    let report = Effect::Report { environment: environment.id };
    let is_reporting = core.outbox.values().any(|effect| *effect == report);
    let is_published = environment.report.published == environment.report.wanted;
    assert!(is_reporting || is_published, "{} is not reported", environment.id);
    assert!(environment.report.wanted > 0, "{} has nothing to report", environment.id);
}

/// The last push wins. An environment that was closed by request stays closed until there is a new commit.
fn check_pull_request(world: &World, pull_request: &PullRequest) {
    let mut environments = world.core.environments.values();
    let target = (pull_request.project, Some(pull_request.number));
    let environment =
        environments.find(|environment| (environment.project, environment.pull_request) == target);
    if !pull_request.is_open {
        assert!(
            environment.is_none_or(|environment| environment.state.is_closed()),
            "{target:?} is closed: {environment:?}"
        );
        return;
    }
    let Some(environment) = environment else { panic!("{target:?} is not known") };
    if environment.state.is_closed() {
        assert!(!environment.state.is_closed_by_github(), "{target:?} is open: {environment:?}");
        return;
    }
    let head = environment.head.as_ref().map(|head| &head.commit);
    assert_eq!(head, Some(&pull_request.head), "{target:?} is elsewhere");
}
