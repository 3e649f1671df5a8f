//! GitHub and core: deliveries that are late, repeated, reordered or lost, lists in which core finds what it missed,
//! and core's reports.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{
    Approval, Command, CommandKind, CommandVerdict, Effect, Environment, Event, GithubRun, Head,
    HeadSource, PreviewCommand, PublishedReport, Run, Trigger, WantedTests,
};

use super::{Action, World, action};
use crate::github::{self, Delivery, DeliveryContent, LINKED, PullRequest, ReportContent, Write};

/// A comparison of a project with its repository.
pub(crate) struct Listing {
    project: ProjectId,
    /// The pull requests that core knew when the comparison began.
    believed: BTreeMap<u64, Believed>,
    /// The differences; `None` before GitHub's answer.
    found: Option<Vec<Found>>,
}

struct Believed {
    environment: EnvironmentId,
    head: Option<CommitSha>,
    is_closed: bool,
}

enum Found {
    Moved(PullRequest),
    Missing(u64),
}

/// What happens at GitHub, and between GitHub and core.
pub(super) const GITHUB_ACTIONS: &[Action] = &[
    action(35, "somebody changes something at GitHub", |world| world.github.change(&mut world.rng)),
    action(35, "GitHub makes a delivery", World::let_github_deliver),
    action(16, "core compares a project with GitHub", World::list),
    action(7, "a run is approved", World::approve_any_run),
    action(2, "a project is removed", World::remove_project),
    action(3, "the projects are linked", World::link_projects),
    action(2, "core reads deliveries that were lost", World::read_lost),
];

impl World {
    pub(super) fn link_projects(&mut self) {
        for id in LINKED.map(ProjectId::from_bits) {
            if !self.is_linked(id) {
                self.deliver(Event::ProjectSet { project: github::linked(id) });
            }
        }
    }

    fn remove_project(&mut self) {
        let project = self.rng.pick(&LINKED).expect("there are some");
        self.deliver(Event::ProjectRemoved { project: ProjectId::from_bits(project) });
    }

    fn approve_any_run(&mut self) {
        let runs: Vec<RunId> = self.core.runs.keys().copied().collect();
        if let Some(run) = self.rng.pick(&runs) {
            self.deliver(Event::RunApproved { run, by: "somebody".to_owned() });
        }
    }

    pub(crate) fn is_linked(&self, project: ProjectId) -> bool {
        self.core.projects.get(&project).is_some_and(|project| project.github.is_some())
    }

    // Deliveries.

    fn let_github_deliver(&mut self) {
        if self.github.in_transit.is_empty() {
            return;
        }
        let index = self.rng.below(self.github.in_transit.len() as u64);
        let index = usize::try_from(index).expect("small");
        let delivery = self.github.in_transit[index].clone();
        if !self.fault(15) {
            self.github.in_transit.swap_remove(index);
        }
        if self.fault(15) {
            self.github.lost.push(delivery);
        } else {
            self.take_delivery(delivery, false);
        }
    }

    /// Heads and closings that core read again are ignored, because a list of pull requests is newer.
    fn take_delivery(&mut self, delivery: Delivery, is_listed: bool) {
        let Delivery { id, project, content } = delivery.clone();
        let event = match content {
            DeliveryContent::Head { .. } | DeliveryContent::Closed { .. } if is_listed => None,
            _ if !self.is_linked(project) => {
                self.github.unlinked.insert(project);
                None
            }
            content => self.event_of(project, content),
        };
        self.github.sent.push(delivery);
        self.deliver(Event::Delivered { delivery: id, event: event.map(Box::new) });
    }

