//! Machines, and the queue of jobs for them.

use stagely_state::{Fleet, Machine, MachineKind, MachineState, QueueReason, QueuedJob, Timestamp};

use crate::api::{MachineStatus, MachineView, QueueView, QueuedJobView};
use crate::core::previews::reason_of_wait;
use crate::core::records::Records;

/// A machine at the time `now`.
pub(in crate::core::http) fn machine(machine: &Machine, now: Timestamp) -> MachineView {
    let placement = machine.placement.as_ref();
    let cost = machine.cost(now);
    let until = machine.terminated_at.unwrap_or(now);
    let is_launched = machine.kind == MachineKind::Launched;
    MachineView {
        id: machine.id,
        kind: machine.kind,
        name: machine.name.clone(),
        arch: machine.arch,
        size: machine.size,
        fleet: machine.fleet,
        provider: is_launched.then_some(machine.provider),
        provider_id: placement.map(|placement| placement.provider_id.clone()),
        instance_type: placement.map(|placement| placement.instance_type.clone()),
        zone: placement.and_then(|placement| placement.zone.clone()),
        market: placement.map(|placement| placement.market),
        on_demand: machine.on_demand,
        price_per_hour_usd: machine.price().or(placement.and_then(|placement| placement.price)),
        cost_usd: cost.map(|cost| cost.amount),
        cost_is_approximate: cost.is_some_and(|cost| cost.approximate),
        interruption: machine.interruption,
        status: match machine.state {
            MachineState::Requested => MachineStatus::Requested,
            MachineState::Booting => MachineStatus::Booting,
            MachineState::Ready => MachineStatus::Ready,
            MachineState::Busy { .. } => MachineStatus::Busy,
            MachineState::Terminating => MachineStatus::Terminating,
            MachineState::Terminated => MachineStatus::Terminated,
        },
        connected: machine.connected,
        job_id: machine.job(),
        exporting_cache_of: machine.exporting.map(|export| export.attempt.job),
        preview_id: machine.serves,
        requested_at: machine.requested_at,
        lease_until: machine.lease_until,
        lease_left_seconds: lease_left(machine, now),
        age_seconds: until.since(machine.requested_at).as_secs(),
        terminated_at: machine.terminated_at,
        system_info: machine.system_info.clone(),
    }
}

/// Negative if the lease is over and the machine is still alive.
fn lease_left(machine: &Machine, now: Timestamp) -> Option<i64> {
    let lease = machine.lease_until.filter(|_| !machine.state.is_terminated())?;
    let (left, over) = (lease.since(now).as_secs(), now.since(lease).as_secs());
    Some(i64::try_from(left).unwrap_or(i64::MAX) - i64::try_from(over).unwrap_or(i64::MAX))
}

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
            reason: queue_reason(records, queued),
        })
    });
    let launched = records.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
    QueueView { max_concurrent, live_machines: launched.count(), jobs: jobs.collect() }
}

