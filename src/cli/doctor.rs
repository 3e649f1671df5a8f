//! `stagely doctor`: what this machine and core need, what is missing, and how to mend it.

mod aws;
mod digitalocean;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use console::style;
use serde::Serialize;
use stagely_agent::docker::{self, DockerCommand, Engine, create_config};
use stagely_protocol::{Arch, RegistryAuth};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::connect::{ServerArgs, state_folder};
use super::records::print;
use super::settings::Settings;
use crate::api::ListRuns;
use crate::config::{Config, RegistryConfig};
use crate::core::disk::DiskGuard;

/// The oldest buildx that writes `--progress=rawjson`.
const BUILDX_MIN: (u32, u32) = (0, 13);

/// How long a registry may take to answer.
const REGISTRY_LIMIT: Duration = Duration::from_secs(10);

/// Checks what builds need, and says how to mend what is missing
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DoctorArgs {
    #[command(subcommand)]
    of: Option<DoctorOf>,
    #[command(flatten)]
    all: AllArgs,
}

#[derive(Subcommand, Debug)]
enum DoctorOf {
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
    settings: Settings,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Builds work, and less well than they could.
    Warning,
    /// Builds will fail.
    Error,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    detail: String,
    /// What to do about it.
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

/// Runs the command. The exit code is 1 when a check found an error.
///
/// # Errors
/// A configuration that cannot be read; standard output that cannot be written.
pub async fn doctor(arguments: DoctorArgs) -> anyhow::Result<ExitCode> {
    let arguments = match arguments.of {
        Some(DoctorOf::Aws(of)) => return aws::doctor(of).await,
        Some(DoctorOf::DigitalOcean(of)) => return digitalocean::doctor(of).await,
        None => arguments.all,
    };
    let config = arguments.settings.read()?;
    let data_dir = state_folder()?;
    let mut findings = engine(&config).await;
    findings.push(buildx().await);
    findings.push(emulation());
    findings.push(if config.registry == RegistryConfig::default() {
        Finding::ok("registry", "none is configured: `stagely run` starts one in a container")
    } else {
        registry(&config).await
    });
    findings.push(git().await);
    findings.push(disk(&config, &data_dir).await);
    findings.extend(server(&arguments.server).await);
    print(arguments.json, &findings, |findings| all_shown(findings))?;
    Ok(exit_code(&findings))
}

/// A failure when a check found an error.
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
    let engine = match Engine::probe(config.local.docker_host.as_deref()).await {
        Ok(engine) => engine,
        Err(error) => {
            let fix = "install Docker 26 or newer and start it (`systemctl start docker`), and add \
                       yourself to its group (`usermod -aG docker $USER`)";
            return vec![Finding::error("docker", error.to_string(), fix)];
        }
    };
    let cache = if engine.containerd_store {
        Finding::ok("cache export", "the engine keeps images in the containerd store")
    } else {
        Finding::warning(
            "cache export",
            "the engine cannot export layer caches, so every build is a fresh one",
            "set {\"features\": {\"containerd-snapshotter\": true}} in /etc/docker/daemon.json and \
             restart Docker",
        )
    };
    vec![Finding::ok("docker", format!("engine {}", engine.version)), cache]
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

/// Major and minor of `github.com/docker/buildx v0.13.1 …`.
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
        return Finding::ok("emulation", "images of the other processor can be built, slowly");
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
    let host = registry.url.split('/').next().unwrap_or_default();
    let result = match registry.password() {
        Ok(Some(password)) => {
            let username = registry.username.clone().unwrap_or_default();
            log_in(config, host, RegistryAuth { username, password }).await
        }
        Ok(None) => ask_openly(host).await,
        Err(error) => Err(error.to_string()),
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
        "name a registry that runs with --registry or STAGELY_REGISTRY, and its user with \
         --registry-username and --registry-password-file if it has one"
    } else {
        "check that the registry runs, and that STAGELY_REGISTRY_USERNAME and the file of \
         STAGELY_REGISTRY_PASSWORD_FILE are right"
    }
}

async fn log_in(config: &Config, host: &str, auth: RegistryAuth) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let docker = DockerCommand {
        machine: "doctor".parse().map_err(|_| "a name is wrong".to_owned())?,
        host: config.local.docker_host.clone(),
        config: folder.path().join("docker"),
        grace: Duration::from_secs(1),
        registry_retry_limit: Duration::ZERO,
    };
    create_config(&docker.config).map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let login = docker::login(&docker, host, &auth, &stop);
    match tokio::time::timeout(REGISTRY_LIMIT, login).await {
        Ok(Ok(())) => Ok(format!("login as {} succeeds", auth.username)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {REGISTRY_LIMIT:?}")),
    }
}

/// A registry without a password. Docker speaks plain HTTP with those of this machine alone.
async fn ask_openly(host: &str) -> Result<String, String> {
    let is_local = host.starts_with("127.") || host.starts_with("localhost");
    let scheme = if is_local { "http" } else { "https" };
    let request = reqwest::Client::new().get(format!("{scheme}://{host}/v2/"));
    let answer = request.timeout(REGISTRY_LIMIT).send().await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("it does not answer ({})", cause.unwrap_or_else(|| error.to_string()))
    })?;
    match answer.status().as_u16() {
        200 => Ok("it answers, without a login".to_owned()),
        401 => Err("it wants a login, and no user is configured".to_owned()),
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
    // The folder is made when core starts; until then its disk is that of the folder above.
    let folder = data_dir.ancestors().find(|folder| folder.exists()).map(PathBuf::from);
    let folder = folder.unwrap_or_default();
    match DiskGuard::new(folder.clone(), config.core.disk_free_min_mib).check().await {
        Ok(()) => Finding::ok("disk", format!("enough is free where {} lies", data_dir.display())),
        Err(error) => Finding::error("disk", error.to_string(), "free some space"),
    }
}

async fn server(arguments: &ServerArgs) -> Option<Finding> {
    let which = ListRuns { limit: Some(1), before: None };
    let asked = match arguments.named() {
        Ok(None) => return None,
        Ok(Some(client)) => match client.runs(&which).await {
            Ok(_) => Ok(client.server().to_string()),
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    Some(match asked {
        Ok(server) => Finding::ok("server", format!("{server} takes the token")),
        Err(error) => Finding::error("server", error, "check STAGELY_SERVER and the token"),
    })
}

/// The first line that `program` prints.
async fn first_line(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().await;
    let output = output.map_err(|error| format!("cannot start {program}: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} says: {}", text.lines().next().unwrap_or("nothing")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_buildx_is_found_in_its_line() {
        assert_eq!(version_of("github.com/docker/buildx v0.13.1 abc"), Some((0, 13)));
        assert_eq!(version_of("github.com/docker/buildx 0.9.1+debian 1.2.3"), Some((0, 9)));
        assert_eq!(version_of("no version"), None);
    }
}
