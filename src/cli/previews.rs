//! `stagely previews`: lists previews, opens them, prints their logs, runs commands in them, and steers them.

mod browser;
mod exec;
mod find;
mod logs;
mod terminal;
mod wait;

use std::io::{IsTerminal as _, Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use stagely_state::{PREVIEW_EXTENSION_MAX, Timestamp};
use url::Url;

use self::exec::ExecArgs;
use self::find::{FoundPreview, find};
use self::logs::LogsArgs;
use self::wait::wait_for;
use super::connect::ServerArgs;
use super::output::{local_time_with_zone, note, print, short_time};
use super::runs::short;
use super::table::{Column, fitted, terminal_width};
use crate::api::{ExtendPreview, ListPreviews, PreviewStatus, PreviewView};
use crate::client::Client;
use crate::core::clock::now;

/// Lists previews, opens them, prints their logs, and steers them
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PreviewsArgs {
    #[command(subcommand)]
    command: Option<PreviewsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// List only previews of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Include previews that have ended
    #[arg(long)]
    all: bool,
    /// Print JSON. The addresses contain the keys that open the previews
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand, Debug)]
enum PreviewsCommand {
    /// Opens a preview in the browser
    ///
    /// Prints the link instead if standard output is no terminal, or if this machine has no browser. The link contains
    /// the key of the preview.
    Open {
        #[command(flatten)]
        which: WhichPreview,
        /// The endpoint. Default: the first one
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
    },
    Logs(LogsArgs),
    Exec(ExecArgs),
    /// Archives a preview's data and gives its machine back. The next visit wakes it
    Sleep(ChangeArgs),
    /// Wakes a sleeping preview, as a visit does
    Wake(ChangeArgs),
    /// Deploys what a preview shows once more, with fresh data
    Reset(ChangeArgs),
    /// Lets a preview stay unused for longer, at most 30 days from now
    Extend {
        #[command(flatten)]
        which: WhichPreview,
        /// How much longer: 3d
        #[arg(value_name = "TIME", value_parser = parse_extension)]
        by: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ends a preview and deletes its data. The next deployment begins it again
    End(ChangeArgs),
}

fn parse_extension(text: &str) -> Result<Duration, String> {
    let by = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if by.is_zero() || by > PREVIEW_EXTENSION_MAX {
        return Err("it must be more than zero and at most 30 days".to_owned());
    }
    Ok(by)
}

/// The preview of a command.
#[derive(Args, Debug)]
struct WhichPreview {
    /// The preview: pr-7, the name of an environment or of its host (pr-7-app), or prev_…
    #[arg(value_name = "PREVIEW")]
    name: String,
    /// The preview's project, if several have one of this name
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
struct ChangeArgs {
    #[command(flatten)]
    which: WhichPreview,
    /// Return when it is done
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `stagely previews`.
///
/// # Errors
/// Core cannot be reached or refuses; the preview does not exist; standard output cannot be written.
pub async fn previews(arguments: PreviewsArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        None => list(arguments.list).await,
        Some(PreviewsCommand::Open { which, endpoint }) => open(&which, endpoint.as_deref()).await,
        Some(PreviewsCommand::Logs(arguments)) => logs::logs(arguments).await,
        Some(PreviewsCommand::Exec(arguments)) => exec::exec(arguments).await,
        Some(PreviewsCommand::Sleep(change)) => {
            let FoundPreview { client, preview } = find(&change.which).await?;
            let preview = client.sleep_preview(preview.id).await?;
            change.finish(&client, preview, |preview| preview.status == PreviewStatus::Asleep).await
        }
        Some(PreviewsCommand::Wake(change)) => {
            let FoundPreview { client, preview } = find(&change.which).await?;
            let preview = client.wake_preview(preview.id).await?;
            change.finish(&client, preview, |preview| serves(preview.status)).await
        }
        Some(PreviewsCommand::Reset(change)) => {
            let FoundPreview { client, preview } = find(&change.which).await?;
            let preview = client.reset_preview(preview.id).await?;
            let is_reset = |preview: &PreviewView| {
                serves(preview.status) && preview.problem.is_none() && !wait::changes(preview)
            };
            change.finish(&client, preview, is_reset).await
        }
        Some(PreviewsCommand::Extend { which, by, json }) => {
            let FoundPreview { client, preview } = find(&which).await?;
            let extend = ExtendPreview { seconds: by.as_secs() };
            let extended = client.extend_preview(preview.id, &extend).await?;
            print(json, &extended, |preview| {
                let end = preview.ends_at.map(|at| format!(" at {}", local_time_with_zone(at)));
                format!("{} ends{} if nobody uses it", preview.label, end.unwrap_or_default())
            })
        }
        Some(PreviewsCommand::End(change)) => {
            let FoundPreview { client, preview } = find(&change.which).await?;
            let preview = client.end_preview(preview.id).await?;
            change.finish(&client, preview, |preview| preview.status == PreviewStatus::Ended).await
        }
    }
}

fn serves(status: PreviewStatus) -> bool {
    matches!(status, PreviewStatus::Live | PreviewStatus::Updating)
}

impl ChangeArgs {
    /// Waits for the end of a change if that is wanted, and prints the preview. The exit code is 1 if the preview did not get
    /// where it should.
    async fn finish(
        &self,
        client: &Client,
        preview: PreviewView,
        is_done: impl Fn(&PreviewView) -> bool,
    ) -> anyhow::Result<ExitCode> {
        let preview = if self.wait { wait_for(client, preview, &is_done).await? } else { preview };
        let text =
            |preview: &PreviewView| format!("{} is {}", preview.label, preview.status.as_str());
        print(self.json, &preview, text)?;
        if !self.wait || is_done(&preview) {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(problem) = &preview.problem {
            note(problem);
        }
        Ok(ExitCode::FAILURE)
    }
}

async fn list(ListArgs { project, all, json, server }: ListArgs) -> anyhow::Result<ExitCode> {
    let which = ListPreviews { project, all, ..ListPreviews::default() };
    let mut previews = Vec::new();
    for client in server.all_running()? {
        previews.extend(client.previews(&which).await?);
    }
    print(json, &previews, |previews| previews_text(previews, now(), terminal_width()))
}

/// The table, and what is wrong below it.
fn previews_text(previews: &[PreviewView], now: Timestamp, width: Option<usize>) -> String {
    if previews.is_empty() {
        return "no previews".to_owned();
    }
    let problems = previews
        .iter()
        .filter_map(|preview| Some(format!("\n{}: {}", preview.label, preview.problem.as_ref()?)));
    let waits = previews.iter().filter_map(|preview| {
        let waits = preview.deployment.as_ref()?.waits.as_ref()?;
        Some(format!("\n{} waits: {waits}", preview.label))
    });
    let warnings = previews.iter().flat_map(|preview| {
        preview.warnings.iter().map(|warning| format!("\n{}: {warning}", preview.label))
    });
    fitted(columns(previews, now), width)
        + &problems.chain(waits).chain(warnings).collect::<String>()
}

fn columns(previews: &[PreviewView], now: Timestamp) -> Vec<Column> {
    let column = |header, rank, cell: &dyn Fn(&PreviewView) -> String| Column {
        header,
        rank,
        cells: previews.iter().map(cell).collect(),
    };
    let left = |at: Option<Timestamp>| at.map(|at| short_time(at.since(now).as_secs()));
    vec![
        column("PREVIEW", None, &|preview| preview.label.clone()),
        column("STATUS", None, &|preview| preview.status.as_str().to_owned()),
        column("COMMIT", Some(1), &|preview| {
            preview.commit.as_ref().map(short).unwrap_or_default()
        }),
        column("URL", Some(4), &|preview| {
            preview.url.as_deref().map(without_key).unwrap_or_default()
        }),
        column("AGE", Some(2), &|preview| short_time(now.since(preview.created_at).as_secs())),
        column("SLEEPS IN", Some(3), &|preview| left(preview.sleeps_at).unwrap_or_default()),
        column("ENDS IN", Some(5), &|preview| left(preview.ends_at).unwrap_or_default()),
        column("PROJECT", Some(6), &|preview| preview.project.clone()),
        column("ENVIRONMENT", Some(7), &|preview| preview.environment.clone()),
        column("MACHINE", Some(8), &|preview| {
            preview.machine_id.map(|machine| machine.to_string()).unwrap_or_default()
        }),
        column("ID", Some(9), &|preview| preview.id.to_string()),
    ]
}

/// The address as people may see it on a screen.
fn without_key(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) => {
            url.set_query(None);
            url.to_string()
        }
        Err(_) => String::new(),
    }
}

async fn open(which: &WhichPreview, endpoint: Option<&str>) -> anyhow::Result<ExitCode> {
    let FoundPreview { preview, .. } = find(which).await?;
    let link = link(&preview, endpoint)?;
    if stdout().is_terminal() && browser::open(link) {
        writeln!(stdout(), "Opening {}", without_key(link))?;
    } else {
        writeln!(stdout(), "{link}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn link<'a>(preview: &'a PreviewView, endpoint: Option<&str>) -> anyhow::Result<&'a str> {
    let PreviewView { label, status, .. } = preview;
    if !status.is_open() {
        bail!(
            "the preview {label} is {}: a new run or a rebuild deploys it again",
            status.as_str()
        );
    }
    if let (PreviewStatus::Failed, Some(problem)) = (status, &preview.problem) {
        bail!("the preview {label} could not be deployed: {problem}");
    }
    let Some(endpoint) = endpoint else {
        let Some(url) = &preview.url else { bail!("the preview {label} has no address yet") };
        return Ok(url);
    };
    let Some(url) = preview.urls.get(endpoint) else {
        let known: Vec<&str> = preview.urls.keys().map(String::as_str).collect();
        bail!("the preview {label} has no endpoint {endpoint}; it has {}", known.join(", "));
    };
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::find::tests::preview;
    use super::*;

    const MINUTE: u64 = 60_000;

    fn live() -> PreviewView {
        PreviewView {
            commit: Some("0123abcd".repeat(5).parse().unwrap()),
            url: Some("http://pr-7-app.localhost:7780/?stagely-access=secret".to_owned()),
            sleeps_at: Some(Timestamp(12 * MINUTE)),
            ..preview("app", "pr-7")
        }
    }

    #[test]
    fn the_table_has_no_keys_and_fits_a_terminal() {
        let previews = [live(), preview("app", "main")];
        let text = previews_text(&previews, Timestamp(10 * MINUTE), None);
        assert!(text.starts_with("PREVIEW   STATUS  COMMIT        URL"), "{text}");
        assert!(text.contains("pr-7-app  live    0123abcd0123"), "{text}");
        assert!(text.contains("http://pr-7-app.localhost:7780/  10m  2m"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        for width in [40, 80] {
            let text = previews_text(&previews, Timestamp(0), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
        }
    }

    #[test]
    fn problems_stand_below_the_table() {
        let failed = PreviewView {
            problem: Some("migrate failed".to_owned()),
            warnings: vec!["the service `db` is unhealthy".to_owned()],
            ..live()
        };
        let text = previews_text(&[failed], Timestamp(0), None);
        assert!(text.contains("\npr-7-app: migrate failed\npr-7-app: the service `db`"), "{text}");
    }

    #[test]
    fn a_link_is_that_of_an_endpoint_that_exists() {
        let mut preview = live();
        preview.urls.insert("mail".to_owned(), "http://mail/".to_owned());
        assert!(link(&preview, None).unwrap().ends_with("?stagely-access=secret"));
        assert_eq!(link(&preview, Some("mail")).unwrap(), "http://mail/");
        let error = link(&preview, Some("web")).unwrap_err().to_string();
        assert_eq!(error, "the preview pr-7-app has no endpoint web; it has mail");
        preview.status = PreviewStatus::Ended;
        assert!(link(&preview, None).unwrap_err().to_string().contains("is ended: a new run"));
    }
}