    fn event_of(&mut self, project: ProjectId, content: DeliveryContent) -> Option<Event> {
        match content {
            DeliveryContent::Head { pull_request, before, is_push } => {
                let trigger = if is_push { Trigger::PrSynchronized } else { Trigger::PrOpened };
                let source = HeadSource::Delivery;
                Some(self.moved(&pull_request, before, trigger, is_push, source))
            }
            DeliveryContent::Closed { number, at } => {
                let environment = self.built(project, number)?;
                Some(Event::PullRequestClosed { environment, at })
            }
            DeliveryContent::Push { commit, before, at } => {
                let environment = self.environment(project, None);
                let head = Head { commit: commit.clone(), before, at, is_first: false };
                let run = self.run(&environment, &commit, Trigger::Push);
                let source = HeadSource::Delivery;
                Some(Event::HeadMoved { run: Box::new(run), environment, head, source })
            }
            DeliveryContent::Command { number, command } => {
                let environment = self.built(project, number)?;
                Some(Event::CommandGiven { environment, command })
            }
            DeliveryContent::LabelRemoved { number } => {
                let environment = self.built(project, number)?;
                Some(Event::PreviewLabelRemoved { environment })
            }
        }
    }

    fn moved(
        &mut self,
        pull_request: &PullRequest,
        before: Option<CommitSha>,
        trigger: Trigger,
        is_push: bool,
        source: HeadSource,
    ) -> Event {
        let PullRequest { project, number, head, is_fork, is_labeled, .. } = pull_request.clone();
        let PullRequest { updated_at, created_at, .. } = *pull_request;
        let environment = self.environment(project, Some(number));
        let approval = if is_fork { Approval::Awaited } else { Approval::NotNeeded };
        let run = self.run(&environment, &head, trigger);
        let run = Run { from_fork: is_fork, with_preview: is_labeled.then_some(true), ..run };
        let run = run.with_approval(approval);
        let is_delivered = source == HeadSource::Delivery;
        let is_first = is_delivered && !is_push && updated_at == created_at;
        let head = Head { commit: head, before, at: updated_at, is_first };
        Event::HeadMoved { run: Box::new(run), environment, head, source }
    }

    fn run(&mut self, environment: &Environment, commit: &CommitSha, trigger: Trigger) -> Run {
        let id = RunId::from_bits(self.rng.id());
        Run {
            trigger,
            requested_ref: Some(commit.to_string()),
            github: Some(GithubRun { default_branch: "main".to_owned(), is_private: false }),
            ..Run::new(id, environment, String::new(), self.now)
        }
    }

    /// The known environment of the pull request or the default branch, or a new one.
    fn environment(&mut self, project: ProjectId, number: Option<u64>) -> Environment {
        let is_match = |environment: &&Environment| {
            (environment.project, environment.pull_request) == (project, number)
        };
        if let Some(known) = self.core.environments.values().find(is_match) {
            return known.clone();
        }
        let id = EnvironmentId::from_bits(self.rng.id());
        let mut environment = Environment::new(id, project, String::new());
        environment.pull_request = number;
        environment
    }

    fn built(&self, project: ProjectId, number: u64) -> Option<EnvironmentId> {
        let mut built = self.core.environments.values();
        let is_match = |environment: &&Environment| {
            (environment.project, environment.pull_request) == (project, Some(number))
        };
        built.find(is_match).map(|environment| environment.id)
    }

    // Lists.

    /// Takes one step of the oldest comparison, or begins another one.
    fn list(&mut self) {
        let Some(mut listing) = self.volatile.listings.pop_front() else {
            let project = ProjectId::from_bits(self.rng.pick(&LINKED).expect("there are some"));
            return self.begin_listing(project);
        };
        let Some(found) = &mut listing.found else {
            listing.found = Some(self.compare(&listing));
            return self.volatile.listings.push_front(listing);
        };
        let Some(next) = found.pop() else { return };
        let project = listing.project;
        let event = match next {
            Found::Moved(pull_request) if self.is_linked(project) => {
                let believed = listing.believed.get(&pull_request.number);
                let believed = believed
                    .and_then(|believed| believed.head.clone().filter(|_| !believed.is_closed));
                let is_known = believed.is_some();
                let trigger = if is_known { Trigger::PrSynchronized } else { Trigger::PrOpened };
                let source = HeadSource::Listing { believed };
                Some(self.moved(&pull_request, None, trigger, false, source))
            }
            Found::Moved(_) => None,
            Found::Missing(number) => {
                let closed =
                    self.github.find(project, number).filter(|pull_request| !pull_request.is_open);
                let environment = listing.believed[&number].environment;
                closed.map(|pull_request| Event::PullRequestClosed {
                    environment,
                    at: pull_request.closed_at,
                })
            }
        };
        // The event may crash core, which forgets the comparison.
        self.volatile.listings.push_front(listing);
        if let Some(event) = event {
            self.deliver(event);
        }
    }

