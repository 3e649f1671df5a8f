//! Shows a run to its end, prints its result, and waits for what is left behind it.

use std::process::ExitCode;

use stagely_state::ids::RunId;

use super::display::Display;
use super::outcome::{EXIT_CANCELLED, exit_code};
use super::watch::{Update, Watch};
use crate::api::{ListMachines, RunStatus, RunView};
use crate::cli::signals::Interrupts;
use crate::client::Client;

/// How the command ends.
#[derive(Debug)]
pub(super) enum End {
    /// With the run, or after it was started.
    Over(ExitCode),
    /// At once, whatever goes on.
    Left(ExitCode),
}

/// Shows `run` until it is over, lets `print` tell the result, and waits until its machines are gone.
///
/// The first Ctrl-C cancels the run and waits for the clean-up; the second leaves at once. One after the
/// run has ended leaves with its exit code. A core that `goes_on_alone` is not waited for while nothing
/// is left but the export of caches.
///
/// # Errors
/// A core that cannot be followed any more; a result that cannot be printed.
pub(super) async fn follow(
    client: &Client,
    run: RunView,
    goes_on_alone: bool,
    print: impl Fn(&RunView) -> anyhow::Result<()>,
) -> anyhow::Result<End> {
    let mut watch = Watch::start(client.clone(), run.id);
    let mut interrupts = Interrupts::new()?;
    let (run, was_left) = until_over(client, &mut watch, &mut interrupts, run).await?;
    if !run.status.is_final() {
        return Ok(End::Left(ExitCode::from(EXIT_CANCELLED)));
    }
    // People have their images now, whatever is to be tidied up.
    print(&run)?;
    let code = exit_code(&run);
    if was_left {
        return Ok(End::Left(code));
    }
    until_tidy(client, &mut watch, &mut interrupts, run, goes_on_alone, code).await
}

/// Waits for what a run that is over leaves behind it.
async fn until_tidy(
    client: &Client,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
    run: RunView,
    goes_on_alone: bool,
    code: ExitCode,
) -> anyhow::Result<End> {
    let mut newest = run;
    let mut told = Vec::new();
    // Core is asked anew after each change of the run: its machines are then others, or fewer.
    let mut was_asked = false;
    loop {
        tokio::select! {
            update = watch.next() => match update? {
                Some(Update::Run(run)) => {
                    newest = *run;
                    was_asked = false;
                }
                Some(Update::Lines { .. } | Update::Over) => {}
                None => return Ok(End::Over(code)),
            },
            _ = interrupts.next() => return Ok(End::Left(code)),
            caches = exported_caches(client, &newest), if !was_asked => {
                was_asked = true;
                if caches.is_empty() {
                    continue;
                }
                if goes_on_alone && newest.live_machines <= caches.len() {
                    eprintln!("Core goes on to export the cache of {}", caches.join(", "));
                    return Ok(End::Over(code));
                }
                if told != caches {
                    eprintln!("Waiting for the cache of {}; Ctrl-C leaves it", caches.join(", "));
                    told = caches;
                }
            }
        }
    }
}

/// Shows `run` until it has ended, and what its logs said until then. Returns the run as it is now, and
/// whether Ctrl-C left it: the second, or any once it has ended.
async fn until_over(
    client: &Client,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
    run: RunView,
) -> anyhow::Result<(RunView, bool)> {
    let mut display = Display::new();
    let mut newest = run;
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
                Some(Update::Over) | None => break false,
            },
            count = interrupts.next() => {
                if count > 1 || newest.status.is_final() {
                    break true;
                }
                display.say("Cancelling, and waiting for the clean-up; Ctrl-C again leaves at once");
                cancel(client.clone(), newest.id);
            }
        }
    };
    display.end();
    Ok((newest, was_left))
}

/// The names of the jobs whose caches are still being exported. Empty where core does not say: nothing
/// depends on it but a message.
async fn exported_caches(client: &Client, run: &RunView) -> Vec<String> {
    if run.live_machines == 0 || run.status != RunStatus::Completed {
        return Vec::new();
    }
    let machines = client.machines(&ListMachines::default()).await.unwrap_or_default();
    let is_exported = |job| machines.iter().any(|it| it.exporting_cache_of == Some(job));
    run.jobs.iter().filter(|job| is_exported(job.id)).map(|job| job.name.clone()).collect()
}

/// Asks for the end, and does not keep the display waiting for the answer.
fn cancel(client: Client, run: RunId) {
    tokio::spawn(async move {
        if let Err(error) = client.cancel(run).await {
            eprintln!("error: the run is not cancelled: {error}");
        }
    });
}
