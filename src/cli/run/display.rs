//! Shows the progress of a run on standard error: on a terminal one changing line for each job, elsewhere
//! every line of every log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::Duration;

use console::{strip_ansi_codes, style};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stagely_state::Timestamp;
use stagely_state::ids::JobId;

use super::outcome::{cached, duration_of, emulation, seconds, skipped};
use crate::api::{FollowedLine, JobStatus, JobView, LostAttempt, RunStatus, RunView, WaitView};
use crate::core::clock::now;

/// The last log lines of a failed job that are shown on a terminal.
const TAIL_LINES: usize = 30;

/// The interval of updating the times on the screen.
const REDRAW: Duration = Duration::from_millis(100);

/// The start of the agent's lines that are always shown.
const WARNING: &str = "WARNING: ";

#[derive(Debug)]
pub(super) struct Display {
    screen: Screen,
    jobs: BTreeMap<JobId, JobProgress>,
    run_status: Option<RunStatus>,
    run_wait: Option<WaitView>,
}

#[derive(Debug)]
enum Screen {
    Live(MultiProgress),
    Plain,
}

/// The progress of a job, from its log lines.
#[derive(Debug)]
struct JobProgress {
    /// Padded to the longest name.
    name: String,
    status: JobStatus,
    wait: Option<WaitView>,
    /// The number of lost attempts that were reported.
    reported_losses: usize,
    /// The attempt of the step and the lines below.
    shown_attempt: u32,
    emulated: bool,
    step: String,
    /// The numbers of `BuildKit` steps that have started.
    seen: BTreeSet<u32>,
    tail: VecDeque<String>,
    bar: ProgressBar,
}

impl Display {
    /// A live display on a terminal, elsewhere a plain one.
    pub(super) fn new() -> Self {
        let screen =
            if stderr().is_terminal() { Screen::Live(MultiProgress::new()) } else { Screen::Plain };
        Self { screen, jobs: BTreeMap::new(), run_status: None, run_wait: None }
    }

    pub(super) fn print(&self, text: &str) {
        match &self.screen {
            // A closed terminal does not stop the run.
            Screen::Live(bars) => drop(bars.println(text)),
            Screen::Plain => drop(writeln!(stderr(), "{text}")),
        }
    }

    /// Shows the new state of the run.
    pub(super) fn show_run(&mut self, run: &RunView) {
        if self.run_status.replace(run.status) != Some(run.status) {
            self.announce(run);
        }
        if self.run_wait != run.wait {
            self.run_wait.clone_from(&run.wait);
            if let Some(wait) = run.wait.as_ref().and_then(waiting) {
                self.print(&format!("Waiting: {wait}"));
            }
        }
        let width = run.jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
        for job in &run.jobs {
            self.show_job(job, width);
        }
    }

    /// Prints the run's new status.
    fn announce(&self, run: &RunView) {
        match run.status {
            RunStatus::Pending => {
                let reference = run.reference.as_deref().unwrap_or("the default branch");
                self.print(&format!("Reading stagely.yaml at {reference}"));
            }
            RunStatus::Building => {
                let count = run.jobs.len();
                let jobs = if count == 1 { "1 job".to_owned() } else { format!("{count} jobs") };
                let commit = run.commit.as_ref().map(ToString::to_string).unwrap_or_default();
                self.print(&format!("Building {commit}: {jobs}"));
                for build in &run.skipped {
                    self.print(&skipped(build));
                }
            }
            RunStatus::Deploying => self.print("Deploying the preview"),
            RunStatus::Testing => self.print("Testing"),
            RunStatus::Completed | RunStatus::Failed | RunStatus::Cancelled => {}
        }
    }

    /// Shows the new state of a job. `width` is that of the longest name.
    fn show_job(&mut self, job: &JobView, width: usize) {
        let screen = &self.screen;
        let progress =
            self.jobs.entry(job.id).or_insert_with(|| JobProgress::new(job, width, screen));
        let old = std::mem::replace(&mut progress.status, job.status);
        if job.status == JobStatus::Running && old != JobStatus::Running {
            progress.bar.reset_elapsed();
        }
        progress.emulated = job.emulated;
        progress.draw(job);
        let mut lines = progress.new_losses(job);
        lines.extend(progress.new_wait(job, matches!(screen, Screen::Live(_))));
        if old != job.status {
            lines.extend(progress.change(job, matches!(screen, Screen::Live(_))));
        }
        for line in lines {
            self.print(&line);
        }
    }

