//! Tests of single steps. `tests/simulation` mixes them all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_protocol::{Arch, CommitSha, Digest, Emulation, FailureReason, Platform, SystemInfo};

use super::*;
use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId, SessionId};

mod approvals;
mod attempts;
mod budgets;
mod commands;
mod costs;
mod environments;
mod exports;
mod fingerprints;
mod head_updates;
mod heads;
mod interruptions;
mod machines;
mod merges;
mod preview_archives;
mod preview_commands;
mod preview_data;
mod preview_ends;
mod preview_images;
mod preview_machines;
mod previews;
mod projects;
mod queue;
mod records;
mod registered;
mod reports;
mod reused;
mod runs;
mod superseded;
mod tags;
mod test_jobs;
mod transitions;

const TIMEOUT: Duration = Duration::from_mins(30);

/// A core, its clock, and a source of ascending ids.
struct Core {
    state: State,
    now: Timestamp,
    last_id: u128,
    /// The newest session of all agents.
    session: SessionId,
}

impl Core {
    fn new(max_concurrent: u32, launchable: &[Arch]) -> Self {
        let launchable: BTreeMap<_, _> =
            launchable.iter().map(|arch| (*arch, ProviderName::Local)).collect();
        let limits = Limits {
            max_concurrent,
            max_attempts: 3,
            boot: Duration::from_mins(5),
            reconnect_grace: Duration::from_mins(2),
            job_grace: Duration::from_mins(1),
            lease: Duration::from_hours(1),
            cache_export: Duration::from_mins(10),
            planned_at_once: 2,
            planning: Duration::from_mins(10),
            priorities: Priorities::default(),
            max_testers: max_concurrent,
            launchable_previews: launchable.clone(),
            launchable_testers: launchable.clone(),
            launchable,
            capacity_wait: Duration::from_secs(30),
            capacity_limit: Duration::from_hours(1),
            previews: PreviewLimits::default(),
            prices: Prices::default(),
            budget: Budget::default(),
        };
        Self {
            state: State::new(limits),
            now: Timestamp(1_000_000),
            last_id: 0,
            session: SessionId::default(),
        }
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.outcome_of(event).effects
    }

    fn outcome_of(&mut self, event: Event) -> Outcome {
        let last_id = &mut self.last_id;
        let mut new_id = || {
            *last_id += 1;
            *last_id
        };
        let outcome = self.state.step(event, self.now, &mut new_id);
        assert_eq!(outcome.anomalies, []);
        outcome
    }

    fn restart(&mut self) -> Vec<Effect> {
        self.state = State::load(self.state.limits.clone(), self.state.snapshot());
        self.step(Event::CoreStarted)
    }

