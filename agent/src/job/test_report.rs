//! What is known of a test when it has ended, whether it passed or not.

use stagely_protocol::{StoredArtifacts, TestResults};

/// What a test leaves behind.
#[derive(Debug, Default)]
pub(super) struct TestReport {
    pub(super) results: Option<TestResults>,
    /// What core has.
    pub(super) artifacts: Option<StoredArtifacts>,
}

/// `34 passed, 1 failed, 2 flaky`
pub(super) fn counts(results: &TestResults) -> String {
    let TestResults { passed, failed, skipped, flaky, .. } = *results;
    let others = [(failed, "failed"), (flaky, "flaky"), (skipped, "skipped")];
    let others = others.into_iter().filter(|(count, _)| *count > 0);
    let parts = [(passed, "passed")].into_iter().chain(others);
    parts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}
