//! Whether AWS lets us do what we need: asked by dry runs, which start and end nothing.

use aws_config::SdkConfig;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::Reservation;
use stagely_protocol::Arch;
use stagely_state::Market;

use super::fault::{Fault, Kind};
use super::images::{Image, NoImage, filter};
use super::launch::tag;
use super::{AwsProvider, CORE_TAG};
use crate::Candidate;

/// An instance that is nobody's.
const NO_INSTANCE: &str = "i-00000000000000000";

/// What a dry run says of a permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is there.
    Allowed,
    /// It is missing, in AWS's words.
    Missing(String),
    /// It cannot be told, and why.
    Unknown(String),
}

/// A permission that Stagely needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// As a policy names it: `ec2:RunInstances`.
    pub action: String,
    /// Whether it is there.
    pub answer: Answer,
}

impl Permission {
    fn new(action: &str, answer: Answer) -> Self {
        Self { action: action.to_owned(), answer }
    }
}

/// Who the credentials belong to.
///
/// # Errors
/// AWS does not say so: the reason.
pub async fn caller(shared: &SdkConfig) -> Result<String, String> {
    let answer = aws_sdk_sts::Client::new(shared).get_caller_identity().send().await;
    let answer = answer.map_err(|error| Fault::from(error).to_string())?;
    answer.arn.ok_or_else(|| "AWS does not say who".to_owned())
}

impl AwsProvider {
    /// Whether EC2 answers, whatever it says.
    ///
    /// # Errors
    /// It does not: the reason.
    pub async fn answers(&self) -> Result<(), String> {
        let Err(error) = self.client.describe_instances().dry_run(true).send().await else {
            return Ok(());
        };
        let fault = Fault::from(error);
        if fault.is_answer() { Ok(()) } else { Err(fault.to_string()) }
    }

    /// Asks for each permission that is needed, with `spot` also to buy on the spot market.
    pub async fn permissions(&self, spot: bool) -> Vec<Permission> {
        let ec2 = &self.client;
        let dry = true;
        let instances = ec2.describe_instances().dry_run(dry).send().await;
        let images = ec2.describe_images().owners("self").dry_run(dry).send().await;
        let types = ec2.describe_instance_types().dry_run(dry).send().await;
        let mut permissions = vec![
            Permission::new("ec2:DescribeInstances", judge(instances)),
            Permission::new("ec2:DescribeImages", judge(images)),
            Permission::new("ec2:DescribeInstanceTypes", judge(types)),
        ];
        permissions.extend(self.to_launch().await);
        if spot {
            let answer = self.dry_launch(Market::Spot).await;
            permissions.push(Permission::new("ec2:RunInstances as spot", answer));
        }
        permissions.push(Permission::new("ec2:TerminateInstances", self.to_terminate().await));
        permissions
    }

    /// One request needs several permissions, and AWS names the first that is missing.
    async fn to_launch(&self) -> Vec<Permission> {
        let mut needed = vec!["ec2:RunInstances", "ec2:CreateTags"];
        if self.config.instance_profile.is_some() {
            needed.push("iam:PassRole");
        }
        let answer = self.dry_launch(Market::OnDemand).await;
        let Answer::Missing(words) = &answer else {
            return needed.into_iter().map(|it| Permission::new(it, answer.clone())).collect();
        };
        let named = needed.iter().copied().find(|action| words.contains(action));
        let missing = named.unwrap_or("ec2:RunInstances");
        let of = |action: &&str| {
            if *action == missing {
                return Permission::new(action, answer.clone());
            }
            Permission::new(action, Answer::Unknown(format!("AWS has stopped at {missing}")))
        };
        needed.iter().map(of).collect()
    }

    async fn dry_launch(&self, market: Market) -> Answer {
        match self.something_to_launch().await {
            Ok((candidate, image)) => {
                let tags = [tag(CORE_TAG, self.core_id.as_str()), tag("Name", "stagely doctor")];
                let candidate = Candidate { market, ..candidate };
                let request = self.run_instances(&candidate, &image, &tags);
                judge(request.dry_run(true).send().await)
            }
            Err(why) => Answer::Unknown(why),
        }
    }

