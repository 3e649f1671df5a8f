//! Follows a run to its end, prints its result, and waits for its machines.

use std::pin::pin;
use std::process::ExitCode;

use stagely_protocol::ErrorChain;
use stagely_state::ids::RunId;
use tokio_util::task::AbortOnDropHandle;

use super::display::Display;
use super::outcome::{EXIT_CANCELLED, EXIT_FAILED, exit_code};
use super::preview::{self, RunResult, preview_of};
use super::watch::{Update, Watch};
use crate::api::{ListMachines, RunStatus, RunView};
use crate::cli::output::{is_broken_pipe, note};
use crate::cli::signals::{Interrupts, output_closed};
use crate::client::Client;

/// How following a run ends.
#[derive(Debug)]
pub(super) enum FollowEnd {
    /// The command is done.
    Finished(ExitCode),
    /// The user left with Ctrl-C before the end.
    Left(ExitCode),
}

/// What becomes of core and of a preview after the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Core goes on, and the preview with it.
    CoreStays,
    /// Core ends with this command, and ends the preview before.
    CoreEnds,
    /// As [`CoreEnds`](Self::CoreEnds), but after the user has looked at the preview.
    PreviewStays,
}

/// Shows `run` until it has ended, calls `print` with the result, and waits until its machines are
/// terminated.
///
/// The first Ctrl-C, or the end of the reader of the output, cancels the run and waits for the clean-up; the next Ctrl-C
/// leaves at once. Ctrl-C after the end of the run leaves with the run's exit code, and a missing reader changes nothing:
/// `stagely run | head -1` exports caches, too. If core stays, the command does not wait for the export of caches.
///
/// # Errors
/// The run cannot be followed to its end.
pub(super) async fn follow(
    client: &Client,
    run: RunView,
    after: After,
    print: impl Fn(&RunResult) -> anyhow::Result<()>,
) -> anyhow::Result<FollowEnd> {
    let mut watch = Watch::start(client.clone(), run.id);
    let mut interrupts = Interrupts::new()?;
    let (run, was_left) = show_until_ended(client, &mut watch, &mut interrupts, run).await?;
    if !run.status.is_final() {
        return Ok(FollowEnd::Left(ExitCode::from(EXIT_CANCELLED)));
    }
    // Printed before the clean-up, because the images are available now.
    let preview = preview_of(client, &run).await.unwrap_or_else(|error| {
        note(&format!("warning: core does not say where the preview is: {}", ErrorChain(&error)));
        None
    });
    let result = RunResult { run, preview };
    let lost = print(&result).err().filter(|error| !is_broken_pipe(error));
    let RunResult { run, preview } = result;
    let mut code = exit_code(&run);
    if let Some(error) = lost {
        note(&format!("error: the result cannot be printed: {error:#}"));
        if run.status == RunStatus::Completed {
            code = ExitCode::from(EXIT_FAILED);
        }
    }
    if was_left {
        return Ok(FollowEnd::Left(code));
    }
    let keeps_running = after == After::CoreStays;
    let end =
        wait_for_machines(client, &mut watch, &mut interrupts, run, keeps_running, code).await?;
    let (FollowEnd::Finished(_), Some(preview)) = (&end, preview) else { return Ok(end) };
    match after {
        After::CoreStays => return Ok(end),
        After::PreviewStays => preview::keep(client, &preview, &mut interrupts).await,
        After::CoreEnds => {
            note("There is no terminal, so the preview ends now; --keep-preview keeps it");
        }
    }
    let has_ended = preview::end(client, &preview, &mut interrupts).await?;
    Ok(if has_ended { end } else { FollowEnd::Left(code) })
}

/// Waits until the machines of an ended run are terminated.
async fn wait_for_machines(
    client: &Client,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
    run: RunView,
    keeps_running: bool,
    code: ExitCode,
) -> anyhow::Result<FollowEnd> {
    let mut newest = run;
    let mut reported = Vec::new();
    // Queried again after each change of the run, which changes its machines.
    let mut is_queried = false;
    loop {
        tokio::select! {
            update = watch.next() => match update? {
                Some(Update::Run(run)) => {
                    newest = *run;
                    is_queried = false;
                }
                Some(Update::Lines { .. } | Update::Ended) => {}
                None => return Ok(FollowEnd::Finished(code)),
            },
            _ = interrupts.next() => return Ok(FollowEnd::Left(code)),
            caches = exported_caches(client, &newest), if !is_queried => {
                is_queried = true;
                if caches.is_empty() {
                    continue;
                }
                if keeps_running && newest.live_machines <= caches.len() {
                    note(&format!("Core still exports the cache of {}", caches.join(", ")));
                    return Ok(FollowEnd::Finished(code));
                }
                if reported != caches {
                    note(&format!("Waiting for the cache export of {}; press Ctrl-C to leave", caches.join(", ")));
                    reported = caches;
                }
            }
        }
    }
}

/// Shows `run` and its logs until it has ended. Returns the newest run, and whether the user left: with a
/// second Ctrl-C, or with any after the end.
async fn show_until_ended(
    client: &Client,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
    run: RunView,
) -> anyhow::Result<(RunView, bool)> {
    let mut display = Display::new();
    let mut newest = run;
    // Core may end before it has answered a request that has done its work, so the request ends with this function.
    let mut cancelling = None;
    let mut closed = pin!(output_closed());
    let was_left = loop {
        tokio::select! {
            update = watch.next() => match update? {
                Some(Update::Run(run)) => {
                    display.show_run(&run);
                    newest = *run;
                }
                Some(Update::Lines { job, attempt, lines }) => {
                    display.show_lines(job, attempt, &lines);
                }
                Some(Update::Ended) | None => break false,
            },
            () = &mut closed, if cancelling.is_none() && !newest.status.is_final() => {
                cancelling = Some(cancel(client.clone(), newest.id));
            }
            _ = interrupts.next() => {
                if cancelling.is_some() || newest.status.is_final() {
                    break true;
                }
                display.print("Cancelling the run and waiting for the clean-up; press Ctrl-C again to leave at once");
                cancelling = Some(cancel(client.clone(), newest.id));
            }
        }
    };
    display.end();
    Ok((newest, was_left))
}

/// The names of the jobs whose caches are still being exported. Empty if core cannot be queried, because
/// only a message depends on it.
async fn exported_caches(client: &Client, run: &RunView) -> Vec<String> {
    if run.live_machines == 0 || run.status != RunStatus::Completed {
        return Vec::new();
    }
    let machines = client.machines(&ListMachines::default()).await.unwrap_or_default();
    let is_exported = |job| machines.iter().any(|machine| machine.exporting_cache_of == Some(job));
    run.jobs.iter().filter(|job| is_exported(job.id)).map(|job| job.name.clone()).collect()
}

/// Cancels the run in a task of its own, so that the display goes on.
fn cancel(client: Client, run: RunId) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = client.cancel(run).await {
            note(&format!("error: the run is not cancelled: {}", ErrorChain(&error)));
        }
    }))
}
