//! What would make a job faster next time, in sentences.

use console::truncate_str;
use stagely_protocol::{CacheMiss, MissCause, Step};

use super::{NAME_COLUMNS, one_line};
use crate::api::{JobStatus, JobView, RunView};

/// A step that takes less is not worth a change of the Dockerfile.
const EXPENSIVE_SECONDS: f64 = 1.0;

/// Sentences on what would make the job faster next time.
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
             registers one of your own. `emulation: forbid` in stagely.yaml refuses to go without."
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
    let because = format!("{cost:.1}s went into what was built again because of it.");
    match (&miss.cause, dearest) {
        (MissCause::NoCache, _) => format!(
            "Nothing: there was no cache yet. Builds fill it, except those of forks; `stagely warm {}` \
             fills it beforehand.",
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
/// `BuildKit` pads the numbers: `[build  3/12] RUN make`.
fn stage(step: &str) -> &str {
    let brackets = step.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let words = brackets.map_or("", |(inside, _)| inside);
    words.rsplit_once(' ').map_or("", |(stage, _)| stage.trim())
}

/// `RUN make` of `[build 3/5] RUN make`, in one line and not too long.
fn instruction(step: &str) -> String {
    let text =
        step.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(step, |it| it.1);
    truncate_str(&one_line(text), NAME_COLUMNS, "…").into_owned()
}

/// Whether a step is `COPY . …` or `ADD ./ …`.
fn copies_everything(step: &str) -> bool {
    let instruction = instruction(step);
    let mut words = instruction.split(' ').filter(|word| !word.starts_with("--"));
    matches!(words.next(), Some("COPY" | "ADD")) && matches!(words.next(), Some("." | "./"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_apart_by_their_names() {
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
