//! Whole runs: a real core, moto, and real agents that start with the user data that moto returns.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use aws_sdk_ec2::types::{Instance, InstanceLifecycleType};
use jiff::Timestamp;
use reqwest::Method;
use stagely::api::{JobView, MachineView, RunStatus, RunView};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, is_over, job};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::registry::Registry;
use stagely_test_support::wait::eventually;

use crate::STAGELY;
use crate::hypervisor::Hypervisor;
use crate::moto::{Cloud, REGION};
use crate::proxy::Fate;

const MANIFEST: &str = "builds: { app: { context: ., platforms: [linux/amd64] } }\n";

/// A core whose builders are instances, and their hypervisor.
pub(crate) struct Setup {
    pub(crate) core: Core,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) hypervisor: Hypervisor,
}

/// A core whose builders are instances of `cloud`.
async fn core_at(cloud: &Cloud, name: &str, builders: &str) -> Core {
    let endpoint = &cloud.proxy.url;
    let settings = format!(
        "[builders]\nprovider = \"aws\"\n{builders}\n[aws]\nregion = \"{REGION}\"\nendpoint = \"{endpoint}\"\n"
    );
    let credentials = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let environment = credentials.map(|name| (name, "test".to_owned())).to_vec();
    Core::start_in(STAGELY, name, Registry::real(), &settings, environment).await
}

impl Setup {
    pub(crate) async fn start(name: &str, builders: &str) -> Self {
        let cloud = Arc::new(Cloud::start().await);
        let core = core_at(&cloud, name, builders).await;
        let hypervisor = Hypervisor::start(&cloud);
        Self { core, cloud, hypervisor }
    }

    /// A Dockerfile whose build prints a line and then waits at `breakpoint`.
    fn dockerfile(&self, breakpoint: &Breakpoint) -> String {
        format!(
            "FROM busybox\nRUN : {}; echo here we are; {}\n",
            self.core.name,
            breakpoint.command()
        )
    }

    async fn run_of(&self, dockerfile: &str) -> stagely_state::ids::RunId {
        self.core.run_of(&[("Dockerfile", dockerfile), ("stagely.yaml", MANIFEST)]).await
    }

    /// Checks that nothing is left, neither at EC2 nor here.
    pub(crate) async fn finish(self) {
        assert_eq!(self.cloud.live().await, []);
        self.hypervisor.is_idle().await;
        self.core.finish().await;
        drop(self.hypervisor);
    }
}

pub(crate) async fn log_of_attempt(core: &Core, job: &JobView, attempt: u32) -> String {
    let path = format!("/api/v1/jobs/{}/logs?attempt={attempt}", job.id);
    core.call(Some(&core.admin_token()), Method::GET, &path, None).await.1
}

fn has_lost_an_attempt(run: &RunView) -> bool {
    run.jobs.iter().any(|job| !job.lost_attempts.is_empty())
}

#[tokio::test]
async fn a_build_on_an_instance_completes_and_leaves_none() {
    let setup = Setup::start("aws-build", "").await;
    let dockerfile = format!("FROM busybox\nRUN : {}\n", setup.core.name);
    let run = setup.run_of(&dockerfile).await;
    let run = setup.core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = job(&run, "app");
    assert_eq!(app.attempt, 1, "{app:#?}");
    setup.core.registry.manifest(&app.image.as_ref().unwrap().to_string());
    assert_eq!(setup.cloud.instances().await.len(), 1);
    setup.finish().await;
}

#[tokio::test]
async fn a_core_that_is_killed_before_the_response_to_a_launch_finds_its_machine() {
    let mut setup = Setup::start("aws-killed", "").await;
    setup.cloud.proxy.next(1, "RunInstances", Fate::ResponseHeld);
    let dockerfile = format!("FROM busybox\nRUN : {}\n", setup.core.name);
    let run = setup.run_of(&dockerfile).await;
    setup.cloud.proxy.holds_a_response().await;
    assert_eq!(setup.cloud.live().await.len(), 1);

    setup.core.crash();
    setup.core.launch().await;
    let run = setup.core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(setup.cloud.instances().await.len(), 1, "the machine was launched twice");
    setup.finish().await;
}

