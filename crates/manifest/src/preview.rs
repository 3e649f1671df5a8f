//! The section `preview`: what runs of a commit, where, for whom, and for how long.

mod read;
mod schemas;
mod source;
mod values;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use stagely_state::MachineSize;

use super::globs::Globs;
use super::limits::{DEFAULT_HEALTH_TIMEOUT, ENDPOINTS_MAX};
use super::problem::Position;
use super::template::{Template, Variable};
use super::value_schemas;

pub(super) use read::{command_texts, preview as read, secret_names};
pub(super) use schemas::{
    command as command_schema, env as env_schema, secrets as secrets_schema, section as schema,
};
pub(super) use source::variant;
pub(super) use values::keyword;

/// The name of the service, and of the endpoint, of a preview that is one container.
pub const SINGLE_SERVICE: &str = "app";

/// Runs the images of a commit on a machine of their own, under an address of their own. Give `compose`
/// and `endpoints`, or `image` and `port`.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schemas::preview_as_written)]
pub struct Preview {
    #[schemars(skip)]
    pub source: PreviewSource,
    /// With `compose`: what people can open, a map of 1 to 8 names to ports of services. The first one is
    /// the preview's URL. A name has at most 20 lower-case letters, digits and `-`, neither first nor
    /// last, and becomes part of a host name.
    #[schemars(schema_with = "schemas::endpoints")]
    pub endpoints: Vec<Endpoint>,
    /// Environment variables of every container that runs an image of this file, at most 128. Stagely
    /// fills in the variables of `build_args`, and `${PREVIEW_URL}`, `${PREVIEW_HOST}` (its host, without
    /// a port) and `${PREVIEW_URL_NAME}` for the endpoint `name`: in upper case, with `_` for `-`.
    #[schemars(schema_with = "schemas::env")]
    pub env: BTreeMap<String, Template<PreviewVariable>>,
    /// The names of secrets of the project that become environment variables, at most 64. Previews of
    /// forks do not get them.
    #[schemars(schema_with = "schemas::secrets")]
    pub secrets: Vec<String>,
    /// A command that runs at every deployment, before requests go to the new version.
    #[schemars(schema_with = "schemas::command_in_service")]
    pub migrate: Option<ServiceCommand>,
    /// A command that runs once for fresh data, after `migrate`.
    #[schemars(schema_with = "schemas::command_in_service")]
    pub seed: Option<ServiceCommand>,
    /// Patterns of paths, as in a build's `paths`. If a matching file that was deployed before was edited
    /// or removed, the preview starts again with fresh data.
    #[schemars(schema_with = "value_schemas::paths")]
    pub reset_when: Option<Globs>,
    /// Which pull requests have a preview: all of them (`pull_requests`), those with the label
    /// `stagely-preview` (`label`), or those for which somebody asks (`manual`).
    #[schemars(schema_with = "schemas::on")]
    pub on: PreviewTrigger,
    /// Patterns of branch names, as in a build's `only_branches`. These branches have a preview, too.
    #[schemars(schema_with = "value_schemas::branches")]
    pub branches: Option<Globs>,
    /// The size of the preview's machine: `small` has 2 processors, `medium` 4, `large` 8 and `xlarge` 16.
    #[schemars(schema_with = "value_schemas::machine")]
    pub machine: MachineSize,
    /// The size of the machine's disk, from 10GiB to 200GiB.
    #[schemars(rename = "disk", schema_with = "schemas::disk")]
    pub disk_bytes: u64,
    /// Who can open the preview: who has its link (`link`), everybody (`public`), or who has a token of
    /// Stagely (`token`).
    #[schemars(schema_with = "schemas::access")]
    pub access: PreviewAccess,
    /// Paths that everybody can request, whatever `access` says, such as those of webhooks; at most 32.
    /// Each starts with `/`. A `*` at the end matches everything that follows.
    #[schemars(schema_with = "schemas::public_paths")]
    pub public_paths: Vec<String>,
    /// The time without a visit after which the preview sleeps, from 5m to 24h, or `never`.
    #[schemars(schema_with = "schemas::sleep_after")]
    pub sleep_after: Option<Duration>,
    /// The time since the last push or visit after which the preview ends, from 1h to 30d.
    #[schemars(schema_with = "schemas::ttl")]
    pub ttl: Duration,
    /// The position of `compose`, or of the preview's key without it.
    #[schemars(skip)]
    pub compose_at: Position,
}

