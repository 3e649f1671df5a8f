//! Previews.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;
use stagely_protocol::ImageRef;
use stagely_state::ids::MachineId;
use stagely_state::{
    Deployment, Environment, Job, JobKind, Machine, MachineKind, Preview, PreviewState, Project,
    ProviderName, Timestamp, UsedImage,
};
use url::Url;

use crate::api::{ArchiveView, DataLossView, DeploymentView, PreviewStatus, PreviewView};
use crate::core::previews::{
    EndpointAddress, PreviewLinks, PreviewReports, deployment_of, preview_label, reason_of_wait,
    rebuild_of,
};
use crate::core::records::Records;

/// The bits of an id below its time.
const ID_BITS_BELOW_TIME: u32 = 80;

/// Previews as somebody may see them.
pub(in crate::core::http) struct Previews<'a> {
    pub(in crate::core::http) records: &'a Records,
    pub(in crate::core::http) links: &'a PreviewLinks,
    pub(in crate::core::http) reports: &'a PreviewReports,
    /// Whether URLs have the key that opens a preview.
    pub(in crate::core::http) with_keys: bool,
}

impl Previews<'_> {
    pub(in crate::core::http) fn view(&self, preview: &Preview) -> PreviewView {
        let project = self.records.projects.get(&preview.project);
        let environment = self.records.environments.get(&preview.environment);
        let (shown, status) = (preview.shown.as_ref(), preview_status(preview.state));
        let (machine, job) = (machine_of(preview.state), self.deploy_job(preview));
        let report = machine.and_then(|machine| self.reports.of(preview.id, machine));
        let machine = machine.and_then(|machine| self.records.machines.get(&machine));
        let settings = preview.settings();
        let is_idle = matches!(
            preview.state,
            PreviewState::Live { .. } | PreviewState::Asleep | PreviewState::Failed { .. }
        );
        let sleep_after = settings
            .filter(|_| status == PreviewStatus::Live)
            .and_then(|settings| settings.sleep_after);
        let addresses = self.links.endpoints(self.records, preview);
        let label = addresses.first().map(|first| first.label.clone());
        let mut urls = addresses
            .into_iter()
            .filter(|_| status.is_open())
            .map(|EndpointAddress { name, url, .. }| (name, self.url(preview, url)));
        let first = urls.next();
        PreviewView {
            id: preview.id,
            label: label.or_else(|| Some(label_of(project?, environment?))).unwrap_or_default(),
            project: project.map(|project| project.name.clone()).unwrap_or_default(),
            environment_id: preview.environment,
            environment: environment.map(|found| found.name.clone()).unwrap_or_default(),
            pull_request: environment.and_then(|found| found.pull_request),
            status,
            problem: preview.problem.clone(),
            commit: shown.map(|shown| shown.commit.clone()),
            run_id: shown.map(|shown| shown.run),
            generation: shown.map(|shown| shown.number),
            deployment: job.map(|job| self.deployment(job)),
            rebuild_id: rebuild_of(self.records, preview),
            access: deployment_of(self.records, preview)
                .map(|deployment| deployment.settings.access),
            url: first.as_ref().map(|(_, url)| url.clone()),
            urls: first.into_iter().chain(urls).collect(),
            direct_urls: machine
                .filter(|machine| is_on_this_host(machine))
                .map(|machine| self.direct_urls(preview, machine.id))
                .unwrap_or_default(),
            images: shown.map(|shown| images(&shown.deployment)).unwrap_or_default(),
            machine_id: machine.map(|machine| machine.id),
            provider: machine
                .filter(|machine| machine.kind == MachineKind::Launched)
                .map(|machine| machine.provider),
            disk_free_bytes: report.as_ref().and_then(|report| report.disk_free_bytes),
            services: report.as_ref().map(|report| report.services.clone()).unwrap_or_default(),
            warnings: report.map(|report| report.messages).unwrap_or_default(),
            archive: preview
                .archive
                .as_ref()
                .map(|archive| ArchiveView { bytes: archive.bytes, made_at: archive.made_at }),
            data_loss: preview.data_loss.as_ref().map(|loss| DataLossView {
                at: loss.at,
                archived_at: loss.archived_at,
                reason: loss.reason.clone(),
            }),
            created_at: time_of(preview.id.bits()),
            active_at: preview.active_at,
            sleeps_at: sleep_after.map(|after| preview.active_at.after(after)),
            ends_at: preview.ends_at().filter(|_| is_idle),
        }
    }

    fn direct_urls(&self, preview: &Preview, machine: MachineId) -> BTreeMap<String, String> {
        let addresses = self.reports.addresses(preview.id, machine).into_iter();
        addresses.map(|found| (found.name, format!("http://{}/", found.address))).collect()
    }

    fn url(&self, preview: &Preview, url: Url) -> String {
        if !self.with_keys {
            return url.into();
        }
        let url = self.links.opening_url(self.records, preview, url);
        url.expose_secret().to_owned()
    }

    /// The deploy job that is under way, or that waits for a machine.
    fn deploy_job(&self, preview: &Preview) -> Option<&Job> {
        if let Some(job) = preview.state.job() {
            return self.records.jobs.get(&job);
        }
        let is_of_environment = |job: &&Job| {
            let run = self.records.runs.get(&job.run);
            run.is_some_and(|run| run.environment == preview.environment)
        };
        let jobs = self.records.jobs.values();
        let waiting =
            jobs.filter(|job| matches!(job.kind, JobKind::Deploy { .. }) && !job.state.is_final());
        waiting.rev().find(is_of_environment)
    }

    fn deployment(&self, job: &Job) -> DeploymentView {
        let run = self.records.runs.get(&job.run);
        DeploymentView {
            job_id: job.id,
            run_id: run.map(|run| run.id),
            commit: run.and_then(|run| run.commit.clone()),
            waits: reason_of_wait(self.records, job),
        }
    }
}

