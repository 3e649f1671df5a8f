//! A second core, which gets the same events and keeps ended records outside of its state, as the real one does. It
//! must decide the same as the core that has all records.

use std::collections::BTreeMap;
use std::fmt::Debug;

use stagely_state::ids::{JobId, MachineId, RunId};
use stagely_state::{Ended, EndedRun, Event, Limits, Machine, Outcome, Snapshot, State, Timestamp};

pub(super) struct LeanCore {
    state: State,
    runs: BTreeMap<RunId, EndedRun>,
    run_of_job: BTreeMap<JobId, RunId>,
    machines: BTreeMap<MachineId, Machine>,
}

impl LeanCore {
    /// A core that has read its records from `disk`, of which only those in use are in its state.
    pub(super) fn load(limits: &Limits, disk: Snapshot) -> Self {
        let mut lean = Self {
            state: State::load(limits.clone(), disk),
            runs: BTreeMap::new(),
            run_of_job: BTreeMap::new(),
            machines: BTreeMap::new(),
        };
        lean.put_away();
        lean.state = State::load(limits.clone(), lean.state.snapshot());
        lean
    }

    pub(super) fn step(&mut self, event: Event, now: Timestamp, new_ids: &[u128]) -> Outcome {
        loop {
            let recalled = self.recalled_for(&event);
            if recalled.is_empty() {
                break;
            }
            self.state.recall(recalled);
        }
        let mut new_ids = new_ids.iter().copied();
        let mut new_id = || new_ids.next().expect("it makes no other records");
        let outcome = self.state.step(event, now, &mut new_id);
        assert_eq!(new_ids.next(), None, "it makes as many records");
        self.put_away();
        outcome
    }

    fn recalled_for(&mut self, event: &Event) -> Ended {
        let missing = self.state.missing_for(event);
        let of_jobs = missing.jobs.iter().filter_map(|job| self.run_of_job.get(job)).copied();
        let runs: Vec<RunId> = of_jobs.chain(missing.runs.iter().copied()).collect();
        let runs = runs.into_iter().filter_map(|run| self.runs.remove(&run)).collect();
        let machines = missing.machines.iter().filter_map(|id| self.machines.remove(id)).collect();
        Ended { runs, machines }
    }

    fn put_away(&mut self) {
        let Ended { runs, machines } = self.state.take_ended();
        for ended in runs {
            self.run_of_job.extend(ended.jobs.iter().map(|job| (job.id, ended.run.id)));
            self.runs.insert(ended.run.id, ended);
        }
        self.machines.extend(machines.into_iter().map(|machine| (machine.id, machine)));
    }

    /// How many runs are not in its state.
    pub(super) fn ended_runs(&self) -> usize {
        self.runs.len()
    }

    /// Both cores have the same records.
    pub(super) fn check(&self, full: &State) {
        let mut all = self.state.snapshot();
        for EndedRun { run, jobs } in self.runs.values() {
            all.runs.insert(run.id, run.clone());
            all.jobs.extend(jobs.iter().map(|job| (job.id, job.clone())));
        }
        all.machines.extend(self.machines.iter().map(|(id, machine)| (*id, machine.clone())));
        let full = full.snapshot();
        check_rows(&all.projects, &full.projects);
        check_rows(&all.environments, &full.environments);
        check_rows(&all.runs, &full.runs);
        check_rows(&all.jobs, &full.jobs);
        check_rows(&all.machines, &full.machines);
        check_rows(&all.previews, &full.previews);
        check_rows(&all.deliveries, &full.deliveries);
        check_rows(&all.outbox, &full.outbox);
    }
}

fn check_rows<K: Debug + Ord, V: Debug + PartialEq>(lean: &BTreeMap<K, V>, full: &BTreeMap<K, V>) {
    for key in lean.keys().chain(full.keys()) {
        assert_eq!(lean.get(key), full.get(key), "{key:?} differs");
    }
}