    pub(super) fn show_lines(&mut self, job: JobId, attempt: u32, lines: &[FollowedLine<'_>]) {
        let Some(progress) = self.jobs.get_mut(&job) else { return };
        progress.switch_to(attempt);
        let mut printed = Vec::new();
        for line in lines {
            progress.take_line(&line.data);
            match &self.screen {
                Screen::Plain => printed.push(format!("{} | {}", progress.name, line.data)),
                Screen::Live(_) if line.data.starts_with(WARNING) => {
                    let text = strip_ansi_codes(&line.data);
                    printed.push(format!(
                        "{} {}",
                        style(&progress.name).bold(),
                        style(text).yellow()
                    ));
                }
                Screen::Live(_) => {}
            }
        }
        for line in printed {
            self.print(&line);
        }
    }

    /// Stops updating the screen.
    pub(super) fn end(self) {
        for job in self.jobs.values().filter(|job| !job.status.is_final()) {
            job.bar.abandon();
        }
    }
}

impl JobProgress {
    fn new(job: &JobView, width: usize, screen: &Screen) -> Self {
        let bar = match screen {
            Screen::Live(bars) => bars.add(ProgressBar::new_spinner()),
            Screen::Plain => ProgressBar::hidden(),
        };
        bar.set_style(moving());
        let name = format!("{:width$}", job.name);
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(REDRAW);
        Self {
            name,
            status: JobStatus::Queued,
            wait: None,
            reported_losses: 0,
            shown_attempt: 0,
            emulated: false,
            step: String::new(),
            seen: BTreeSet::new(),
            tail: VecDeque::new(),
            bar,
        }
    }

    /// Forgets the lines of earlier attempts.
    fn switch_to(&mut self, attempt: u32) {
        if attempt != self.shown_attempt {
            self.shown_attempt = attempt;
            self.step.clear();
            self.seen.clear();
            self.tail.clear();
        }
    }