/// Whether core has launched the machine as a process of its own host.
fn is_on_this_host(machine: &Machine) -> bool {
    machine.kind == MachineKind::Launched && machine.provider == ProviderName::Local
}

/// The images by digest that a deployment runs.
fn images(deployment: &Deployment) -> BTreeMap<String, ImageRef> {
    let named = deployment.default_images.iter().chain(&deployment.images);
    let by_digest = named.filter_map(|(service, image)| match image {
        UsedImage::Image { image } => Some((service.clone(), image.clone())),
        UsedImage::Job { .. } => None,
    });
    by_digest.collect()
}

/// The label of a preview that has no endpoints any more.
fn label_of(project: &Project, environment: &Environment) -> String {
    preview_label(&environment.name, &project.name, None)
}

/// The time at which an id was made.
fn time_of(id: u128) -> Timestamp {
    Timestamp(u64::try_from(id >> ID_BITS_BELOW_TIME).expect("128 bits without 80 are 48"))
}

const fn machine_of(state: PreviewState) -> Option<MachineId> {
    match state {
        PreviewState::Archiving { machine, .. } => Some(machine),
        state => state.machine(),
    }
}

const fn preview_status(state: PreviewState) -> PreviewStatus {
    match state {
        PreviewState::Deploying { .. } => PreviewStatus::Deploying,
        PreviewState::Live { .. } => PreviewStatus::Live,
        PreviewState::Updating { .. } => PreviewStatus::Updating,
        PreviewState::Archiving { .. } => PreviewStatus::Archiving,
        PreviewState::Asleep => PreviewStatus::Asleep,
        PreviewState::Waking { .. } => PreviewStatus::Waking,
        PreviewState::Ending => PreviewStatus::Ending,
        PreviewState::Ended => PreviewStatus::Ended,
        PreviewState::Failed { .. } => PreviewStatus::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stagely_protocol::{Arch, BuildArgs, Endpoint, HealthCheck, ServiceState, Submodules};
    use stagely_state::ids::{EnvironmentId, JobId, PreviewId, ProjectId, RunId};
    use stagely_state::{
        Access, CommitSource, Fleet, Generation, MachineSize, PlannedJob, PreviewSettings, Run,
    };
    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;
    use crate::core::fixtures;
    use crate::core::previews::{PreviewHosts, PreviewReport};
    use crate::core::secrets::SecretStore;
    use crate::core::secrets::keyring::Keyring;
    use crate::core::store::Store;

    const PREVIEW: PreviewId = PreviewId::from_bits(1_000 << 80);
    const MACHINE: MachineId = MachineId::from_bits(1);

    /// Pull request 7 of `app`, with a preview.
    struct World {
        records: Records,
        links: PreviewLinks,
        reports: PreviewReports,
        _folder: TempDir,
    }

    fn deployment(access: Access) -> Deployment {
        let endpoint = |name: &str| Endpoint {
            name: name.to_owned(),
            service: name.to_owned(),
            port: 80,
            host: None,
            health: HealthCheck::default(),
        };
        let image = format!("r/app/pr-7@{}", fixtures::digest()).parse().unwrap();
        Deployment {
            compose: None,
            images: BTreeMap::from([("web".to_owned(), UsedImage::Image { image })]),
            default_images: BTreeMap::new(),
            endpoints: vec![endpoint("web"), endpoint("mail")],
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
                access,
                public_paths: Vec::new(),
                sleep_after: Some(Duration::from_secs(20)),
                ttl: Duration::from_secs(100),
            },
        }
    }

    impl World {
        fn new(state: PreviewState, access: Access) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
            let keyring = Keyring::open(&folder.path().join("key")).unwrap();
            let secrets = SecretStore::new(keyring, store, Vec::new(), Vec::new());
            let config: Config = toml::from_str("core.listen = \"127.0.0.1:7780\"\n").unwrap();
            let links = PreviewLinks::new(PreviewHosts::new(&config), secrets);
            let (records, reports) = (records(state, access), PreviewReports::default());
            Self { records, links, reports, _folder: folder }
        }

        fn live() -> Self {
            Self::new(PreviewState::Live { machine: MACHINE }, Access::Link)
        }

        fn preview(&mut self) -> &mut Preview {
            self.records.previews.get_mut(&PREVIEW).unwrap()
        }

        fn view(&self, with_keys: bool) -> PreviewView {
            let Self { records, links, reports, .. } = self;
            Previews { records, links, reports, with_keys }.view(&records.previews[&PREVIEW])
        }

        fn add_deploy_job(&mut self) -> JobId {
            let deployment = Box::new(deployment(Access::Link));
            let kind = JobKind::Deploy { arch: None, deployment };
            let id = JobId::from_bits(9);
            let planned = PlannedJob::new(id, "deploy", kind, Duration::from_secs(1));
            let job = Job::queued(planned, RunId::from_bits(1), Timestamp(0));
            self.records.jobs.insert(id, job);
            id
        }
    }

    fn records(state: PreviewState, access: Access) -> Records {
        let mut records = Records::default();
        let project = Project::new(ProjectId::from_bits(1), "app".to_owned(), String::new());
        let mut environment =
            Environment::new(EnvironmentId::from_bits(1), project.id, "pr-7".to_owned());
        environment.pull_request = Some(7);
        let run = Run::new(RunId::from_bits(1), &environment, String::new(), Timestamp(0));
        let shown = Generation {
            number: 3,
            run: run.id,
            commit: "0123abcd".repeat(5).parse().unwrap(),
            source: CommitSource {
                repository: String::new(),
                branch: None,
                from_fork: false,
                github: None,
            },
            requested_at: Timestamp(0),
            deployment: deployment(access),
            arch: Arch::Amd64,
            size: MachineSize::default(),
            timeout: Duration::from_secs(1),
        };
        let preview = Preview {
            state,
            shown: Some(shown),
            active_at: Timestamp(5_000),
            ..Preview::new(PREVIEW, project.id, environment.id, Timestamp(0))
        };
        let machine = fixtures::machine(1);
        let machine = Machine { fleet: Fleet::Preview, serves: Some(PREVIEW), ..machine };
        records.projects.insert(project.id, project);
        records.environments.insert(environment.id, environment);
        records.runs.insert(run.id, run);
        records.machines.insert(machine.id, machine);
        records.previews.insert(PREVIEW, preview);
        records
    }

    #[test]
    fn a_live_preview_has_its_addresses_its_commit_and_its_times() {
        let view = World::live().view(false);

        assert_eq!((&*view.label, &*view.project, view.pull_request), ("pr-7-app", "app", Some(7)));
        assert_eq!((view.status, view.generation), (PreviewStatus::Live, Some(3)));
        assert_eq!(view.url.as_deref(), Some("http://pr-7-app.localhost:7780/"));
        assert_eq!(view.urls["mail"], "http://pr-7-app-mail.localhost:7780/");
        assert_eq!(view.created_at, Timestamp(1_000));
        assert_eq!(view.sleeps_at, Some(Timestamp(25_000)));
        assert_eq!(view.ends_at, Some(Timestamp(105_000)));
        assert_eq!((view.machine_id, view.provider), (Some(MACHINE), None));
        assert!(view.images["web"].to_string().contains("@sha256:"), "{view:?}");
    }

    #[test]
    fn a_preview_on_this_host_has_direct_addresses() {
        let mut world = World::live();
        let address = stagely_protocol::EndpointAddress {
            name: "web".to_owned(),
            address: "127.0.0.1:32768".to_owned(),
        };
        world.reports.set_addresses(PREVIEW, MACHINE, vec![address]);
        assert!(world.view(true).direct_urls.is_empty(), "it is on a registered machine");
        let machine = world.records.machines.get_mut(&MACHINE).unwrap();
        (machine.kind, machine.provider) = (MachineKind::Launched, ProviderName::Local);
        assert_eq!(world.view(true).direct_urls["web"], "http://127.0.0.1:32768/");
        let other = world.reports.addresses(PREVIEW, MachineId::from_bits(2));
        assert!(other.is_empty(), "{other:?}");
    }

    #[test]
    fn only_a_link_for_writers_has_the_key() {
        for access in [Access::Link, Access::Public, Access::Token] {
            let world = World::new(PreviewState::Asleep, access);
            let url = |with_keys| world.view(with_keys).url.unwrap();
            assert_eq!(url(false), "http://pr-7-app.localhost:7780/");
            let has_key = url(true).contains("?stagely-access=");
            assert_eq!(has_key, access == Access::Link, "{access:?}");
        }
    }

    #[test]
    fn the_services_are_those_of_the_machine_that_serves() {
        let mut world = World::live();
        let web = ServiceState {
            name: "web".to_owned(),
            state: "running".to_owned(),
            health: None,
            exit_code: None,
        };
        let report = PreviewReport {
            machine: MACHINE,
            generation: 3,
            services: vec![web.clone()],
            disk_free_bytes: Some(1),
            messages: vec!["the service `db` has no container".to_owned()],
        };
        world.reports.set(PREVIEW, report);
        let shown = world.view(false);
        assert_eq!((shown.services, shown.disk_free_bytes), (vec![web], Some(1)));
        assert_eq!(shown.warnings.len(), 1);

        world.preview().state = PreviewState::Live { machine: MachineId::from_bits(2) };
        assert!(world.view(false).services.is_empty());
    }

    #[test]
    fn a_deployment_that_waits_is_shown_and_gives_a_first_deployment_its_addresses() {
        let mut world = World::new(PreviewState::Asleep, Access::Link);
        assert_eq!(world.view(false).deployment, None);
        let job = world.add_deploy_job();
        let shown = world.view(false).deployment.unwrap();
        assert_eq!((shown.job_id, shown.run_id), (job, Some(RunId::from_bits(1))));

        world.preview().shown = None;
        world.preview().state = PreviewState::Deploying { job };
        let view = world.view(false);
        assert_eq!((view.commit, view.access), (None, Some(Access::Link)));
        assert_eq!(view.urls.len(), 2);
    }

    #[test]
    fn an_ended_preview_has_no_address() {
        let mut world = World::new(PreviewState::Ended, Access::Link);
        world.preview().shown = None;
        let view = world.view(false);
        assert_eq!((view.url, view.ends_at, &*view.label), (None, None, "pr-7-app"));
        assert!(!view.status.is_open());
    }
}
