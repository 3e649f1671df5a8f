//! The result of a run: report, notes and exit code.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use console::truncate_str;
use stagely_protocol::{Digest, FailureReason, MissCause};
use stagely_state::Trigger;

use crate::api::{JobKindView, JobStatus, JobView, RunStatus, RunView, SkippedBuildView};
use crate::cli::table::table;
use crate::core::costs;

/// The width of the line about a cache miss. `stagely explain` shows all of it.
const MISS_COLUMNS: usize = 160;

/// The help on exit codes of commands that start a run.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    every build completed; with --detach: the run was started
  1    a build failed or exceeded its time limit, stagely.yaml is not valid, or a build
       needs emulation that is forbidden or not available
  2    the command line is not valid
  3    the run failed because of the registry, the repository or a machine
  4    the command could not start, or lost the connection to core
  130  the run was cancelled";

/// The exit code of a command that could not start or was interrupted.
pub const EXIT_FAILED: u8 = 4;

/// The exit code of a cancelled run: 128 + SIGINT.
pub const EXIT_CANCELLED: u8 = 130;

pub fn exit_code(run: &RunView) -> ExitCode {
    ExitCode::from(match run.status {
        RunStatus::Completed => 0,
        RunStatus::Cancelled => EXIT_CANCELLED,
        RunStatus::Pending | RunStatus::Building | RunStatus::Deploying | RunStatus::Testing => {
            EXIT_FAILED
        }
        RunStatus::Failed => {
            let mut reasons =
                run.jobs.iter().filter_map(|job| job.reason.as_ref()).chain(&run.reason);
            if reasons.any(FailureReason::is_users) { 1 } else { 3 }
        }
    })
}

/// The report on an ended run.
pub fn report(run: &RunView) -> String {
    let mut text = String::new();
    if !run.jobs.is_empty() {
        let _ = writeln!(text, "{}\n", jobs_table(&run.jobs));
    }
    for job in &run.jobs {
        for warning in &job.warnings {
            let _ = writeln!(text, "warning: {}: {warning}", job.name);
        }
    }
    for note in notes(run).into_iter().chain(images(run)) {
        let _ = writeln!(text, "{note}");
    }
    for job in run.jobs.iter().filter(|job| job.status == JobStatus::Failed) {
        if let Some(error) = &job.error {
            let _ = writeln!(text, "{} failed: {error}", job.name);
        }
        if let Some(reason) = job.reason.as_ref().filter(|reason| reason.is_out_of_memory()) {
            let _ = writeln!(text, "  {reason}");
        }
        if job.attempt > 0 {
            let _ = writeln!(text, "  its log: stagely logs {}", job.id);
        }
    }
    if let Some(error) = &run.error {
        let _ = writeln!(text, "{error}");
    }
    let time = run.ended_at.map(|ended| seconds(ended.since(run.created_at))).unwrap_or_default();
    if let Some(cost) = run.cost.and_then(|cost| costs::sentence(&cost.spending())) {
        let _ = writeln!(text, "{cost}");
    }
    let _ = write!(text, "Run {} {} after {time}", run.id, run.status.as_str());
    text
}

/// Notes on a run, each on one line: emulation, reused and skipped builds, saved machines, and cache
/// misses.
pub fn notes(run: &RunView) -> Vec<String> {
    let emulated = run
        .jobs
        .iter()
        .filter_map(|job| Some(format!("{} was built under {}", job.name, emulation(job)?)));
    let missed = run.jobs.iter().filter_map(missed_step);
    let all = emulated.chain(reused(run)).chain(run.skipped.iter().map(skipped));
    all.chain(saved_machines(run)).chain(missed).collect()
}

/// `QEMU emulation, 6.2x as long as natively`; `None` for a job that is not emulated.
pub fn emulation(job: &JobView) -> Option<String> {
    let slower = job.slow_down.map(|times| format!(", {times:.1}x as long as natively"));
    job.emulated.then(|| format!("QEMU emulation{}", slower.unwrap_or_default()))
}

