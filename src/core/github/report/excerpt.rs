//! The last words of the step that made a build fail, out of the end of its log.

use crate::core::logs::StoredLine;

/// Lines that are shown of a step.
pub(crate) const LINES: usize = 30;

/// Lines of a log's end that are searched: other steps may go on for a while after one has failed.
pub(crate) const SEARCHED_LINES: usize = 5_000;

/// What `BuildKit` says of the caches that it reads and writes: they never fail a build.
const CACHES: [&str; 2] = ["importing cache manifest from ", "exporting cache "];

/// The last lines of the step that failed, without those of the steps beside it; the last of all where no
/// step is known to have. `step` is the failed step as its agent names it; it may be empty.
pub(crate) fn of(tail: &[StoredLine], step: &str) -> Vec<String> {
    let lines: Vec<&str> = tail.iter().flat_map(|line| line.data.lines()).collect();
    let found = failed_number(&lines, step);
    let shown: Vec<String> = match found {
        Some(number) => lines.iter().filter_map(|line| words_of(line, number, step)).collect(),
        None => lines.iter().map(|line| (*line).to_owned()).collect(),
    };
    let excess = shown.len().saturating_sub(LINES);
    shown[excess..].to_vec()
}

/// The number of the step whose failure the log tells of.
fn failed_number(lines: &[&str], step: &str) -> Option<u64> {
    let name_of = |number| {
        let mut told = lines.iter().filter_map(|line| numbered(line));
        told.find(|(of, text)| *of == number && !is_timed(text)).map(|(_, text)| text)
    };
    let failed = lines.iter().rev().filter_map(|line| numbered(line));
    let failed = failed.filter(|(_, text)| text.starts_with("ERROR: ")).map(|(number, _)| number);
    let mut others = None;
    for number in failed {
        let name = name_of(number).unwrap_or_default();
        if !step.is_empty() && name == step {
            return Some(number);
        }
        if !CACHES.iter().any(|cache| name.starts_with(cache)) {
            others = others.or(Some(number));
        }
    }
    others
}

/// What step `number` says in this line, without its number and time.
fn words_of(line: &str, number: u64, step: &str) -> Option<String> {
    let (of, text) = numbered(line)?;
    if of != number || (!step.is_empty() && text == step) {
        return None;
    }
    let words =
        if is_timed(text) { text.split_once(' ').map_or("", |(_, words)| words) } else { text };
    Some(words.to_owned())
}

/// Takes `#12 0.250 text` apart: 12, and what follows.
fn numbered(line: &str) -> Option<(u64, &str)> {
    let (number, text) = line.strip_prefix('#')?.split_once(' ')?;
    Some((number.parse().ok()?, text))
}

/// Whether the text begins with the seconds since the step began, as all output of a step does.
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
    fn the_failed_steps_lines_are_shown_without_those_of_the_step_beside_it() {
        let error =
            "ERROR: process \"/bin/sh -c npm test\" did not complete successfully: exit code: 1";
        let words = ["one", "10.5 %", error];
        assert_eq!(of(&stored(LOG), "[b 2/3] RUN npm test"), words);
        let unnamed = of(&stored(LOG), "");
        assert_eq!(unnamed, ["[b 2/3] RUN npm test", "one", "10.5 %", error]);
        // Its name is no more in what was read of the log.
        let end: Vec<&str> = LOG.lines().skip(4).collect();
        assert_eq!(of(&stored(&end.join("\n")), "[b 2/3] RUN npm test"), words);
    }

    #[test]
    fn a_step_shows_its_last_thirty_lines() {
        let lines = (0..100).map(|number| format!("#1 0.000 {number}\n#2 0.000 beside"));
        let log = lines.collect::<Vec<_>>().join("\n") + "\n#1 ERROR: x";
        let shown = of(&stored(&log), "");
        assert_eq!((shown.len(), &*shown[0], &*shown[29]), (30, "71", "ERROR: x"));
    }

    #[test]
    fn where_no_step_failed_the_logs_last_lines_are_shown() {
        let log = (0..50).map(|number| format!("line {number}")).collect::<Vec<_>>().join("\n");
        let shown = of(&stored(&log), "");
        assert_eq!((shown.len(), &*shown[0]), (30, "line 20"));
        assert!(of(&[], "x").is_empty());
    }
}