/// The reason why a job waits, for people.
pub(super) fn queue_reason(records: &Records, queued: &QueuedJob) -> String {
    let job = records.jobs.get(&queued.job);
    if let Some(reason) =
        job.filter(|job| job.kind.is_deploy()).and_then(|job| reason_of_wait(records, job))
    {
        return format!("waiting: {reason}");
    }
    match &queued.reason {
        QueueReason::Jobs(jobs) => {
            let names: Vec<&str> =
                jobs.iter().filter_map(|job| Some(records.jobs.get(job)?.name.as_str())).collect();
            format!("waiting for {}", names.join(", "))
        }
        QueueReason::ProjectLimit { project, max_concurrent } => {
            let name = records.projects.get(project).map_or("", |project| &project.name);
            let fleet = job.map_or(Fleet::Builder, |job| job.kind.fleet());
            format!("waiting for 1 of {max_concurrent} {fleet}s, limit of project {name}")
        }
        QueueReason::FleetLimit { fleet, max_concurrent } => {
            format!("waiting for 1 of {max_concurrent} {fleet}s")
        }
        QueueReason::RegisteredMachine { arch: Some(arch) } => {
            format!("waiting for a registered {arch} machine")
        }
        QueueReason::Capacity { .. } => {
            let wait = records.jobs.get(&queued.job).and_then(|job| records.wait_for_capacity(job));
            format!("waiting for capacity {}", wait.map(|wait| wait.text()).unwrap_or_default())
        }
        QueueReason::RegisteredMachine { arch: None } => {
            "waiting for a registered machine".to_owned()
        }
        QueueReason::Budget(shortage) => format!("waits: {}", records.shortage_text(shortage)),
        QueueReason::Preview | QueueReason::PreviewLimit { .. } => {
            "waiting for the preview".to_owned()
        }
        QueueReason::Nothing => "next".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stagely_protocol::Arch;
    use stagely_state::ids::{EnvironmentId, JobId, MachineId, ProjectId};
    use stagely_state::{
        Bill, Job, JobState, Market, MissingCapacity, Placement, PriceSegment, Project,
        ProviderName, Usd,
    };

    use super::*;
    use crate::core::fixtures;

    fn reason(reason: &QueueReason) -> String {
        let mut records = Records::default();
        for (id, name) in [(1, "api"), (2, "web")] {
            let job = fixtures::job(id, 1, name, "linux/amd64");
            records.jobs.insert(job.id, job);
        }
        let project = Project::new(ProjectId::from_bits(1), "web".to_owned(), String::new());
        records.projects.insert(project.id, project);
        let reason = reason.clone();
        queue_reason(&records, &QueuedJob { job: JobId::from_bits(1), reason })
    }

    /// A machine for 0.17 dollars an hour, requested at the time 0, with a lease of an hour.
    fn launched() -> Machine {
        let machine =
            Machine::new(MachineId::from_bits(1), MachineKind::Launched, Arch::Amd64, Timestamp(0));
        let placement = Placement {
            provider_id: "i-1".to_owned(),
            instance_type: "c5.xlarge".to_owned(),
            zone: Some("us-east-1a".to_owned()),
            market: Market::Spot,
            price: Some(Usd(170_000)),
            spot_price: Some(Usd(165_000)),
        };
        let bill = Bill {
            project: ProjectId::from_bits(1),
            environment: EnvironmentId::from_bits(1),
            job: JobId::from_bits(1),
            price_max: Usd(175_000),
            extras: Usd(5_000),
            approximate: true,
            is_priced: true,
            earlier: 0,
            segments: vec![PriceSegment { from: Timestamp(0), price: Usd(170_000) }],
            settled: Usd(0),
            settled_until: Timestamp(0),
            ended_at: None,
            lease_max: None,
        };
        Machine {
            bill: Some(bill),
            provider: ProviderName::Aws,
            placement: Some(placement),
            state: MachineState::Booting,
            lease_until: Some(Timestamp(3_600_000)),
            ..machine
        }
    }

    #[test]
    fn a_machine_is_shown_with_its_age_its_lease_and_its_cost_in_dollars() {
        let view = machine(&launched(), Timestamp(600_000));
        assert_eq!((view.age_seconds, view.lease_left_seconds), (600, Some(3_000)));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["price_per_hour_usd"], 0.17);
        assert_eq!(json["cost_usd"], 0.028_334);
        assert_eq!((&json["provider"], &json["market"]), (&"aws".into(), &"spot".into()));
        let read: MachineView = serde_json::from_value(json).unwrap();
        assert_eq!(
            (read.price_per_hour_usd, read.cost_usd),
            (view.price_per_hour_usd, view.cost_usd)
        );
    }

    #[test]
    fn a_machine_past_its_lease_has_less_than_nothing_left_and_one_that_is_gone_costs_no_more() {
        let late = machine(&launched(), Timestamp(3_720_500));
        assert_eq!(late.lease_left_seconds, Some(-120));
        let bill = launched().bill.unwrap();
        let ended_at = Some(Timestamp(600_000));
        let gone = Machine {
            bill: Some(Bill { settled: Usd(28_334), ended_at, ..bill }),
            state: MachineState::Terminated,
            terminated_at: Some(Timestamp(600_000)),
            ..launched()
        };
        let gone = machine(&gone, Timestamp(9_000_000));
        assert_eq!((gone.age_seconds, gone.lease_left_seconds), (600, None));
        assert_eq!(gone.cost_usd, Some(Usd(28_334)));
    }

    #[test]
    fn a_registered_machine_has_no_provider_and_costs_nothing_that_we_know_of() {
        let view = machine(&fixtures::machine(1), Timestamp(1_000));
        assert_eq!((view.provider, view.cost_usd, view.lease_left_seconds), (None, None, None));
    }

    #[test]
    fn a_job_that_needs_others_names_them() {
        let both = QueueReason::Jobs(vec![JobId::from_bits(1), JobId::from_bits(2)]);
        assert_eq!(reason(&both), "waiting for api, web");
        assert_eq!(reason(&QueueReason::Jobs(vec![JobId::from_bits(2)])), "waiting for web");
    }

    #[test]
    fn a_reached_limit_is_shown_with_its_number_and_its_project() {
        let builder = QueueReason::FleetLimit { fleet: Fleet::Builder, max_concurrent: 50 };
        assert_eq!(reason(&builder), "waiting for 1 of 50 builders");
        let project = ProjectId::from_bits(1);
        let limit = QueueReason::ProjectLimit { project, max_concurrent: 5 };
        assert_eq!(reason(&limit), "waiting for 1 of 5 builders, limit of project web");
    }

    #[test]
    fn a_job_that_waits_for_capacity_shows_since_when_and_the_providers_answer() {
        let mut records = Records::default();
        let (since, retry_at) = (Timestamp(1_700_000_000_000), Timestamp(1_700_000_030_000));
        let give_up_at = since.after(Duration::from_hours(1));
        let message = "no spot machine".to_owned();
        let job = Job {
            missing_capacity: Some(MissingCapacity { since, launches: 1, message }),
            state: JobState::Postponed { attempt: 1, until: retry_at },
            ..fixtures::job(1, 1, "api", "linux/amd64")
        };
        let reason = QueueReason::Capacity { since, retry_at, give_up_at };
        let queued = QueuedJob { job: job.id, reason };
        records.set_queue(vec![queued.clone()]);
        records.jobs.insert(job.id, job);

        let text = "waiting for capacity since 22:13:20 UTC, next try at 22:13:50 UTC, until 23:13:20 UTC: \
                    no spot machine";
        assert_eq!(queue_reason(&records, &queued), text);
    }

    #[test]
    fn a_job_that_waits_for_a_registered_machine_shows_the_arch() {
        let arm64 = QueueReason::RegisteredMachine { arch: Some(Arch::Arm64) };
        assert_eq!(reason(&arm64), "waiting for a registered arm64 machine");
        let any = QueueReason::RegisteredMachine { arch: None };
        assert_eq!(reason(&any), "waiting for a registered machine");
    }

    #[test]
    fn a_job_that_the_next_step_serves_is_next() {
        assert_eq!(reason(&QueueReason::Nothing), "next");
    }
}