    fn take_line(&mut self, line: &str) {
        if let Some(step) = step_of(line, &mut self.seen) {
            self.step = strip_ansi_codes(step).into_owned();
            self.bar.set_message(self.at_step());
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }

    fn at_step(&self) -> String {
        if self.emulated { format!("emulated: {}", self.step) } else { self.step.clone() }
    }

    fn draw(&self, job: &JobView) {
        let mark = match job.status {
            JobStatus::Queued | JobStatus::Provisioning => {
                let reason = job.queue.as_ref().map(|queue| format!(": {}", queue.reason));
                let wait = job.wait.as_ref().and_then(waiting).map(|wait| format!(": {wait}"));
                let why = wait.or(reason).unwrap_or_default();
                return self.bar.set_message(format!("{}{why}", job.status.as_str()));
            }
            JobStatus::Running if self.step.is_empty() || self.shown_attempt != job.attempt => {
                return self.bar.set_message("starting");
            }
            JobStatus::Running => return,
            JobStatus::Completed => style("✓").green(),
            JobStatus::Failed => style("✗").red(),
            JobStatus::Cancelled => style("-").dim(),
        };
        if !self.bar.is_finished() {
            self.bar.set_style(still());
            self.bar.set_prefix(format!("{mark} {}", self.name));
            self.bar.finish_with_message(ending(job));
        }
    }

    /// Messages about attempts that were lost since the last call.
    fn new_losses(&mut self, job: &JobView) -> Vec<String> {
        let new = job.lost_attempts.iter().skip(self.reported_losses);
        let message = |lost: &LostAttempt| {
            format!("{}: attempt {} was lost: {}", job.name, lost.attempt, lost.reason)
        };
        let messages = new.map(message).collect();
        self.reported_losses = job.lost_attempts.len();
        messages
    }

    /// A message about a try that has failed since the last call. On a terminal the job's own line has it.
    fn new_wait(&mut self, job: &JobView, is_live: bool) -> Option<String> {
        if self.wait == job.wait {
            return None;
        }
        self.wait.clone_from(&job.wait);
        let wait = job.wait.as_ref().and_then(waiting).filter(|_| !is_live)?;
        Some(format!("{}: waiting: {wait}", job.name))
    }

    /// Messages about a new status, beside the job's own line.
    fn change(&self, job: &JobView, is_live: bool) -> Vec<String> {
        let name = &job.name;
        let mut lines = Vec::new();
        match job.status {
            JobStatus::Failed => {
                if is_live {
                    lines.extend(self.tail.iter().map(|line| format!("{} | {line}", self.name)));
                }
                // The report has the full error.
                let reason = job.reason.as_ref().map(ToString::to_string).unwrap_or_default();
                lines.push(format!("{} {reason}", style(format!("{name} failed:")).red().bold()));
            }
            JobStatus::Completed if !is_live => lines.push(format!("{name}: {}", ending(job))),
            JobStatus::Running if !is_live && job.emulated => {
                lines.push(format!("{name}: running under emulation"));
            }
            status if !is_live => lines.push(format!("{name}: {}", status.as_str())),
            _ => {}
        }
        lines
    }
}

/// A wait with the times that are left: `no spot machine; trying again in 30s, for 59m 30s at most`. `None` while a
/// further try is under way.
fn waiting(wait: &WaitView) -> Option<String> {
    let now = now();
    let left = |at: Timestamp| {
        let left = Duration::from_secs(at.0.saturating_sub(now.0).div_ceil(1_000));
        humantime::format_duration(left)
    };
    let most = wait.give_up_at.map(|at| format!(", for {} at most", left(at))).unwrap_or_default();
    if wait.tries == 0 {
        return Some(format!("{}{most}", wait.reason));
    }
    let retry_at = left(wait.retry_at?);
    let tries = if wait.tries > 1 { format!(" ({} tries)", wait.tries) } else { String::new() };
    Some(format!("{}{tries}; trying again in {retry_at}{most}", wait.reason))
}

/// The result of a job: `completed 12.0s, 5/7 cached, QEMU emulation`.
fn ending(job: &JobView) -> String {
    if let Some(earlier) = job.reused_from {
        return format!("reused from {earlier}");
    }
    let status = job.status.as_str();
    let time = duration_of(job).map(|time| format!("{status} {}", seconds(time)));
    let steps = Some(cached(job)).filter(|steps| !steps.is_empty());
    let steps = steps.filter(|_| job.status == JobStatus::Completed);
    let facts =
        [time.or(Some(status.to_owned())), steps.map(|steps| steps + " cached"), emulation(job)];
    facts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The step that a line starts: the first line of a `BuildKit` step begins with a new number, and lines of
/// the agent begin without one.
fn step_of<'a>(line: &'a str, seen: &mut BTreeSet<u32>) -> Option<&'a str> {
    let Some(rest) = line.strip_prefix('#') else {
        return (!line.trim().is_empty() && !line.starts_with(WARNING)).then_some(line);
    };
    let (number, text) = rest.split_once(' ')?;
    let number: u32 = number.parse().ok()?;
    seen.insert(number).then_some(text)
}

fn moving() -> ProgressStyle {
    template("{spinner:.cyan} {prefix:.bold} {elapsed:.dim} {wide_msg}")
}

fn still() -> ProgressStyle {
    template("{prefix} {wide_msg:.dim}")
}

fn template(text: &str) -> ProgressStyle {
    ProgressStyle::with_template(text).expect("the template is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_its_time_its_cached_steps_and_its_emulation() {
        let mut job = crate::cli::run::outcome::tests::job(1, "app_arm64", "linux/arm64");
        job.cached_steps = 2;
        assert_eq!(ending(&job), "completed 12.0s, 2/2 cached");
        job.emulated = true;
        assert_eq!(ending(&job), "completed 12.0s, 2/2 cached, QEMU emulation");
        job.status = JobStatus::Failed;
        assert_eq!(ending(&job), "failed 12.0s, QEMU emulation");
        let earlier = JobId::from_bits(9);
        job.reused_from = Some(earlier);
        assert_eq!(ending(&job), format!("reused from {earlier}"));
    }

    #[test]
    fn a_wait_is_shown_with_the_time_that_is_left() {
        let at = |seconds| now().after(Duration::from_secs(seconds));
        let wait = WaitView {
            reason: "no spot machine".to_owned(),
            since: now(),
            tries: 1,
            retry_at: Some(at(30)),
            give_up_at: None,
        };
        assert_eq!(waiting(&wait).unwrap(), "no spot machine; trying again in 30s");
        let later = WaitView { tries: 2, give_up_at: Some(at(3_570)), ..wait };
        let text = "no spot machine (2 tries); trying again in 30s, for 59m 30s at most";
        assert_eq!(waiting(&later).unwrap(), text);
        let slow = WaitView { retry_at: None, ..later };
        assert_eq!(waiting(&slow), None);
        let first = WaitView { tries: 0, ..slow };
        assert_eq!(waiting(&first).unwrap(), "no spot machine, for 59m 30s at most");
    }

    #[test]
    fn a_step_is_named_by_its_first_line() {
        let seen = &mut BTreeSet::new();
        assert_eq!(step_of("Cloning http://h/r at 1234", seen), Some("Cloning http://h/r at 1234"));
        assert_eq!(step_of("#5 [2/5] RUN make", seen), Some("[2/5] RUN make"));
        assert_eq!(step_of("#5 0.123 cc -c main.c", seen), None);
        assert_eq!(step_of("#5 DONE 1.2s", seen), None);
        assert_eq!(step_of("#6 exporting to image", seen), Some("exporting to image"));
        assert_eq!(step_of("# no number", seen), None);
        assert_eq!(step_of("WARNING: slow", seen), None);
    }
}
