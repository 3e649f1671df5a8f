//! Whole runs: a real core, moto, and real agents that are started from the user data which moto gives back.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::InstanceLifecycleType;
use jiff::Timestamp;
use reqwest::Method;
use stagely::api::{JobView, RunStatus, RunView};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, is_over, job};
use stagely_test_support::gate::Gate;
use stagely_test_support::registry::Registry;
use stagely_test_support::wait::eventually;

use crate::STAGELY;
use crate::hypervisor::Hypervisor;
use crate::moto::{Cloud, REGION};
use crate::proxy::Fate;

const MANIFEST: &str = "builds: { app: { context: ., platforms: [linux/amd64] } }\n";

/// A core whose builders are instances, and what they run on.
struct Whole {
    core: Core,
    cloud: Arc<Cloud>,
    hypervisor: Hypervisor,
}

impl Whole {
    async fn start(name: &str, builders: &str) -> Self {
        let cloud = Arc::new(Cloud::start().await);
        let endpoint = &cloud.proxy.url;
        let settings = format!(
            "[builders]\nprovider = \"aws\"\n{builders}\n[aws]\nregion = \"{REGION}\"\nendpoint = \"{endpoint}\"\n"
        );
        let credentials = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let environment = credentials.map(|name| (name, "test".to_owned())).to_vec();
        let core = Core::start_in(STAGELY, name, Registry::real(), &settings, environment).await;
        let hypervisor = Hypervisor::start(&cloud);
        Self { core, cloud, hypervisor }
    }

    /// A Dockerfile whose build says a word and then stands at `gate`.
    fn dockerfile(&self, gate: &Gate) -> String {
        format!("FROM busybox\nRUN : {}; echo here we are; {}\n", self.core.name, gate.command())
    }

    async fn run_of(&self, dockerfile: &str) -> stagely_state::ids::RunId {
        self.core.run_of(&[("Dockerfile", dockerfile), ("stagely.yaml", MANIFEST)]).await
    }

    /// Nothing is left, neither at EC2 nor here.
    async fn finish(self) {
        assert_eq!(self.cloud.live().await, []);
        self.core.finish().await;
        drop(self.hypervisor);
    }
}

async fn log_of_attempt(core: &Core, job: &JobView, attempt: u32) -> String {
    let path = format!("/api/v1/jobs/{}/logs?attempt={attempt}", job.id);
    core.call(Some(&core.admin_token()), Method::GET, &path, None).await.1
}

fn has_lost_an_attempt(run: &RunView) -> bool {
    run.jobs.iter().any(|job| !job.lost_attempts.is_empty())
}

#[tokio::test]
async fn a_build_on_an_instance_completes_and_leaves_none() {
    let whole = Whole::start("aws-build", "").await;
    let dockerfile = format!("FROM busybox\nRUN : {}\n", whole.core.name);
    let run = whole.run_of(&dockerfile).await;
    let run = whole.core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = job(&run, "app");
    assert_eq!(app.attempt, 1, "{app:#?}");
    whole.core.registry.manifest(&app.image.to_string());
    assert_eq!(whole.cloud.instances().await.len(), 1);
    whole.finish().await;
}

#[tokio::test]
async fn a_core_that_is_killed_before_it_hears_of_its_machine_finds_it() {
    let mut whole = Whole::start("aws-killed", "").await;
    whole.cloud.proxy.next(1, "RunInstances", Fate::AnswerHeld);
    let dockerfile = format!("FROM busybox\nRUN : {}\n", whole.core.name);
    let run = whole.run_of(&dockerfile).await;
    whole.cloud.proxy.holds_an_answer().await;
    assert_eq!(whole.cloud.live().await.len(), 1);

    whole.core.crash();
    whole.core.launch().await;
    let run = whole.core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(whole.cloud.instances().await.len(), 1, "it was launched twice");
    whole.finish().await;
}

