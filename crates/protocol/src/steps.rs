//! Compares the durations of the steps of two builds.

use std::collections::HashMap;

use super::Step;

/// A shorter time is mostly that of starting a container.
const NATIVE_SECONDS_MIN: f64 = 0.1;

/// How many times as long the steps of `emulated` took as those of `native`. Only steps that ran in both
/// builds count, by name. `None` if there are none, or they took less than [`NATIVE_SECONDS_MIN`].
pub fn slow_down(native: &[Step], emulated: &[Step]) -> Option<f64> {
    let ran = |steps: &'_ [Step]| {
        steps
            .iter()
            .filter(|step| !step.cached)
            .map(|step| (step.name.clone(), step.seconds))
            .collect::<HashMap<_, _>>()
    };
    let (native, emulated) = (ran(native), ran(emulated));
    let both = native.iter().filter_map(|(name, seconds)| Some((seconds, emulated.get(name)?)));
    let (native, emulated) =
        both.fold((0.0, 0.0), |(native, emulated), (n, e)| (native + n, emulated + e));
    (native >= NATIVE_SECONDS_MIN).then(|| emulated / native)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, seconds: f64, cached: bool) -> Step {
        Step { name: name.to_owned(), seconds, cached }
    }

    #[test]
    fn only_steps_that_ran_in_both_builds_are_compared() {
        let native = [
            step("[1/4] RUN a", 1.0, false),
            step("[2/4] RUN b", 3.0, false),
            step("[3/4] RUN c", 0.0, true),
            step("[4/4] RUN old", 9.0, false),
        ];
        let emulated = [
            step("[1/4] RUN a", 8.0, false),
            step("[2/4] RUN b", 12.0, false),
            step("[3/4] RUN c", 100.0, false),
            step("[4/4] RUN new", 100.0, false),
        ];
        assert_eq!(slow_down(&native, &emulated), Some(5.0));
        assert_eq!(slow_down(&native[..1], &[step("[1/4] RUN a", 0.0, true)]), None);
        assert_eq!(slow_down(&[], &emulated), None);
        let nothing = [step("[1/4] RUN a", 0.01, false)];
        assert_eq!(slow_down(&nothing, &emulated), None);
    }
}
