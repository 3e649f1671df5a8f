//! Where pull requests and default branches are: which news counts, and what becomes of the runs of older
//! commits.

use super::step::Turn;
use super::{
    Approval, CancelReason, Environment, Head, HeadSource, Run, RunState, State, Timestamp, Trigger,
};
use crate::ids::{EnvironmentId, RunId};

impl Turn<'_> {
    pub(super) fn move_head(
        &mut self,
        mut run: Run,
        environment: Environment,
        head: Head,
        source: &HeadSource,
    ) {
        let id = environment.id;
        let known = self.state.environments.get(&id);
        let is_news = known.is_none_or(|known| known.is_news(&head, source, run.trigger));
        // Nobody listens to a project that was removed meanwhile.
        let is_linked = self.state.projects.get(&run.project).is_some_and(|it| it.github.is_some());
        if !is_news || !is_linked || self.state.runs.contains_key(&run.id) {
            return;
        }
        let approved = known.and_then(|known| known.approved.clone());
        if run.approval == Approval::Awaited
            && let Some(approved) = approved.filter(|approved| approved.commit == head.commit)
        {
            run.approval = Approval::Given { by: approved.by };
        }
        self.start_run(run, environment);
        self.state.change_environment(id, |environment| environment.head = Some(head));
    }

    pub(super) fn close_pull_request(&mut self, id: EnvironmentId, at: Timestamp) {
        let Some(environment) = self.state.environments.get(&id) else { return };
        // It may have been opened again before this arrived.
        if environment.head.as_ref().is_some_and(|head| head.at > at) {
            return;
        }
        self.state.change_environment(id, |environment| {
            if let Some(head) = &mut environment.head {
                head.at = at;
            }
        });
        self.close_environment(id);
    }

    /// Ends the runs of the environment that `newer` takes the place of.
    pub(super) fn supersede(&mut self, newer: RunId) {
        let Some(run) = self.state.runs.get(&newer) else { return };
        let Some(environment) = self.state.environments.get(&run.environment) else { return };
        // What people start on a branch goes side by side: it may be other commits, or other builds.
        let is_alone = environment.pull_request.is_some() || run.trigger != Trigger::Manual;
        if environment.newest_run != Some(newer) || !is_alone {
            return;
        }
        for older in self.state.open_runs_of(environment.id) {
            let is_warm_up = |run: &Run| run.trigger == Trigger::WarmUp;
            if older != newer && !self.state.runs.get(&older).is_none_or(is_warm_up) {
                self.cancel_run(older, CancelReason::Superseded);
            }
        }
    }

    pub(super) fn approve_run(&mut self, id: RunId, by: &str) {
        let Some(run) = self.state.runs.get(&id) else { return };
        if run.approval != Approval::Awaited || run.state != RunState::Pending {
            return;
        }
        let (environment, commit) = (run.environment, run.requested_commit());
        let approval = Approval::Given { by: by.to_owned() };
        self.state.change_run(id, |run| run.approval = approval);
        if let Some(commit) = commit {
            let approved = super::ApprovedCommit { commit, by: by.to_owned() };
            self.state.change_environment(environment, |it| it.approved = Some(approved));
        }
    }
}

impl Environment {
    /// Whether `head` is news. Deliveries may come twice, and one may overtake another.
    fn is_news(&self, head: &Head, source: &HeadSource, trigger: Trigger) -> bool {
        let Some(known) = &self.head else { return true };
        if let HeadSource::Listing { believed } = source {
            let now = (!self.closed).then_some(&known.commit);
            return now == believed.as_ref() && now != Some(&head.commit);
        }
        if self.closed {
            // A push that was overtaken by the closing does not open it again.
            let is_opening = trigger != Trigger::PrSynchronized;
            return if is_opening { head.at >= known.at } else { head.at > known.at };
        }
        if known.commit == head.commit {
            return false;
        }
        // Seconds are too coarse for two pushes in a row: who comes after whom is better known.
        let is_next = head.before.as_ref() == Some(&known.commit);
        let is_outdated = known.before.as_ref() == Some(&head.commit) || head.at < known.at;
        is_next || !is_outdated
    }
}

impl State {
    /// The runs of the environment that have not ended.
    pub(super) fn open_runs_of(&self, environment: EnvironmentId) -> Vec<RunId> {
        let is_open = |run: &&Run| run.environment == environment && !run.state.is_final();
        self.runs.values().filter(is_open).map(|run| run.id).collect()
    }
}