#[tokio::test]
async fn a_machine_whose_run_is_cancelled_while_its_launch_is_unheard_of_is_ended() {
    let mut whole = Whole::start("aws-orphan", "").await;
    whole.cloud.proxy.next(1, "RunInstances", Fate::AnswerHeld);
    let gate = Gate::new();
    let run = whole.run_of(&whole.dockerfile(&gate)).await;
    whole.cloud.proxy.holds_an_answer().await;
    whole.core.crash();
    // The next core hears of the cancellation before EC2 shows the machine.
    whole.cloud.proxy.set_behind(true);
    whole.core.launch().await;
    let path = format!("/api/v1/runs/{run}/cancel");
    let token = whole.core.admin_token();
    let (status, text) = whole.core.call(Some(&token), Method::POST, &path, None).await;
    assert!(status.is_success(), "{status} {text}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    whole.cloud.proxy.set_behind(false);

    eventually("no instance is left", async || whole.cloud.live().await.is_empty().then_some(()))
        .await;
    let run = whole.core.until(run, "it is over", is_over).await;
    assert_eq!(run.status, RunStatus::Cancelled, "{run:#?}");
    gate.clear().await;
    whole.finish().await;
}

#[tokio::test]
async fn a_machine_that_is_ended_behind_cores_back_has_a_successor() {
    let whole = Whole::start("aws-vanished", "").await;
    let gate = Gate::new();
    let id = whole.run_of(&whole.dockerfile(&gate)).await;
    gate.reached().await;
    let first = whole.cloud.live().await.remove(0);

    whole.cloud.end(&first).await;
    let run = whole.core.until(id, "an attempt is lost", has_lost_an_attempt).await;
    let lost = &job(&run, "app").lost_attempts[0];
    assert_eq!(lost.reason, FailureReason::MachineLost, "{lost:#?}");
    let app = job(&run, "app").clone();
    whole.core.log_has(&app, "here we are").await;
    gate.reached().await;
    gate.open();
    let run = whole.core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(job(&run, "app").attempt, 2);
    assert_eq!(whole.cloud.instances().await.len(), 2);
    whole.finish().await;
}

#[tokio::test]
async fn a_build_whose_spot_machine_is_taken_back_ends_on_another() {
    let whole = Whole::start("aws-spot", "market = \"spot-first\"").await;
    let gate = Gate::new();
    let id = whole.run_of(&whole.dockerfile(&gate)).await;
    gate.reached().await;
    let first = whole.cloud.live().await.remove(0);
    assert_eq!(first.instance_lifecycle(), Some(&InstanceLifecycleType::Spot));
    let metadata = whole.hypervisor.metadata_of(&first);
    assert!(metadata.count("GET /latest/meta-data/spot/instance-action 404") > 0);

    let at = Timestamp::now() + jiff::SignedDuration::from_secs(120);
    let action = format!("{{\"action\":\"terminate\",\"time\":\"{at:.0}\"}}");
    metadata.script().action = Some(action);
    let run = whole.core.until(id, "an attempt is lost", has_lost_an_attempt).await;

    let app = job(&run, "app").clone();
    assert_eq!(app.lost_attempts[0].reason, FailureReason::SpotInterruption, "{app:#?}");
    // It does not wait for the two minutes.
    let is_gone = async || {
        let live = whole.cloud.live().await;
        live.iter().all(|it| it.instance_id() != first.instance_id()).then_some(())
    };
    eventually("the first machine is ended", is_gone).await;
    assert!(Timestamp::now() < at, "the machine was kept until the cloud took it");
    let second = eventually("there is a second machine", async || whole.cloud.live().await.pop());
    let second = second.await;
    assert_ne!(second.instance_id(), first.instance_id());
    eventually("the second attempt says something", async || {
        log_of_attempt(&whole.core, &app, 2).await.contains("here we are").then_some(())
    })
    .await;
    gate.reached().await;
    gate.open();
    let run = whole.core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for attempt in [1, 2] {
        let log = log_of_attempt(&whole.core, &app, attempt).await;
        assert!(log.contains("here we are"), "attempt {attempt}: {log}");
    }
    assert_eq!(whole.cloud.instances().await.len(), 2);
    whole.finish().await;
}

#[tokio::test]
async fn a_list_that_does_not_show_a_new_machine_costs_it_nothing() {
    let whole = Whole::start("aws-behind", "").await;
    whole.cloud.proxy.set_behind(true);
    let dockerfile = format!("FROM busybox\nRUN : {}\n", whole.core.name);
    let run = whole.run_of(&dockerfile).await;
    let run = whole.core.until(run, "it completes", |run| run.status.is_final()).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(job(&run, "app").attempt, 1);
    whole.cloud.proxy.set_behind(false);

    // Its end was asked for while EC2 did not show it; the next look at the list finds it.
    eventually("no instance is left", async || whole.cloud.live().await.is_empty().then_some(()))
        .await;
    whole.finish().await;
}
