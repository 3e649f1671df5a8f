//! Records and parts for the tests of other modules.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::{Arch, BuildArgs, Digest, Platform, Submodules};
use stagely_provider::{CertificateAuthorities, Providers};
use stagely_state::ids::{JobId, MachineId, RunId};
use stagely_state::{
    Access, Deployment, Job, JobKind, Machine, MachineKind, MachineState, PlannedJob,
    PreviewSettings, State, Timestamp, UsedImage,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::binaries::Binaries;
use super::disk::DiskGuard;
use super::effects::{
    Assigner, Cleaner, CloneTokens, CommandChecker, EditedFiles, Effects, InterruptedWork,
    Launcher, Planner, Reporter, RepositoryReader, Tagger, Terminator,
};
use super::github::Github;
use super::github::report::queue::ReportQueue;
use super::history::History;
use super::logs::{LogSettings, LogStore};
use super::orchestrator::{self, Events, Orchestrator};
use super::previews::{PreviewHosts, PreviewLinks};
use super::records::{Records, SharedRecords};
use super::registry::Registry;
use super::secrets::SecretStore;
use super::secrets::keyring::Keyring;
use super::sessions::Sessions;
use super::store::Store;
use crate::config::Config;

/// The digest of every image here.
pub(super) fn digest() -> Digest {
    format!("sha256:{}", "d".repeat(64)).parse().unwrap()
}

/// A job that waits to build `variant`.
pub(super) fn job(id: u128, run: u128, variant: &str, platform: &str) -> Job {
    let platform: Platform = platform.parse().unwrap();
    let image = format!("r/app/main:{variant}.{run}").parse().unwrap();
    let kind = JobKind::build(platform, image);
    let planned = PlannedJob::new(JobId::from_bits(id), variant, kind, Duration::from_mins(30));
    Job { attempt: 1, ..Job::queued(planned, RunId::from_bits(run), Timestamp(0)) }
}

/// A deployment of one image, without endpoints.
pub(super) fn deployment() -> Deployment {
    let image = format!("r/shop/pr-7@{}", digest()).parse().unwrap();
    Deployment {
        compose: None,
        images: BTreeMap::from([("app".to_owned(), UsedImage::Image { image })]),
        default_images: BTreeMap::new(),
        endpoints: Vec::new(),
        env: BuildArgs::default(),
        submodules: Submodules::default(),
        secrets: Vec::new(),
        migrate: None,
        seed: None,
        fresh: false,
        reset_when: Vec::new(),
        disk_gib: 20,
        settings: PreviewSettings {
            on_request: false,
            access: Access::Link,
            public_paths: Vec::new(),
            sleep_after: None,
            ttl: Duration::from_hours(1),
        },
    }
}

/// A registered machine that has nothing to do.
pub(super) fn machine(number: u128) -> Machine {
    let id = MachineId::from_bits(number);
    let machine = Machine::new(id, MachineKind::Registered, Arch::Amd64, Timestamp(0));
    Machine { state: MachineState::Ready, ..machine }
}

/// An orchestrator at work.
pub(super) struct RunningOrchestrator {
    pub(super) records: SharedRecords,
    pub(super) events: Events,
    pub(super) secrets: SecretStore,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<anyhow::Result<()>>,
}

/// Starts the orchestrator of `state`, whose effects launch nothing.
pub(super) fn start_orchestrator(
    folder: &Path,
    config: Config,
    store: Store,
    state: State,
) -> RunningOrchestrator {
    let records = SharedRecords::new(Records::of(&state));
    let effects = effects(folder, config, store.clone(), records.clone());
    let secrets = effects.launcher.secrets.clone();
    let (events, inbox) = orchestrator::inbox();
    let orchestrator =
        Orchestrator::new(state, store, secrets.clone(), records.clone(), Arc::new(effects), inbox);
    let stop = CancellationToken::new();
    let task = tokio::spawn(orchestrator.run(stop.clone()));
    RunningOrchestrator { records, events, secrets, stop, task }
}

/// Effects that launch nothing and keep their files in `folder`.
pub(super) fn effects(
    folder: &Path,
    config: Config,
    store: Store,
    records: SharedRecords,
) -> Effects {
    let keyring = Keyring::open(&folder.join("key")).unwrap();
    let secrets = SecretStore::new(keyring, store.clone(), Vec::new(), Vec::new());
    let log_settings =
        LogSettings { job_bytes_max: 1024, cache_bytes: 1024, disk_free_min_bytes: 0 };
    let config = Arc::new(config);
    let github = Github::new(Arc::clone(&config), secrets.clone()).unwrap();
    let clone_tokens = CloneTokens { github: github.clone() };
    let registry = Arc::new(Registry::new(config.registry.clone()).unwrap());
    let (sessions, providers) = (Sessions::default(), Providers::default());
    let disk = DiskGuard::new(folder.to_owned(), 0);
    let history = History::new(records.clone(), store.clone());
    let interrupted = InterruptedWork::new(store.clone(), BTreeMap::new());
    let reader = Arc::new(RepositoryReader::new(folder, disk.clone()));
    Effects {
        records: records.clone(),
        interrupted: interrupted.clone(),
        planner: Planner::new(
            &config,
            Arc::clone(&reader),
            &records,
            &secrets,
            &github,
            &clone_tokens,
            &disk,
        ),
        terminator: Terminator {
            records: records.clone(),
            sessions: sessions.clone(),
            providers: providers.clone(),
        },
        assigner: Assigner {
            login: config.registry.clone(),
            records: records.clone(),
            sessions: sessions.clone(),
            secrets: secrets.clone(),
            store,
            history: history.clone(),
            registry: Arc::clone(&registry),
            clone_tokens,
            edited_files: EditedFiles { reader, interrupted: interrupted.clone() },
            allow_privileged: config.previews.allow_privileged,
            links: PreviewLinks::new(PreviewHosts::new(&config), secrets.clone()),
        },
        tagger: Tagger { records: records.clone(), registry: Arc::clone(&registry) },
        cleaner: Cleaner { records: records.clone(), registry },
        command_checker: CommandChecker {
            records: records.clone(),
            history,
            github: github.clone(),
        },
        reporter: Reporter {
            config: Arc::clone(&config),
            logs: LogStore::open(&folder.join("effects-logs.redb"), log_settings).unwrap(),
            github,
            links: PreviewLinks::new(PreviewHosts::new(&config), secrets.clone()),
            queue: ReportQueue::new(&records),
            records: records.clone(),
        },
        archive_bytes_max: config.previews.archive_max.0,
        launcher: Launcher {
            config,
            records,
            secrets,
            providers,
            binaries: Binaries::new(None),
            authorities: CertificateAuthorities::default(),
        },
        sessions,
    }
}
