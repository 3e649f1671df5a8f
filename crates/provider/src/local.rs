//! Machines that are processes of this host: each is a `stagely agent` with a folder and an `agent.json`, which it
//! reads as on a VM.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use stagely_protocol::agent_config::PREVIEWS_FOLDER;
use stagely_protocol::{Arch, ErrorChain};
use stagely_state::comparison::Listed;
use stagely_state::ids::{CoreId, MachineId};
use stagely_state::{Fleet, MachineSize, Market, Placement};
use thiserror::Error;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::warn;

use crate::processes::{KILL_LIMIT, Processes, is_lack, private_file, private_log};
use crate::{
    CertificateAuthorities, LaunchError, LaunchRequest, Listing, Offer, Provider, ProviderError,
    TERMINATE_LIMIT,
};

/// The agent's configuration, in its machine's folder.
const AGENT_CONFIG: &str = "agent.json";

/// The agent's work folder, in its machine's folder.
const WORK_FOLDER: &str = "work";

/// The certificate authorities of this host and those that core adds, in the machine's folder.
const AUTHORITIES: &str = "authorities.pem";

/// The name of the only instance type: the host itself.
const INSTANCE_TYPE: &str = "host";

/// The time between SIGTERM and SIGKILL. In it the agent stops its own children.
const AGENT_STOP_LIMIT: Duration = Duration::from_secs(15);

/// The time between SIGTERM and SIGKILL for the machines of an earlier command. Its end has stopped them already.
const EARLIER_STOP_LIMIT: Duration = Duration::from_secs(1);

/// The time limit for removing what previews have left on the engine.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);

// Core repeats a request after TERMINATE_LIMIT.
const _: () = assert!(
    AGENT_STOP_LIMIT.as_secs() + KILL_LIMIT.as_secs() + CLEAN_UP_LIMIT.as_secs()
        < TERMINATE_LIMIT.as_secs()
);

/// The `[local]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LocalSettings {
    /// The program to run as `PROGRAM agent`. Default: this one.
    pub agent_program: Option<PathBuf>,
    /// The Docker engine that the agents use, `unix:///…`. Default: the one that this user's
    /// `docker` commands use.
    pub docker_host: Option<String>,
    /// Whether core runs inside a command. Its agents end with the command, and build for its user alone.
    #[serde(skip)]
    pub is_embedded: bool,
}

/// Launches machines as processes of this host.
#[derive(Debug)]
pub struct LocalProvider {
    program: PathBuf,
    docker_host: Option<String>,
    is_embedded: bool,
    processes: Processes,
}

impl LocalProvider {
    /// Launches `program agent`. The folders of machines are below `folder`.
    pub fn new(
        core_id: CoreId,
        program: PathBuf,
        folder: PathBuf,
        docker_host: Option<String>,
    ) -> Self {
        let processes = Processes::new(core_id, folder, AGENT_CONFIG);
        Self { program, docker_host, is_embedded: false, processes }
    }

    /// Ends the machines of earlier processes of this core, and lets further ones end with this process.
    ///
    /// # Errors
    /// Processes cannot be listed, or outlive SIGKILL.
    pub(crate) async fn embedded(mut self) -> Result<Self, ProviderError> {
        self.is_embedded = true;
        self.processes.stop_all(EARLIER_STOP_LIMIT).await?;
        for machine in self.processes.with_folder() {
            // The next command tries again.
            if let Err(error) = self.remove(machine).await {
                warn!(%machine, error = %ErrorChain(&error), "something is left of an earlier machine");
            }
        }
        Ok(self)
    }

    /// Removes what is left of a machine whose processes have ended: what its previews have on the engine, and its folder.
    /// No agent follows that would go on with its previews.
    async fn remove(&self, machine: MachineId) -> Result<(), ProviderError> {
        let folder = self.processes.folder(machine);
        if folder.join(WORK_FOLDER).join(PREVIEWS_FOLDER).exists() {
            self.remove_previews(&folder.join(AGENT_CONFIG))
                .await
                .map_err(|error| ProviderError::Failed(error.into()))?;
        }
        Ok(self.processes.remove_folder(machine).await?)
    }

    async fn remove_previews(&self, agent_config: &Path) -> Result<(), CleanUpError> {
        let mut command = Command::new(&self.program);
        command.args(["agent", "clean-up", "--config"]).arg(agent_config);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output =
            timeout(CLEAN_UP_LIMIT, output).await.map_err(|_| CleanUpError::TimedOut)??;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last_line = stderr.trim().lines().last().unwrap_or_default().to_owned();
        Err(CleanUpError::Exit { status: output.status, last_line })
    }

