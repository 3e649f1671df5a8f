//! `stagely explain`: a job's time by step, its cache misses, and advice.

mod advice;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use console::{measure_text_width, style, truncate_str};
use stagely_protocol::{CacheMiss, MissCause, Step};
use stagely_state::ids::{JobId, RunId};

use self::advice::advice;
use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::print;
use super::run::outcome::{cached, duration_of, emulation, seconds};
use crate::api::{JobView, RunView};
use crate::client::Client;

/// The width of a line.
const COLUMNS: usize = 80;
/// The width of a step's name. With its time and its bar, the line is [`COLUMNS`] wide.
const NAME_COLUMNS: usize = 50;
/// The width of the longest bar.
const BAR_COLUMNS: usize = 12;

/// Shows where a job's time went, why it missed the cache, and how to make it faster
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The job, job_…, or its run, run_…
    #[arg(value_name = "JOB|RUN")]
    target: JobOrRun,
    /// The job's name in the run. Not needed with a job's id, or if the run has only one job
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print the job as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug)]
enum JobOrRun {
    Job(JobId),
    Run(RunId),
}

impl std::str::FromStr for JobOrRun {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let job = text.parse().map(Self::Job);
        job.or_else(|_| text.parse().map(Self::Run))
            .map_err(|_| "not the id of a job or a run: `job_01h…`, `run_01h…`".to_owned())
    }
}

/// Runs `stagely explain`.
///
/// # Errors
/// Core cannot be reached; the job does not exist; standard output cannot be written.
pub async fn explain(arguments: ExplainArgs) -> anyhow::Result<ExitCode> {
    let get = async |client: &Client| match arguments.target {
        JobOrRun::Job(job) => client.run(client.job(job).await?.run_id).await,
        JobOrRun::Run(run) => client.run(run).await,
    };
    let (core, run) = CoreHandle::find(&arguments.server, get).await?;
    core.close().await?;
    let job = find(&run, arguments.target, arguments.name.as_deref())?;
    print(arguments.json, &job, |job| explanation(&run, job))
}

/// Finds the job in its run.
fn find(run: &RunView, target: JobOrRun, name: Option<&str>) -> anyhow::Result<JobView> {
    let job = match (target, name, &run.jobs[..]) {
        (JobOrRun::Job(id), ..) => {
            run.jobs.iter().find(|job| job.id == id).context("the job no longer exists")?
        }
        (JobOrRun::Run(_), Some(name), jobs) => match jobs.iter().find(|job| job.name == name) {
            Some(job) => job,
            None => bail!("{} has no job {name:?}; it has: {}", run.id, names(jobs)),
        },
        (JobOrRun::Run(_), None, [job]) => job,
        (JobOrRun::Run(_), None, []) => bail!("{} has no jobs", run.id),
        (JobOrRun::Run(_), None, jobs) => bail!("name one job of {}: {}", run.id, names(jobs)),
    };
    Ok(job.clone())
}

fn names(jobs: &[JobView]) -> String {
    jobs.iter().map(|job| &*job.name).collect::<Vec<_>>().join(", ")
}

fn explanation(run: &RunView, job: &JobView) -> String {
    let mut parts = vec![headline(run, job)];
    if !job.steps.is_empty() {
        parts.push(steps_text(&job.steps));
    }
    if let Some(miss) = &job.cache_miss {
        parts.push(miss_text(miss));
    }
    let advice = advice(run, job);
    if !advice.is_empty() {
        let list = advice.iter().map(|advice| wrapped(advice)).collect::<Vec<_>>().join("\n");
        parts.push(format!("{}\n{list}", style("What to do").bold()));
    }
    parts.join("\n\n")
}

