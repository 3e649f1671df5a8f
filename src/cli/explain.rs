//! `stagely explain`: where a job's time went, which steps the cache did not have, and what to do.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use console::{measure_text_width, style, truncate_str};
use stagely_agent::protocol::{CacheMiss, MissCause, Step};

use super::connect::ServerArgs;
use super::embedded::Records;
use super::records::print;
use super::run::outcome::{cached, duration_of, emulation, seconds};
use crate::api::{JobKindView, JobStatus, JobView, RunView};
use crate::client::Client;
use crate::ids::{JobId, RunId};

/// The columns of a step's name: with its time, its mark and its bar a line has 80.
const NAME_COLUMNS: usize = 50;
/// The columns of the longest bar.
const BAR_COLUMNS: usize = 12;
/// A step that takes less is not worth a change of the Dockerfile.
const EXPENSIVE_SECONDS: f64 = 1.0;

/// Says where a job's time went, why it missed the cache, and what to do about it
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The job, job_…, or its run, run_…
    #[arg(value_name = "JOB|RUN")]
    id: Id,
    /// The job's name in the run; not needed where the run has one job, or with a job's id
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print the job as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    Job(JobId),
    Run(RunId),
}

impl std::str::FromStr for Id {
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
/// A core that cannot be asked; a job that is not there; standard output that cannot be written.
pub async fn explain(arguments: ExplainArgs) -> anyhow::Result<ExitCode> {
    let records = Records::open(&arguments.server).await?;
    let found = find(records.client(), arguments.id, arguments.name.as_deref()).await;
    records.close().await?;
    let (run, job) = found?;
    print(arguments.json, &job, |job| text(&run, job))
}

/// The job, and its run, which knows the other jobs' names.
async fn find(client: &Client, id: Id, name: Option<&str>) -> anyhow::Result<(RunView, JobView)> {
    let run = match id {
        Id::Job(job) => client.run(client.job(job).await?.run_id).await?,
        Id::Run(run) => client.run(run).await?,
    };
    let job = match (id, name, &run.jobs[..]) {
        (Id::Job(id), ..) => run.jobs.iter().find(|job| job.id == id).context("the job is gone")?,
        (Id::Run(_), Some(name), jobs) => match jobs.iter().find(|job| job.name == name) {
            Some(job) => job,
            None => bail!("{} has no job {name:?}; it has: {}", run.id, names(jobs)),
        },
        (Id::Run(_), None, [job]) => job,
        (Id::Run(_), None, []) => bail!("{} has no jobs", run.id),
        (Id::Run(_), None, jobs) => bail!("say which job of {}: {}", run.id, names(jobs)),
    };
    let job = job.clone();
    Ok((run, job))
}

fn names(jobs: &[JobView]) -> String {
    jobs.iter().map(|job| &*job.name).collect::<Vec<_>>().join(", ")
}

/// All that is to be said of a job.
fn text(run: &RunView, job: &JobView) -> String {
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

/// How the job went, a fact a line.
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
        let _ = write!(text, "\nIt took over the machine of {}: one less.", name_of(other));
    }
    if let Some(earlier) = job.kept_from {
        let _ = write!(text, "\nIt was not built again: its image is that of {earlier}.");
    }
    for lost in &job.lost_attempts {
        let _ = write!(text, "\nAttempt {} came to nothing: {}", lost.attempt, lost.message);
    }
    if job.attempt > 1 {
        let _ = write!(text, "\nWhat follows is of attempt {}.", job.attempt);
    }
    text
}

/// A line for each step: its name, its time, and its share of the time or that it was cached.
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
    let title = style("The first step that the cache did not have").bold();
    let mut text = format!("{title}\n  {}", miss.step);
    let MissCause::Files { count, files } = &miss.cause else {
        let _ = write!(text, "\n{}", wrapped(&miss.cause.to_string()));
        return text;
    };
    text.push_str("\n  copied files are not what they were:");
    for file in files {
        let _ = write!(text, "\n    {} ({})", file.path, file.change);
    }
    if let more @ 1.. = count.saturating_sub(files.len()) {
        let _ = write!(text, "\n    and {more} more");
    }
    text
}

/// Sentences on what would make the job faster next time.
fn advice(run: &RunView, job: &JobView) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(miss) = &job.cache_miss {
        advice.push(advice_on_miss(run, job, miss));
    }
    if job.emulated {
        let platform = job.platforms.first().map(ToString::to_string).unwrap_or_default();
        let arch = platform.trim_start_matches("linux/");
        advice.push(format!(
            "Give core a machine that builds {platform} natively: `stagely machines add --arch {arch}` \
             registers one of your own. `emulation: forbid` in stagely.yaml refuses to go without."
        ));
    }
    let is_slow_build = job.kind == JobKindView::Build && job.status == JobStatus::Completed;
    if advice.is_empty() && is_slow_build && !job.steps.is_empty() {
        advice.push("Nothing: every step came from the cache.".to_owned());
    }
    advice
}