    fn begin_listing(&mut self, project: ProjectId) {
        let environments =
            self.disk.environments.values().filter(|environment| environment.project == project);
        let believed = environments.filter_map(|record| {
            let (environment, is_closed) = (record.id, record.state.is_closed());
            let head = record.head.as_ref().map(|head| head.commit.clone());
            Some((record.pull_request?, Believed { environment, head, is_closed }))
        });
        if self.disk.projects.get(&project).is_some_and(|project| project.github.is_some()) {
            let believed = believed.collect();
            self.volatile.listings.push_back(Listing { project, believed, found: None });
        }
    }

    fn compare(&self, listing: &Listing) -> Vec<Found> {
        let of_project = self
            .github
            .pull_requests
            .iter()
            .filter(|pull_request| pull_request.project == listing.project);
        let open: Vec<&PullRequest> =
            of_project.filter(|pull_request| pull_request.is_open).collect();
        let is_moved = |listed: &&&PullRequest| {
            let known = listing.believed.get(&listed.number).filter(|believed| !believed.is_closed);
            known.and_then(|known| known.head.as_ref()) != Some(&listed.head)
        };
        let moved =
            open.iter().filter(is_moved).map(|pull_request| Found::Moved((*pull_request).clone()));
        let is_missing = |(number, believed): &(&u64, &Believed)| {
            !believed.is_closed && !open.iter().any(|open| open.number == **number)
        };
        let missing = listing.believed.iter().filter(is_missing);
        moved.chain(missing.map(|(number, _)| Found::Missing(*number))).collect()
    }

    /// Core reads the deliveries that did not arrive.
    fn read_lost(&mut self) {
        for delivery in mem::take(&mut self.github.lost) {
            if !self.core.deliveries.contains_key(&delivery.id) {
                self.take_delivery(delivery, true);
            }
        }
    }

    /// Makes all deliveries, and compares all projects with GitHub. Returns false if nothing changed.
    pub(super) fn reconcile(&mut self) -> bool {
        let before = (self.core.environments.clone(), self.core.runs.clone());
        while !self.github.in_transit.is_empty() {
            self.let_github_deliver();
        }
        while !self.volatile.listings.is_empty() {
            self.list();
        }
        for project in LINKED {
            self.begin_listing(ProjectId::from_bits(project));
            while !self.volatile.listings.is_empty() {
                self.list();
            }
        }
        self.read_lost();
        before != (self.core.environments.clone(), self.core.runs.clone())
    }

    /// After a crash, reports under way may have arrived, and deliveries that were not committed are lost.
    pub(super) fn forget_github(&mut self) {
        for write in mem::take(&mut self.github.writes) {
            if self.rng.chance(50) {
                self.github.shown.insert(write.target, write.content);
            }
        }
        let is_stored = |delivery: &Delivery| self.disk.deliveries.contains_key(&delivery.id);
        let (stored, lost) = mem::take(&mut self.github.sent).into_iter().partition(is_stored);
        self.github.sent = stored;
        let mut lost: Vec<Delivery> = lost;
        self.github.lost.append(&mut lost);
    }

    // What core does at GitHub.

