//! The addresses of a preview's endpoints, and the key that opens them.

use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::ids::EnvironmentId;
use stagely_state::{Access, Deployment, JobKind, Preview, PreviewState};
use url::Url;

use super::{PreviewHosts, preview_label};
use crate::core::records::Records;
use crate::core::secrets::SecretStore;

/// The parameter of a URL that holds the key of a preview.
pub const ACCESS_PARAMETER: &str = "stagely-access";

/// The header of a request that holds the key of a preview, or a token of the API.
pub const ACCESS_HEADER: &str = "x-stagely-access";

/// Where previews are. Clones share the secrets.
#[derive(Clone, Debug)]
pub struct PreviewLinks {
    hosts: PreviewHosts,
    secrets: SecretStore,
}

/// The address of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointAddress {
    /// Its name in `stagely.yaml`.
    pub name: String,
    /// The first label of its host name.
    pub label: String,
    /// Without a key.
    pub url: Url,
}

impl PreviewLinks {
    pub const fn new(hosts: PreviewHosts, secrets: SecretStore) -> Self {
        Self { hosts, secrets }
    }

    /// The endpoints of the deployment that the preview shows, or else of the one that is under way or failed. The first
    /// one is the preview's address.
    pub fn endpoints(&self, records: &Records, preview: &Preview) -> Vec<EndpointAddress> {
        let environment = records.environments.get(&preview.environment);
        let project = records.projects.get(&preview.project);
        let (Some(environment), Some(project)) = (environment, project) else { return Vec::new() };
        let deployment = deployment_of(records, preview);
        let endpoints = deployment.iter().flat_map(|deployment| &deployment.endpoints);
        let address = |(index, name): (usize, &String)| {
            let further = (index > 0).then_some(&**name);
            let label = preview_label(&environment.name, &project.name, further);
            EndpointAddress { name: name.clone(), url: self.hosts.url(&label), label }
        };
        endpoints.map(|endpoint| &endpoint.name).enumerate().map(address).collect()
    }

    /// The address of an environment's preview, whether there is one or not.
    pub fn address(&self, records: &Records, environment: EnvironmentId) -> Option<Url> {
        let environment = records.environments.get(&environment)?;
        let project = records.projects.get(&environment.project)?;
        Some(self.hosts.url(&preview_label(&environment.name, &project.name, None)))
    }

    /// The key that opens the preview.
    pub fn access_key(&self, preview: &Preview, access: Access) -> SecretString {
        self.secrets.preview_key(preview, access)
    }

    /// `url` with the key if the preview opens with a link. It is a secret then.
    pub fn opening_url(&self, records: &Records, preview: &Preview, mut url: Url) -> SecretString {
        let access = deployment_of(records, preview).map(|deployment| deployment.settings.access);
        if access == Some(Access::Link) {
            let key = self.access_key(preview, Access::Link);
            url.query_pairs_mut().append_pair(ACCESS_PARAMETER, key.expose_secret());
        }
        String::from(url).into()
    }
}

/// The deployment that the preview shows, or else the one that is under way or failed.
pub fn deployment_of<'a>(records: &'a Records, preview: &'a Preview) -> Option<&'a Deployment> {
    if let Some(shown) = &preview.shown {
        return Some(&shown.deployment);
    }
    let job = match preview.state {
        PreviewState::Failed { job } => job,
        state => state.job()?,
    };
    match &records.jobs.get(&job)?.kind {
        JobKind::Deploy { deployment, .. } => Some(deployment),
        JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => None,
    }
}
