//! `stagely doctor`: checks this machine and core, and suggests fixes.

mod aws;
mod digitalocean;
mod domains;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use console::style;
use serde::Serialize;
use stagely_agent::docker::{
    self, ComposeProject, ContextOrigin, DockerCommand, Endpoint, EndpointError, Engine,
    ProbeError, create_config,
};
use stagely_agent::proxy::is_loopback;
use stagely_protocol::{Arch, ErrorChain, RegistryAuth};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::connect::{ServerArgs, state_folder};
use super::output::print;
use super::settings::SettingsArgs;
use crate::api::{ListRuns, ReconciledView};
use crate::config::{Config, RegistryConfig};
use crate::core::disk::DiskGuard;

/// The oldest buildx that writes `--progress=rawjson`.
const BUILDX_MIN: (u32, u32) = (0, 13);

/// The time limit of a request to the registry.
const REGISTRY_LIMIT: Duration = Duration::from_secs(10);

const COMPOSE_LIMIT: Duration = Duration::from_secs(10);

/// A compose file with a service of a profile.
const COMPOSE_FILE: &str =
    "services: { web: { image: busybox, profiles: [all], ports: ['127.0.0.1::8080'] } }\n";

/// Checks this machine and core, and says how to fix problems
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DoctorArgs {
    #[command(subcommand)]
    command: Option<DoctorCommand>,
    #[command(flatten)]
    all: AllArgs,
}

#[derive(Subcommand, Debug)]
enum DoctorCommand {
    Aws(aws::AwsArgs),
    #[command(name = "digitalocean")]
    DigitalOcean(digitalocean::DigitalOceanArgs),
}

#[derive(Args, Debug)]
struct AllArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Builds work, but not optimally.
    Warning,
    /// Builds will fail.
    Error,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
    /// How to fix the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), fix: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let fix = Some(fix.into());
        Self { check, verdict: Verdict::Warning, detail: detail.into(), fix }
    }

    fn error(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, ..Self::warning(check, detail, fix) }
    }
}

/// Runs the command. The exit code is 1 if a check found an error.
///
/// # Errors
/// The configuration cannot be read; standard output cannot be written.
pub async fn doctor(arguments: DoctorArgs) -> anyhow::Result<ExitCode> {
    let arguments = match arguments.command {
        Some(DoctorCommand::Aws(arguments)) => return aws::doctor(arguments).await,
        Some(DoctorCommand::DigitalOcean(arguments)) => {
            return digitalocean::doctor(arguments).await;
        }
        None => arguments.all,
    };
    let config = arguments.settings.read()?;
    let data_dir = state_folder()?;
    let mut findings = engine(&config).await;
    findings.push(buildx().await);
    findings.push(compose(&config).await);
    findings.push(emulation());
    findings.push(if config.registry == RegistryConfig::default() {
        Finding::ok("registry", "none is configured; `stagely run` starts one in a container")
    } else {
        registry(&config).await
    });
    findings.extend(domains::domains(&config));
    findings.push(git().await);
    findings.push(disk(&config, &data_dir).await);
    findings.extend(server(&arguments.server).await);
    findings.extend(github(&arguments.server).await);
    print(arguments.json, &findings, |findings| all_shown(findings))?;
    Ok(exit_code(&findings))
}

/// 1 if a check found an error.
fn exit_code(findings: &[Finding]) -> ExitCode {
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Error);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn all_shown(findings: &[Finding]) -> String {
    findings.iter().map(shown).collect::<Vec<_>>().join("\n")
}

fn shown(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => style("ok     ").green(),
        Verdict::Warning => style("warning").yellow(),
        Verdict::Error => style("error  ").red(),
    };
    let fix = finding.fix.as_ref().map(|fix| format!("\n         fix: {fix}")).unwrap_or_default();
    format!("{verdict}  {:<14}{}{fix}", finding.check, finding.detail)
}

