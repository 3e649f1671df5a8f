//! The instance types of the configuration that this region has.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    ArchitectureType, Filter, InstanceTypeInfo, ProcessorInfo, UsageClassType,
};
use stagely_protocol::Arch;
use stagely_state::MachineSize;

use super::AwsProvider;
use super::error::Ec2Error;
use super::images::{ImageError, architecture};
use crate::{Offer, OfferProblem, ProviderError};

/// EC2's limit for the names in one request.
const NAMES_MAX: usize = 100;

impl AwsProvider {
    pub(super) async fn offers(&self) -> Result<Vec<Offer>, ProviderError> {
        let types = self.instance_types().await?;
        let mut images = BTreeMap::new();
        let arches: BTreeSet<Arch> = self.catalog.sizes().map(|(_, arch, ..)| arch).collect();
        for arch in arches {
            let problem = match self.images.of(arch).await {
                Ok(_) => None,
                Err(ImageError::Missing(problem)) => Some(OfferProblem::NoImage(problem)),
                Err(ImageError::Ec2(error)) => return Err(error.into()),
            };
            images.insert(arch, problem);
        }
        let mut offers = Vec::new();
        for (fleet, arch, size, names) in self.catalog.sizes() {
            for name in names {
                let info = types.get(name);
                let no_image = images.get(&arch).cloned().flatten();
                let problem = problem(name, arch, size, info);
                offers.push(Offer {
                    fleet,
                    arch,
                    size,
                    instance_type: name.clone(),
                    price: self.catalog.instance_type(name).and_then(|known| known.price),
                    spot: info.is_some_and(|info| is_sold(info, &UsageClassType::Spot)),
                    exists: problem.is_none(),
                    problem: problem.map(OfferProblem::NotSold).or(no_image),
                });
            }
        }
        Ok(offers)
    }

    /// The types of the catalog that the region has, by name.
    async fn instance_types(&self) -> Result<BTreeMap<String, InstanceTypeInfo>, Ec2Error> {
        let sizes = self.catalog.sizes();
        let names: BTreeSet<&String> = sizes.flat_map(|(_, _, _, names)| names).collect();
        let names: Vec<&String> = names.into_iter().collect();
        let mut found = BTreeMap::new();
        for names in names.chunks(NAMES_MAX) {
            // A filter, because a list of names fails where the region lacks one of them.
            let values = Some(names.iter().map(ToString::to_string).collect());
            let wanted = Filter::builder().name("instance-type").set_values(values).build();
            let request = self.client.describe_instance_types().filters(wanted);
            let mut pages = request.into_paginator().send();
            while let Some(page) = pages.next().await {
                for info in page?.instance_types.unwrap_or_default() {
                    let name = info.instance_type().map(|name| name.as_str().to_owned());
                    found.extend(name.map(|name| (name, info)));
                }
            }
        }
        Ok(found)
    }
}

fn is_sold(info: &InstanceTypeInfo, usage: &UsageClassType) -> bool {
    info.supported_usage_classes().contains(usage)
}

/// Why the type cannot be launched, if it cannot.
fn problem(
    name: &str,
    arch: Arch,
    size: MachineSize,
    info: Option<&InstanceTypeInfo>,
) -> Option<String> {
    let Some(info) = info else {
        return Some(format!("this region has no {name}; name another for {arch}.{size} in [aws]"));
    };
    let found = info.processor_info().map(ProcessorInfo::supported_architectures);
    let found: Vec<&str> = found.unwrap_or_default().iter().map(ArchitectureType::as_str).collect();
    if !found.contains(&architecture(arch)) {
        return Some(format!("{name} is {}, not {}", found.join(", "), architecture(arch)));
    }
    let is_sold = is_sold(info, &UsageClassType::OnDemand) || is_sold(info, &UsageClassType::Spot);
    (!is_sold).then(|| format!("{name} is sold neither on demand nor on the spot market"))
}
