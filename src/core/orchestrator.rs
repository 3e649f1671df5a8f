//! The one task that changes the state.
//!
//! It takes all waiting events, steps each, writes the changed records and the resulting effects in one
//! transaction, shows the committed records to readers, and then starts the effects. The outcome of an effect
//! comes back as an event.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stagely_protocol::{ErrorChain, Fingerprint};
use stagely_state::ids::{PreviewId, RunId};
use stagely_state::{
    BudgetUse, BudgetWarning, Changes, Effect, EffectId, Ended, Event, FingerprintChange,
    PreviewState, Run, State,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::clock::{new_bits, now};
use super::effects::{Effects, Verdict};
use super::records::SharedRecords;
use super::secrets::SecretStore;
use super::store::{Batch, RecordTable, Store, Work};

/// Most events that wait, so a burst of 1,000 webhooks fits. The senders of further events wait.
const INBOX_EVENTS: usize = 1_024;

/// Resolves when the event is stored; dropped if core stops before that.
type Acknowledgement = oneshot::Sender<()>;

/// An event, its attachment, and who waits until it is stored.
#[derive(Debug)]
struct Input {
    event: Event,
    attached: Option<Attached>,
    stored: Option<Acknowledgement>,
}

/// Data that the state does not need, stored in the transaction of its event.
#[derive(Debug)]
enum Attached {
    /// Sealed secrets of the run that the event requests.
    RunSecrets(RunId, Vec<u8>),
    /// The fingerprint of the build whose end the event reports.
    Fingerprint(Fingerprint),
}

/// Core is shutting down and takes no more events. None is lost, because agents repeat their reports.
#[derive(Debug, thiserror::Error)]
#[error("core is shutting down")]
pub struct ShuttingDown;

/// Sends events to the orchestrator. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    inbox: mpsc::Sender<Input>,
}

impl Events {
    /// Sends `event` and waits until its consequences are in the store.
    ///
    /// # Errors
    /// [`ShuttingDown`]; the event may or may not be stored.
    pub async fn store(&self, event: Event) -> Result<(), ShuttingDown> {
        self.send(event, None).await
    }

    /// As [`store`](Self::store), with the sealed secrets of the run that `event` requests.
    ///
    /// # Errors
    /// [`ShuttingDown`]; the event may or may not be stored.
    pub async fn store_with_secrets(
        &self,
        event: Event,
        run_secrets: (RunId, Vec<u8>),
    ) -> Result<(), ShuttingDown> {
        self.send(event, Some(Attached::RunSecrets(run_secrets.0, run_secrets.1))).await
    }

    /// As [`store`](Self::store), with the fingerprint of the build whose end `event` reports.
    ///
    /// # Errors
    /// [`ShuttingDown`]; the event may or may not be stored.
    pub async fn store_with_fingerprint(
        &self,
        event: Event,
        fingerprint: Fingerprint,
    ) -> Result<(), ShuttingDown> {
        self.send(event, Some(Attached::Fingerprint(fingerprint))).await
    }

    async fn send(&self, event: Event, attached: Option<Attached>) -> Result<(), ShuttingDown> {
        let (sender, stored) = oneshot::channel();
        let input = Input { event, attached, stored: Some(sender) };
        self.inbox.send(input).await.map_err(|_| ShuttingDown)?;
        stored.await.map_err(|_| ShuttingDown)
    }
}

/// The task that changes the state.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    state: State,
    store: Store,
    secrets: SecretStore,
    records: SharedRecords,
    effects: Arc<Effects>,
    inbox: mpsc::Receiver<Input>,
    running: JoinSet<Option<Event>>,
}

/// The receiving end of the inbox.
#[derive(Debug)]
pub(crate) struct Inbox(mpsc::Receiver<Input>);

pub(crate) fn inbox() -> (Events, Inbox) {
    let (sender, receiver) = mpsc::channel(INBOX_EVENTS);
    (Events { inbox: sender }, Inbox(receiver))
}

impl Orchestrator {
    /// `store` and `records` hold the records of `state`.
    pub(crate) fn new(
        state: State,
        store: Store,
        secrets: SecretStore,
        records: SharedRecords,
        effects: Arc<Effects>,
        inbox: Inbox,
    ) -> Self {
        Self { state, store, secrets, records, effects, inbox: inbox.0, running: JoinSet::new() }
    }

