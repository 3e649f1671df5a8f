//! Finds the reason for a failure in Docker's messages. No other module interprets their text.

use std::sync::LazyLock;

use regex::Regex;
use stagely_protocol::{FailureReason, ImageRef, RegistryProblem};

use super::user_config::registry_name;
use crate::transient::{is_transient_status, is_unknown_host};

/// The status of a response, as Docker and its libraries report it: `unexpected status from PUT request to URL: 413 …`.
static STATUS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:^|: |status |status code:? )([1-5]\d\d)(?:[ :]|$)").expect("a fixed pattern")
});

/// Messages of registries that refuse the user name or the password.
const AUTHENTICATION: [&str; 7] = [
    "401 unauthorized",
    "unauthorized:",
    "authentication required",
    "incorrect username or password",
    "no basic auth credentials",
    "authorization failed",
    "insufficient_scope",
];

/// Messages about connections that fail. Another attempt may succeed.
const CONNECTION: [&str; 11] = [
    "connection refused",
    "connection reset",
    "i/o timeout",
    "tls handshake timeout",
    "network is unreachable",
    "no route to host",
    "unexpected eof",
    "broken pipe",
    "server misbehaving",
    "temporary failure in name resolution",
    "timeout exceeded",
];

/// Messages about limits, which pass.
const LIMITED: [&str; 3] = ["context deadline exceeded", "too many requests", "toomanyrequests"];

/// Messages about TLS that another attempt does not change.
const TLS: [&str; 4] = [
    "x509: ",
    "server gave http response to https client",
    "first record does not look like a tls handshake",
    "tls: failed to verify certificate",
];

const DISK_FULL: [&str; 2] = ["no space left on device", "disk quota exceeded"];

/// Messages about an engine that does not answer.
const ENGINE: [&str; 6] = [
    "signal: killed",
    "dial unix",
    "cannot connect to the docker daemon",
    "is the docker daemon running",
    "failed to connect to the docker api",
    "error reading from server: eof",
];

/// Messages of an engine that cannot start a container, whatever the container is.
const ENGINE_START: [&str; 3] =
    ["failed to set up container networking", "failed to create endpoint", "failed to start shim"];

/// Messages about an engine that is starting, restarting or overloaded. All other messages are final: a wrong address, a
/// file that is missing, a server that is no engine, a user or a key that is refused.
const ENGINE_STARTING: [&str; 14] = [
    "socket not found",
    "connection refused",
    "connection reset",
    "connection closed",
    "connection timed out",
    "broken pipe",
    "eof",
    "timeout",
    "deadline exceeded",
    "network is unreachable",
    "no route to host",
    "temporary failure in name resolution",
    "server misbehaving",
    "is the docker daemon running",
];

/// Messages of a `docker` without the plugin `compose`.
const COMPOSE_MISSING: [&str; 3] = [
    "'compose' is not a docker command",
    "unknown command: docker compose",
    "unknown flag: --ansi",
];

/// Stands between the command of a failed step and `exit code: 42`.
const NOT_COMPLETED: &str = "did not complete successfully: ";

const UNAVAILABLE: FailureReason =
    FailureReason::Registry { problem: RegistryProblem::Unavailable };

const REFUSED: FailureReason = FailureReason::Registry { problem: RegistryProblem::Refused };

const MISSING: FailureReason = FailureReason::Registry { problem: RegistryProblem::Missing };

/// Messages about an image that the registry does not have. The last one ends a line of containerd.
const NOT_THERE: [&str; 3] = ["manifest unknown", "name unknown", ": not found"];

/// Finds the reason for a failed `docker buildx build`. `step` is the vertex that failed, or empty if none did. `error`
/// is the error of that vertex, or else of the client.
///
/// Errors of neither the push nor the machine are the user's, because the Dockerfile causes them.
pub(super) fn build_failure(step: &str, error: &str) -> FailureReason {
    let text = error.to_ascii_lowercase();
    // This is checked first: the text also contains the user's command, which may contain any words.
    if let Some(exit_code) = exit_code(&text) {
        return FailureReason::User { step: step.to_owned(), exit_code };
    }
    if let Some(reason) = machine_failure(&text) {
        return reason;
    }
    // A command without an exit code never started, because the engine could not create its container.
    if text.contains(NOT_COMPLETED) {
        return FailureReason::Engine;
    }
    if is_push(step, &text) {
        return push_failure(&text);
    }
    if missing_login(step, &text).is_some() {
        return FailureReason::Registry { problem: RegistryProblem::Authentication };
    }
    if is_pull(step) {
        if is_final_without_response(&text) {
            return REFUSED;
        }
        if is_unavailable(&text) {
            return UNAVAILABLE;
        }
    }
    if step.is_empty() && !has(&text, &["failed to solve", "dockerfile"]) {
        return FailureReason::Internal;
    }
    FailureReason::User { step: step.to_owned(), exit_code: 1 }
}

