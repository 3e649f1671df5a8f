//! Checks of the account for `stagely doctor aws`. Permissions are checked by dry runs, which change nothing.

use aws_config::SdkConfig;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::Reservation;
use stagely_protocol::Arch;
use stagely_state::Market;

use super::error::{Ec2Error, Kind};
use super::images::{Image, filter};
use super::launch::tag;
use super::{AwsProvider, CORE_TAG};
use crate::catalog::Candidate;

/// The id of no instance.
const NO_INSTANCE: &str = "i-00000000000000000";

/// The result of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermissionState {
    Allowed,
    /// AWS denies it, with AWS's message.
    Missing(String),
    /// The dry run gave no result, and why.
    Unknown(String),
}

/// A permission that Stagely needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The name in policies, such as `ec2:RunInstances`.
    pub action: String,
    pub state: PermissionState,
}

impl Permission {
    fn new(action: &str, state: PermissionState) -> Self {
        Self { action: action.to_owned(), state }
    }
}

/// An image that machines boot from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageView {
    pub id: String,
    /// The version of a golden image.
    pub version: Option<String>,
    /// The creation time, in EC2's own form.
    pub created: String,
}

/// The ARN of the credentials' owner.
///
/// # Errors
/// AWS does not tell it: the reason, for people.
pub async fn caller(shared: &SdkConfig) -> Result<String, String> {
    let response = aws_sdk_sts::Client::new(shared).get_caller_identity().send().await;
    let response = response.map_err(|error| Ec2Error::from(error).to_string())?;
    response.arn.ok_or_else(|| "AWS does not say who".to_owned())
}

impl AwsProvider {
    /// Checks that EC2 answers. A refusal is an answer.
    ///
    /// # Errors
    /// There was no answer: the reason, for people.
    pub async fn answers(&self) -> Result<(), String> {
        let Err(error) = self.client.describe_instances().dry_run(true).send().await else {
            return Ok(());
        };
        let error = Ec2Error::from(error);
        if error.is_answer() { Ok(()) } else { Err(error.to_string()) }
    }

    /// Checks each permission that is needed. `spot`: including purchases on the spot market.
    pub async fn permissions(&self, spot: bool) -> Vec<Permission> {
        let ec2 = &self.client;
        let dry = true;
        let instances = ec2.describe_instances().dry_run(dry).send().await;
        let images = ec2.describe_images().owners("self").dry_run(dry).send().await;
        let types = ec2.describe_instance_types().dry_run(dry).send().await;
        let mut permissions = vec![
            Permission::new("ec2:DescribeInstances", permission_state(instances)),
            Permission::new("ec2:DescribeImages", permission_state(images)),
            Permission::new("ec2:DescribeInstanceTypes", permission_state(types)),
        ];
        permissions.extend(self.launch_permissions().await);
        if spot {
            let state = self.dry_launch(Market::Spot).await;
            permissions.push(Permission::new("ec2:RunInstances as spot", state));
        }
        permissions.push(Permission::new("ec2:TerminateInstances", self.dry_terminate().await));
        permissions
    }

    /// One request needs several permissions, and AWS names the first that is missing.
    async fn launch_permissions(&self) -> Vec<Permission> {
        let mut needed = vec!["ec2:RunInstances", "ec2:CreateTags"];
        if self.config.instance_profile.is_some() {
            needed.push("iam:PassRole");
        }
        let state = self.dry_launch(Market::OnDemand).await;
        let PermissionState::Missing(message) = &state else {
            let all = needed.into_iter().map(|action| Permission::new(action, state.clone()));
            return all.collect();
        };
        let named = needed.iter().copied().find(|action| message.contains(action));
        let missing = named.unwrap_or("ec2:RunInstances");
        let permission = |action: &&str| {
            if *action == missing {
                return Permission::new(action, state.clone());
            }
            let why = format!("AWS has stopped at {missing}");
            Permission::new(action, PermissionState::Unknown(why))
        };
        needed.iter().map(permission).collect()
    }

    async fn dry_launch(&self, market: Market) -> PermissionState {
        match self.launchable().await {
            Ok((candidate, image)) => {
                let tags = [tag(CORE_TAG, self.core_id.as_str()), tag("Name", "stagely doctor")];
                let candidate = Candidate { market, ..candidate };
                let request = self.run_instances(&candidate, &image, None, &tags);
                permission_state(request.dry_run(true).send().await)
            }
            Err(why) => PermissionState::Unknown(why),
        }
    }

