//! Which queued job gets a machine next: first in first out within a project, round robin across
//! projects.

use std::collections::BTreeMap;

use stagely_agent::protocol::Arch;

use super::{Effect, Job, JobKind, JobState, Machine, MachineKind, MachineState, State, Timestamp};
use crate::ids::{JobId, MachineId, ProjectId};

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// The job.
    pub job: JobId,
    /// What it waits for.
    pub reason: QueueReason,
}

/// What a queued job waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueReason {
    /// Other jobs of its run.
    Jobs(Vec<JobId>),
    /// One of the launched machines to end.
    Builders {
        /// Alive now.
        live: usize,
        /// The most that may be.
        max: u32,
    },
    /// A registered machine of this arch, which has a job.
    StaticMachine(Arch),
    /// A machine of this arch to be registered: nobody launches any.
    NoMachine(Arch),
}

/// Where a job can go now.
enum Place {
    /// To a registered machine that is free.
    Static(MachineId),
    /// To a machine that is launched for it.
    Launch(Arch),
}

impl State {
    /// Gives machines to queued jobs until none can be placed.
    pub(super) fn schedule(&mut self, now: Timestamp, new_machine: &mut dyn FnMut() -> MachineId) {
        while let Some((project, job, place)) = self.next_placement() {
            self.last_served = Some(project);
            match place {
                Place::Static(machine) => {
                    self.provision(job, machine);
                    self.give(machine, job, now);
                }
                Place::Launch(arch) => {
                    let machine = new_machine();
                    self.request_machine(machine, job, arch, now);
                    self.provision(job, machine);
                }
            }
        }
    }

    /// The first job that can be placed, looking at the projects in turn.
    fn next_placement(&self) -> Option<(ProjectId, JobId, Place)> {
        if self.queued.is_empty() || !(self.may_launch() || self.has_free_static_machine()) {
            return None;
        }
        let by_project = self.ready_jobs();
        self.in_turn(&by_project).find_map(|project| {
            let jobs = by_project.get(&project)?;
            jobs.iter().find_map(|job| Some((project, job.id, self.place(job).ok()?)))
        })
    }

    /// The projects, beginning after the one that was served last.
    fn in_turn<T>(&self, projects: &BTreeMap<ProjectId, T>) -> impl Iterator<Item = ProjectId> {
        let keys: Vec<ProjectId> = projects.keys().copied().collect();
        let begin = self.last_served.map_or(0, |last| keys.partition_point(|key| *key <= last));
        let (first, second) = keys.split_at(begin);
        [second, first].concat().into_iter()
    }

    /// Queued jobs whose needs are met, in the order in which they came.
    fn ready_jobs(&self) -> BTreeMap<ProjectId, Vec<&Job>> {
        let mut by_project: BTreeMap<ProjectId, Vec<&Job>> = BTreeMap::new();
        for job in self.queued.iter().filter_map(|id| self.jobs.get(id)) {
            if let Some(run) = self.runs.get(&job.run)
                && self.unmet_needs(job).is_empty()
            {
                by_project.entry(run.project).or_default().push(job);
            }
        }
        by_project
    }

    fn unmet_needs(&self, job: &Job) -> Vec<JobId> {
        let is_completed = |id: &JobId| {
            let needed = self.jobs.get(id);
            needed.is_some_and(|job| matches!(job.state, JobState::Completed { .. }))
        };
        job.needs.iter().copied().filter(|id| !is_completed(id)).collect()
    }

    /// Where `job` can go now, or what it waits for.
    fn place(&self, job: &Job) -> Result<Place, QueueReason> {
        // A merge moves no layer and runs nothing: any machine does.
        let wanted = match &job.kind {
            JobKind::Build { platform, .. } => Some(platform.arch()),
            JobKind::Merge { .. } => None,
        };
        let fits = |machine: &&Machine| wanted.is_none_or(|arch| arch == machine.arch);
        if let Some(machine) = self.static_machines().filter(fits).find(|found| found.is_free()) {
            return Ok(Place::Static(machine.id));
        }
        let arch = wanted.unwrap_or(Arch::Amd64);
        let native = wanted.is_none_or(|arch| self.limits.launchable.contains(&arch));
        if !native && self.static_machines().filter(fits).any(|machine| machine.connected) {
            return Err(QueueReason::StaticMachine(arch));
        }
        let launchable = &self.limits.launchable;
        let Some(launched) = launchable.get(&arch).or(launchable.first()) else {
            return Err(QueueReason::NoMachine(arch));
        };
        if !self.may_launch() {
            let (live, max) = (self.launched_machines(), self.limits.max_concurrent);
            return Err(QueueReason::Builders { live, max });
        }
        Ok(Place::Launch(*launched))
    }

    fn static_machines(&self) -> impl Iterator<Item = &Machine> {
        self.live_machines
            .iter()
            .filter_map(|id| self.machines.get(id))
            .filter(|machine| machine.kind == MachineKind::Static)
    }

    fn has_free_static_machine(&self) -> bool {
        self.static_machines().any(Machine::is_free)
    }

    /// Launched machines that may exist: also those that are being launched or ended.
    fn launched_machines(&self) -> usize {
        self.live_machines.len() - self.static_machines().count()
    }

    fn may_launch(&self) -> bool {
        !self.limits.launchable.is_empty()
            && self.launched_machines() < self.limits.max_concurrent as usize
    }

    fn request_machine(&mut self, id: MachineId, job: JobId, arch: Arch, now: Timestamp) {
        let Some(size) = self.jobs.get(&job).map(|job| job.size) else { return };
        self.put_machine(Machine {
            id,
            kind: MachineKind::Launched,
            name: String::new(),
            arch,
            size,
            state: MachineState::Requested,
            requested_for: Some(job),
            requested_at: now,
            lease_until: Some(now.after(self.limits.lease)),
            connected: false,
            contact_at: now,
            system_info: None,
            terminated_at: None,
        });
        self.emit(Effect::Launch { machine: id });
    }

    /// Moves a queued job to `machine`.
    fn provision(&mut self, id: JobId, machine: MachineId) {
        self.change_job(id, |job| {
            if let JobState::Queued { attempt } = job.state {
                job.attempt = attempt;
                job.state = JobState::Provisioning { attempt, machine };
                job.started_at = None;
            }
        });
    }

    /// The queue, in the order in which it will be served.
    pub fn queue(&self) -> Vec<QueuedJob> {
        let mut ready = self.ready_jobs();
        let order: Vec<ProjectId> = self.in_turn(&ready).collect();
        let mut queue = Vec::new();
        while !ready.is_empty() {
            for project in &order {
                let Some(jobs) = ready.get_mut(project) else { continue };
                let job = jobs.remove(0);
                if jobs.is_empty() {
                    ready.remove(project);
                }
                if let Err(reason) = self.place(job) {
                    queue.push(QueuedJob { job: job.id, reason });
                }
            }
        }
        let blocked = self.queued.iter().filter_map(|id| self.jobs.get(id)).filter_map(|job| {
            let needs = self.unmet_needs(job);
            (!needs.is_empty()).then(|| QueuedJob { job: job.id, reason: QueueReason::Jobs(needs) })
        });
        queue.extend(blocked);
        queue
    }
}