/// Whether an engine that did not answer a request may answer the next one. `error` is what a client of the engine says.
pub(super) fn is_engine_starting(error: &str) -> bool {
    let text = error.to_ascii_lowercase();
    // `docker` writes this line about each address that it cannot use, before the cause.
    let is_final = is_unknown_host(&text) || has(&text, &TLS);
    let is_starting = has(&text, &ENGINE_STARTING) || is_missing_socket(&text);
    !is_final && (is_starting || http_status(&text).is_some_and(is_transient_status))
}

/// Whether `docker` did not find the socket of an engine.
fn is_missing_socket(text: &str) -> bool {
    text.contains("dial unix") && text.contains("no such file or directory")
}

/// The registry that refuses to serve an image without a login. `None` also where the image may not exist, and for pushes,
/// whose login is core's.
pub(super) fn missing_login(step: &str, error: &str) -> Option<String> {
    let text = error.to_ascii_lowercase();
    let is_missing = has(&text, &["401 unauthorized", "no basic auth credentials"]);
    if !is_missing || !is_pull(step) || is_push(step, &text) {
        return None;
    }
    if let Some((_, registry)) = step.split_once(" token for ") {
        return Some(registry_name(registry.trim()));
    }
    let image = step.rsplit(' ').next()?.trim_start_matches("docker-image://");
    let host = image.split('/').next()?;
    let is_host = host.contains(['.', ':']) || host == "localhost";
    Some(registry_name(if is_host { host } else { "docker.io" }))
}

/// Finds the reason for a failed command that uses only a registry.
pub(super) fn registry_failure(error: &str) -> FailureReason {
    let text = error.to_ascii_lowercase();
    machine_failure(&text).unwrap_or_else(|| match push_failure(&text) {
        REFUSED | FailureReason::Internal
            if has(&text, &NOT_THERE) && !text.contains("failed to push") =>
        {
            MISSING
        }
        reason => reason,
    })
}

/// Whether a registry may have refused the manifest because it lacks a layer: it answers 400 then, as to a manifest that is
/// not valid. `BuildKit` does not send a layer that another build of the same engine is sending to the same repository, and
/// may send the manifest before that layer is there.
pub(super) fn may_lack_layers(reason: &FailureReason, error: &str) -> bool {
    let text = error.to_ascii_lowercase();
    *reason == REFUSED && text.contains("/manifests/") && text.contains("400 bad request")
}

/// What to do about a registry that refuses to take `image`, if the error of the vertex `step` says enough.
pub(super) fn push_advice(step: &str, error: &str, image: &ImageRef) -> Option<String> {
    let text = error.to_ascii_lowercase();
    if !is_push(step, &text) || push_failure(&text) != REFUSED {
        return None;
    }
    let (registry, repository) = (image.registry(), image.repository());
    let status = http_status(&text);
    if text.contains("server gave http response to https client") {
        Some(format!(
            "{registry} has no TLS: name it in `insecure-registries` of the engine's daemon.json, or give it a certificate"
        ))
    } else if has(&text, &TLS) {
        Some(format!(
            "the engine does not trust the certificate of {registry}: put that of its authority into \
             /etc/docker/certs.d/{registry}/ca.crt on the machine"
        ))
    } else if is_unknown_host(&text) {
        Some(format!("{registry} has no address: look at the spelling in `registry.url`"))
    } else if status == Some(413) {
        Some(format!(
            "{registry}, or a proxy in front of it, takes no upload of this size: raise its limit (nginx: \
             `client_max_body_size`), or make the layers smaller"
        ))
    } else if status == Some(404) || has(&text, &["name_unknown", "name unknown"]) {
        Some(format!(
            "{registry} does not create the repository {repository} by itself: create it there, or let the registry \
             create repositories at the first push"
        ))
    } else if status == Some(403) || text.contains("denied") {
        Some(format!(
            "the login of core may not push to {repository}: look at its permissions there"
        ))
    } else {
        None
    }
}

