//! The heads of pull requests and default branches: which updates count, and which older runs they supersede.

use super::step::Step;
use super::{
    Approval, ApprovedCommit, CancelReason, ClosedBy, Environment, Head, HeadSource, Run, RunEvent,
    RunState, State, Timestamp, Trigger,
};
use crate::ids::{EnvironmentId, RunId};

impl Step<'_> {
    pub(super) fn move_head(
        &mut self,
        run: Run,
        environment: Environment,
        head: Head,
        source: &HeadSource,
    ) {
        let id = environment.id;
        // The project may be removed meanwhile.
        let is_linked =
            self.state.projects.get(&run.project).is_some_and(|project| project.github.is_some());
        if !is_linked || self.state.runs.contains_key(&run.id) {
            return;
        }
        let known = self.state.environments.get(&id);
        if known.is_none_or(|known| known.is_newer(&head, source, run.trigger)) {
            self.start_run(run, environment);
            self.state.change_environment(id, |environment| environment.head = Some(head));
        } else if *source == HeadSource::Delivery {
            self.state.confirm_head(id, head);
        }
    }

    pub(super) fn close_pull_request(&mut self, id: EnvironmentId, at: Timestamp) {
        let Some(environment) = self.state.environments.get(&id) else { return };
        // The pull request may be reopened already.
        if environment.head.as_ref().is_some_and(|head| head.at > at) {
            return;
        }
        self.state.change_environment(id, |environment| {
            if let Some(head) = &mut environment.head {
                head.at = at;
            }
        });
        self.close_environment(id, ClosedBy::Github);
    }

    /// Cancels the runs of the environment that `newer` supersedes.
    pub(super) fn supersede(&mut self, newer: RunId) {
        let Some(run) = self.state.runs.get(&newer) else { return };
        let Some(environment) = self.state.environments.get(&run.environment) else { return };
        let pull_request = environment.pull_request;
        if environment.report.run != Some(newer) {
            return;
        }
        for older in self.state.open_runs_of(environment.id) {
            let is_replaced = |run: &Run| run.is_of_github(pull_request);
            if older != newer && self.state.runs.get(&older).is_some_and(is_replaced) {
                self.cancel_run(older, CancelReason::Superseded);
            }
        }
    }

    pub(super) fn approve_run(&mut self, id: RunId, by: &str) {
        let Some(run) = self.state.runs.get(&id) else { return };
        if run.state != RunState::AwaitingApproval {
            return;
        }
        let (environment, commit) = (run.environment, run.requested_commit());
        let approval = Approval::Given { by: by.to_owned() };
        if !self.move_run(id, RunEvent::Approved) {
            return;
        }
        self.state.change_run(id, |run| run.approval = approval);
        if let Some(commit) = commit {
            let approved = ApprovedCommit { commit, by: by.to_owned() };
            self.state.change_environment(environment, |environment| {
                environment.approved = Some(approved);
            });
        }
    }
}

impl Environment {
    /// Whether `head` is newer than the known head. Deliveries may be repeated and may overtake each other.
    fn is_newer(&self, head: &Head, source: &HeadSource, trigger: Trigger) -> bool {
        let Some(known) = &self.head else { return true };
        if let HeadSource::Listing { believed } = source {
            let now = (!self.state.is_closed()).then_some(&known.commit);
            // An environment that was closed by request stays closed until there is a new commit. If GitHub closed and
            // reopened it within one second, the list is newer.
            let may_be_open = self.state.is_closed_by_github() && head.at >= known.at;
            let is_new = known.commit != head.commit || may_be_open;
            return now == believed.as_ref() && is_new;
        }
        // GitHub does not close branches, so a push counts whether the branch's environment is closed or not.
        if self.state.is_closed() && trigger != Trigger::Push {
            // A push that the closing has overtaken does not open it again.
            let is_opening = trigger != Trigger::PrSynchronized;
            return if is_opening { head.at >= known.at } else { head.at > known.at };
        }
        if known.commit == head.commit {
            return false;
        }
        // Of two pushes within one second, `before` says which is newer.
        let is_next = head.before.as_ref() == Some(&known.commit);
        let is_former = known.before.as_ref() == Some(&head.commit);
        head.at > known.at || head.at == known.at && (is_next || !is_former)
    }
}

impl State {
    /// Who has approved the commit of a new run already.
    pub(super) fn approver(&self, run: &Run) -> Option<String> {
        let approved = self.environments.get(&run.environment)?.approved.as_ref()?;
        let is_match = run.requested_commit().as_ref() == Some(&approved.commit);
        (run.approval == Approval::Awaited && is_match).then(|| approved.by.clone())
    }

    /// Updates the time of an unchanged head: it was moved away and back, or the pull request was reopened before its
    /// closing arrived.
    fn confirm_head(&mut self, id: EnvironmentId, head: Head) {
        self.change_environment(id, |environment| {
            let known = environment.head.as_ref();
            if known.is_some_and(|known| known.commit == head.commit && known.at < head.at) {
                environment.head = Some(head);
            }
        });
    }

    pub(super) fn open_runs_of(&self, environment: EnvironmentId) -> Vec<RunId> {
        let is_open = |id: &&RunId| self.runs.get(id).is_some_and(|run| !run.state.is_final());
        let runs = self.index.environment_runs.get(&environment).into_iter().flatten();
        runs.filter(is_open).copied().collect()
    }
}
