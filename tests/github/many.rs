//! A hundred pull requests at once.

use stagely::api::{QueueView, RunStatus, RunView};
use stagely_test_support::wait::{POLL, eventually};

use crate::conversation::{Conversation, WEB};
use crate::fake::people::Opened;

const PULLS: usize = 100;
const SLOTS: usize = 50;

#[tokio::test]
async fn of_a_hundred_pull_requests_at_once_fifty_run_and_all_end_and_are_reported() {
    let settings = "[github]\nwrites-per-minute = 100000\ncomments-per-hour = 100000\n";
    let conversation =
        Conversation::start_with("hundred", crate::conversation::MANIFEST, settings).await;
    let texts: Vec<String> = (0..PULLS).map(|number| format!("change {number}")).collect();
    let prepare = |text: &String| {
        conversation.github.prepares(
            WEB,
            &text.replace(' ', "-"),
            &[("change", text)],
            Opened::default(),
        )
    };
    let pulls: Vec<_> = texts.iter().map(prepare).collect();
    let payloads: Vec<_> = pulls
        .iter()
        .map(|pull| conversation.github.pull_payload(pull, "opened", crate::fake::people::WRITER))
        .collect();

    let sent =
        payloads.into_iter().map(|payload| conversation.github.delivers("pull_request", payload));
    let deliveries = futures_util::future::join_all(sent).await;

    assert!(deliveries.iter().all(|delivery| delivery.as_ref().unwrap().status == 202));
    eventually("fifty run and fifty wait", async || {
        let queue: QueueView = conversation.core.get("/queue").await;
        assert!(queue.live_machines <= SLOTS, "{} machines", queue.live_machines);
        (conversation.machines.all().len() == SLOTS && queue.jobs.len() == PULLS - SLOTS)
            .then_some(())
    })
    .await;
    let mut ended = 0;
    while ended < PULLS {
        let jobs = conversation.machines.all();
        for job in &jobs[ended..] {
            job.succeeds().await;
        }
        ended = jobs.len();
        let queue: QueueView = conversation.core.get("/queue").await;
        assert!(queue.live_machines <= SLOTS, "{} machines", queue.live_machines);
        tokio::time::sleep(POLL).await;
    }
    eventually("all complete", async || {
        let runs: Vec<RunView> = conversation.core.get("/runs?limit=1000").await;
        runs.iter().all(|run| run.status == RunStatus::Completed).then_some(())
    })
    .await;
    for pull in &pulls {
        conversation.comment_says(pull, "✅").await;
        conversation.status_is(&conversation.github.head(pull), "stagely", "success").await;
    }
    conversation.ends().await;
}