/// `app_amd64, app_arm64 reused from run_…`.
fn reused(run: &RunView) -> Option<String> {
    let reused: Vec<&str> =
        run.jobs.iter().filter(|job| job.reused_from.is_some()).map(|job| &*job.name).collect();
    let from = run.reuses.map_or_else(|| "an earlier run".to_owned(), |run| run.to_string());
    (!reused.is_empty()).then(|| format!("{} reused from {from}", reused.join(", ")))
}

/// `web skipped: …, so the image of 0123abcd stands in: registry/shop/main@sha256:…`.
pub(super) fn skipped(build: &SkippedBuildView) -> String {
    let image = build.image.as_ref().map(|image| format!(": {image}"));
    format!("{} skipped: {}{}", build.build, build.reason, image.unwrap_or_default())
}

/// `1 machine saved: app_merge ran on the machine of app_arm64`.
fn saved_machines(run: &RunView) -> Option<String> {
    let name_of = |id| run.jobs.iter().find(|job| job.id == id).map(|job| &*job.name);
    let took_over = run.jobs.iter().filter_map(|job| {
        Some(format!("{} ran on the machine of {}", job.name, name_of(job.took_over?)?))
    });
    let took_over: Vec<String> = took_over.collect();
    let count = match run.saved_machines {
        0 => return None,
        1 => "1 machine saved".to_owned(),
        count => format!("{count} machines saved"),
    };
    let how =
        if took_over.is_empty() { String::new() } else { format!(": {}", took_over.join("; ")) };
    Some(count + &how)
}

/// The first cache miss of a job and its cause, as one line; `None` for a build without a cache.
fn missed_step(job: &JobView) -> Option<String> {
    let miss = job.cache_miss.as_ref().filter(|miss| miss.cause != MissCause::NoCache)?;
    let line = format!("{} missed the cache at `{}`: {}", job.name, miss.step, miss.cause);
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = truncate_str(&line, MISS_COLUMNS, "…").into_owned();
    Some(format!("{line}\n  more: stagely explain {}", job.id))
}

/// The images of the run, each with its stable reference and digest. An image index is listed instead of
/// the images that it joins. A warm-up lists its caches.
fn images(run: &RunView) -> Vec<String> {
    if run.trigger == Trigger::WarmUp {
        return caches_filled(run).into_iter().collect();
    }
    let is_joined = |job: &&JobView| {
        let mut merges = run.jobs.iter().filter(|job| job.kind == JobKindView::Merge);
        job.kind == JobKindView::Merge || !merges.any(|merge| merge.variant == job.variant)
    };
    let named = |job: &JobView| {
        let reference = job.tag.as_ref().or(job.image.as_ref())?;
        Some(format!("{reference}@{}", job.digest.as_ref()?))
    };
    run.jobs.iter().filter(is_joined).filter_map(named).collect()
}

fn caches_filled(run: &RunView) -> Option<String> {
    let filled = run.jobs.iter().filter(|job| job.status == JobStatus::Completed);
    let filled: Vec<&str> = filled.map(|job| &*job.name).collect();
    (!filled.is_empty()).then(|| format!("caches filled: {}", filled.join(", ")))
}

fn jobs_table(jobs: &[JobView]) -> String {
    let rows = jobs.iter().map(|job| {
        [
            job.name.clone(),
            platforms(job),
            status(job),
            job.digest.as_ref().map(short).unwrap_or_default(),
            duration_of(job).map(seconds).unwrap_or_default(),
            cached(job),
        ]
    });
    table(["JOB", "PLATFORM", "STATUS", "DIGEST", "TIME", "CACHED"], rows)
}

/// The platforms of a job's image, and whether it is built under emulation.
pub fn platforms(job: &JobView) -> String {
    let names = job.platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if job.emulated { names + " (emulated)" } else { names }
}

/// The status of a job; `reused` for a job that was not built again.
pub fn status(job: &JobView) -> String {
    if job.reused_from.is_some() { "reused".to_owned() } else { job.status.as_str().to_owned() }
}