    /// A candidate that has an image.
    async fn launchable(&self) -> Result<(Candidate, Image), String> {
        let mut why = String::new();
        for arch in Arch::ALL {
            let image = match self.images.of(arch).await {
                Ok(image) => image,
                Err(error) => {
                    why = format!("no image to try it with: {error}");
                    continue;
                }
            };
            let mut sizes = self.catalog.sizes().filter(|(_, of_arch, ..)| *of_arch == arch);
            if let Some(name) = sizes.find_map(|(.., names)| names.first()) {
                let candidate = Candidate {
                    instance_type: name.clone(),
                    zone: self.config.zones_or_subnets().first().cloned(),
                    market: Market::OnDemand,
                    price: None,
                    max_price: None,
                };
                return Ok((candidate, image));
            }
        }
        Err(why)
    }

    /// The dry run needs a machine, because policies depend on its tags.
    async fn dry_terminate(&self) -> PermissionState {
        let ours = filter("tag-key", CORE_TAG);
        let live = filter("instance-state-name", "running");
        let found = self.client.describe_instances().filters(ours).filters(live).send().await;
        let found = found.ok().and_then(|response| response.reservations).unwrap_or_default();
        let mut instances = found.iter().flat_map(Reservation::instances);
        let instance = instances.find_map(|instance| instance.instance_id());
        let id = instance.unwrap_or(NO_INSTANCE);
        let request = self.client.terminate_instances().instance_ids(id).dry_run(true);
        match (permission_state(request.send().await), instance) {
            (PermissionState::Allowed, _) => PermissionState::Allowed,
            (state, Some(_)) => state,
            (PermissionState::Missing(message) | PermissionState::Unknown(message), None) => {
                let why = format!("no machine is there to try it with ({message})");
                PermissionState::Unknown(why)
            }
        }
    }

    /// The image of `arch`.
    ///
    /// # Errors
    /// There is none, or AWS does not answer: the reason, for people.
    pub async fn image(&self, arch: Arch) -> Result<ImageView, String> {
        let image = self.images.of(arch).await.map_err(|error| error.to_string())?;
        let Image { id, version, created, .. } = image;
        Ok(ImageView { id, version, created })
    }

    /// The subnets and security groups of the configuration, or why they are not found, for people.
    pub async fn network(&self) -> Vec<(&'static str, Result<String, String>)> {
        let mut findings = Vec::new();
        let subnets = &self.config.subnets;
        if !subnets.is_empty() {
            let request = self.client.describe_subnets().set_subnet_ids(Some(subnets.clone()));
            let found = request.send().await.map_err(|error| Ec2Error::from(error).to_string());
            let labels = found.map(|response| {
                let labels = response.subnets().iter().map(|subnet| {
                    let id = subnet.subnet_id().unwrap_or_default();
                    let zone = subnet.availability_zone().unwrap_or_default();
                    let free = subnet.available_ip_address_count().unwrap_or_default();
                    format!("{id} ({zone}, {free} addresses free)")
                });
                labels.collect::<Vec<_>>().join(", ")
            });
            findings.push(("subnets", labels));
        }
        let groups = &self.config.security_groups;
        if !groups.is_empty() {
            let request = self.client.describe_security_groups();
            let found = request.set_group_ids(Some(groups.clone())).send().await;
            let found = found.map_err(|error| Ec2Error::from(error).to_string());
            findings.push(("groups", found.map(|_| groups.join(", "))));
        }
        findings
    }
}

/// The result of a dry run. A dry run always fails: with `DryRunOperation` where the request would have succeeded.
fn permission_state<T, E: ProvideErrorMetadata + std::error::Error + 'static>(
    response: Result<T, SdkError<E>>,
) -> PermissionState {
    let Err(error) = response else { return PermissionState::Allowed };
    let error = Ec2Error::from(error);
    match error.code() {
        Some("DryRunOperation") => PermissionState::Allowed,
        Some("UnauthorizedOperation" | "AccessDenied") => {
            PermissionState::Missing(error.message().to_owned())
        }
        _ if error.kind == Kind::Unclear => {
            PermissionState::Unknown(format!("no clear answer: {error}"))
        }
        _ => PermissionState::Unknown(error.to_string()),
    }
}
