//! Droplets and their sizes, in the form of the API.

use std::str::FromStr as _;

use serde::Deserialize;
use stagely_state::ids::MachineId;
use stagely_state::{Market, Placement, Usd};

use super::tags;

#[derive(Deserialize)]
pub(super) struct CreateResponse {
    pub(super) droplet: Droplet,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Droplet {
    pub(super) id: u64,
    #[serde(default)]
    name: String,
    pub(super) created_at: jiff::Timestamp,
    #[serde(default)]
    pub(super) tags: Vec<String>,
    pub(super) size_slug: String,
    #[serde(default)]
    size: Option<Size>,
    #[serde(default)]
    region: Option<Region>,
}

#[derive(Clone, Debug, Deserialize)]
struct Region {
    slug: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Size {
    pub(super) slug: String,
    price_hourly: f64,
    /// Whether new droplets can have it.
    pub(super) available: bool,
    #[serde(default)]
    pub(super) regions: Vec<String>,
    /// In GiB, although the API's description says gigabytes.
    pub(super) disk: u64,
}

impl Size {
    /// The price of an hour.
    pub(super) fn price(&self) -> Option<Usd> {
        let millionths = (self.price_hourly * 1e6).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        (0.0..1e12).contains(&millionths).then_some(Usd(millionths as u64))
    }
}

impl Droplet {
    /// The machine of this droplet. Its tags are set after its name.
    pub(super) fn machine(&self) -> Option<MachineId> {
        let tagged = self.tags.iter().find_map(|tag| tags::machine(tag));
        tagged.or_else(|| MachineId::from_str(&self.name.replace('-', "_")).ok())
    }

    pub(super) fn placement(&self) -> Placement {
        Placement {
            provider_id: self.id.to_string(),
            instance_type: self.size_slug.clone(),
            zone: self.region.as_ref().map(|region| region.slug.clone()),
            market: Market::OnDemand,
            price: self.size.as_ref().and_then(Size::price),
            spot_price: None,
        }
    }
}

/// The name of a machine's droplet. Host names have no `_`.
pub(super) fn name_of(machine: MachineId) -> String {
    machine.to_string().replace('_', "-")
}