async fn engine(config: &Config) -> Vec<Finding> {
    let endpoint = match Endpoint::find(config.local.docker_host.as_deref()) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            return vec![Finding::error(
                "docker",
                ErrorChain(&error).to_string(),
                endpoint_fix(&error),
            )];
        }
    };
    let engine = match Engine::probe(&endpoint).await {
        Ok(engine) => engine,
        Err(error) => {
            let detail = format!("{}: {}", endpoint.description(), ErrorChain(&error));
            let fix = if let ProbeError::Unusable { advice, .. } = error {
                advice
            } else if endpoint.is_on_this_machine() {
                "install Docker 26 or newer and start it (`systemctl start docker`), and add \
                 yourself to its group (`usermod -aG docker $USER`)"
            } else {
                "make `docker version` work with this engine, or choose another one with `docker \
                 context use`"
            };
            return vec![Finding::error("docker", detail, fix)];
        }
    };
    let cache = if engine.containerd_store {
        Finding::ok("cache export", "the engine stores images in the containerd image store")
    } else {
        Finding::warning(
            "cache export",
            "the engine cannot export layer caches, so every build starts without a cache",
            "set {\"features\": {\"containerd-snapshotter\": true}} in /etc/docker/daemon.json and \
             restart Docker",
        )
    };
    vec![
        Finding::ok("docker", format!("engine {} at {}", engine.version, endpoint.description())),
        cache,
    ]
}

fn endpoint_fix(error: &EndpointError) -> &'static str {
    match error {
        EndpointError::NoSuchContext { origin: ContextOrigin::Variable, .. } => {
            "set DOCKER_CONTEXT to a context of `docker context ls`, or unset it"
        }
        EndpointError::NoSuchContext { origin: ContextOrigin::ConfigFile, .. } => {
            "choose another one with `docker context use`"
        }
        EndpointError::Unreadable { .. } => {
            "make the files of the context readable, or create it again with `docker context create`"
        }
        EndpointError::NoEndpoint { .. } => {
            "give it one with `docker context update --docker host=…`, or choose another context \
             with `docker context use`"
        }
        EndpointError::Address { .. } => {
            "correct DOCKER_HOST or the setting (`unix:///var/run/docker.sock`), or unset it"
        }
        EndpointError::Certificate { .. } => {
            "set DOCKER_CERT_PATH to the folder of the certificates, or unset DOCKER_TLS_VERIFY"
        }
    }
}

async fn buildx() -> Finding {
    let fix = "install Docker's buildx plugin, 0.13 or newer (package docker-buildx or \
               docker-buildx-plugin)";
    match first_line("docker", &["buildx", "version"]).await {
        Ok(line) => match version_of(&line) {
            Some(version) if version >= BUILDX_MIN => Finding::ok("buildx", line),
            _ => Finding::error("buildx", line, fix),
        },
        Err(error) => Finding::error("buildx", error, fix),
    }
}

/// Has compose read a file as for a preview, because versions do not tell what it can do.
async fn compose(config: &Config) -> Finding {
    let fix = "previews need Docker's compose plugin: install the package docker-compose (Debian 13), \
               docker-compose-v2 (Ubuntu) or docker-compose-plugin";
    let version = match first_line("docker", &["compose", "version"]).await {
        Ok(line) => line,
        Err(error) => return Finding::warning("compose", error, fix),
    };
    match resolve_compose_file(config).await {
        Ok(()) => Finding::ok("compose", version),
        Err(error) => Finding::warning("compose", format!("{version}: {error}"), fix),
    }
}