    /// Serves events until `stop` fires. Effects that still run are dropped: the outbox has them.
    ///
    /// # Errors
    /// A failed transaction. Then the state in memory is ahead of the store, so core must end instead of acting on
    /// decisions that it could not save.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        self.start().await?;
        let mut waiting = Vec::new();
        loop {
            // The `select!` below prefers events, so a steady stream of them would postpone the tick without end.
            if self.state.next_deadline().is_some_and(|deadline| deadline <= now()) {
                self.take_event(Event::Tick).await?;
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(outcome) = self.running.join_next() => self.take_outcome(outcome).await?,
                count = self.inbox.recv_many(&mut waiting, INBOX_EVENTS) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.take(std::mem::take(&mut waiting)).await?;
                }
                () = sleep_until(wake) => self.take_event(Event::Tick).await?,
            }
        }
    }

    /// Starts the effects that the former process has not completed, and gives up those that have killed it too often.
    async fn start(&mut self) -> anyhow::Result<()> {
        let outbox = self.state.outbox.clone();
        self.take_event(Event::CoreStarted).await?;
        for (id, effect) in outbox {
            let verdict = self.effects.interrupted.verdict(Work::Effect(id));
            match (verdict, self.effects.given_up(&effect)) {
                (Verdict::Begins, _) | (_, None) => self.spawn(vec![effect]),
                (Verdict::BeginsAlone, Some(_)) => self.spawn_alone(id, effect),
                (Verdict::GivenUp, Some(event)) => {
                    error!(?effect, "given up, because core was killed during it again and again");
                    self.take_event(event).await?;
                }
            }
        }
        Ok(())
    }

    async fn take_outcome(
        &mut self,
        outcome: Result<Option<Event>, JoinError>,
    ) -> anyhow::Result<()> {
        match outcome.context("an effect panicked")? {
            Some(event) => self.take_event(event).await,
            None => Ok(()),
        }
    }

    async fn take_event(&mut self, event: Event) -> anyhow::Result<()> {
        self.take(vec![Input { event, attached: None, stored: None }]).await
    }

    /// Steps all `inputs`, stores the results in one transaction, and starts the effects.
    async fn take(&mut self, inputs: Vec<Input>) -> anyhow::Result<()> {
        let now = now();
        let mut effects = Vec::new();
        let mut batch = Batch::default();
        let mut senders = Vec::new();
        let mut recalled = Ended::default();
        for input in inputs {
            debug!(event = ?input.event, "step");
            recalled.extend(self.recall_for(&input.event).await?);
            let outcome = self.state.step(input.event, now, &mut new_bits);
            for anomaly in &outcome.anomalies {
                error!(%anomaly, count = self.state.anomalies, "an event does not apply to a record");
            }
            for BudgetWarning { project, month, used } in &outcome.warnings {
                let project = self.state.projects.get(project).map(|found| found.name.as_str());
                let BudgetUse { limit, spent, reserved } = used;
                warn!(project, %month, %limit, %spent, %reserved, "a budget is nearly used up");
            }
            attach(&mut batch, input.attached, &outcome.fingerprints);
            effects.extend(outcome.effects);
            senders.extend(input.stored);
        }
        let ended = self.state.take_ended();
        let changes = self.state.take_changes();
        self.fill(&mut batch, &changes);
        let shown = self.shown_runs(&changes, &ended);
        batch.recall(recalled);
        batch.end(ended);
        if !batch.is_empty() {
            let (store, secrets) = (self.store.clone(), self.secrets.clone());
            let commit = move || {
                for (run, preview) in shown {
                    secrets.keep_clone_token(&mut batch, run, preview)?;
                }
                store.commit(&batch)
            };
            spawn_blocking(commit)
                .await?
                .inspect_err(|error| error!(error = %ErrorChain(error), "a transaction failed"))
                .context(
                    "cannot store what was decided; core stops, so that it can be started again",
                )?;
            self.show(&changes);
        }
        for stored in senders {
            // The sender may be gone; its event is stored.
            let _ = stored.send(());
        }
        self.spawn(effects);
        Ok(())
    }

    /// Recalls the ended records that `event` refers to, and returns them.
    async fn recall_for(&mut self, event: &Event) -> anyhow::Result<Ended> {
        let mut recalled = Ended::default();
        loop {
            let missing = self.state.missing_for(event);
            if missing.is_empty() {
                return Ok(recalled);
            }
            let store = self.store.clone();
            let found = spawn_blocking(move || store.ended(&missing)).await?;
            let found = found.context("cannot read what has ended")?;
            if found.is_empty() {
                return Ok(recalled);
            }
            self.state.recall(found.clone());
            // They are stored, and must not be missing for readers when they have left the store's history.
            self.records.write(|records| records.take_changes(&self.state, &found.ids()));
            recalled.extend(found);
        }
    }

    fn fill(&self, batch: &mut Batch, changes: &Changes) {
        let state = &self.state;
        for id in &changes.projects {
            batch.record(RecordTable::Projects, id.bits(), state.projects.get(id));
        }
        for id in &changes.environments {
            batch.record(RecordTable::Environments, id.bits(), state.environments.get(id));
        }
        for id in &changes.runs {
            let run = state.runs.get(id);
            batch.record(RecordTable::Runs, id.bits(), run);
            if run.is_none_or(|run| run.state.is_final()) {
                batch.run_secrets(*id, None);
            }
        }
        for id in &changes.jobs {
            batch.record(RecordTable::Jobs, id.bits(), state.jobs.get(id));
        }
        for id in &changes.machines {
            let machine = state.machines.get(id);
            batch.record(RecordTable::Machines, id.bits(), machine);
            if machine.is_none_or(|machine| machine.state.is_terminated()) {
                batch.machine_tokens(*id, None);
            }
        }
        for id in &changes.previews {
            let preview = state.previews.get(id);
            batch.record(RecordTable::Previews, id.bits(), preview);
            if preview.is_none_or(|preview| preview.state.is_over()) {
                batch.preview_secrets(*id, None);
            }
        }
        for id in &changes.deliveries {
            batch.delivery(*id, state.deliveries.get(id));
        }
        for id in &changes.outbox {
            batch.effect(*id, state.outbox.get(id));
        }
    }

    /// The changed runs that have ended and whose images a preview shows. Those of `left` have just left the state.
    fn shown_runs(&self, changes: &Changes, left: &Ended) -> Vec<(RunId, PreviewId)> {
        let runs = changes.runs.iter().filter_map(|id| self.state.runs.get(id));
        let runs = runs.chain(left.runs.iter().map(|ended| &ended.run));
        let ended = runs.filter(|run| run.state.is_final());
        ended.filter_map(|run| Some((run.id, shown_by(&self.state, left, run)?))).collect()
    }

    /// Shows the committed records to readers.
    fn show(&self, changes: &Changes) {
        let state = &self.state;
        self.records.write(|records| {
            records.take_changes(state, changes);
            records.set_queue(state.queue());
        });
        for id in &changes.machines {
            if state.machines.get(id).is_none_or(|machine| machine.state.is_terminated()) {
                self.secrets.forget_machine(*id);
            }
        }
    }

    fn spawn(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let performer = Arc::clone(&self.effects);
            self.running.spawn(async move { performer.perform(effect).await });
        }
    }

    fn spawn_alone(&mut self, id: EffectId, effect: Effect) {
        let performer = Arc::clone(&self.effects);
        self.running.spawn(async move {
            let interrupted = performer.interrupted.clone();
            interrupted.alone(Work::Effect(id), performer.perform(effect)).await
        });
    }

    fn wake_at(&self) -> Option<Duration> {
        self.state.next_deadline().map(|deadline| deadline.since(now()))
    }
}