    fn start(&self, request: &LaunchRequest) -> io::Result<()> {
        let folder = self.processes.create_folder(request.machine)?;
        let mut agent = request.agent.clone();
        agent.work_dir = folder.join(WORK_FOLDER);
        agent.docker_host.clone_from(&self.docker_host);
        agent.parent = self.is_embedded.then(std::process::id);
        agent.user_logins = self.is_embedded;
        let config_path = folder.join(AGENT_CONFIG);
        private_file(&config_path)?.write_all(&serde_json::to_vec_pretty(&agent)?)?;
        let log = private_log(&folder.join("agent.log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("agent")
            .arg("--config")
            .arg(&config_path)
            .envs(request.environment.variables());
        if let Some(file) = write_authorities(&request.authorities, &folder)? {
            command.env("SSL_CERT_FILE", file);
        }
        self.processes.start(request.machine, command, log)
    }

    fn launch_error(&self, error: io::Error) -> LaunchError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                let program = self.program.clone();
                LaunchError::Permanent(StartError::Program { program, error }.into())
            }
            _ if is_lack(&error) => LaunchError::NoCapacity(StartError::Other(error).into()),
            _ => LaunchError::Permanent(StartError::Other(error).into()),
        }
    }
}

/// Writes `authorities` behind those of this host, because `SSL_CERT_FILE` replaces these. `None` if there is nothing to add.
fn write_authorities(
    authorities: &CertificateAuthorities,
    folder: &Path,
) -> io::Result<Option<PathBuf>> {
    if authorities.certificates().is_empty() {
        return Ok(None);
    }
    let mut text = match openssl_probe::probe().cert_file {
        Some(file) => fs::read(file)?,
        None => Vec::new(),
    };
    for certificate in authorities.certificates() {
        text.push(b'\n');
        text.extend_from_slice(certificate.as_bytes());
    }
    let path = folder.join(AUTHORITIES);
    fs::write(&path, text)?;
    Ok(Some(path))
}

/// An agent that cannot be started.
#[derive(Debug, Error)]
enum StartError {
    #[error("cannot start {}: {error}", .program.display())]
    Program { program: PathBuf, error: io::Error },
    #[error("cannot start an agent: {0}")]
    Other(io::Error),
}

/// What previews have left on the engine was not removed.
#[derive(Debug, Error)]
enum CleanUpError {
    #[error("cannot start `agent clean-up`: {0}")]
    Start(#[from] io::Error),
    #[error("`agent clean-up` has ended with {status}: {last_line}")]
    Exit { status: ExitStatus, last_line: String },
    #[error("`agent clean-up` did not end within {CLEAN_UP_LIMIT:?}")]
    TimedOut,
}

#[async_trait]
impl Provider for LocalProvider {
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        let placement = Placement {
            provider_id: request.machine.to_string(),
            instance_type: INSTANCE_TYPE.to_owned(),
            zone: None,
            market: Market::OnDemand,
            price: None,
            spot_price: None,
        };
        let started = self.processes.was_started(request.machine).await;
        if started.map_err(|error| LaunchError::Unclear(error.into()))? {
            return Ok(placement);
        }
        let Err(error) = self.start(request) else { return Ok(placement) };
        // Core does not end a machine that was not launched, so its folder is removed here.
        if let Err(error) = self.processes.remove_folder(request.machine).await {
            warn!(machine = %request.machine, error = %ErrorChain(&error), "cannot remove the folder of a machine that was not started");
        }
        Err(self.launch_error(error))
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        // The agent ends its own children and exits.
        self.processes.request_stop(machine).await?;
        self.processes.stop(machine, AGENT_STOP_LIMIT).await?;
        self.remove(machine).await
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        Ok(self.processes.list().await?)
    }