/// The result of the job, one fact on each line.
fn headline(run: &RunView, job: &JobView) -> String {
    let mut text = format!("{} of {}: {}", style(&job.name).bold(), run.id, job.status.as_str());
    if let Some(time) = duration_of(job) {
        let _ = write!(text, " after {}", seconds(time));
    }
    if !job.steps.is_empty() {
        let _ = write!(text, "\n{} steps came from the cache.", cached(job));
    }
    if let Some(error) = &job.error {
        let _ = write!(text, "\n{error}");
    }
    if let Some(emulation) = emulation(job) {
        let _ = write!(text, "\n{}", style(format!("Built under {emulation}.")).yellow());
    }
    let name_of = |id: JobId| {
        let other = run.jobs.iter().find(|other| other.id == id);
        other.map_or_else(|| id.to_string(), |other| other.name.clone())
    };
    if let Some(other) = job.took_over {
        let _ = write!(
            text,
            "\nIt took over the machine of {}, so no other was launched.",
            name_of(other)
        );
    }
    if let Some(earlier) = job.reused_from {
        let _ = write!(text, "\nIt was not built again: it reuses the image of {earlier}.");
    }
    for lost in &job.lost_attempts {
        let _ = write!(text, "\nAttempt {} was lost: {}", lost.attempt, lost.message);
    }
    if job.attempt > 1 {
        let _ = write!(text, "\nThe following is about attempt {}.", job.attempt);
    }
    text
}

/// One line for each step: its name, its time, and its share of the time or that it was cached.
fn steps_text(steps: &[Step]) -> String {
    let all: f64 = steps.iter().filter(|step| !step.cached).map(|step| step.seconds).sum();
    let line = |step: &Step| {
        let name = one_line(&step.name);
        let name = truncate_str(&name, NAME_COLUMNS, "…");
        let gap = " ".repeat(NAME_COLUMNS - measure_text_width(&name));
        if step.cached {
            return format!("{}", style(format!("{name}{gap}           cached")).dim());
        }
        let share = if all > 0.0 { step.seconds / all } else { 0.0 };
        let line = format!("{name}{gap} {:>8.1}s  {}", step.seconds, style(bar(share)).cyan());
        line.trim_end().to_owned()
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn bar(share: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a few columns"
    )]
    let columns = (share.clamp(0.0, 1.0) * BAR_COLUMNS as f64).round() as usize;
    if columns == 0 {
        String::new()
    } else {
        format!("{} {:.0}%", "█".repeat(columns), share * 100.0)
    }
}

fn miss_text(miss: &CacheMiss) -> String {
    let title = style("The first step that was not in the cache").bold();
    let mut text = format!("{title}\n{}", wrapped(&miss.step));
    let MissCause::Files { count, files } = &miss.cause else {
        let _ = write!(text, "\n{}", wrapped(&miss.cause.to_string()));
        return text;
    };
    text.push_str("\n  copied files have changed:");
    for file in files {
        let change = format!(" ({})", file.change);
        let path = end_of(&file.path, COLUMNS - 4 - change.len());
        let _ = write!(text, "\n    {path}{change}");
    }
    if let more @ 1.. = count.saturating_sub(files.len()) {
        let _ = write!(text, "\n    and {more} more");
    }
    text
}

/// Removes line breaks, which instructions can contain.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Shortens a path to its end, as one line of at most `columns`.
fn end_of(path: &str, columns: usize) -> String {
    let path: String =
        path.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    if measure_text_width(&path) <= columns {
        return path;
    }
    let ends = path.char_indices().map(|(at, _)| &path[at..]);
    let mut fitting = ends.filter(|end| measure_text_width(end) < columns);
    format!("…{}", fitting.next().unwrap_or_default())
}

/// Wraps text to lines of at most [`COLUMNS`], indented by two. Splits words that are longer than a line.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::from(" ")];
    for word in text.split_whitespace().flat_map(|word| pieces(word, COLUMNS - 2)) {
        let line = lines.last_mut().expect("there is always a line");
        if measure_text_width(line) + 1 + measure_text_width(&word) > COLUMNS && line.len() > 1 {
            lines.push(format!("  {word}"));
        } else {
            line.push(' ');
            line.push_str(&word);
        }
    }
    lines.join("\n")
}