#[tokio::test]
async fn a_machine_whose_run_is_cancelled_before_the_response_to_its_launch_is_ended() {
    let mut setup = Setup::start("aws-orphan", "").await;
    setup.cloud.proxy.next(1, "RunInstances", Fate::ResponseHeld);
    let breakpoint = Breakpoint::new();
    let run = setup.run_of(&setup.dockerfile(&breakpoint)).await;
    setup.cloud.proxy.holds_a_response().await;
    setup.core.crash();
    // The run is cancelled before EC2 shows the machine to the next core.
    setup.cloud.proxy.set_behind(true);
    setup.core.launch().await;
    let path = format!("/api/v1/runs/{run}/cancel");
    let token = setup.core.admin_token();
    let searches = setup.cloud.proxy.seen("DescribeInstances").len();
    let (status, text) = setup.core.call(Some(&token), Method::POST, &path, None).await;
    assert!(status.is_success(), "{status} {text}");
    eventually("core searches for the machine", async || {
        (setup.cloud.proxy.seen("DescribeInstances").len() > searches).then_some(())
    })
    .await;
    setup.cloud.proxy.set_behind(false);

    eventually("no instance is left", async || setup.cloud.live().await.is_empty().then_some(()))
        .await;
    let run = setup.core.until(run, "the run is over", is_over).await;
    assert_eq!(run.status, RunStatus::Cancelled, "{run:#?}");
    breakpoint.clear().await;
    setup.finish().await;
}

#[tokio::test]
async fn a_machine_that_somebody_else_ends_is_replaced() {
    let setup = Setup::start("aws-vanished", "").await;
    let breakpoint = Breakpoint::new();
    let id = setup.run_of(&setup.dockerfile(&breakpoint)).await;
    breakpoint.reached().await;
    let first = setup.cloud.live().await.remove(0);

    setup.cloud.end(&first).await;
    let run = setup.core.until(id, "an attempt is lost", has_lost_an_attempt).await;
    let lost = &job(&run, "app").lost_attempts[0];
    assert_eq!(lost.reason, FailureReason::MachineLost, "{lost:#?}");
    let app = job(&run, "app").clone();
    setup.core.log_has(&app, "here we are").await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = setup.core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(job(&run, "app").attempt, 2);
    assert_eq!(setup.cloud.instances().await.len(), 2);
    setup.finish().await;
}

#[tokio::test]
async fn a_gap_in_capacity_is_shown_and_waited_for() {
    let setup = Setup::start("aws-gap", "capacity-wait = \"1s\"").await;
    let none = Fate::Refused("InsufficientInstanceCapacity", 500);
    setup.cloud.proxy.next(usize::MAX, "RunInstances", none);
    let dockerfile = format!("FROM busybox\nRUN : {}\n", setup.core.name);
    let id = setup.run_of(&dockerfile).await;

    // More launches than a job has attempts.
    let waits = |run: &RunView| {
        let wait = run.jobs.first().and_then(|job| job.wait.as_ref());
        wait.is_some_and(|wait| wait.tries >= 4 && wait.retry_at.is_some())
    };
    let run = setup.core.until(id, "the job waits for capacity", waits).await;
    let app = job(&run, "app");
    let wait = app.wait.as_ref().unwrap();
    assert!(wait.reason.contains("InsufficientInstanceCapacity"), "{wait:?}");
    assert_eq!(wait.give_up_at.unwrap().since(wait.since).as_secs(), 3_600, "{wait:?}");
    let queue = &app.queue.as_ref().unwrap().reason;
    assert!(queue.starts_with("waiting for capacity since "), "{queue}");

    setup.cloud.proxy.behave();
    let run = setup.core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = job(&run, "app");
    assert_eq!((app.attempt, app.lost_attempts.len(), &app.wait), (1, 0, &None), "{app:#?}");
    setup.finish().await;
}

#[tokio::test]
async fn an_instance_that_ec2_ends_at_its_launch_fails_the_job_with_ec2s_words_at_once() {
    let cloud = Cloud::start().await;
    cloud.proxy.next(usize::MAX, "DescribeInstances", Fate::Ended("Client.InternalError"));
    let mut core = core_at(&cloud, "aws-kms", "").await;
    let files = [("Dockerfile", "FROM busybox\n"), ("stagely.yaml", MANIFEST)];
    let started = std::time::Instant::now();
    let run = core.run_of(&files).await;
    let run = core.until(run, "the run fails", is_over).await;

    let app = job(&run, "app");
    assert_eq!(app.reason, Some(FailureReason::Provider), "{app:#?}");
    let error = app.error.as_ref().unwrap();
    assert!(error.starts_with("Client.InternalError: Client error on launch; "), "{error}");
    assert!(error.contains("kms:CreateGrant"), "{error}");
    assert_eq!(cloud.proxy.seen("RunInstances").len(), 1, "several machines are bought");
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(core.shut_down().await.success());
}