async fn resolve_compose_file(config: &Config) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| ErrorChain(&error).to_string())?;
    let docker = docker_command(config, folder.path())?;
    let file = folder.path().join("compose.yaml");
    std::fs::write(&file, COMPOSE_FILE).map_err(|error| ErrorChain(&error).to_string())?;
    let project = ComposeProject::new(docker, "stagely-doctor".to_owned(), file);
    let stop = CancellationToken::new();
    let resolved = tokio::time::timeout(COMPOSE_LIMIT, project.config(&stop)).await;
    let resolved = resolved.map_err(|_| format!("no answer within {COMPOSE_LIMIT:?}"))?;
    let resolved = resolved.map_err(|error| ErrorChain(&error).to_string())?;
    if resolved["services"]["web"]["ports"][0]["host_ip"] == "127.0.0.1" {
        return Ok(());
    }
    Err("it does not print a compose file as JSON with all defaults".to_owned())
}

/// The major and minor version in `github.com/docker/buildx v0.13.1 …`.
fn version_of(line: &str) -> Option<(u32, u32)> {
    line.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

fn emulation() -> Finding {
    let own = Arch::of_this_program();
    let missing: Vec<String> = Arch::ALL
        .into_iter()
        .filter(|arch| *arch != own)
        .map(|arch| format!("linux/{arch}"))
        .filter(|platform| !docker::emulated_platforms().contains(platform))
        .collect();
    if missing.is_empty() {
        return Finding::ok("emulation", "images for the other processor can be built, but slowly");
    }
    Finding::warning(
        "emulation",
        format!("{} cannot be built on this machine", missing.join(", ")),
        "install qemu-user-static, or run `docker run --privileged --rm tonistiigi/binfmt --install \
         all`",
    )
}

async fn registry(config: &Config) -> Finding {
    let registry = &config.registry;
    let host = registry.host();
    let result = match registry.password() {
        Ok(Some(password)) => {
            let username = registry.username.clone().unwrap_or_default();
            log_in(config, host, RegistryAuth { username, password }).await
        }
        Ok(None) => ping(host).await,
        Err(error) => Err(ErrorChain(&error).to_string()),
    };
    match result {
        Ok(how) => Finding::ok("registry", format!("{host}: {how}")),
        Err(error) => {
            Finding::error("registry", format!("{host}: {error}"), registry_fix(registry))
        }
    }
}

fn registry_fix(registry: &RegistryConfig) -> &'static str {
    if registry.username.is_none() {
        "name a running registry with --registry or STAGELY_REGISTRY, and its user with \
         --registry-username and --registry-password-file if it needs one"
    } else {
        "check that the registry is running, and that STAGELY_REGISTRY_USERNAME and the file of \
         STAGELY_REGISTRY_PASSWORD_FILE are correct"
    }
}

async fn log_in(config: &Config, host: &str, auth: RegistryAuth) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| ErrorChain(&error).to_string())?;
    let docker = docker_command(config, folder.path())?;
    let stop = CancellationToken::new();
    let login = docker::login(&docker, host, &auth, &stop);
    match tokio::time::timeout(REGISTRY_LIMIT, login).await {
        Ok(Ok(())) => Ok(format!("login as {} works", auth.username)),
        Ok(Err(error)) => Err(ErrorChain(&error).to_string()),
        Err(_) => Err(format!("no answer within {REGISTRY_LIMIT:?}")),
    }
}

/// `docker` with a configuration of its own in `folder`.
fn docker_command(config: &Config, folder: &Path) -> Result<DockerCommand, String> {
    let endpoint = Endpoint::find(config.local.docker_host.as_deref())
        .map_err(|error| ErrorChain(&error).to_string())?;
    let docker = DockerCommand {
        machine: "doctor".parse().map_err(|_| "a name is wrong".to_owned())?,
        endpoint,
        config: folder.join("docker"),
        grace: Duration::from_secs(1),
        registry_retry_limit: Duration::ZERO,
        engine_may_start: true,
    };
    create_config(&docker.config).map_err(|error| ErrorChain(&error).to_string())?;
    Ok(docker)
}

