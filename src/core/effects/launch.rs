//! Launches a machine at its provider.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stagely_protocol::ErrorChain;
use stagely_provider::settings::ImageKind;
use stagely_provider::{
    AgentBinary, CertificateAuthorities, LaunchError, LaunchRequest, MachineSpec, Provider,
    Providers,
};
use stagely_state::ids::{JobId, MachineId, PreviewId};
use stagely_state::{Event, JobKind, LaunchFailure, Machine, MachineState, Placement};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::project_secrets::{self, MissingSecrets};
use crate::config::Config;
use crate::core::binaries::{self, Binaries};
use crate::core::clock::now;
use crate::core::records::SharedRecords;
use crate::core::retry::{Retry, RetryPolicy};
use crate::core::secrets::SecretStore;

/// Most attempts that end without a clear answer. Throttled attempts are repeated until [`RETRIES`] gives up.
const UNCLEAR_MAX: usize = 5;

/// The longest time between the beginnings of the first and the last attempt.
const RETRY_LIMIT: Duration = Duration::from_mins(3);

const RETRIES: RetryPolicy = RetryPolicy::new(Duration::from_secs(1), Duration::from_secs(30))
    .jitter()
    .time_limit(RETRY_LIMIT);

/// The time limit of one attempt with all its candidates.
const ATTEMPT_LIMIT: Duration = Duration::from_mins(3);

#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) secrets: SecretStore,
    pub(crate) providers: Providers,
    pub(crate) binaries: Binaries,
    pub(crate) authorities: CertificateAuthorities,
}

impl Launcher {
    pub(super) async fn launch(&self, machine: MachineId) -> Event {
        match self.try_launch(machine).await {
            Ok(placement) => {
                let Placement { provider_id, instance_type, zone, market, .. } = &placement;
                info!(%machine, provider_id, instance_type, zone, %market, "launched");
                Event::MachineLaunched { machine, placement: Some(placement) }
            }
            Err(failure) => {
                warn!(%machine, failure = message(&failure), "not launched");
                Event::LaunchFailed { machine, failure }
            }
        }
    }

    async fn try_launch(&self, machine: MachineId) -> Result<Placement, LaunchFailure> {
        let unknown = || LaunchFailure::Permanent(format!("{machine} has no record"));
        let record = self.records.read().machines.get(&machine).cloned().ok_or_else(unknown)?;
        self.check_secrets(&record).await?;
        let provider = self.providers.get(record.provider).ok_or_else(|| {
            let problem = format!("core has no provider {} (builders.provider)", record.provider);
            LaunchFailure::Permanent(problem)
        })?;
        let binary = self.binary(&**provider, &record).await?;
        let request = self.launch_request(record, binary).await.map_err(|error| {
            error!(%machine, error = format!("{error:#}"), "cannot prepare the launch of a machine");
            LaunchFailure::Internal(format!("core could not prepare the launch: {error:#}"))
        })?;
        let launch = async || {
            self.check_wanted(machine)?;
            let launched = timeout(ATTEMPT_LIMIT, provider.launch(&request)).await;
            launched.map_err(|_| AttemptError::TimedOut)?.map_err(AttemptError::Provider)
        };
        let mut unclear_count = 0;
        let retry = |error: &AttemptError| {
            unclear_count += usize::from(error.is_unclear());
            if unclear_count == UNCLEAR_MAX { Retry::Never } else { error.retry() }
        };
        let launched = RETRIES.run(format!("the launch of {machine}"), retry, launch).await;
        launched.map_err(|error| error.failure(unclear_count > 0))
    }