#[tokio::test]
async fn a_build_whose_spot_machine_is_interrupted_ends_on_another() {
    let setup = Setup::start("aws-spot", "market = \"spot-first\"").await;
    let breakpoint = Breakpoint::new();
    let id = setup.run_of(&setup.dockerfile(&breakpoint)).await;
    breakpoint.reached().await;
    let first = setup.cloud.live().await.remove(0);
    assert_eq!(first.instance_lifecycle(), Some(&InstanceLifecycleType::Spot));
    let metadata = setup.hypervisor.metadata_of(&first);
    assert!(metadata.count("GET /latest/meta-data/spot/instance-action 404") > 0);

    let at = Timestamp::now() + jiff::SignedDuration::from_secs(120);
    let action = format!("{{\"action\":\"terminate\",\"time\":\"{at:.0}\"}}");
    metadata.script().action = Some(action);
    let run = setup.core.until(id, "an attempt is lost", has_lost_an_attempt).await;

    let app = job(&run, "app").clone();
    assert_eq!(app.lost_attempts[0].reason, FailureReason::SpotInterruption, "{app:#?}");
    // Core ends it before the two minutes are over.
    let is_gone = async || {
        let live = setup.cloud.live().await;
        live.iter().all(|instance| instance.instance_id() != first.instance_id()).then_some(())
    };
    eventually("the first machine is ended", is_gone).await;
    assert!(Timestamp::now() < at, "the machine was kept until the interruption");
    let second = eventually("there is a second machine", async || setup.cloud.live().await.pop());
    let second = second.await;
    assert_ne!(second.instance_id(), first.instance_id());
    eventually("the second attempt has a log", async || {
        log_of_attempt(&setup.core, &app, 2).await.contains("here we are").then_some(())
    })
    .await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = setup.core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for attempt in [1, 2] {
        let log = log_of_attempt(&setup.core, &app, attempt).await;
        assert!(log.contains("here we are"), "attempt {attempt}: {log}");
    }
    assert_eq!(setup.cloud.instances().await.len(), 2);
    setup.finish().await;
}

#[tokio::test]
async fn a_preview_whose_spot_machine_is_interrupted_serves_on_another_with_its_data() {
    let setup = Setup::start("aws-preview", "").await;
    setup.core.preview_of("one").await;
    let machine = setup.core.preview_machine().await;
    // The builder's instance may still be there.
    let mut live = setup.cloud.live().await.into_iter();
    let first =
        live.find(|instance| tags_of(instance).get("stagely:fleet") == Some(&"preview")).unwrap();
    assert_eq!(first.instance_lifecycle(), Some(&InstanceLifecycleType::Spot));
    assert_eq!(first.instance_type().unwrap().as_str(), "t3.small");
    let tags = tags_of(&first);
    assert!(tags["stagely:preview"].starts_with("prev_"), "{tags:?}");
    let builder = setup.cloud.instances().await;
    assert!(builder.iter().any(|instance| instance.instance_lifecycle().is_none()), "{builder:?}");
    let volumes = setup.cloud.volumes().await;
    assert!(volumes.iter().any(|volume| volume.size() == Some(20)), "{volumes:?}");
    in_container(&machine, "echo a row >/data/row");

    let at = Timestamp::now() + jiff::SignedDuration::from_secs(120);
    let action = format!("{{\"action\":\"terminate\",\"time\":\"{at:.0}\"}}");
    setup.hypervisor.metadata_of(&first).script().action = Some(action);
    let is_gone = async || {
        let live = setup.cloud.live().await;
        live.iter().all(|instance| instance.instance_id() != first.instance_id()).then_some(())
    };
    eventually("the first machine is ended", is_gone).await;
    assert!(Timestamp::now() < at, "the machine was kept until the interruption");
    setup.core.serves("one").await;

    let second = setup.core.preview_machine().await;
    assert_ne!(second.id, machine.id);
    assert_eq!(in_container(&second, "cat /data/row"), "a row\n");
    setup.core.end_preview().await;
    setup.finish().await;
}

pub(crate) fn tags_of(instance: &Instance) -> BTreeMap<&str, &str> {
    instance.tags().iter().filter_map(|tag| Some((tag.key()?, tag.value()?))).collect()
}

/// The output of a command in the preview's only container.
fn in_container(machine: &MachineView, command: &str) -> String {
    let label = format!("label=stagely.machine={}", machine.id);
    let script = format!("docker exec $(docker ps --quiet --filter {label}) sh -c '{command}'");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_new_machine_that_is_missing_from_the_list_is_not_lost() {
    let setup = Setup::start("aws-behind", "").await;
    setup.cloud.proxy.set_behind(true);
    let dockerfile = format!("FROM busybox\nRUN : {}\n", setup.core.name);
    let run = setup.run_of(&dockerfile).await;
    let run = setup.core.until(run, "the run completes", |run| run.status.is_final()).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(job(&run, "app").attempt, 1);
    setup.cloud.proxy.set_behind(false);

    // The machine was to be ended while EC2 did not show it. The next list contains it.
    eventually("no instance is left", async || setup.cloud.live().await.is_empty().then_some(()))
        .await;
    setup.finish().await;
}