/// What a preview runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewSource {
    /// A compose file of the commit.
    Compose {
        /// The file, relative to the repository's root.
        path: String,
        /// Services → names of variants, whose images they run. Another service runs the image of the
        /// variant of its own name, if there is one.
        images: BTreeMap<String, String>,
    },
    /// One container of a variant's image. Its service is [`SINGLE_SERVICE`].
    Image { variant: String },
}

/// A port of a service that people can open.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schemas::endpoint_as_written)]
pub struct Endpoint {
    /// The endpoint's key in the file.
    #[schemars(skip)]
    pub name: String,
    /// The service in the compose file.
    #[schemars(schema_with = "schemas::service")]
    pub service: String,
    /// The port on which the service listens for HTTP, inside its container.
    #[schemars(schema_with = "schemas::port")]
    pub port: u16,
    /// The request that says whether the endpoint works.
    pub health: Health,
}

/// A request that is repeated until its response says that an endpoint works.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schemas::health_as_written)]
pub struct Health {
    /// The path of the request, with a query if necessary.
    #[schemars(schema_with = "schemas::health_path")]
    pub path: String,
    /// The statuses of a working endpoint: one number, or a range such as `200-399`.
    #[schemars(schema_with = "schemas::status")]
    pub status: RangeInclusive<u16>,
    /// The time until the endpoint works, after which the deployment fails; at most 15m.
    #[schemars(schema_with = "schemas::health_timeout")]
    pub timeout: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { path: "/".to_owned(), status: 200..=399, timeout: DEFAULT_HEALTH_TIMEOUT }
    }
}

/// A command that runs once in a new container of a service.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schemas::command_as_written)]
pub struct ServiceCommand {
    /// The service in the compose file. With `image` there is only `app`, and this can be left out.
    #[schemars(schema_with = "schemas::service")]
    pub service: String,
    /// The program and its arguments, at most 64 texts. No shell reads them, and no variables are filled in.
    #[schemars(schema_with = "schemas::command")]
    pub command: Vec<String>,
    /// The command's time limit; at most 1h.
    #[schemars(schema_with = "schemas::command_timeout")]
    pub timeout: Duration,
}

/// Which pull requests have a preview.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviewTrigger {
    #[default]
    PullRequests,
    /// Those with the label `stagely-preview`.
    Label,
    /// Those for which somebody asks.
    Manual,
}

impl PreviewTrigger {
    const NAMES: [(&str, Self); 3] =
        [("pull_requests", Self::PullRequests), ("label", Self::Label), ("manual", Self::Manual)];
}

/// Who can open a preview.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviewAccess {
    /// Who has the link with the preview's key.
    #[default]
    Link,
    Public,
    /// Who has a token of Stagely.
    Token,
}

impl PreviewAccess {
    const NAMES: [(&str, Self); 3] =
        [("link", Self::Link), ("public", Self::Public), ("token", Self::Token)];
}

/// A variable of a preview's `env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewVariable {
    /// One that build arguments have as well.
    Run(Variable),
    /// `PREVIEW_URL`: the URL of the first endpoint.
    Url,
    /// `PREVIEW_HOST`: the host of [`Self::Url`], without a port.
    Host,
    /// `PREVIEW_URL_MAIL`: the URL of the endpoint `mail`.
    EndpointUrl(String),
}

impl PreviewVariable {
    /// All variables of a preview with these endpoints, by name.
    pub(super) fn by_name<'a>(endpoints: impl IntoIterator<Item = &'a str>) -> Vec<(String, Self)> {
        let of_run = Variable::by_name().into_iter();
        let of_run = of_run.map(|(name, variable)| (name, Self::Run(variable)));
        let own = [("PREVIEW_URL".to_owned(), Self::Url), ("PREVIEW_HOST".to_owned(), Self::Host)];
        let of_endpoint = |endpoint: &str| {
            let name = endpoint.to_ascii_uppercase().replace('-', "_");
            (format!("PREVIEW_URL_{name}"), Self::EndpointUrl(endpoint.to_owned()))
        };
        let of_endpoints = endpoints.into_iter().take(ENDPOINTS_MAX).map(of_endpoint);
        of_run.chain(own).chain(of_endpoints).collect()
    }
}
