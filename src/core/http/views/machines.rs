//! Machines, and the queue of jobs for them.

use crate::api::{MachineStatus, MachineView, QueueView, QueuedJobView};
use crate::core::records::Records;
use crate::core::state::{Machine, MachineKind, MachineState, QueueReason};

/// A machine.
pub(in crate::core::http) fn machine(machine: &Machine) -> MachineView {
    let job = match machine.state {
        MachineState::Busy { job, .. } => Some(job),
        _ => machine.requested_for,
    };
    MachineView {
        id: machine.id,
        kind: machine.kind,
        name: machine.name.clone(),
        arch: machine.arch,
        size: machine.size,
        status: match machine.state {
            MachineState::Requested => MachineStatus::Requested,
            MachineState::Booting => MachineStatus::Booting,
            MachineState::Ready => MachineStatus::Ready,
            MachineState::Busy { .. } => MachineStatus::Busy,
            MachineState::Terminating => MachineStatus::Terminating,
            MachineState::Terminated => MachineStatus::Terminated,
        },
        connected: machine.connected,
        job_id: job,
        exporting_cache_of: machine.exporting.map(|export| export.attempt.job),
        requested_at: machine.requested_at,
        lease_until: machine.lease_until,
        terminated_at: machine.terminated_at,
        system_info: machine.system_info.clone(),
    }
}

/// The queue.
pub(in crate::core::http) fn queue(records: &Records, max_concurrent: u32) -> QueueView {
    let jobs = records.queue().iter().enumerate().filter_map(|(index, queued)| {
        let job = records.jobs.get(&queued.job)?;
        let project = records.runs.get(&job.run).and_then(|run| records.projects.get(&run.project));
        Some(QueuedJobView {
            position: index + 1,
            job_id: job.id,
            name: job.name.clone(),
            run_id: job.run,
            project: project.map(|project| project.name.clone()).unwrap_or_default(),
            reason: queue_reason(records, &queued.reason),
        })
    });
    let launched = records.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
    QueueView { max_concurrent, live_machines: launched.count(), jobs: jobs.collect() }
}

/// What a job waits for, in words.
pub(super) fn queue_reason(records: &Records, reason: &QueueReason) -> String {
    match reason {
        QueueReason::Jobs(jobs) => {
            let names: Vec<&str> =
                jobs.iter().filter_map(|job| Some(records.jobs.get(job)?.name.as_str())).collect();
            format!("waiting for {}", names.join(", "))
        }
        QueueReason::ProjectLimit { project, max_concurrent } => {
            let name = records.projects.get(project).map_or("", |project| &project.name);
            format!("waiting for 1 of {max_concurrent} builders, limit of project {name}")
        }
        QueueReason::Builder { max_concurrent } => {
            format!("waiting for 1 of {max_concurrent} builders")
        }
        QueueReason::StaticMachine { arch: Some(arch) } => {
            format!("waiting for a registered {arch} machine")
        }
        QueueReason::Capacity { until } => {
            let until = i64::try_from(until.0).ok().map(jiff::Timestamp::from_millisecond);
            let until =
                until.and_then(Result::ok).map(|at| at.strftime("%H:%M:%S UTC").to_string());
            format!("no machine could be had; next attempt at {}", until.unwrap_or_default())
        }
        QueueReason::StaticMachine { arch: None } => "waiting for a registered machine".to_owned(),
        QueueReason::Nothing => "next".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use stagely_agent::protocol::Arch;

    use super::*;
    use crate::core::fixtures;
    use crate::core::state::Project;
    use crate::ids::{JobId, ProjectId};

    fn reason(reason: &QueueReason) -> String {
        let mut records = Records::default();
        for (id, name) in [(1, "api"), (2, "web")] {
            let job = fixtures::job(id, 1, name, "linux/amd64");
            records.jobs.insert(job.id, job);
        }
        let project = Project::new(ProjectId::from_bits(1), "web".to_owned(), String::new());
        records.projects.insert(project.id, project);
        queue_reason(&records, reason)
    }

    #[test]
    fn a_job_that_needs_others_names_them() {
        let both = QueueReason::Jobs(vec![JobId::from_bits(1), JobId::from_bits(2)]);
        assert_eq!(reason(&both), "waiting for api, web");
        assert_eq!(reason(&QueueReason::Jobs(vec![JobId::from_bits(2)])), "waiting for web");
    }

    #[test]
    fn a_limit_is_told_with_its_number_and_where_it_is_a_project_s_with_its_name() {
        let builder = QueueReason::Builder { max_concurrent: 50 };
        assert_eq!(reason(&builder), "waiting for 1 of 50 builders");
        let project = ProjectId::from_bits(1);
        let limit = QueueReason::ProjectLimit { project, max_concurrent: 5 };
        assert_eq!(reason(&limit), "waiting for 1 of 5 builders, limit of project web");
    }

    #[test]
    fn a_registered_machine_is_told_with_its_arch_where_no_other_will_do() {
        let arm64 = QueueReason::StaticMachine { arch: Some(Arch::Arm64) };
        assert_eq!(reason(&arm64), "waiting for a registered arm64 machine");
        let any = QueueReason::StaticMachine { arch: None };
        assert_eq!(reason(&any), "waiting for a registered machine");
    }

    #[test]
    fn a_job_that_the_next_step_serves_is_next() {
        assert_eq!(reason(&QueueReason::Nothing), "next");
    }
}