    fn listing(&self) -> Listing {
        // The list is current, and costs a scan of `/proc`.
        Listing { interval: Duration::from_secs(1), grace: Duration::ZERO }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let offer = |fleet| Offer {
            fleet,
            arch: Arch::of_this_program(),
            size: MachineSize::Medium,
            instance_type: INSTANCE_TYPE.to_owned(),
            price: None,
            spot: false,
            exists: true,
            problem: None,
        };
        Ok(Fleet::ALL.map(offer).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::fixtures::{
        self, CERTIFICATE, check_is_found_again, check_is_gone, machine_id, spec,
    };

    /// A script in the place of the agent.
    struct Host {
        folder: TempDir,
    }

    impl Host {
        fn with(agent: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("agent");
            let script = format!("#!/bin/sh\n{agent}\n");
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            Self { folder }
        }

        /// The provider that core creates at each start.
        fn provider(&self) -> LocalProvider {
            let path = |name| self.folder.path().join(name);
            let core_id = CoreId::from(self.folder.path().to_str().unwrap());
            LocalProvider::new(core_id, path("agent"), path("machines"), None)
        }

        async fn is_deserted(&self, provider: &LocalProvider) -> bool {
            fixtures::is_deserted(&provider.processes, &self.folder.path().join("machines")).await
        }

        async fn launch(&self, provider: &LocalProvider) -> MachineId {
            let machine = machine_id();
            provider.launch(&request(machine)).await.unwrap();
            machine
        }
    }

    fn request(machine: MachineId) -> LaunchRequest {
        fixtures::request(machine, spec(Arch::of_this_program(), MachineSize::Small), "secret")
    }

    #[tokio::test]
    async fn a_machine_is_started_once_and_found_by_the_next_core() {
        let host = Host::with("sleep 1000 & wait");
        let first = host.provider();
        let machine = host.launch(&first).await;
        first.launch(&request(machine)).await.unwrap();
        let next = host.provider();
        next.launch(&request(machine)).await.unwrap();

        check_is_found_again(machine, &first.processes, &next, &next.processes).await;
        next.terminate(machine).await.unwrap();

        assert!(host.is_deserted(&next).await);
        check_is_gone(machine, &next).await;
    }

    #[tokio::test]
    async fn an_agent_gets_the_variables_and_certificate_authorities_of_the_settings() {
        let host = Host::with("echo \"$http_proxy\"; cat \"$SSL_CERT_FILE\"; sleep 1000 & wait");
        let provider = host.provider();
        let machine = machine_id();
        let launched = LaunchRequest {
            environment: serde_json::from_str(r#"{"HTTP_PROXY": "http://proxy:1"}"#).unwrap(),
            authorities: CertificateAuthorities::parse(CERTIFICATE).unwrap(),
            ..request(machine)
        };
        provider.launch(&launched).await.unwrap();

        let log = host.folder.path().join(format!("machines/{machine}/agent.log"));
        let mut text = String::new();
        while !text.ends_with(CERTIFICATE) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            text = fs::read_to_string(&log).unwrap();
        }
        let mut own = String::new();
        if let Some(file) = openssl_probe::probe().cert_file {
            own = fs::read_to_string(file).unwrap();
        }
        assert_eq!(text, format!("http://proxy:1\n{own}\n{CERTIFICATE}"));
        provider.terminate(machine).await.unwrap();
    }

    #[tokio::test]
    async fn machines_that_end_together_leave_nothing() {
        let host = Host::with("trap 'kill $child; exit' TERM; sleep 1000 & child=$!; wait");
        let provider = Arc::new(host.provider());
        let mut machines = Vec::new();
        for _ in 0..8 {
            machines.push(host.launch(&provider).await);
        }

        let ends = machines.into_iter().map(|machine| {
            let provider = Arc::clone(&provider);
            tokio::spawn(async move { provider.terminate(machine).await })
        });
        for end in ends.collect::<Vec<_>>() {
            end.await.unwrap().unwrap();
        }

        assert!(host.is_deserted(&provider).await);
    }

    #[tokio::test]
    async fn a_process_that_an_agent_leaves_in_another_session_ends_with_its_machine() {
        let host = Host::with("setsid sleep 1000 & trap exit TERM; wait");
        let provider = host.provider();
        let machine = host.launch(&provider).await;
        // The agent ends at once. Its child is killed after the limit.
        provider.terminate(machine).await.unwrap();

        assert!(host.is_deserted(&provider).await);
    }

    /// An agent that has previews, and whose clean-up fails while the file `broken` exists.
    const PREVIEW_AGENT: &str = "\
        if [ \"$2\" = clean-up ]; then\n  \
          test ! -e \"${0%/*}/broken\" || { echo 'the engine is away' >&2; exit 1; }\n  \
          exec rm -r \"${4%/*}/work/previews\"\n\
        fi\n\
        mkdir -p \"${3%/*}/work/previews\"; sleep 1000 & wait";

    #[tokio::test]
    async fn what_previews_have_left_is_removed_before_the_folder_of_their_machine() {
        let host = Host::with(PREVIEW_AGENT);
        let provider = host.provider();
        let machine = host.launch(&provider).await;
        let folder = host.folder.path().join(format!("machines/{machine}"));
        while !folder.join("work/previews").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fs::write(host.folder.path().join("broken"), "").unwrap();
        let error = provider.terminate(machine).await.unwrap_err();
        assert!(ErrorChain(&error).to_string().contains("the engine is away"), "{error}");
        assert!(folder.join(AGENT_CONFIG).exists());
        // A machine of an earlier command: it can be removed later.
        let next = host.provider().embedded().await.unwrap();
        assert!(folder.exists());

        fs::remove_file(host.folder.path().join("broken")).unwrap();
        next.terminate(machine).await.unwrap();
        assert!(host.is_deserted(&next).await);
    }

    #[test]
    fn only_a_lack_of_something_that_comes_back_is_waited_for() {
        use nix::libc::{EACCES, EAGAIN, EMFILE, ENOENT, ENOEXEC};
        let host = Host::with("true");
        let provider = host.provider();
        let of = |errno| provider.launch_error(io::Error::from_raw_os_error(errno));
        for errno in [EAGAIN, EMFILE] {
            assert!(matches!(of(errno), LaunchError::NoCapacity(_)), "{errno}");
        }
        for errno in [EACCES, ENOENT, ENOEXEC] {
            assert!(matches!(of(errno), LaunchError::Permanent(_)), "{errno}");
        }
    }
}
