//! The variables that child processes inherit from this process.
//!
//! The environment of a shell or a service changes what `docker buildx` builds: `SOURCE_DATE_EPOCH` becomes a build
//! argument, `BUILDX_BUILDER` chooses another builder, `OTEL_EXPORTER_OTLP_ENDPOINT` delays each command. So children
//! inherit only the variables that say how to find programs, the engine and the network.

use std::env;
use std::ffi::OsString;

use stagely_protocol::CORE_VARIABLE;

/// Names further variables to inherit, with commas between them.
const PASSED_VARIABLE: &str = "STAGELY_PASS_ENV";

const INHERITED: [&str; 30] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "DOCKER_HOST",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    // For an engine that is reached over SSH.
    "SSH_AUTH_SOCK",
    // For the credential helpers of the user's Docker.
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
    "AWS_PROFILE",
    "CLOUDSDK_CONFIG",
    // Marks the processes of one core.
    CORE_VARIABLE,
];

/// Whether `name` means something to child processes.
pub(crate) fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name)
}

/// The inherited variables that are set.
pub(super) fn inherited() -> Vec<(OsString, OsString)> {
    let passed = env::var(PASSED_VARIABLE).unwrap_or_default();
    let further = passed.split(',').map(str::trim).filter(|name| !name.is_empty());
    let names = INHERITED.into_iter().chain(further);
    names.filter_map(|name| Some((name.into(), env::var_os(name)?))).collect()
}
