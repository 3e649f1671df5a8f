//! What one step may do to work that was going on before it.

use std::time::Duration;

use stagely::core::state::{
    Attempt, Effect, Event, JobState, Machine, MachineKind, MachineState, State, Timestamp,
};
use stagely::ids::{JobId, MachineId, RunId};

use crate::world::World;

/// What the machines did before the step.
pub(crate) struct Before {
    work: Vec<LiveWork>,
    /// Connected registered machines, with the job that they are busy with.
    registered: Vec<(MachineId, JobId)>,
}

/// An attempt that a machine had.
struct LiveWork {
    machine: Machine,
    attempt: Attempt,
    run: RunId,
    state: JobState,
    assigned_at: Option<Timestamp>,
    timeout: Duration,
}

impl Before {
    pub(crate) fn of(core: &State) -> Self {
        let registered = core.live_machines().filter_map(|machine| match machine.state {
            MachineState::Busy { job }
                if machine.kind == MachineKind::Static && machine.connected =>
            {
                Some((machine.id, job))
            }
            _ => None,
        });
        let work = core.live_machines().filter_map(|machine| LiveWork::of(core, machine));
        Self { work: work.collect(), registered: registered.collect() }
    }

    /// Checks what `event` made of it.
    pub(crate) fn check(&self, world: &World, event: &Event, effects: &[Effect]) {
        for work in &self.work {
            work.check(world, event);
        }
        for (machine, job) in &self.registered {
            check_registered(&world.core, *machine, *job, event);
        }
        match event {
            Event::CoreStarted => assert!(world.core.live_machines().all(|it| !it.connected)),
            Event::AgentConnected { machine, holds, .. } => {
                check_resumed(&world.core, *machine, holds, effects);
            }
            _ => {}
        }
    }
}

impl LiveWork {
    fn of(core: &State, machine: &Machine) -> Option<Self> {
        let attempt = current(core, machine)?;
        let job = core.jobs.get(&attempt.job)?;
        Some(Self {
            machine: machine.clone(),
            attempt,
            run: job.run,
            state: job.state.clone(),
            assigned_at: job.assigned_at,
            timeout: job.timeout,
        })
    }

    /// 2. A machine doing live work is never swept. Nothing but the machine itself, its limits and
    ///    the end of the run takes an attempt from it.
    fn check(&self, world: &World, event: &Event) {
        let Attempt { job, number } = self.attempt;
        let id = self.machine.id;
        let job_after = world.core.jobs.get(&job);
        if job_after.and_then(|job| job.state.attempt_on(id)) != Some(number) {
            assert!(self.may_end(event, world), "{event:?} took {job} from {id}");
        }
    }

    fn may_end(&self, event: &Event, world: &World) -> bool {
        let id = self.machine.id;
        match event {
            Event::Tick => self.is_overdue(world),
            Event::CancelRequested { run, .. } => *run == self.run,
            Event::JobReported { machine, job, attempt, .. } => {
                *machine == id && self.attempt == Attempt { job: *job, number: *attempt }
            }
            Event::LaunchRefused { machine, .. } => {
                *machine == id && self.machine.state == MachineState::Requested
            }
            Event::AgentConnected { machine, holds, .. } => {
                *machine == id && self.is_running() && !holds.contains(&self.attempt)
            }
            Event::MachineGone { machine } | Event::StaticMachineRemoved { machine } => {
                *machine == id
            }
            _ => false,
        }
    }

    const fn is_running(&self) -> bool {
        matches!(self.state, JobState::Running { .. })
    }

    fn is_overdue(&self, world: &World) -> bool {
        let limits = &world.core.limits;
        let machine = &self.machine;
        let lease = machine.lease_until.unwrap_or(Timestamp(u64::MAX));
        let limit = match (machine.state, &self.state) {
            (MachineState::Requested | MachineState::Booting, _) => {
                machine.requested_at.after(limits.boot)
            }
            _ if !machine.connected => machine.contact_at.after(limits.reconnect_grace).min(lease),
            (_, JobState::Running { deadline, .. }) => *deadline,
            _ => {
                let assigned_at = self.assigned_at.expect("a busy machine's job is assigned");
                assigned_at.after(self.timeout).after(limits.job_grace).min(lease)
            }
        };
        // Agents could not report to a core that was not there.
        let could_report = world.started_at.after(limits.reconnect_grace);
        limit.max(could_report) <= world.now
    }
}

/// A registered machine is free only when its agent says so, or says nothing any more.
fn check_registered(core: &State, id: MachineId, job: JobId, event: &Event) {
    let Some(machine) = core.machines.get(&id) else { return };
    if machine.state == (MachineState::Busy { job }) {
        return;
    }
    let is_its_own = match event {
        Event::JobReported { machine, job: reported, .. } => (*machine, *reported) == (id, job),
        Event::AgentConnected { machine, .. } | Event::StaticMachineRemoved { machine } => {
            *machine == id
        }
        _ => false,
    };
    assert!(is_its_own, "{event:?} freed {id}, which is busy with {job}");
}

/// 5. After its HELLO, an agent has the attempt that it should have, and stops all others.
fn check_resumed(core: &State, id: MachineId, holds: &[Attempt], effects: &[Effect]) {
    let Some(machine) = core.machines.get(&id) else { return };
    let current = current(core, machine);
    if let Some(attempt) = current.filter(|current| !holds.contains(current)) {
        let Attempt { job, number } = attempt;
        let assign = Effect::Assign { machine: id, job, attempt: number };
        assert!(effects.contains(&assign), "{id} does not get {attempt:?}");
        let is_running = matches!(core.jobs[&job].state, JobState::Running { .. });
        assert!(!is_running, "{id} has lost {attempt:?}");
    }
    if !matches!(machine.state, MachineState::Ready | MachineState::Busy { .. }) {
        return;
    }
    for stray in holds.iter().filter(|held| current != Some(**held)) {
        let cancel = Effect::Cancel { machine: id, job: stray.job, attempt: stray.number };
        assert!(effects.contains(&cancel), "{id} goes on with {stray:?}");
        assert_ne!(machine.state, MachineState::Ready, "{id} has yet to stop {stray:?}");
        let is_new = current.is_some_and(|current| !holds.contains(&current));
        let was_assigned = current.and_then(|current| core.jobs[&current.job].assigned_at);
        assert!(!is_new || was_assigned < Some(machine.contact_at), "{id} has yet to stop");
    }
}

fn current(core: &State, machine: &Machine) -> Option<Attempt> {
    let job = match machine.state {
        MachineState::Busy { job } => job,
        _ => machine.requested_for?,
    };
    let number = core.jobs.get(&job)?.state.attempt_on(machine.id)?;
    Some(Attempt { job, number })
}
