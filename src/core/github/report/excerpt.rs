//! The last lines of the step that made a build fail, from the end of its log.

use crate::core::logs::StoredLine;

const LINES_MAX: usize = 30;

/// How many lines at the end of a log are searched. Other steps may go on after one has failed.
pub(crate) const SEARCHED_LINES: usize = 5_000;

/// The names of `BuildKit`'s steps for layer caches. Their errors never fail a build.
const CACHE_STEPS: [&str; 2] = ["importing cache manifest from ", "exporting cache "];

/// The last lines of the failed step, without those of concurrent steps; the last lines of the log if no step is
/// known to have failed. `step` is the agent's name of the step, which may be empty.
pub(crate) fn of(tail: &[StoredLine], step: &str) -> Vec<String> {
    let lines: Vec<&str> = tail.iter().flat_map(|line| line.data.lines()).collect();
    let excerpt: Vec<String> = match failed_number(&lines, step) {
        Some(number) => lines.iter().filter_map(|line| line_of(line, number, step)).collect(),
        None => lines.iter().map(|line| (*line).to_owned()).collect(),
    };
    let excess = excerpt.len().saturating_sub(LINES_MAX);
    excerpt[excess..].to_vec()
}

fn failed_number(lines: &[&str], step: &str) -> Option<u64> {
    let name_of = |number| {
        let mut numbered = lines.iter().filter_map(|line| numbered(line));
        numbered.find(|(of, text)| *of == number && !is_timed(text)).map(|(_, text)| text)
    };
    let failed = lines.iter().rev().filter_map(|line| numbered(line));
    let failed = failed.filter(|(_, text)| text.starts_with("ERROR: ")).map(|(number, _)| number);
    let mut others = None;
    for number in failed {
        let name = name_of(number).unwrap_or_default();
        if !step.is_empty() && name == step {
            return Some(number);
        }
        if !CACHE_STEPS.iter().any(|cache| name.starts_with(cache)) {
            others = others.or(Some(number));
        }
    }
    others
}

/// A line of step `number`, without the number and the time; `None` for other lines.
fn line_of(line: &str, number: u64, step: &str) -> Option<String> {
    let (of, text) = numbered(line)?;
    if of != number || (!step.is_empty() && text == step) {
        return None;
    }
    let line =
        if is_timed(text) { text.split_once(' ').map_or("", |(_, line)| line) } else { text };
    Some(line.to_owned())
}

/// Splits `#12 0.250 text` into 12 and the rest.
fn numbered(line: &str) -> Option<(u64, &str)> {
    let (number, text) = line.strip_prefix('#')?.split_once(' ')?;
    Some((number.parse().ok()?, text))
}

/// Whether the text begins with the seconds since the start of its step, as all output of a step does.
fn is_timed(text: &str) -> bool {
    let seconds = text.split(' ').next().unwrap_or_default();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = seconds.split_once('.');
    parts.is_some_and(|(whole, rest)| digits(whole) && rest.len() == 3 && digits(rest))
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Stream;

    use super::*;

    fn stored(text: &str) -> Vec<StoredLine> {
        let line = |data: &str| StoredLine { t: 0, stream: Stream::Stdout, data: data.to_owned() };
        text.lines().map(line).collect()
    }

    const LOG: &str = "\
#3 importing cache manifest from r/app/cache:app
#3 ERROR: not found
#6 [a 2/3] RUN make
#7 [b 2/3] RUN npm test
#6 0.100 of make
#7 0.250 one
#6 0.300 of make
#7 1.500 10.5 %
#7 ERROR: process \"/bin/sh -c npm test\" did not complete successfully: exit code: 1
#6 CANCELED
#9 exporting cache to registry
#9 ERROR: denied
------
 > [b 2/3] RUN npm test:
------
ERROR: failed to solve
Failed: step `[b 2/3] RUN npm test` failed with exit code 1";

    #[test]
    fn lines_of_a_concurrent_step_are_left_out() {
        let error =
            "ERROR: process \"/bin/sh -c npm test\" did not complete successfully: exit code: 1";
        let expected = ["one", "10.5 %", error];
        assert_eq!(of(&stored(LOG), "[b 2/3] RUN npm test"), expected);
        let unnamed = of(&stored(LOG), "");
        assert_eq!(unnamed, ["[b 2/3] RUN npm test", "one", "10.5 %", error]);
        // The searched end of the log lacks the line with the step's name.
        let end: Vec<&str> = LOG.lines().skip(4).collect();
        assert_eq!(of(&stored(&end.join("\n")), "[b 2/3] RUN npm test"), expected);
    }

    #[test]
    fn an_excerpt_has_the_last_thirty_lines() {
        let lines = (0..100).map(|number| format!("#1 0.000 {number}\n#2 0.000 beside"));
        let log = lines.collect::<Vec<_>>().join("\n") + "\n#1 ERROR: x";
        let excerpt = of(&stored(&log), "");
        assert_eq!((excerpt.len(), &*excerpt[0], &*excerpt[29]), (30, "71", "ERROR: x"));
    }

    #[test]
    fn without_a_failed_step_the_excerpt_is_the_end_of_the_log() {
        let log = (0..50).map(|number| format!("line {number}")).collect::<Vec<_>>().join("\n");
        let excerpt = of(&stored(&log), "");
        assert_eq!((excerpt.len(), &*excerpt[0]), (30, "line 20"));
        assert!(of(&[], "x").is_empty());
    }
}
