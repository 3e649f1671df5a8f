//! Applies the `transition` functions of runs, jobs, machines, environments, previews and exports, and collects illegal ones.

use std::fmt;

use super::step::Step;
use super::{
    CacheExport, EnvironmentEvent, EnvironmentState, ExportEvent, ExportState, JobEvent, JobState,
    MachineEvent, MachineState, PreviewEvent, PreviewState, RunEvent, RunState,
};
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};

/// An event that does not apply to the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IllegalTransition<State, Event> {
    /// The state, which stays as it was.
    pub state: Box<State>,
    pub event: Box<Event>,
}

impl<State, Event> IllegalTransition<State, Event> {
    pub(super) fn new(state: State, event: Event) -> Self {
        Self { state: Box::new(state), event: Box::new(event) }
    }
}

impl<State: fmt::Debug, Event: fmt::Debug> fmt::Display for IllegalTransition<State, Event> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} does not apply to {:?}", self.event, self.state)
    }
}

/// An error of core's own: a step has applied an event to a record in a state that does not allow it. The record is
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anomaly {
    Run(RunId, IllegalTransition<RunState, RunEvent>),
    Job(JobId, IllegalTransition<JobState, JobEvent>),
    Machine(MachineId, IllegalTransition<MachineState, MachineEvent>),
    Export(MachineId, IllegalTransition<ExportState, ExportEvent>),
    Environment(EnvironmentId, IllegalTransition<EnvironmentState, EnvironmentEvent>),
    Preview(PreviewId, IllegalTransition<PreviewState, PreviewEvent>),
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(id, error) => write!(f, "{id}: {error}"),
            Self::Job(id, error) => write!(f, "{id}: {error}"),
            Self::Machine(id, error) => write!(f, "{id}: {error}"),
            Self::Export(id, error) => write!(f, "export of {id}: {error}"),
            Self::Environment(id, error) => write!(f, "{id}: {error}"),
            Self::Preview(id, error) => write!(f, "{id}: {error}"),
        }
    }
}

impl Step<'_> {
    /// Moves the run. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_run(&mut self, id: RunId, event: RunEvent) -> bool {
        let Some(run) = self.state.runs.get(&id) else { return false };
        match run.state.clone().transition(event) {
            Ok(state) => {
                self.state.change_run(id, |run| run.state = state);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Run(id, error)),
        }
    }

    /// Moves the job. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_job(&mut self, id: JobId, event: JobEvent) -> bool {
        let Some(job) = self.state.jobs.get(&id) else { return false };
        match job.state.clone().transition(event) {
            Ok(state) => {
                self.state.change_job(id, |job| job.state = state);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Job(id, error)),
        }
    }

    /// Moves the machine. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_machine(&mut self, id: MachineId, event: MachineEvent) -> bool {
        let Some(machine) = self.state.machines.get(&id) else { return false };
        match machine.state.transition(event) {
            Ok(state) => {
                self.state.change_machine(id, |machine| machine.state = state);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Machine(id, error)),
        }
    }

    /// Moves the export of the machine, and removes its record at its end. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_export(&mut self, id: MachineId, event: ExportEvent) -> bool {
        let machine = self.state.machines.get(&id);
        let Some(export) = machine.and_then(|machine| machine.exporting) else { return false };
        match export.state.transition(event) {
            Ok(state) => {
                let exporting = state.map(|state| CacheExport { state, ..export });
                self.state.change_machine(id, |machine| machine.exporting = exporting);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Export(id, error)),
        }
    }

    /// Moves the environment. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_environment(&mut self, id: EnvironmentId, event: EnvironmentEvent) -> bool {
        let Some(environment) = self.state.environments.get(&id) else { return false };
        match environment.state.transition(event) {
            Ok(state) => {
                self.state.change_environment(id, |environment| environment.state = state);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Environment(id, error)),
        }
    }

    /// Moves the preview. Returns false, and notes the anomaly, if it cannot take `event`.
    pub(super) fn move_preview(&mut self, id: PreviewId, event: PreviewEvent) -> bool {
        let Some(preview) = self.state.previews.get(&id) else { return false };
        let before = preview.state;
        match before.transition(event) {
            Ok(state) => {
                self.state.change_preview(id, |preview| preview.state = state);
                self.interrupt_tests(id, before);
                true
            }
            Err(error) => self.note_anomaly(Anomaly::Preview(id, error)),
        }
    }

    fn note_anomaly(&mut self, anomaly: Anomaly) -> bool {
        self.state.anomalies += 1;
        self.outcome.anomalies.push(anomaly);
        false
    }
}
