//! The preview of a run: its addresses, and how long a command with a core of its own keeps it.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use stagely_protocol::ErrorChain;
use tokio::time::sleep;

use crate::api::{JobKindView, JobStatus, ListPreviews, PreviewStatus, PreviewView, RunView};
use crate::cli::output::note;
use crate::cli::signals::{Interrupts, output_closed};
use crate::client::{Client, ClientError};

use super::outcome::report;

/// Options of previews.
#[derive(Args, Debug)]
pub(super) struct PreviewArgs {
    /// Deploy a preview, whatever `on` and `branches` of stagely.yaml say. Without --server, and without --build, that is
    /// the default
    #[arg(long = "preview")]
    is_wanted: bool,
    /// Deploy no preview
    #[arg(long, conflicts_with = "is_wanted")]
    no_preview: bool,
    /// Keep the preview until Ctrl-C or SIGTERM, also without a terminal
    #[arg(long, conflicts_with_all = ["no_preview", "detach"])]
    keep_preview: bool,
}

impl PreviewArgs {
    /// Whether the run deploys a preview; `None`: as stagely.yaml says. A core that `is_embedded` is for one person.
    pub(super) const fn choice(&self, is_embedded: bool) -> Option<bool> {
        match (self.no_preview, self.is_wanted || is_embedded) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    }

    /// Whether somebody is there to look at it.
    pub(super) fn is_kept(&self) -> bool {
        self.keep_preview || (std::io::stdin().is_terminal() && std::io::stderr().is_terminal())
    }
}

/// The interval of checks whether the preview has ended.
const POLL: Duration = Duration::from_millis(300);

/// How long a preview may take to end before the command leaves it to the end of its core.
const END_LIMIT: Duration = Duration::from_mins(1);

/// The preview that `run` has deployed.
///
/// # Errors
/// [`ClientError`]
pub(super) async fn preview_of(
    client: &Client,
    run: &RunView,
) -> Result<Option<PreviewView>, ClientError> {
    let is_deployed = |job: &crate::api::JobView| {
        job.kind == JobKindView::Deploy && job.status == JobStatus::Completed
    };
    if !run.jobs.iter().any(is_deployed) {
        return Ok(None);
    }
    let which = ListPreviews { project: Some(run.project.clone()), ..ListPreviews::default() };
    let previews = client.previews(&which).await?;
    Ok(previews.into_iter().find(|preview| preview.run_id == Some(run.id)))
}

/// The result of a run as the command prints it.
#[derive(Debug, Serialize)]
pub(super) struct RunResult {
    #[serde(flatten)]
    pub(super) run: RunView,
    /// The preview that shows the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preview: Option<PreviewView>,
}

impl RunResult {
    pub(super) fn text(&self) -> String {
        let addresses = |preview: &PreviewView| {
            let line = |(endpoint, url): (&String, &String)| {
                let direct = preview.direct_urls.get(endpoint);
                let direct = direct.map(|url| format!("\n  direct: {url}")).unwrap_or_default();
                format!("\nPreview {endpoint}: {url}{direct}")
            };
            preview.urls.iter().map(line).collect::<String>()
        };
        report(&self.run) + &self.preview.as_ref().map(addresses).unwrap_or_default()
    }
}

/// Keeps the preview until Ctrl-C, or until nobody reads the output any more. Ends early if the preview does.
pub(super) async fn keep(client: &Client, preview: &PreviewView, interrupts: &mut Interrupts) {
    note("The preview runs until you press Ctrl-C");
    let has_ended = async {
        let mut status = preview.status;
        while status.is_open() {
            sleep(POLL * 10).await;
            match client.preview(preview.id).await {
                Ok(newest) => status = newest.status,
                Err(error) => return note(&format!("error: {}", ErrorChain(&error))),
            }
        }
        note("The preview has ended");
    };
    tokio::select! {
        _ = interrupts.next() => {}
        () = output_closed() => {}
        () = has_ended => {}
    }
}

/// Ends the preview, and waits until it is gone. Returns false if the user leaves with Ctrl-C before that.
///
/// # Errors
/// [`ClientError`]
pub(super) async fn end(
    client: &Client,
    preview: &PreviewView,
    interrupts: &mut Interrupts,
) -> Result<bool, ClientError> {
    note("Ending the preview; press Ctrl-C to leave at once");
    let ended = async {
        client.end_preview(preview.id).await?;
        while client.preview(preview.id).await?.status != PreviewStatus::Ended {
            sleep(POLL).await;
        }
        Ok(true)
    };
    tokio::select! {
        ended = tokio::time::timeout(END_LIMIT, ended) => ended.unwrap_or(Ok(true)),
        _ = interrupts.next() => Ok(false),
    }
}