fn advice_on_miss(run: &RunView, job: &JobView, miss: &CacheMiss) -> String {
    let again = built_again(&job.steps, &miss.step);
    let cost: f64 = again.iter().map(|step| step.seconds).sum();
    let dearest = again.iter().copied().filter(|step| step.name != miss.step);
    let dearest = dearest.max_by(|one, other| one.seconds.total_cmp(&other.seconds));
    let dearest = dearest.filter(|step| step.seconds >= EXPENSIVE_SECONDS);
    let because = format!("{cost:.1}s went into what was built again because of it.");
    match (&miss.cause, dearest) {
        (MissCause::NoCache, _) => format!(
            "Nothing: this build fills the cache. `stagely warm {}` fills it beforehand.",
            run.project
        ),
        (MissCause::Instruction, _) => format!(
            "An instruction that is changed repeats all that follow it in its stage. Put what \
             changes often last. {because}"
        ),
        (MissCause::BuildArgs { names }, _) => format!(
            "Declare `ARG {}` just before the step that needs it: a new value repeats every RUN \
             after the declaration. {because}",
            names.join("`, `ARG ")
        ),
        (MissCause::BaseImage { .. }, _) => format!(
            "A new base image repeats the whole stage, once. Name the base by digest in FROM to \
             choose when. {because}"
        ),
        (MissCause::Files { .. }, Some(step)) if copies_everything(&miss.step) => format!(
            "`{}` takes in every file, so that any change repeats `{}` ({:.1}s). Copy only what that \
             step needs before it, and everything else after it; name what no step needs in \
             .dockerignore.",
            instruction(&miss.step),
            instruction(&step.name),
            step.seconds
        ),
        (MissCause::Files { .. }, Some(step)) => format!(
            "`{}` ({:.1}s) comes after these files. If it does not need them, copy them after it; if \
             it needs some, copy those alone before it.",
            instruction(&step.name),
            step.seconds
        ),
        (MissCause::Files { .. }, None) => {
            format!("Nothing: little was built again because of these files. {because}")
        }
        (MissCause::Unknown, _) => format!(
            "Look for warnings about the cache in `stagely logs {}` and in that of the run before; a \
             registry that deletes old images deletes caches too. `stagely warm {}` fills them. \
             {because}",
            job.id, run.project
        ),
    }
}

/// The steps of the missed step's stage that were built again, from it on.
fn built_again<'a>(steps: &'a [Step], missed: &str) -> Vec<&'a Step> {
    let from = steps.iter().position(|step| step.name == missed).unwrap_or(0);
    let is_hit = |step: &&Step| !step.cached && stage(&step.name) == stage(missed);
    steps[from..].iter().filter(is_hit).collect()
}

/// `build linux/arm64` of `[build linux/arm64 3/5] RUN make`; empty where the stage has no name.
fn stage(step: &str) -> &str {
    let brackets = step.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let words = brackets.map_or("", |(inside, _)| inside);
    words.rsplit_once(' ').map_or("", |(stage, _)| stage)
}

/// `RUN make` of `[build 3/5] RUN make`, in one line and not too long.
fn instruction(step: &str) -> String {
    let text =
        step.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(step, |it| it.1);
    truncate_str(&one_line(text), NAME_COLUMNS, "…").into_owned()
}

/// The same without line breaks, which instructions may have.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a step is `COPY . …` or `ADD ./ …`.
fn copies_everything(step: &str) -> bool {
    let instruction = instruction(step);
    let mut words = instruction.split(' ').filter(|word| !word.starts_with("--"));
    matches!(words.next(), Some("COPY" | "ADD")) && matches!(words.next(), Some("." | "./"))
}

/// Lines of at most 80 columns, indented by two.
fn wrapped(text: &str) -> String {
    const COLUMNS: usize = 80;
    let mut lines = vec![String::from(" ")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if measure_text_width(line) + 1 + measure_text_width(word) > COLUMNS && line.len() > 1 {
            lines.push(format!("  {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use stagely_agent::protocol::{ChangedFile, FileChange};

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
        let text = text(&run(vec![job.clone()]), job);
        for line in text.lines() {
            assert!(measure_text_width(line) <= 80, "{line}");
        }
        text
    }

    #[test]
    fn a_copy_of_everything_before_an_expensive_step_is_found() {
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
    fn each_cause_is_told_with_what_to_do() {
        let names = vec!["VERSION".to_owned()];
        let base = MissCause::BaseImage { was: "a@sha256:1".into(), is: "a@sha256:2".into() };
        for (cause, advice) in [
            (MissCause::NoCache, "`stagely warm shop` fills it"),
            (MissCause::Instruction, "Put what changes often last"),
            (MissCause::BuildArgs { names }, "Declare `ARG VERSION` just before"),
            (base, "by digest in FROM"),
            (MissCause::Unknown, "`stagely logs job_"),
        ] {
            let said = cause.to_string();
            let text = one_line(&explained(&missed(cause)));
            assert!(text.contains(&said) && text.contains(advice), "{text}");
        }
    }

    #[test]
    fn what_is_unusual_about_a_job_is_told() {
        let mut other = job(2, "app_arm64", "linux/arm64");
        other.emulated = true;
        other.slow_down = Some(6.24);
        let mut merge = job(3, "app_merge", "linux/amd64");
        merge.took_over = Some(other.id);
        let run = run(vec![other.clone(), merge.clone()]);
        let said = text(&run, &merge);
        assert!(said.contains("took over the machine of app_arm64"), "{said}");
        let said = one_line(&text(&run, &other));
        assert!(said.contains("QEMU emulation, 6.2x slower than native."), "{said}");
        assert!(said.contains("stagely machines add --arch arm64"), "{said}");
    }

    #[test]
    fn stages_are_told_apart_by_their_names() {
        assert_eq!(stage("[build linux/arm64 3/5] RUN make"), "build linux/arm64");
        assert_eq!(stage("[3/5] RUN make"), "");
        assert_eq!(stage("exporting to image"), "");
        assert!(copies_everything("[2/3] COPY --link . /src"));
        assert!(!copies_everything("[2/3] COPY src ."));
        assert_eq!(instruction("[2/3] RUN a \\\n    b"), "RUN a \\ b");
    }
}