/// Contacts a registry without a password. Docker uses plain HTTP only with registries on this machine.
async fn ping(host: &str) -> Result<String, String> {
    let mut url = Url::parse(&format!("https://{host}/v2/")).map_err(|error| error.to_string())?;
    let is_local = is_loopback(&url);
    if is_local {
        url = Url::parse(&format!("http://{host}/v2/")).map_err(|error| error.to_string())?;
    }
    let client = reqwest::Client::builder();
    let client = if is_local { client.no_proxy() } else { client };
    let client = client.build().map_err(|error| ErrorChain(&error).to_string())?;
    let request = client.get(url);
    let response = request.timeout(REGISTRY_LIMIT).send().await;
    let response =
        response.map_err(|error| format!("it does not answer ({})", ErrorChain(&error)))?;
    match response.status().as_u16() {
        200 => Ok("it answers, without a login".to_owned()),
        401 => Err("it requires a login, and no user is configured".to_owned()),
        status => Err(format!("it answers with status {status}")),
    }
}

async fn git() -> Finding {
    match first_line("git", &["--version"]).await {
        Ok(line) => Finding::ok("git", line),
        Err(error) => Finding::warning(
            "git",
            error,
            "install git: `stagely run` serves folders of this machine with it",
        ),
    }
}

async fn disk(config: &Config, data_dir: &Path) -> Finding {
    // Core creates the folder when it starts. Until then a parent folder is on the same disk.
    let folder = data_dir.ancestors().find(|folder| folder.exists()).map(PathBuf::from);
    let folder = folder.unwrap_or_default();
    match DiskGuard::new(folder.clone(), config.core.disk_free_min_mib).check().await {
        Ok(()) => Finding::ok("disk", format!("enough free space at {}", data_dir.display())),
        Err(error) => Finding::error("disk", ErrorChain(&error).to_string(), "free some space"),
    }
}

async fn server(arguments: &ServerArgs) -> Option<Finding> {
    let which = ListRuns { limit: Some(1), before: None };
    let result = match arguments.named() {
        Ok(None) => return None,
        Ok(Some(client)) => match client.runs(&which).await {
            Ok(_) => Ok(client.server().to_string()),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Err(error) => Err(format!("{error:#}")),
    };
    Some(match result {
        Ok(server) => Finding::ok("server", format!("{server} accepts the token")),
        Err(error) => Finding::error("server", error, "check STAGELY_SERVER and the token"),
    })
}

/// What core's credentials at GitHub lack.
async fn github(arguments: &ServerArgs) -> Vec<Finding> {
    let Ok(Some(client)) = arguments.named() else { return Vec::new() };
    // A server that does not answer is a finding already.
    let Ok(view) = client.github().await else { return Vec::new() };
    view.projects.iter().filter_map(deployments).collect()
}

fn deployments(project: &ReconciledView) -> Option<Finding> {
    let problem = project.deployments_problem.as_ref()?;
    let detail =
        format!("previews of {} have no deployments at GitHub: {problem}", project.project);
    let fix = "give the app or token the permission `Deployments: write`; without it, comments and \
               commit statuses show previews all the same";
    Some(Finding::warning("github", detail, fix))
}

/// Runs `program` and returns the first line of its output.
async fn first_line(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().await;
    let output = output.map_err(|error| format!("cannot start {program}: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} failed: {}", text.lines().next().unwrap_or("no output")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_for_deployments_is_a_warning() {
        let mut project = ReconciledView {
            project: "shop".to_owned(),
            reconciled_at: None,
            problem: None,
            deployments_problem: None,
        };
        assert!(deployments(&project).is_none());
        project.deployments_problem = Some("GitHub refuses (403)".to_owned());
        let finding = deployments(&project).unwrap();
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.detail.contains("previews of shop"), "{}", finding.detail);
    }

    #[test]
    fn the_version_of_buildx_is_parsed() {
        assert_eq!(version_of("github.com/docker/buildx v0.13.1 abc"), Some((0, 13)));
        assert_eq!(version_of("github.com/docker/buildx 0.9.1+debian 1.2.3"), Some((0, 9)));
        assert_eq!(version_of("no version"), None);
    }
}