/// The machine's fault in the error of a command that uses the engine, if it is the machine's.
pub(super) fn machine_failure_of(error: &str) -> Option<FailureReason> {
    machine_failure(&error.to_ascii_lowercase())
}

/// The machine's fault in the engine's words about a container that it could not start, if it is the machine's.
pub(crate) fn container_start_failure(error: &str) -> Option<FailureReason> {
    let text = error.to_ascii_lowercase();
    let is_engine = || has(&text, &ENGINE_START).then_some(FailureReason::Engine);
    machine_failure(&text).or_else(is_engine)
}

/// Whether `docker` has no plugin `compose`. Then it takes the arguments for its own.
pub(super) fn is_compose_missing(error: &str) -> bool {
    has(&error.to_ascii_lowercase(), &COMPOSE_MISSING)
}

fn has(text: &str, messages: &[&str]) -> bool {
    messages.iter().any(|message| text.contains(message))
}

/// Whether a registry cannot be reached, and another attempt changes nothing: its name has no address, because it is
/// misspelled or the machine has no network, or its certificate is not trusted.
fn is_final_without_response(text: &str) -> bool {
    is_unknown_host(text) || has(text, &TLS)
}

/// Whether another attempt may succeed.
fn is_unavailable(text: &str) -> bool {
    let is_http_transient = http_status(text).is_some_and(is_transient_status);
    !is_final_without_response(text)
        && (has(text, &CONNECTION) || has(text, &LIMITED) || is_http_transient)
}

/// The status of a response that is the last word of a request: `500 Internal Server Error`, `status code 413`.
fn http_status(text: &str) -> Option<u16> {
    STATUS.captures_iter(text).last()?[1].parse().ok()
}

fn machine_failure(text: &str) -> Option<FailureReason> {
    if has(text, &DISK_FULL) {
        return Some(FailureReason::DiskFull);
    }
    has(text, &ENGINE).then_some(FailureReason::Engine)
}

fn push_failure(text: &str) -> FailureReason {
    if has(text, &AUTHENTICATION) {
        return FailureReason::Registry { problem: RegistryProblem::Authentication };
    }
    if is_unavailable(text) {
        return UNAVAILABLE;
    }
    if is_final_without_response(text)
        || http_status(text).is_some()
        || has(text, &["failed to push", "denied", "not found"])
    {
        return REFUSED;
    }
    FailureReason::Internal
}

/// Whether the step pushes the image, or nothing is known but that a push failed.
fn is_push(step: &str, text: &str) -> bool {
    match step.strip_prefix("[auth] ") {
        // `[auth] app:pull,push token for registry.internal`
        Some(scope) => scope.contains("push"),
        None => {
            step.starts_with("exporting ") || step.is_empty() && text.contains("failed to push")
        }
    }
}

