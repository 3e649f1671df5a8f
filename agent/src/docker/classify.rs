//! Tells from Docker's words whose fault a failure is.

use crate::protocol::{FailureReason, RegistryProblem};

const AUTHENTICATION: [&str; 8] = [
    "401 unauthorized",
    "unauthorized:",
    "authentication required",
    "incorrect username or password",
    "no basic auth credentials",
    "authorization failed",
    "403 forbidden",
    "insufficient_scope",
];

const CONNECTION: [&str; 13] = [
    "connection refused",
    "connection reset",
    "no such host",
    "i/o timeout",
    "tls handshake",
    "network is unreachable",
    "no route to host",
    "unexpected eof",
    "broken pipe",
    "server misbehaving",
    "context deadline exceeded",
    "client.timeout exceeded",
    "too many requests",
];

const SERVER_ERROR: [&str; 5] = [
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway timeout",
    "unexpected status",
];

const ENGINE: [&str; 4] = [
    "cannot connect to the docker daemon",
    "is the docker daemon running",
    "failed to connect to the docker api",
    "error reading from server: eof",
];

/// Follows the command of a step that failed, and precedes `exit code: 42`.
const NOT_COMPLETED: &str = "did not complete successfully: ";

/// Finds the reason for a failed `docker buildx`. `step` is the failing one, empty if none failed;
/// `error` is its error, or everything that was written after the build.
pub(super) fn classify(step: &str, error: &str) -> FailureReason {
    let text = error.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["no space left on device", "disk quota exceeded"]) {
        return FailureReason::DiskFull;
    }
    // What the user's own command printed is not looked at: only its exit code is certain.
    if let Some(exit_code) = exit_code(&text) {
        return FailureReason::User { step: step.to_owned(), exit_code };
    }
    // A command without an exit code was never started: the engine could not give it a container.
    if has(&ENGINE) || text.contains(NOT_COMPLETED) {
        return FailureReason::Engine;
    }
    if has(&AUTHENTICATION) {
        // A base image that may not be pulled is the Dockerfile's fault.
        let is_pull = step.starts_with('[');
        return if is_pull {
            FailureReason::User { step: step.to_owned(), exit_code: 1 }
        } else {
            FailureReason::Registry { problem: RegistryProblem::Authentication }
        };
    }
    if has(&CONNECTION) || has(&SERVER_ERROR) {
        return FailureReason::Registry { problem: RegistryProblem::Unavailable };
    }
    if text.contains("failed to push") {
        return FailureReason::Registry { problem: RegistryProblem::Unavailable };
    }
    if step.starts_with('[') || text.contains("failed to solve") || text.contains("dockerfile") {
        return FailureReason::User { step: step.to_owned(), exit_code: 1 };
    }
    FailureReason::Internal
}

/// The number in `… did not complete successfully: exit code: 42`.
fn exit_code(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once(NOT_COMPLETED)?;
    let rest = rest.strip_prefix("exit code: ")?;
    let end = rest.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNAVAILABLE: FailureReason =
        FailureReason::Registry { problem: RegistryProblem::Unavailable };
    const AUTHENTICATION: FailureReason =
        FailureReason::Registry { problem: RegistryProblem::Authentication };

    #[test]
    fn buildkits_words_have_an_owner() {
        let user = |step: &str, exit_code| FailureReason::User { step: step.to_owned(), exit_code };
        let cases = [
            (
                "[2/2] RUN false",
                "process \"/bin/sh -c false\" did not complete successfully: exit code: 42",
                user("[2/2] RUN false", 42),
            ),
            (
                "",
                "ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN",
                user("", 1),
            ),
            (
                "[2/2] COPY nothing /",
                "failed to compute cache key: \"/nothing\": not found",
                user("[2/2] COPY nothing /", 1),
            ),
            (
                "exporting to image",
                "failed to push 127.0.0.1:5000/a: failed to do request: Head \"http://x\": dial tcp \
                 127.0.0.1:5000: connect: connection refused",
                UNAVAILABLE,
            ),
            (
                "exporting to image",
                "failed to push a: unexpected status from POST request: 503 Service Unavailable",
                UNAVAILABLE,
            ),
            (
                "exporting to image",
                "failed to push a: push access denied, insufficient_scope: authorization failed",
                AUTHENTICATION,
            ),
            ("[2/2] RUN dd", "write /x: no space left on device", FailureReason::DiskFull),
            (
                "",
                "ERROR: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
                FailureReason::Engine,
            ),
            (
                "[2/2] RUN true",
                "process \"true\" did not complete successfully: failed to create endpoint x on network \
                 bridge: adding interface veth1 to bridge docker0 failed: Device does not exist",
                FailureReason::Engine,
            ),
            ("", "signal: killed", FailureReason::Internal),
        ];
        for (step, error, reason) in cases {
            assert_eq!(classify(step, error), reason, "{error}");
        }
    }
}