/// Splits a word into pieces of at most `columns`.
fn pieces(word: &str, columns: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut width = 0;
    for letter in word.chars() {
        let letter = letter.to_string();
        let more = measure_text_width(&letter);
        if width + more > columns {
            pieces.push(String::new());
            width = 0;
        }
        width += more;
        pieces.last_mut().expect("there is always a piece").push_str(&letter);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{ChangedFile, FileChange};

    use super::*;
    use crate::cli::run::outcome::tests::{job, run};

    fn files(count: usize, paths: &[&str]) -> MissCause {
        let changed =
            |path: &&str| ChangedFile { path: (*path).to_owned(), change: FileChange::Changed };
        MissCause::Files { count, files: paths.iter().map(changed).collect() }
    }

    fn missed(cause: MissCause) -> JobView {
        let step = "[2/3] COPY . .".to_owned();
        JobView {
            cache_miss: Some(CacheMiss { step, cause }),
            ..job(1, "app_amd64", "linux/amd64")
        }
    }

    fn explained(job: &JobView) -> String {
        let text = explanation(&run(vec![job.clone()]), job);
        for line in text.lines() {
            assert!(measure_text_width(line) <= 80, "{line}");
        }
        text
    }

    #[test]
    fn copying_everything_before_an_expensive_step_is_advised_against() {
        let mut job = missed(files(22, &["src/main.c", "README.md"]));
        job.steps
            .insert(0, Step { name: "[1/3] WORKDIR /s".to_owned(), seconds: 0.0, cached: true });
        job.cached_steps = 1;
        let text = explained(&job);
        assert!(text.contains("completed after 12.0s\n1/3 steps came from the cache."), "{text}");
        assert!(text.contains("[1/3] WORKDIR /s ") && text.contains("   cached\n"), "{text}");
        assert!(text.contains("9.8s  ████████████ 98%"), "{text}");
        let list = "    src/main.c (changed)\n    README.md (changed)\n    and 20 more\n";
        assert!(text.contains(list), "{text}");
        let text = one_line(&text);
        assert!(text.contains("any change repeats `RUN make` (9.8s)"), "{text}");
        assert!(text.contains(".dockerignore"), "{text}");
    }

    #[test]
    fn long_steps_and_paths_are_wrapped_and_cut() {
        let deep = format!("{}main.c", "deeper/".repeat(30));
        let mut job = missed(files(2, &[&deep, "two\nlines"]));
        let step =
            format!("[2/3] RUN apt-get update \\\n    && apt-get install {}", "x".repeat(200));
        job.steps[0].name.clone_from(&step);
        job.cache_miss.as_mut().unwrap().step = step;
        let text = explained(&job);
        assert!(
            text.contains("\n  [2/3] RUN apt-get update \\ && apt-get install\n  xxx"),
            "{text}"
        );
        let cut = "deeper/main.c (changed)\n    two?lines (changed)\n";
        assert!(text.contains("\n    …") && text.contains(cut), "{text}");
        assert_eq!(end_of("seite/größe.c", 9), "…/größe.c");
        assert_eq!(end_of("größe.c", 7), "größe.c");
    }

    #[test]
    fn there_is_no_advice_only_if_every_step_was_cached() {
        let mut job = job(1, "app_amd64", "linux/amd64");
        assert!(!explained(&job).contains("What to do"));
        job.steps.iter_mut().for_each(|step| step.cached = true);
        job.cached_steps = job.steps.len();
        assert!(explained(&job).contains("Nothing: every step came from the cache."));
    }

    #[test]
    fn each_cause_has_advice() {
        let names = vec!["VERSION".to_owned()];
        let base = MissCause::BaseImage { was: "a@sha256:1".into(), is: "a@sha256:2".into() };
        for (cause, advice) in [
            (MissCause::NoCache, "`stagely warm shop` fills it"),
            (MissCause::NotRecorded, "The next build is compared with this one"),
            (MissCause::Instruction, "Put instructions that change often last"),
            (MissCause::BuildArgs { names }, "Declare `ARG VERSION` just before"),
            (base, "by digest in FROM"),
            (MissCause::Unknown, "`stagely logs job_"),
        ] {
            let message = cause.to_string();
            let text = one_line(&explained(&missed(cause)));
            assert!(text.contains(&message) && text.contains(advice), "{text}");
        }
    }

    #[test]
    fn unusual_facts_about_a_job_are_shown() {
        let mut other = job(2, "app_arm64", "linux/arm64");
        other.emulated = true;
        other.slow_down = Some(6.24);
        let mut merge = job(3, "app_merge", "linux/amd64");
        merge.took_over = Some(other.id);
        let run = run(vec![other.clone(), merge.clone()]);
        let shown = explanation(&run, &merge);
        assert!(shown.contains("took over the machine of app_arm64"), "{shown}");
        let shown = one_line(&explanation(&run, &other));
        assert!(shown.contains("QEMU emulation, 6.2x as long as natively."), "{shown}");
        assert!(shown.contains("stagely machines add --arch arm64"), "{shown}");
    }
}