    async fn something_to_launch(&self) -> Result<(Candidate, Image), String> {
        let mut why = String::new();
        for arch in Arch::ALL {
            let image = match self.images.of(arch).await {
                Ok(image) => image,
                Err(NoImage::Missing(problem)) => {
                    why = format!("no image to try it with: {problem}");
                    continue;
                }
                Err(NoImage::Fault(fault)) => {
                    why = format!("no image to try it with: {fault}");
                    continue;
                }
            };
            let mut sizes = self.catalog.sizes().filter(|(_, its, ..)| *its == arch);
            if let Some(name) = sizes.find_map(|(.., names)| names.first()) {
                let candidate = Candidate {
                    instance_type: name.clone(),
                    zone: self.config.places().first().cloned(),
                    market: Market::OnDemand,
                    price: None,
                    max_price: None,
                };
                return Ok((candidate, image));
            }
        }
        Err(why)
    }

    /// With a machine that is there: what a policy says by tags cannot be asked about one that is not.
    async fn to_terminate(&self) -> Answer {
        let ours = filter("tag-key", CORE_TAG);
        let live = filter("instance-state-name", "running");
        let found = self.client.describe_instances().filters(ours).filters(live).send().await;
        let found = found.ok().and_then(|it| it.reservations).unwrap_or_default();
        let instance =
            found.iter().flat_map(Reservation::instances).find_map(|it| it.instance_id());
        let id = instance.unwrap_or(NO_INSTANCE);
        let request = self.client.terminate_instances().instance_ids(id).dry_run(true);
        match (judge(request.send().await), instance) {
            (Answer::Allowed, _) => Answer::Allowed,
            (answer, Some(_)) => answer,
            (Answer::Missing(words) | Answer::Unknown(words), None) => {
                Answer::Unknown(format!("no machine is there to try it with ({words})"))
            }
        }
    }

    /// The image of `arch`: id, version and time.
    ///
    /// # Errors
    /// There is none, with what to do; or AWS does not say.
    pub async fn image(&self, arch: Arch) -> Result<(String, Option<String>, String), String> {
        match self.images.of(arch).await {
            Ok(image) => Ok((image.id, image.version, image.created)),
            Err(NoImage::Missing(problem)) => Err(problem),
            Err(NoImage::Fault(fault)) => Err(fault.to_string()),
        }
    }

    /// Whether subnets and security groups are there: what was found of each kind that is named.
    pub async fn network(&self) -> Vec<(&'static str, Result<String, String>)> {
        let mut findings = Vec::new();
        let subnets = &self.config.subnets;
        if !subnets.is_empty() {
            let request = self.client.describe_subnets().set_subnet_ids(Some(subnets.clone()));
            let found = request.send().await.map_err(|error| Fault::from(error).to_string());
            let shown = found.map(|answer| {
                let shown = answer.subnets().iter().map(|subnet| {
                    let id = subnet.subnet_id().unwrap_or_default();
                    let zone = subnet.availability_zone().unwrap_or_default();
                    let free = subnet.available_ip_address_count().unwrap_or_default();
                    format!("{id} ({zone}, {free} addresses free)")
                });
                shown.collect::<Vec<_>>().join(", ")
            });
            findings.push(("subnets", shown));
        }
        let groups = &self.config.security_groups;
        if !groups.is_empty() {
            let request = self.client.describe_security_groups();
            let found = request.set_group_ids(Some(groups.clone())).send().await;
            let found = found.map_err(|error| Fault::from(error).to_string());
            findings.push(("groups", found.map(|_| groups.join(", "))));
        }
        findings
    }
}

/// A dry run never succeeds: where it would, it fails with `DryRunOperation`.
fn judge<T, E: ProvideErrorMetadata + std::error::Error + 'static>(
    answer: Result<T, SdkError<E>>,
) -> Answer {
    let Err(error) = answer else { return Answer::Allowed };
    let fault = Fault::from(error);
    match fault.code() {
        Some("DryRunOperation") => Answer::Allowed,
        Some("UnauthorizedOperation" | "AccessDenied") => Answer::Missing(fault.words().to_owned()),
        _ if fault.kind == Kind::Unclear => Answer::Unknown(format!("no clear answer: {fault}")),
        _ => Answer::Unknown(fault.to_string()),
    }
}