/// Whether the step pulls an image that the Dockerfile names.
fn is_pull(step: &str) -> bool {
    const PREFIXES: [&str; 4] = [
        "[internal] load metadata for ",
        "[auth] ",
        "resolve image config for ",
        "docker-image://",
    ];
    let is_base = step.split_once("] ").is_some_and(|(_, command)| command.starts_with("FROM "));
    is_base || PREFIXES.iter().any(|prefix| step.starts_with(prefix))
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

    const AUTHENTICATION: FailureReason =
        FailureReason::Registry { problem: RegistryProblem::Authentication };

    #[test]
    fn each_message_of_buildkit_has_a_reason() {
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
            ("[2/2] COPY . /", "write /x: no space left on device", FailureReason::DiskFull),
            (
                "[2/2] RUN grep \"no space left on device\" log",
                "process \"/bin/sh -c grep \\\"no space left on device\\\" log\" did not complete \
                 successfully: exit code: 1",
                user("[2/2] RUN grep \"no space left on device\" log", 1),
            ),
            (
                "",
                "ERROR: failed to receive status: rpc error: code = Unavailable desc = connection \
                 error: desc = \"transport: Error while dialing: dial unix /run/docker.sock: connect: \
                 connection refused\"",
                FailureReason::Engine,
            ),
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
            ("", "signal: killed", FailureReason::Engine),
            (
                "exporting to image",
                "failed to push r/a: unexpected status from POST request to http://r/v2/a/blobs/uploads/: 404 Not \
                 Found",
                REFUSED,
            ),
            (
                "exporting to image",
                "failed to push r/a: failed to copy: io: read/write on closed pipe: unexpected status from PUT request \
                 to http://r/v2/a/blobs/uploads/1: 413 Request Entity Too Large",
                REFUSED,
            ),
            (
                "exporting to image",
                "failed to push r/a: failed to do request: Head \"https://r/v2/\": tls: failed to verify certificate: \
                 x509: certificate signed by unknown authority",
                REFUSED,
            ),
            (
                "exporting to image",
                "failed to push r/a: failed to do request: Head \"https://r/v2/\": http: server gave HTTP response to \
                 HTTPS client",
                REFUSED,
            ),
            (
                "exporting to image",
                "failed to push r/a: tag 1 is immutable: denied: image tag already exists",
                REFUSED,
            ),
        ];
        for (step, error, reason) in cases {
            assert_eq!(build_failure(step, error), reason, "{error}");
        }
    }

    #[test]
    fn a_container_that_cannot_start_is_the_users_fault_unless_the_machine_is_named() {
        for (error, reason) in [
            (
                "failed to create task for container: failed to create shim task: OCI runtime create failed: runc \
                 create failed: unable to start container process: exec: \"x\": executable file not found in $PATH",
                None,
            ),
            ("unable to find user app: no matching entries in passwd file", None),
            (
                "failed to create endpoint a on network b: adding interface veth1 to bridge br-1 failed: Device does \
                 not exist",
                Some(FailureReason::Engine),
            ),
            (
                "error creating overlay mount: no space left on device",
                Some(FailureReason::DiskFull),
            ),
        ] {
            assert_eq!(container_start_failure(error), reason, "{error}");
        }
    }

    #[test]
    fn a_push_that_is_forbidden_or_has_no_host_is_refused() {
        for error in [
            "failed to push r/a: unexpected status from HEAD request to https://r/v2/a/blobs/sha256:0: 403 Forbidden",
            "failed to push r/a: failed to do request: Head \"https://r/v2/\": dial tcp: lookup r: no such host",
        ] {
            assert_eq!(build_failure("exporting to image", error), REFUSED, "{error}");
        }
    }

    #[test]
    fn failed_pulls_of_images_in_the_dockerfile_are_the_users_fault() {
        let dial = "dial tcp: lookup typo.example on 10.0.0.2:53: no such host";
        let cases = [
            (
                "resolve image config for docker-image://docker.io/docker/dockerfile:1.99",
                "docker.io/docker/dockerfile:1.99: not found".to_owned(),
            ),
            (
                "resolve image config for docker-image://docker.io/nobody/frontend:1",
                "pull access denied, repository does not exist or may require authorization: server \
                 message: insufficient_scope: authorization failed"
                    .to_owned(),
            ),
            ("docker-image://docker.io/docker/dockerfile:1.99", "not found".to_owned()),
            ("https://example.com/x", "invalid response status 404".to_owned()),
            ("[1/1] ADD https://typo.example/x /", format!("Get \"https://typo.example/x\": {dial}")),
            (
                "[1/1] ADD https://example.com/x /",
                "Get \"https://example.com/x\": dial tcp 192.0.2.1:443: i/o timeout".to_owned(),
            ),
        ];
        for (step, error) in cases {
            let user = FailureReason::User { step: step.to_owned(), exit_code: 1 };
            assert_eq!(build_failure(step, &error), user, "{step}: {error}");
        }
    }

    #[test]
    fn the_registry_of_a_base_image_may_be_unavailable() {
        for step in [
            "[internal] load metadata for docker.io/library/busybox:latest",
            "resolve image config for docker-image://docker.io/docker/dockerfile:1",
            "[build 1/4] FROM docker.io/library/busybox:latest",
        ] {
            for error in ["dial tcp 192.0.2.1:443: i/o timeout", "429 Too Many Requests"] {
                assert_eq!(build_failure(step, error), UNAVAILABLE, "{step}: {error}");
            }
            for error in [
                "failed to do request: Head \"https://typo.example/v2/x/manifests/1\": dial tcp: lookup \
                 typo.example on 10.0.0.2:53: no such host",
                "failed to do request: Head \"https://r/v2/\": tls: failed to verify certificate: x509: \
                 certificate signed by unknown authority",
                "failed to do request: Head \"https://r/v2/\": http: server gave HTTP response to HTTPS client",
            ] {
                assert_eq!(build_failure(step, error), REFUSED, "{step}: {error}");
            }
        }
    }

    #[test]
    fn a_missing_login_names_its_registry() {
        for (step, error, registry) in [
            (
                "[auth] library/a:pull token for registry-1.docker.io",
                "401 Unauthorized",
                "docker.io",
            ),
            (
                "[internal] load metadata for index.docker.io/team/base:1",
                "failed to authorize: no basic auth credentials",
                "docker.io",
            ),
            (
                "[internal] load metadata for 127.0.0.1:5932/team/base:1",
                "failed to authorize: no basic auth credentials",
                "127.0.0.1:5932",
            ),
            (
                "[1/2] FROM ghcr.io/acme/base:1",
                "unexpected status from HEAD request to https://ghcr.io/v2/acme/base/manifests/1: 401 Unauthorized",
                "ghcr.io",
            ),
        ] {
            assert_eq!(missing_login(step, error).as_deref(), Some(registry), "{step}");
            assert_eq!(build_failure(step, error), AUTHENTICATION, "{step}");
        }
        // Core logs in to the registry of pushes.
        let step = "[auth] shop/main:pull,push token for registry.internal";
        assert_eq!(missing_login(step, "401 Unauthorized"), None);
        assert_eq!(build_failure(step, "401 Unauthorized"), AUTHENTICATION);
        // The step does not pull.
        assert_eq!(missing_login("[2/2] ADD https://example.com/x /", "401 Unauthorized"), None);
    }

    #[test]
    fn only_an_engine_that_may_be_starting_is_asked_again() {
        for error in [
            "Error in the hyper legacy client: client error (Connect): Permission denied (os error 13)",
            "command [ssh -l me engine -- docker system dial-stdio] has exited with exit status 255, make sure the URL \
             is valid: stderr=me@engine: Permission denied (publickey).",
            "stderr=Host key verification failed.",
            "error during connect: tls: failed to verify certificate: x509: certificate signed by unknown authority",
            "remote error: tls: certificate required",
            "Docker responded with status code 400: Client sent an HTTP request to an HTTPS server.",
            "unable to resolve docker endpoint: open /root/.docker/ca.pem: no such file or directory",
            "Docker responded with status code 404: <html>nope</html>",
            "Failed to deserialize JSON: expected value at line 1 column 1",
            "client error (Connect): dns error: failed to lookup address information: Name or service not known",
            "Cannot connect to the Docker daemon at tcp://typo:2375. Is the docker daemon running? dial tcp: lookup typo: no \
             such host",
            "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock",
        ] {
            assert!(!is_engine_starting(error), "{error}");
        }
        for error in [
            "Socket not found: /var/run/docker.sock",
            "client error (Connect): Connection refused (os error 111)",
            "net/http: TLS handshake timeout",
            "Timeout error",
            "stderr=ssh: connect to host engine port 22: Connection timed out",
            "Docker responded with status code 503: starting",
            "dns error: failed to lookup address information: Temporary failure in name resolution",
            "failed to connect to the docker API at unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: no \
             such file or directory",
            "connection closed before message completed",
        ] {
            assert!(is_engine_starting(error), "{error}");
        }
    }

    #[test]
    fn failures_of_a_login_have_the_machine_or_the_registry_as_reason() {
        let cases = [
            ("unauthorized: authentication required", AUTHENTICATION),
            ("dial tcp 127.0.0.1:1: connect: connection refused", UNAVAILABLE),
            ("r/a@sha256:00: not found", MISSING),
            (
                "Error response from daemon: manifest for r/a@sha256:00 not found: manifest unknown: manifest unknown",
                MISSING,
            ),
            ("failed to resolve reference \"r/a@sha256:00\": r/a@sha256:00: not found", MISSING),
            ("name unknown: repository name not known to registry", MISSING),
            ("failed to push r/a: not found", REFUSED),
            (
                "Get \"https://typo.example/v2/\": dial tcp: lookup typo.example: no such host",
                REFUSED,
            ),
            ("dial tcp: lookup r.example: Temporary failure in name resolution", UNAVAILABLE),
            ("dial tcp: lookup r.example on 10.0.0.2:53: server misbehaving", UNAVAILABLE),
            ("dial tcp: lookup r.example: i/o timeout", UNAVAILABLE),
            ("login attempt to https://r/v2/ failed with status: 403 Forbidden", REFUSED),
            ("login attempt to https://r/v2/ failed with status: 401 Unauthorized", AUTHENTICATION),
            ("Error saving credentials: no space left on device", FailureReason::DiskFull),
            ("Cannot connect to the Docker daemon at unix:///x", FailureReason::Engine),
        ];
        for (error, reason) in cases {
            assert_eq!(registry_failure(error), reason, "{error}");
        }
    }
}
