//! `/sweep`: the comparison of the providers' lists with the records.

use axum::Json;
use axum::extract::State;
use stagely_state::ProviderName;

use super::ApiState;
use super::auth::{Admin, Reader};
use crate::api::{ProviderSweepView, SweepAction, SweepView, SweptMachine};
use crate::core::sweep::{EndOutcome, Finding, ListComparison, SweepError, Verdict};

/// Shows the actions that a sweep would take now.
#[utoipa::path(get, path = "/sweep", responses((status = 200, body = SweepView)))]
pub(super) async fn plan(State(api): State<ApiState>, _: Reader) -> Json<SweepView> {
    sweep_all(&api, true).await
}

/// Sweeps now, as core does at intervals, and shows the actions.
#[utoipa::path(post, path = "/sweep", responses((status = 200, body = SweepView)))]
pub(super) async fn sweep(State(api): State<ApiState>, _: Admin) -> Json<SweepView> {
    sweep_all(&api, false).await
}

async fn sweep_all(api: &ApiState, dry_run: bool) -> Json<SweepView> {
    let comparisons = api.sweeps.sweep_all(dry_run).await;
    let providers = comparisons.into_iter().map(|(name, compared)| provider(name, compared));
    Json(SweepView { dry_run, providers: providers.collect() })
}

fn provider(
    provider: ProviderName,
    compared: Result<ListComparison, SweepError>,
) -> ProviderSweepView {
    match compared {
        Ok(comparison) => ProviderSweepView {
            provider,
            error: None,
            listed: comparison.listed,
            recorded: comparison.recorded,
            machines: comparison.findings.iter().map(machine).collect(),
        },
        Err(error) => ProviderSweepView {
            provider,
            error: Some(error.to_string()),
            listed: 0,
            recorded: 0,
            machines: Vec::new(),
        },
    }
}

fn machine(finding: &Finding) -> SweptMachine {
    let (action, reason) = words(finding.verdict, finding.outcome == EndOutcome::Done);
    let error = match &finding.outcome {
        EndOutcome::Failed(error) => Some(error.clone()),
        EndOutcome::NoAction | EndOutcome::Done => None,
    };
    let done = finding.outcome == EndOutcome::Done;
    SweptMachine { machine_id: finding.machine, action, reason: reason.to_owned(), done, error }
}

/// The action for a verdict, and the reason for people.
const fn words(verdict: Verdict, is_done: bool) -> (SweepAction, &'static str) {
    match verdict {
        Verdict::EndUnknown => (SweepAction::End, "it is there and has no record"),
        Verdict::Elsewhere => {
            (SweepAction::None, "it is there, but its record is not this provider's and still open")
        }
        Verdict::Returned => {
            (SweepAction::End, "it is there although its record says that it is gone")
        }
        Verdict::Gone { taken_back: true } => (SweepAction::Forget, "the cloud took it back"),
        Verdict::Gone { taken_back: false } => {
            (SweepAction::Forget, "the provider says that it is gone")
        }
        Verdict::Missing if is_done => {
            (SweepAction::Forget, "it is missing from two lists and its agent is out of contact")
        }
        Verdict::Missing => (
            SweepAction::CheckAgain,
            "it is not in the provider's list and its agent is out of contact; it counts as gone when a later \
             list lacks it too",
        ),
    }
}
