//! Tests of what is sent when, and of taking over a work folder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use stagely_protocol::Stream;

use super::leftovers::move_leftovers;
use super::*;
use crate::endpoints::Endpoints;
use crate::preview::{PreviewSettings, Previews};

const JOB: &str = "job_1";

/// An agent with one job that has written one line and pushed its image, and that exports its cache.
async fn exporting(work_dir: &Path) -> (Jobs, Arc<Spool>) {
    let previews = PreviewSettings {
        machine: "vm_test".parse().unwrap(),
        work_dir: work_dir.to_owned(),
        docker_host: None,
        grace: Duration::from_secs(1),
        core: None,
        endpoints: Endpoints::default(),
    };
    let settings = JobSettings {
        previews: Previews::new(previews, Arc::default()),
        machine: "vm_test".parse().unwrap(),
        work_dir: work_dir.to_owned(),
        docker_host: None,
        user_logins: false,
        grace: Duration::from_secs(1),
        registry_retry_limit: Duration::ZERO,
    };
    let mut jobs = Jobs::recover(settings, Arc::default()).unwrap();
    (&mut jobs.cleanup).await.unwrap();
    jobs.cleanup = tokio::spawn(async {});
    let job_id: WireId = JOB.parse().unwrap();
    let folder = jobs.spool_folder(&job_id);
    let spool = Arc::new(Spool::create(folder, job_id.clone(), Arc::default()).unwrap());
    spool.append([(Stream::Stdout, "pushed")]).unwrap();
    spool.record_pushed(Status { exporting_cache: true, ..completed() }).unwrap();
    jobs.handles.insert(job_id, JobHandle::new(Arc::clone(&spool), CancellationToken::new(), None));
    (jobs, spool)
}

fn completed() -> Status {
    Status::new(JOB.parse().unwrap(), StatusState::Completed)
}

/// Whether the STATUS that is due is the final one; `None` if no STATUS is due.
fn status_due(jobs: &mut Jobs) -> Option<bool> {
    let messages = jobs.due(16).0;
    let statuses = messages.iter().filter_map(|text| match AgentMessage::parse(text).unwrap() {
        AgentMessage::Status(status) => Some(!status.exporting_cache),
        _ => None,
    });
    let statuses: Vec<_> = statuses.collect();
    assert!(statuses.len() <= 1, "{messages:?}");
    statuses.first().copied()
}

fn acknowledge(jobs: &mut Jobs, lines: u64) {
    jobs.acknowledge(&LogAck { job_id: JOB.parse().unwrap(), lines });
}

#[tokio::test]
async fn both_statuses_are_repeated_until_acknowledged_over_lost_connections() {
    let folder = tempfile::tempdir().unwrap();
    let (mut jobs, spool) = exporting(folder.path()).await;
    let job_id: WireId = JOB.parse().unwrap();
    let resumed = [ResumedJob { job_id: job_id.clone(), next_line: 1 }];
    assert_eq!(status_due(&mut jobs), None);
    acknowledge(&mut jobs, 1);
    assert_eq!(status_due(&mut jobs), Some(false));
    assert_eq!(status_due(&mut jobs), None);
    // The STATUS was not acknowledged, so it is sent again.
    jobs.resume(&resumed);
    assert_eq!(status_due(&mut jobs), Some(false));
    jobs.acknowledge_status(&job_id);
    jobs.acknowledge_status(&job_id);
    assert_eq!((status_due(&mut jobs), jobs.running().len()), (None, 1));
    jobs.resume(&resumed);
    assert_eq!(status_due(&mut jobs), None);

    spool.finish(completed()).unwrap();
    assert_eq!(status_due(&mut jobs), Some(true));
    jobs.resume(&resumed);
    assert_eq!((status_due(&mut jobs), jobs.running().len()), (Some(true), 1));
    jobs.acknowledge_status(&job_id);
    assert!(jobs.running().is_empty() && !jobs.spool_folder(&job_id).exists());
}

#[tokio::test]
async fn an_acknowledgement_of_the_first_status_does_not_end_a_job_that_has_ended_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let (mut jobs, spool) = exporting(folder.path()).await;
    acknowledge(&mut jobs, 1);
    assert_eq!(status_due(&mut jobs), Some(false));
    spool.finish(completed()).unwrap();
    assert_eq!(status_due(&mut jobs), None);
    jobs.acknowledge_status(&JOB.parse().unwrap());
    assert_eq!((status_due(&mut jobs), jobs.running().len()), (Some(true), 1));
}

#[tokio::test]
async fn the_end_of_a_job_that_is_stopped_during_its_export_is_reported_by_the_next_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (mut jobs, spool) = exporting(folder.path()).await;
    let cancel = jobs.handles.values().next().unwrap().cancel.clone();
    let stopped = Arc::clone(&spool);
    jobs.handles.values_mut().next().unwrap().task = Some(tokio::spawn(async move {
        cancel.cancelled().await;
        stopped.finish(completed()).unwrap();
    }));
    jobs.stop_all().await;
    assert!(spool.is_finished());
    let mut jobs = Jobs::recover(jobs.settings.clone(), Arc::default()).unwrap();
    assert_eq!(jobs.running().len(), 1);
    jobs.resume(&[ResumedJob { job_id: JOB.parse().unwrap(), next_line: 1 }]);
    assert_eq!(status_due(&mut jobs), Some(true));
}

#[test]
fn folders_that_a_killed_agent_had_moved_are_removed_by_later_agents() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        fs::create_dir_all(folder.path().join("jobs/job_1/src")).unwrap();
        move_leftovers(folder.path()).unwrap();
    }
    fs::create_dir_all(folder.path().join("jobs.old.1/job_0")).unwrap();
    let leftovers = move_leftovers(folder.path()).unwrap();
    assert_eq!(leftovers.len(), 4);
    assert!(leftovers.iter().all(|path| fs::read_dir(path).unwrap().count() == 1));
}