    /// Fails if the machine is for a deployment whose secrets are not set.
    async fn check_secrets(&self, machine: &Machine) -> Result<(), LaunchFailure> {
        let Some(job) = machine.requested_for else { return Ok(()) };
        match project_secrets::open(&self.records, &self.secrets, job).await {
            // The assignment fails for other reasons, too.
            Err(error) if error.is::<MissingSecrets>() => {
                Err(LaunchFailure::MissingSecrets(error.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Fails if the machine is no longer wanted: core may have been down, or the job may be cancelled.
    fn check_wanted(&self, machine: MachineId) -> Result<(), AttemptError> {
        let records = self.records.read();
        match records.machines.get(&machine) {
            Some(record) if record.state != MachineState::Requested => {
                Err(AttemptError::NotWanted("the machine was not wanted any more"))
            }
            Some(record) if record.lease_until.is_some_and(|until| until <= now()) => {
                let why = "the machine's lease was over before it could be asked for";
                Err(AttemptError::NotWanted(why))
            }
            _ => Ok(()),
        }
    }

    /// The agent's program, which a stock image downloads.
    async fn binary(
        &self,
        provider: &dyn Provider,
        machine: &Machine,
    ) -> Result<Option<AgentBinary>, LaunchFailure> {
        if provider.image_kind() == ImageKind::Golden {
            return Ok(None);
        }
        let url = binaries::address(&self.config.core.url(), machine.arch);
        match self.binaries.open(machine.arch).await {
            Ok(binary) => Ok(Some(AgentBinary { url, sha256: binary.sha256 })),
            Err(error) => {
                let problem = format!("a stock image installs the agent from core: {error}");
                Err(LaunchFailure::Permanent(problem))
            }
        }
    }

    async fn launch_request(
        &self,
        machine: Machine,
        binary: Option<AgentBinary>,
    ) -> anyhow::Result<LaunchRequest> {
        let Machine { id, fleet, arch, size, on_demand, requested_for, lease_until, .. } = machine;
        let secrets = self.secrets.clone();
        let token = spawn_blocking(move || secrets.add_machine_token(id)).await??;
        let bought = self.config.fleet(fleet);
        let (market, max_price) = (bought.market, bought.max_price);
        let registry = &self.config.registry;
        let (preview, disk_gib) = requested_for.and_then(|job| self.deployment(job)).unzip();
        Ok(LaunchRequest {
            machine: id,
            job: requested_for,
            preview,
            spec: MachineSpec { fleet, arch, size, market, on_demand, max_price, disk_gib },
            agent: self.config.agent_config(id, token),
            environment: self.config.agents.environment.clone(),
            authorities: self.authorities.clone(),
            lease: lease_until.context("a launched machine has a lease")?.since(now()),
            binary,
            insecure_registry: registry.insecure.then(|| registry.host().to_owned()),
        })
    }

    /// The preview of a deploy job, and the disk that it needs, in GiB.
    fn deployment(&self, job: JobId) -> Option<(PreviewId, u32)> {
        let records = self.records.read();
        let job = records.jobs.get(&job)?;
        let JobKind::Deploy { deployment, .. } = &job.kind else { return None };
        let run = records.runs.get(&job.run)?;
        Some((records.preview_of(run.environment)?.id, deployment.disk_gib))
    }
}

#[derive(Debug, Error)]
enum AttemptError {
    #[error("{0}")]
    NotWanted(&'static str),
    #[error("no answer within {ATTEMPT_LIMIT:?}")]
    TimedOut,
    #[error(transparent)]
    Provider(LaunchError),
}

/// What a failure says to people.
fn message(failure: &LaunchFailure) -> &str {
    match failure {
        LaunchFailure::NoCapacity(message)
        | LaunchFailure::Permanent(message)
        | LaunchFailure::Unclear(message)
        | LaunchFailure::Internal(message)
        | LaunchFailure::MissingSecrets(message) => message,
    }
}

impl AttemptError {
    /// Whether the attempt may have started a machine.
    const fn is_unclear(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Provider(LaunchError::Unclear(_)))
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Provider(LaunchError::Throttled { wait, .. }) => {
                Retry::After(wait.unwrap_or_default())
            }
            Self::TimedOut | Self::Provider(LaunchError::Unclear(_)) => Retry::Soon,
            Self::NotWanted(_)
            | Self::Provider(LaunchError::NoCapacity(_) | LaunchError::Permanent(_)) => {
                Retry::Never
            }
        }
    }

    /// The outcome of the launch. A machine that an attempt may have started is found by its tags and ended.
    fn failure(self, may_have_started: bool) -> LaunchFailure {
        match self {
            // An attempt of an earlier core may have started one.
            Self::NotWanted(_) | Self::TimedOut => LaunchFailure::Unclear(self.to_string()),
            Self::Provider(error) if may_have_started => {
                LaunchFailure::Unclear(ErrorChain(error.cause()).to_string())
            }
            Self::Provider(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use stagely_protocol::Arch;
    use stagely_provider::{Listing, Offer, ProviderError};
    use stagely_state::Timestamp;
    use stagely_state::comparison::Listed;
    use tempfile::TempDir;
    use tokio::time::Instant;

    use super::*;
    use crate::core::fixtures;
    use crate::core::records::Records;
    use crate::core::store::Store;

    /// Returns the scripted answers in order, and then that there is no capacity.
    #[derive(Default)]
    struct ScriptedProvider {
        answers: Mutex<VecDeque<LaunchError>>,
        asked_at: Mutex<Vec<Instant>>,
        image_kind: ImageKind,
    }

    #[async_trait]
    impl Provider for ScriptedProvider {
        async fn launch(&self, _: &LaunchRequest) -> Result<Placement, LaunchError> {
            self.asked_at.lock().unwrap().push(Instant::now());
            let answer = self.answers.lock().unwrap().pop_front();
            Err(answer.unwrap_or_else(|| LaunchError::NoCapacity("none left".into())))
        }

        async fn terminate(&self, _: MachineId) -> Result<(), ProviderError> {
            Ok(())
        }

        async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
            Ok(Vec::new())
        }

        fn image_kind(&self) -> ImageKind {
            self.image_kind
        }

        fn listing(&self) -> Listing {
            Listing { interval: Duration::from_mins(1), grace: Duration::ZERO }
        }

        async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
            Ok(Vec::new())
        }
    }

    fn launcher(folder: &TempDir, config: Config, records: SharedRecords) -> Launcher {
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        fixtures::effects(folder.path(), config, store, records).launcher
    }

    /// Launches `machine`. Also returns the time from the first attempt to the last.
    async fn launch(machine: Machine, answers: Vec<LaunchError>) -> (LaunchFailure, Vec<Duration>) {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::default();
        let (id, record_provider) = (machine.id, machine.provider);
        records.machines.insert(id, machine);
        let records = SharedRecords::new(records);
        let mut launcher = launcher(&folder, Config::default(), records);
        let scripted = Arc::new(ScriptedProvider {
            answers: Mutex::new(answers.into()),
            ..ScriptedProvider::default()
        });
        let provider: Arc<dyn Provider> = Arc::clone(&scripted) as _;
        launcher.providers = Providers::from_iter([(record_provider, provider)]);

        let failure = launcher.try_launch(id).await.unwrap_err();

        let asked_at = scripted.asked_at.lock().unwrap().clone();
        (failure, asked_at.iter().map(|at| *at - asked_at[0]).collect())
    }

    fn requested() -> Machine {
        let lease_until = Some(now().after(Duration::from_hours(1)));
        Machine { state: MachineState::Requested, lease_until, ..fixtures::machine(1) }
    }

    fn throttled(wait: Option<Duration>) -> LaunchError {
        LaunchError::Throttled { cause: "slow down".into(), wait }
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_launch_is_repeated_after_the_wait_of_the_provider() {
        let second = Duration::from_secs(1);
        let (failure, asked) =
            launch(requested(), vec![throttled(Some(70 * second)), throttled(None)]).await;
        assert_eq!(failure, LaunchFailure::NoCapacity("none left".to_owned()));
        assert!(asked[1] >= 70 * second && asked[1] < 71 * second, "{asked:?}");
        assert!(asked[2] >= 72 * second && asked.len() == 3, "{asked:?}");

        let forever = std::iter::repeat_with(|| throttled(None)).take(100).collect();
        let (failure, asked) = launch(requested(), forever).await;
        assert_eq!(failure, LaunchFailure::NoCapacity("slow down".to_owned()));
        assert!(asked.len() > 7 && asked[asked.len() - 1] <= RETRY_LIMIT, "{asked:?}");
        let (_, asked) = launch(requested(), vec![throttled(Some(Duration::from_hours(1)))]).await;
        assert_eq!(asked.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_that_may_have_started_a_machine_stays_unclear() {
        let unclear = || LaunchError::Unclear("no answer".into());
        let (failure, asked) = launch(requested(), vec![unclear()]).await;
        assert_eq!(failure, LaunchFailure::Unclear("none left".to_owned()));
        assert_eq!(asked.len(), 2);
        let always = std::iter::repeat_with(unclear).take(100).collect();
        let (failure, asked) = launch(requested(), always).await;
        assert_eq!(failure, LaunchFailure::Unclear("no answer".to_owned()));
        assert_eq!(asked.len(), UNCLEAR_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unwanted_machine_is_not_launched() {
        let late = Machine { lease_until: Some(Timestamp(1)), ..requested() };
        let cancelled = Machine { state: MachineState::Terminating, ..requested() };
        for machine in [late, cancelled] {
            let (failure, asked) = launch(machine, Vec::new()).await;
            assert!(matches!(failure, LaunchFailure::Unclear(_)), "{failure:?}");
            assert!(asked.is_empty(), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_stock_image_fetches_the_agents_program_from_core_which_must_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.core.public_url = Some("https://core.example/base/".parse().unwrap());
        let records = SharedRecords::new(Records::default());
        let mut launcher = launcher(&folder, config, records);
        let own = Arch::of_this_program();
        let arch = if own == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
        let machine = Machine { arch, ..fixtures::machine(1) };
        let of = |image_kind| ScriptedProvider { image_kind, ..ScriptedProvider::default() };

        let failure = launcher.binary(&of(ImageKind::Stock), &machine).await.unwrap_err();
        let LaunchFailure::Permanent(problem) = failure else { panic!("{failure:?}") };
        assert!(problem.contains("agents.binaries"), "{problem}");
        assert_eq!(launcher.binary(&of(ImageKind::Golden), &machine).await.unwrap(), None);

        std::fs::write(folder.path().join(format!("stagely-linux-{arch}")), "one").unwrap();
        launcher.binaries = binaries::Binaries::new(Some(folder.path().to_owned()));
        let binary = launcher.binary(&of(ImageKind::Stock), &machine).await.unwrap().unwrap();
        let address = format!("https://core.example/base/v1/agent/binary/{arch}");
        assert_eq!((binary.url.as_str(), binary.sha256.len()), (&*address, 64));
    }
}
