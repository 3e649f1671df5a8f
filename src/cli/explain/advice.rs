//! Advice that makes a job faster next time.

use console::truncate_str;
use stagely_protocol::{CacheMiss, MissCause, Step};

use super::{NAME_COLUMNS, one_line};
use crate::api::{JobStatus, JobView, RunView};

/// The shortest step that justifies a change of the Dockerfile.
const EXPENSIVE_SECONDS: f64 = 1.0;

/// Advice for the job, one paragraph for each finding.
pub(super) fn advice(run: &RunView, job: &JobView) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(miss) = &job.cache_miss {
        advice.push(advice_on_miss(run, job, miss));
    }
    if job.emulated {
        let platform = job.platforms.first().map(ToString::to_string).unwrap_or_default();
        let arch = platform.trim_start_matches("linux/");
        advice.push(format!(
            "Give core a machine that builds {platform} natively: `stagely machines add --arch {arch}` \
             registers one of your own. `emulation: forbid` in stagely.yaml makes the build fail instead \
             of using emulation."
        ));
    }
    let is_all_cached = !job.steps.is_empty() && job.cached_steps == job.steps.len();
    if advice.is_empty() && is_all_cached && job.status == JobStatus::Completed {
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
    let because = format!("Steps that were built again because of it took {cost:.1}s.");
    match (&miss.cause, dearest) {
        (MissCause::NoCache, _) => format!(
            "Nothing: there was no cache yet. Builds fill it, except builds from forks; `stagely warm {}` \
             fills it in advance.",
            run.project
        ),
        (MissCause::NotRecorded, _) => format!(
            "Nothing: the cache is from another core, or from a build whose record is gone. The next build is \
             compared with this one. {because}"
        ),
        (MissCause::Instruction, _) => format!(
            "A changed instruction repeats all instructions after it in its stage. Put instructions that \
             change often last. {because}"
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
            "`{}` copies every file, so any change repeats `{}` ({:.1}s). Before that step, copy only \
             the files that it needs; copy everything else after it, and list files that no step needs \
             in .dockerignore.",
            instruction(&miss.step),
            instruction(&step.name),
            step.seconds
        ),
        (MissCause::Files { .. }, Some(step)) => format!(
            "`{}` ({:.1}s) runs after these files are copied. If it does not need them, copy them after \
             it; if it needs some of them, copy only those before it.",
            instruction(&step.name),
            step.seconds
        ),
        (MissCause::Files { .. }, None) => {
            format!("Nothing: these files repeat only short steps. {because}")
        }
        (MissCause::Unknown, _) => format!(
            "Look for warnings about the cache in `stagely logs {}` and in the log of the previous run. A \
             registry that deletes old images also deletes caches; `stagely warm {}` fills them again. \
             {because}",
            job.id, run.project
        ),
    }
}

/// The steps that were built again: the missed step, and uncached steps after it in its stage.
fn built_again<'a>(steps: &'a [Step], missed: &str) -> Vec<&'a Step> {
    let from = steps.iter().position(|step| step.name == missed).unwrap_or(0);
    let is_hit = |step: &&Step| !step.cached && stage(&step.name) == stage(missed);
    steps[from..].iter().filter(is_hit).collect()
}

/// The stage of a step: `build linux/arm64` of `[build linux/arm64 3/5] RUN make`; empty if it has no name.
/// `BuildKit` pads the numbers: `[build  3/12] RUN make`.
fn stage(step: &str) -> &str {
    let brackets = step.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let words = brackets.map_or("", |(inside, _)| inside);
    words.rsplit_once(' ').map_or("", |(stage, _)| stage.trim())
}

/// The instruction of a step, as one short line: `RUN make` of `[build 3/5] RUN make`.
fn instruction(step: &str) -> String {
    let text = step
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .map_or(step, |(_, text)| text);
    truncate_str(&one_line(text), NAME_COLUMNS, "…").into_owned()
}

/// Whether a step copies the whole context: `COPY . …` or `ADD ./ …`.
fn copies_everything(step: &str) -> bool {
    let instruction = instruction(step);
    let mut words = instruction.split(' ').filter(|word| !word.starts_with("--"));
    matches!(words.next(), Some("COPY" | "ADD")) && matches!(words.next(), Some("." | "./"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_read_from_steps() {
        assert_eq!(stage("[build linux/arm64 3/5] RUN make"), "build linux/arm64");
        assert_eq!(stage("[base  1/12] WORKDIR /src"), "base");
        assert_eq!(stage("[base 10/12] RUN make"), "base");
        assert_eq!(stage("[3/5] RUN make"), "");
        assert_eq!(stage("[ 3/12] RUN make"), "");
        assert_eq!(stage("exporting to image"), "");
        assert!(copies_everything("[2/3] COPY --link . /src"));
        assert!(!copies_everything("[2/3] COPY src ."));
        assert_eq!(instruction("[2/3] RUN a \\\n    b"), "RUN a \\ b");
    }
}