/// The duration of the newest attempt.
pub fn duration_of(job: &JobView) -> Option<Duration> {
    Some(job.ended_at?.since(job.started_at?))
}

/// The number of cached steps: `3/5`.
pub fn cached(job: &JobView) -> String {
    if job.steps.is_empty() {
        return String::new();
    }
    format!("{}/{}", job.cached_steps, job.steps.len())
}

/// A short digest: `sha256:` and 8 digits, so that the table of an image for two platforms fits into 80
/// columns.
fn short(digest: &Digest) -> String {
    digest.as_str().chars().take("sha256:".len() + 8).collect()
}

/// `4.2s`, `3m 7s`.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use stagely_protocol::{CacheMiss, ChangedFile, FileChange, Step};
    use stagely_state::ids::{JobId, RunId};

    use super::*;

    /// A completed job that builds `name`.
    pub(in crate::cli) fn job(number: u8, name: &str, platform: &str) -> JobView {
        let id = |number: u8| JobId::from_bits(u128::from(number));
        let step = |name: &str, seconds, cached| Step { name: name.to_owned(), seconds, cached };
        JobView {
            id: id(number),
            run_id: RunId::from_bits(1),
            name: name.to_owned(),
            build: "app".to_owned(),
            variant: "app".to_owned(),
            kind: JobKindView::Build,
            platforms: vec![platform.parse().unwrap()],
            status: JobStatus::Completed,
            attempt: 1,
            lost_attempts: Vec::new(),
            machine_id: None,
            image: Some(format!("registry:5000/shop/main:{name}.run").parse().unwrap()),
            digest: Some(format!("sha256:{}", format!("{number:02x}").repeat(32)).parse().unwrap()),
            reason: None,
            error: None,
            exit_code: Some(0),
            warnings: Vec::new(),
            steps: vec![step("[2/3] COPY . .", 0.2, false), step("[3/3] RUN make", 9.8, false)],
            cached_steps: 0,
            cache_miss: None,
            tag: None,
            emulated: false,
            slow_down: None,
            took_over: None,
            reused_from: None,
            cost: None,
            test: None,
            wait: None,
            queue: None,
            queued_at: stagely_state::Timestamp(0),
            started_at: Some(stagely_state::Timestamp(1_000)),
            ended_at: Some(stagely_state::Timestamp(13_000)),
        }
    }

    /// A completed run of `jobs`.
    pub(in crate::cli) fn run(jobs: Vec<JobView>) -> RunView {
        RunView {
            id: RunId::from_bits(1),
            status: RunStatus::Completed,
            reason: None,
            error: None,
            cancel_reason: None,
            project_id: stagely_state::ids::ProjectId::from_bits(1),
            project: "shop".to_owned(),
            environment_id: stagely_state::ids::EnvironmentId::from_bits(1),
            environment: "main".to_owned(),
            repository: "https://host/o/shop".to_owned(),
            reference: None,
            commit: None,
            trigger: Trigger::Manual,
            created_at: stagely_state::Timestamp(0),
            ended_at: Some(stagely_state::Timestamp(14_000)),
            pull_request: None,
            from_fork: false,
            approval: stagely_state::Approval::NotNeeded,
            reuses: None,
            skipped: Vec::new(),
            saved_machines: 0,
            live_machines: 0,
            cost: None,
            wait: None,
            jobs,
        }
    }

    /// A run of one image for two platforms, of which one is emulated. The merge took over its machine.
    fn of_two_platforms() -> RunView {
        let mut arm64 = job(2, "app_arm64", "linux/arm64");
        arm64.emulated = true;
        arm64.slow_down = Some(6.24);
        let mut merge = job(3, "app_merge", "linux/amd64");
        merge.kind = JobKindView::Merge;
        merge.platforms.push("linux/arm64".parse().unwrap());
        merge.steps.clear();
        merge.took_over = Some(arm64.id);
        merge.tag = Some("registry:5000/shop/main:app".parse().unwrap());
        let mut run = run(vec![job(1, "app_amd64", "linux/amd64"), arm64, merge]);
        run.saved_machines = 1;
        run
    }

    #[test]
    fn the_report_shows_tag_digest_emulation_and_saved_machines() {
        let text = report(&of_two_platforms());
        let digest = "03".repeat(32);
        assert!(
            text.contains(&format!("\nregistry:5000/shop/main:app@sha256:{digest}\n")),
            "{text}"
        );
        assert_eq!(text.matches("@sha256:").count(), 1, "{text}");
        assert!(text.contains("linux/arm64 (emulated)    completed"), "{text}");
        let slower = "app_arm64 was built under QEMU emulation, 6.2x as long as natively\n";
        assert!(text.contains(slower), "{text}");
        let saved = "1 machine saved: app_merge ran on the machine of app_arm64\n";
        assert!(text.contains(saved), "{text}");
        assert!(text.contains("  0/2\n"), "{text}");
        let widths = text.lines().take(4).map(|line| line.chars().count());
        assert!(widths.max() <= Some(80), "{text}");
    }

    #[test]
    fn the_report_shows_skipped_reused_and_warmed_up_builds() {
        let mut run = of_two_platforms();
        run.reuses = Some(RunId::from_bits(7));
        run.jobs[0].reused_from = Some(JobId::from_bits(9));
        let image = format!("registry:5000/shop/main@sha256:{}", "ab".repeat(32));
        run.skipped.push(SkippedBuildView {
            build: "web".to_owned(),
            reason: "nothing in its paths changed, so the image of 0123abcd stands in".to_owned(),
            image: Some(image.parse().unwrap()),
        });
        let text = report(&run);
        let reused = format!("app_amd64 reused from {}\n", RunId::from_bits(7));
        assert!(
            text.contains(&reused) && text.contains("linux/amd64  ") && text.contains("  reused")
        );
        let skipped = format!("so the image of 0123abcd stands in: {image}\n");
        assert!(text.contains(&skipped), "{text}");

        run.trigger = Trigger::WarmUp;
        let text = report(&run);
        assert!(text.contains("caches filled: app_amd64, app_arm64, app_merge\n"), "{text}");
        assert!(!text.contains("main:app@sha256"), "{text}");
    }

    #[test]
    fn the_exit_code_depends_on_the_cause_of_a_failure() {
        let failed_with = |reason| {
            let mut run = run(vec![job(1, "app", "linux/arm64")]);
            run.status = RunStatus::Failed;
            run.jobs[0].reason = Some(reason);
            exit_code(&run)
        };
        assert_eq!(failed_with(FailureReason::Emulation), ExitCode::from(1));
        assert_eq!(failed_with(FailureReason::NoCapacity), ExitCode::from(3));
        let mut completed = run(Vec::new());
        assert_eq!(exit_code(&completed), ExitCode::from(0));
        completed.status = RunStatus::Cancelled;
        assert_eq!(exit_code(&completed), ExitCode::from(EXIT_CANCELLED));
    }

    #[test]
    fn a_cache_miss_is_one_line_and_a_build_without_a_cache_has_none() {
        let mut run = run(vec![job(1, "app_amd64", "linux/amd64")]);
        let file = |path: &str| ChangedFile { path: path.to_owned(), change: FileChange::Changed };
        let files =
            (0..20).map(|number| file(&format!("src/a/long/way/down/{number}.rs"))).collect();
        let step = "[2/3] COPY . .".to_owned();
        run.jobs[0].cache_miss =
            Some(CacheMiss { step: step.clone(), cause: MissCause::Files { count: 20, files } });
        let notes = notes(&run);
        let (line, more) = notes[0].split_once('\n').unwrap();
        assert!(line.starts_with("app_amd64 missed the cache at `[2/3] COPY . .`: copied files"));
        assert!(line.chars().count() <= MISS_COLUMNS && line.ends_with('…'), "{line}");
        assert!(more.contains("stagely explain job_"), "{more}");

        run.jobs[0].cache_miss = Some(CacheMiss { step, cause: MissCause::NoCache });
        assert!(super::notes(&run).is_empty());
    }
}