    /// Reads the committed records when it begins.
    pub(super) fn report(&mut self, environment: EnvironmentId) {
        if self.fault(10) {
            return self.volatile.in_flight.push(Effect::Report { environment });
        }
        let record = &self.disk.environments[&environment];
        let (wanted, target) = (record.report.wanted, (record.project, record.pull_request));
        let is_linked = self.disk.projects[&record.project].github.is_some();
        let run = record.report.run.and_then(|run| self.disk.runs.get(&run));
        let Some(run) = run.filter(|_| is_linked) else {
            let result = Ok(PublishedReport::default());
            return self.volatile.answers.push(Event::Reported { environment, wanted, result });
        };
        let content = ReportContent::of(run);
        let is_superseded = super::is_superseded(run);
        assert!(!is_superseded, "{} is reported and was superseded", content.run);
        if self.fault(10) {
            let result = Err("refused".to_owned());
            return self.volatile.answers.push(Event::Reported { environment, wanted, result });
        }
        self.github.writes.push(Write { environment, target, wanted, content });
    }

    /// A report arrives at GitHub. Its answer may be lost.
    pub(super) fn write(&mut self) {
        if self.github.writes.is_empty() {
            return;
        }
        let index = self.rng.below(self.github.writes.len() as u64);
        let write = self.github.writes.swap_remove(usize::try_from(index).expect("small"));
        let Write { environment, target, wanted, content } = write;
        self.trace(|_| format!("GitHub shows {content:?} at {target:?}"));
        self.github.shown.insert(target, content);
        if self.fault(15) {
            return self.volatile.in_flight.push(Effect::Report { environment });
        }
        let result = Ok(PublishedReport { comment: Some(1), ..PublishedReport::default() });
        self.volatile.answers.push(Event::Reported { environment, wanted, result });
    }

    pub(super) fn check_command(&mut self, environment: EnvironmentId, command: &Command) {
        let verdict = if self.fault(20) {
            CommandVerdict::Rejected { reason: "they may not".to_owned() }
        } else if let CommandKind::Rebuild { failed_only } = command.kind {
            match self.rebuilt(environment, failed_only) {
                Ok(run) => CommandVerdict::Rebuild(Box::new(run)),
                Err(reason) => CommandVerdict::Rejected { reason },
            }
        } else if command.kind == CommandKind::Test {
            match self.rebuilt(environment, true) {
                Ok(run) => {
                    CommandVerdict::Rebuild(Box::new(Run { wanted_tests: WantedTests::All, ..run }))
                }
                Err(reason) => CommandVerdict::Rejected { reason },
            }
        } else if command.kind == (CommandKind::Preview { action: PreviewCommand::Start }) {
            let reuses = self.rng.chance(80);
            let run = self.rebuilt(environment, reuses);
            let run = run.map(|run| Box::new(Run { with_preview: Some(true), ..run }));
            run.map_or(CommandVerdict::Accepted, CommandVerdict::Rebuild)
        } else {
            CommandVerdict::Accepted
        };
        let command = command.clone();
        self.volatile.answers.push(Event::CommandChecked { environment, command, verdict });
    }

    /// The rebuild of the newest run.
    fn rebuilt(&mut self, id: EnvironmentId, failed_only: bool) -> Result<Run, String> {
        let environment = &self.disk.environments[&id];
        let newest = environment.newest_run.and_then(|run| self.disk.runs.get(&run));
        let newest = newest.filter(|run| run.state.is_final() || !failed_only).cloned();
        let newest = newest.filter(|_| !environment.state.is_closed()).ok_or("it may not be")?;
        let id = RunId::from_bits(self.rng.id());
        let run = Run {
            trigger: Trigger::Rebuild,
            requested_ref: newest.requested_ref.clone(),
            from_fork: newest.from_fork,
            github: newest.github.clone(),
            rebuilds: Some(newest.original()),
            reuses: failed_only.then_some(newest.id),
            ..Run::new(id, environment, String::new(), self.now)
        };
        Ok(run.with_approval(newest.approval))
    }

    /// GitHub does not answer the planning of a run.
    pub(super) fn defer(&mut self, run: RunId) {
        let until = self.now.after(Duration::from_secs(self.rng.below(900)));
        self.deliver(Event::PlanDeferred { run, until });
    }
}
