//! Runs with builders, a preview and testers: three fleets of instances.

use aws_sdk_ec2::types::{Instance, InstanceLifecycleType};
use jiff::{SignedDuration, Timestamp};
use stagely::api::{CreateRun, JobView, MachineView, MonthCostView, RunStatus, RunView};
use stagely_protocol::{FailureReason, TestResults};
use stagely_state::ids::RunId;
use stagely_state::{Fleet, Usd};
use stagely_test_core::job;
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::wait::eventually;

use crate::runs::{Setup, log_of_attempt, tags_of};

const MANIFEST: &str = "builds: { app: { context: ., platforms: [linux/amd64], machine: small } }\n\
    preview: { image: app, port: 8080, branches: [main], machine: small, access: public }\n\
    test:\n  page:\n    image: app\n    command: [/test]\n    shards: 3\n    junit: [/out/results.xml]\n    \
    artifacts: [/out]\n";

/// Commits a page and its test, whose second shard waits at `breakpoint`, and starts a run.
async fn push(setup: &Setup, breakpoint: &Breakpoint) -> RunId {
    let (name, wait) = (&setup.core.name, breakpoint.command());
    let dockerfile = format!(
        "FROM busybox\nRUN : {name}; mkdir /www /out && echo hello >/www/index.html\n\
         COPY --chmod=755 test /test\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n"
    );
    let test = format!(
        "#!/bin/sh\nset -e\nwget -qO- $PREVIEW_URL | tee /out/page | grep hello\necho here we are\n\
         if [ $STAGELY_SHARD = 2 ]; then {wait}; fi\n\
         echo \"<testsuite name='page'><testcase name='says $STAGELY_SHARD'/></testsuite>\" >/out/results.xml\n"
    );
    let files = [("Dockerfile", &*dockerfile), ("test", &*test), ("stagely.yaml", MANIFEST)];
    setup.core.repository.commit(&files);
    let request = CreateRun { reference: Some("main".to_owned()), ..setup.core.request() };
    setup.core.run(request).await
}

/// The instances of a fleet that have not ended.
async fn live(setup: &Setup, fleet: &str) -> Vec<Instance> {
    let mut live = setup.cloud.live().await;
    live.retain(|instance| tags_of(instance).get("stagely:fleet") == Some(&fleet));
    live
}

fn shard(run: &RunView, shard: u32) -> &JobView {
    job(run, &format!("test/page/{shard}"))
}

fn results(job: &JobView) -> &TestResults {
    job.test.as_ref().unwrap().results.as_ref().unwrap()
}

#[tokio::test]
async fn three_fleets_build_serve_and_test_and_a_lost_tester_counts_once() {
    let settings = "market = \"spot-first\"\n[testers]\nmarket = \"spot-first\"";
    let setup = Setup::start("aws-tested", settings).await;
    let breakpoint = Breakpoint::new();
    let id = push(&setup, &breakpoint).await;
    breakpoint.reached().await;

    let run = setup.core.view(id).await;
    assert_eq!(run.status, RunStatus::Testing, "{run:#?}");
    let preview = live(&setup, "preview").await;
    assert_eq!(preview.len(), 1);
    assert_eq!(preview[0].instance_type().unwrap().as_str(), "t3.small");
    let machine = shard(&run, 2).machine_id.unwrap().to_string();
    let testers = live(&setup, "tester").await;
    let lost = testers.iter().find(|found| tags_of(found)["stagely:machine"] == machine).unwrap();
    assert_eq!(lost.instance_lifecycle(), Some(&InstanceLifecycleType::Spot));
    // Types with much memory.
    assert!(lost.instance_type().unwrap().as_str().starts_with('r'), "{lost:?}");

    let at = Timestamp::now() + SignedDuration::from_secs(120);
    let action = format!("{{\"action\":\"terminate\",\"time\":\"{at:.0}\"}}");
    setup.hypervisor.metadata_of(lost).script().action = Some(action);
    let is_lost = |run: &RunView| !shard(run, 2).lost_attempts.is_empty();
    let run = setup.core.until(id, "an attempt is lost", is_lost).await;
    assert_eq!(shard(&run, 2).lost_attempts[0].reason, FailureReason::SpotInterruption);
    eventually("the second attempt has a log", async || {
        log_of_attempt(&setup.core, shard(&run, 2), 2).await.contains("here we are").then_some(())
    })
    .await;
    breakpoint.reached().await;
    breakpoint.resume();

    let run = setup.core.until(id, "the run ends", |run| run.status.is_final()).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for number in 1..=3 {
        let shard = shard(&run, number);
        assert_eq!((results(shard).passed, results(shard).failed), (1, 0), "{shard:#?}");
        assert_eq!(shard.attempt, if number == 2 { 2 } else { 1 });
        let artifacts = shard.test.as_ref().unwrap().artifacts.as_ref().unwrap();
        assert_eq!(artifacts.files, 2, "{shard:#?}");
    }
    setup.core.serves("hello").await;
    eventually("the testers are ended", async || {
        live(&setup, "tester").await.is_empty().then_some(())
    })
    .await;
    setup.core.end_preview().await;
    costs_are_those_of_the_machines(&setup, id).await;
    setup.finish().await;
}

/// Each fleet has cost what its machines have, and the run what those of its jobs have.
async fn costs_are_those_of_the_machines(setup: &Setup, run: RunId) {
    let machines: Vec<MachineView> = setup.core.get("/machines?all=true").await;
    let of_fleet = |fleet| {
        let machines: Vec<_> = machines.iter().filter(|machine| machine.fleet == fleet).collect();
        let cost = machines.iter().map(|machine| machine.cost_usd.unwrap()).sum::<Usd>();
        (machines.len(), cost)
    };
    let month: MonthCostView = setup.core.get("/cost").await;
    let spent = &month.spending;
    for (fleet, count, spent) in [
        (Fleet::Builder, 1, spent.builders_usd),
        (Fleet::Preview, 1, spent.previews_usd),
        (Fleet::Tester, 4, spent.testers_usd),
    ] {
        let (machines, cost) = of_fleet(fleet);
        assert_eq!(machines, count, "{fleet:?}");
        // Each machine's cost is rounded up to a millionth, and so is the sum.
        assert!(
            spent > Usd::ZERO && spent <= cost && cost.0 < spent.0 + 4,
            "{fleet:?} {spent:?} {cost:?}"
        );
    }
    assert!(spent.approximate, "spot prices change");
    let run = setup.core.view(run).await;
    let cost = run.cost.unwrap().usd;
    assert!(cost.0.abs_diff(spent.usd.0) <= 6, "{cost:?} {spent:?}");
}