/// Sleeps for `wait`, or without end if there is none.
async fn sleep_until(wait: Option<Duration>) {
    match wait {
        // At least a millisecond, which is the clock's precision: a past deadline that changes nothing would make the
        // loop spin.
        Some(wait) => tokio::time::sleep(wait.max(Duration::from_millis(1))).await,
        None => pending().await,
    }
}

/// Adds the attachment of an event to `batch`, and what its step decided on fingerprints.
fn attach(batch: &mut Batch, attached: Option<Attached>, changes: &[FingerprintChange]) {
    let fingerprint = match attached {
        Some(Attached::RunSecrets(run, sealed)) => {
            batch.run_secrets(run, Some(sealed));
            None
        }
        Some(Attached::Fingerprint(fingerprint)) => Some(fingerprint),
        None => None,
    };
    for change in changes {
        match (change, &fingerprint) {
            (FingerprintChange::Store(cache), Some(_)) => {
                batch.fingerprint(cache, fingerprint.as_ref());
            }
            // Agents may report no fingerprint.
            (FingerprintChange::Store(_), None) => {}
            (FingerprintChange::Delete(cache), _) => batch.fingerprint(cache, None),
        }
    }
}

#[cfg(test)]
mod tests;

/// The preview that shows the images of `run`, or would show them if its first deployment had not failed: both may be
/// deployed again.
fn shown_by(state: &State, left: &Ended, run: &Run) -> Option<PreviewId> {
    let preview = state.preview_of(run.environment).filter(|_| !run.trigger.is_for_preview())?;
    let shown = match (&preview.shown, preview.state) {
        (Some(shown), _) => shown.run,
        (None, PreviewState::Failed { job }) => {
            let mut of_left = left.runs.iter().flat_map(|ended| &ended.jobs);
            state.jobs.get(&job).or_else(|| of_left.find(|left| left.id == job))?.run
        }
        (None, _) => return None,
    };
    (shown == run.id).then_some(preview.id)
}
