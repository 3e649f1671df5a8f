//! Costs and budgets of whole runs: machines of this host have a price here.

use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stagely::api::{BudgetView, ErrorBody, MachineView, MonthCostView, QueueView, RunStatus};
use stagely_state::Usd;
use stagely_test_core::Core;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

const FILES: [(&str, &str); 2] =
    [("Dockerfile", "FROM busybox\n"), ("stagely.yaml", "builds: { app: { context: . } }\n")];

#[tokio::test]
async fn a_run_waits_for_its_budget_says_so_and_goes_on_after_stagely_budget_allow() {
    // A build reserves more than an hour.
    let settings = "[prices]\nlocal = 0.60\n[budget]\nproject = 0.10\n";
    let core = Core::start(STAGELY, "budget", settings).await;
    let run = core.run_of(&FILES).await;

    let queue = eventually("the job waits for money", async || {
        let queue: QueueView = core.get("/queue").await;
        queue.jobs.first().is_some_and(|job| job.reason.contains("budget")).then_some(queue)
    })
    .await;

    let reason = &queue.jobs[0].reason;
    let command = format!("`stagely budget allow {} 1`", core.name);
    assert!(reason.starts_with("waits: ") && reason.ends_with(&command), "{reason}");
    assert!(reason.contains(&format!("'s budget of {} ($0.100)", core.name)), "{reason}");
    assert_eq!(core.get::<Vec<MachineView>>("/machines").await.len(), 0, "nothing was launched");

    let allow = Command::new(STAGELY)
        .args(["budget", "allow", &core.name, "1", "--server", &core.url])
        .env("STAGELY_TOKEN", core.admin_token())
        .output()
        .unwrap();
    let text = String::from_utf8(allow.stdout).unwrap();
    assert!(allow.status.success(), "{}", String::from_utf8_lossy(&allow.stderr));
    assert!(text.starts_with(&format!("{} may spend $1.10: $0.000 is spent", core.name)), "{text}");

    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed);
    let machine = core.get::<Vec<MachineView>>("/machines?all=true").await.remove(0);
    let cost = run.cost.expect("it has cost something");
    assert_eq!((cost.usd, cost.approximate), (machine.cost_usd.unwrap(), false));
    assert!(cost.usd >= Usd(10_000), "a minute at least: {cost:?}");
    assert_eq!(run.jobs[0].cost.map(|cost| cost.usd), Some(cost.usd));
    let month: MonthCostView = core.get(&format!("/cost?project={}", core.name)).await;
    assert_eq!((month.spending.usd, month.spending.builders_usd), (cost.usd, cost.usd));
    let budget = month.projects[0].budget.unwrap();
    let expected =
        BudgetView { limit_usd: Usd(1_100_000), spent_usd: cost.usd, reserved_usd: Usd::ZERO };
    assert_eq!(budget, expected);
    core.finish().await;
}

#[tokio::test]
async fn allowing_what_has_no_budget_or_is_no_amount_is_refused_with_advice() {
    let core = Core::start(STAGELY, "allow", "[prices]\nlocal = 0.60\n").await;
    let run = core.run_of(&FILES).await;
    core.ended(run).await;
    let admin = core.admin_token();
    let allow = async |body: Value| {
        let (status, text) =
            core.call(Some(&admin), Method::POST, "/api/v1/budget", Some(body)).await;
        (status, serde_json::from_str::<ErrorBody>(&text).unwrap().message)
    };
    let name = &core.name;

    let (status, message) = allow(json!({ "project": name, "amount_usd": 5.0 })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(message.contains("budget.project"), "{message}");
    let (status, message) = allow(json!({ "project": name, "amount_usd": -5.0 })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.contains("amount_usd"), "{message}");
    let request = json!({ "project": name, "amount_usd": 1.0, "pull_request": 7 });
    let (status, message) = allow(request).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(message.contains("pull request 7"), "{message}");
    core.finish().await;
}
