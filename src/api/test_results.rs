//! Results of several jobs of one test as one, and as words.

use stagely_protocol::TestResults;

/// The results of all parts of a test together.
pub fn total<'a>(results: impl IntoIterator<Item = &'a TestResults>) -> TestResults {
    let mut total = TestResults::default();
    for part in results {
        total.passed = total.passed.saturating_add(part.passed);
        total.failed = total.failed.saturating_add(part.failed);
        total.skipped = total.skipped.saturating_add(part.skipped);
        total.flaky = total.flaky.saturating_add(part.flaky);
        total.cases.extend(part.cases.iter().cloned());
    }
    total
}

/// `34 passed, 1 failed`, without what there is none of; `no tests` if there is nothing.
pub fn counts(results: &TestResults) -> String {
    let counts = [
        (results.passed, "passed"),
        (results.failed, "failed"),
        (results.flaky, "flaky"),
        (results.skipped, "skipped"),
    ];
    let words = counts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = words.map(|(count, word)| format!("{count} {word}")).collect();
    if words.is_empty() { "no tests".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up() {
        let part =
            |passed, failed, flaky| TestResults { passed, failed, flaky, ..TestResults::default() };
        let all = total(&[part(30, 1, 0), part(4, 0, 2)]);
        assert_eq!(counts(&all), "34 passed, 1 failed, 2 flaky");
        assert_eq!(counts(&total(&[])), "no tests");
    }
}