    /// Advances the time and fires the timeouts that are due then.
    fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.after(time);
        self.step(Event::Tick)
    }

    /// Requests a run of the project's only environment, which has the same number as the project.
    fn request(&mut self, project: u128) -> RunId {
        self.request_as(project, |_| {})
    }

    fn request_as(&mut self, project: u128, change: impl FnOnce(&mut Run)) -> RunId {
        let id = RunId::from_bits(self.id());
        let (project, environment) =
            (ProjectId::from_bits(project), EnvironmentId::from_bits(project));
        let environment = Environment::new(environment, project, String::new());
        let mut run = Run::new(id, &environment, String::new(), self.now);
        change(&mut run);
        let project = Project::new(project, String::new(), String::new());
        self.step(Event::RunRequested { run: Box::new(run), project, environment });
        id
    }

    fn build(&mut self, arch: Arch) -> PlannedJob {
        let kind = JobKind::build(Platform(arch), "registry/app:1".parse().unwrap());
        self.job(kind, Vec::new())
    }

    fn merge(&mut self, needs: &[&PlannedJob]) -> PlannedJob {
        let image = "registry/app:1".parse().unwrap();
        let kind = JobKind::Merge { platforms: Arch::ALL.map(Platform).to_vec(), image };
        self.job(kind, needs.iter().map(|job| job.id).collect())
    }

    fn job(&mut self, kind: JobKind, needs: Vec<JobId>) -> PlannedJob {
        let id = JobId::from_bits(self.id());
        PlannedJob { name: id.to_string(), needs, ..PlannedJob::new(id, "app", kind, TIMEOUT) }
    }

    fn plan(&mut self, run: RunId, jobs: &[PlannedJob]) -> Vec<Effect> {
        let commit = "c".repeat(40).parse().unwrap();
        let plan = PlannedRun::new(commit, jobs.to_vec());
        self.step(Event::RunPlanned { run, plan: Ok(plan) })
    }

    /// A planned run of `count` builds.
    fn run(&mut self, project: u128, count: usize) -> (RunId, Vec<JobId>) {
        let run = self.request(project);
        let jobs: Vec<PlannedJob> = (0..count).map(|_| self.build(Arch::Amd64)).collect();
        self.plan(run, &jobs);
        (run, jobs.iter().map(|job| job.id).collect())
    }

    fn registered_machine(&mut self, arch: Arch) -> MachineId {
        let machine = MachineId::from_bits(self.id());
        self.step(Event::MachineRegistered {
            machine,
            name: "rack 1".to_owned(),
            arch,
            fleet: Fleet::Builder,
        });
        machine
    }

    fn launched(&mut self, job: JobId) -> MachineId {
        let machine = self.machine_of(job);
        self.step(Event::MachineLaunched { machine, placement: None });
        machine
    }

    fn connect(&mut self, machine: MachineId, holds: &[(JobId, u32)]) -> Vec<Effect> {
        let system_info = SystemInfo {
            hostname: "builder".to_owned(),
            architecture: Arch::Amd64,
            docker_version: String::new(),
            emulated: Vec::new(),
        };
        let holds = holds.iter().map(|(job, number)| attempt(*job, *number)).collect();
        self.session = self.session.next();
        let session = self.session;
        self.step(Event::AgentConnected { machine, session, system_info, holds, previews: None })
    }

    fn disconnect(&mut self, machine: MachineId) -> Vec<Effect> {
        self.step(Event::AgentDisconnected { machine, session: self.session })
    }

    fn start(&mut self, machine: MachineId, job: JobId, attempt: u32) -> Vec<Effect> {
        self.step(Event::JobStarted { machine, attempt: self::attempt(job, attempt) })
    }

    fn report(
        &mut self,
        machine: MachineId,
        job: JobId,
        attempt: u32,
        outcome: JobOutcome,
    ) -> Vec<Effect> {
        let report = JobReport::new(outcome);
        self.step(Event::JobReported { machine, attempt: self::attempt(job, attempt), report })
    }

    /// Reports the image before the export of the cache.
    fn report_early(&mut self, machine: MachineId, job: JobId, attempt: u32) -> Vec<Effect> {
        let report = JobReport { exporting_cache: true, ..JobReport::new(PUSHED) };
        self.step(Event::JobReported { machine, attempt: self::attempt(job, attempt), report })
    }

    fn exporting(&self, machine: MachineId) -> Option<JobId> {
        self.state.machines[&machine].exporting.map(|export| export.attempt.job)
    }

    fn cancel(&mut self, run: RunId) -> Vec<Effect> {
        self.step(Event::CancelRequested { run, reason: CancelReason::Requested })
    }

    /// A job that runs on a machine that was launched for it.
    fn running(&mut self) -> (RunId, JobId, MachineId) {
        let (run, jobs) = self.run(1, 1);
        let machine = self.launched(jobs[0]);
        self.connect(machine, &[]);
        self.start(machine, jobs[0], 1);
        (run, jobs[0], machine)
    }

    fn running_on_registered(&mut self) -> (RunId, JobId, MachineId) {
        let machine = self.registered_machine(Arch::Amd64);
        self.connect(machine, &[]);
        let (run, jobs) = self.run(1, 1);
        self.start(machine, jobs[0], 1);
        (run, jobs[0], machine)
    }

    fn job_state(&self, job: JobId) -> &JobState {
        &self.state.jobs[&job].state
    }

    fn machine_of(&self, job: JobId) -> MachineId {
        self.job_state(job).machine().unwrap()
    }

    fn machine_state(&self, machine: MachineId) -> MachineState {
        self.state.machines[&machine].state
    }

    fn run_state(&self, run: RunId) -> &RunState {
        &self.state.runs[&run].state
    }

    fn failure(&self, job: JobId) -> &FailureReason {
        match self.job_state(job) {
            JobState::Failed(JobFailure { reason, .. }) => reason,
            other => panic!("{job} has not failed: {other:?}"),
        }
    }
}

fn amd64(max_concurrent: u32) -> Core {
    Core::new(max_concurrent, &[Arch::Amd64])
}

fn without_provider() -> Core {
    Core::new(0, &[])
}

/// A core that can launch both arches.
fn both(max_concurrent: u32) -> Core {
    Core::new(max_concurrent, &Arch::ALL)
}

/// A planned build of two platforms with its merge. The machines of both builds have connected.
struct TwoPlatforms {
    run: RunId,
    builds: [JobId; 2],
    machines: [MachineId; 2],
    merge: JobId,
}

impl TwoPlatforms {
    fn begun(core: &mut Core) -> Self {
        let (run, builds, merge) = Self::planned(core);
        let machines = builds.map(|build| core.launched(build));
        for (machine, build) in machines.into_iter().zip(builds) {
            core.connect(machine, &[]);
            core.start(machine, build, 1);
        }
        Self { run, builds, machines, merge }
    }

    /// On machines that their owner registered.
    fn begun_on_registered(core: &mut Core) -> Self {
        for machine in Arch::ALL.map(|arch| core.registered_machine(arch)) {
            core.connect(machine, &[]);
        }
        let (run, builds, merge) = Self::planned(core);
        let machines = builds.map(|build| core.machine_of(build));
        Self { run, builds, machines, merge }
    }

    fn planned(core: &mut Core) -> (RunId, [JobId; 2], JobId) {
        let run = core.request(1);
        let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
        let merge = core.merge(&[&one, &other]);
        core.plan(run, &[one.clone(), other.clone(), merge.clone()]);
        (run, [one.id, other.id], merge.id)
    }
}

const fn attempt(job: JobId, number: u32) -> Attempt {
    Attempt { job, number }
}

fn digest(digit: &str) -> Digest {
    format!("sha256:{}", digit.repeat(64)).parse().unwrap()
}

fn pushed(digit: &str) -> JobOutcome {
    JobOutcome::Completed { digest: Some(digest(digit)) }
}

const PUSHED: JobOutcome = JobOutcome::Completed { digest: None };

fn failed(reason: FailureReason) -> JobOutcome {
    let message = reason.to_string();
    JobOutcome::Failed(JobFailure { reason, message, exit_code: Some(1) })
}

fn users_fault() -> JobOutcome {
    failed(FailureReason::User { step: String::new(), exit_code: 1 })
}
