//! The droplet sizes that we know, and those of each size of machine by default.

use stagely_protocol::Arch::Amd64;
use stagely_state::Fleet;

use crate::catalog::{DefaultTypes, KnownType};

/// Source: the price list of `DigitalOcean`, November 2026. The sizes `m-…` are memory-optimized.
pub(crate) const KNOWN: &[KnownType] = &[
    ("s-2vcpu-4gb", Amd64, 35_710),
    ("s-4vcpu-8gb", Amd64, 71_430),
    ("s-8vcpu-16gb", Amd64, 142_860),
    ("c-4", Amd64, 125_000),
    ("c-8", Amd64, 250_000),
    ("c-16", Amd64, 500_000),
    ("c2-4vcpu-8gb", Amd64, 139_880),
    ("m-2vcpu-16gb", Amd64, 125_000),
    ("m-4vcpu-32gb", Amd64, 250_000),
    ("m-8vcpu-64gb", Amd64, 500_000),
    ("m-16vcpu-128gb", Amd64, 1_000_000),
];

pub(crate) const DEFAULTS: &[DefaultTypes] = &[
    (Fleet::Builder, Amd64, ["s-2vcpu-4gb", "c-4", "c-8", "c-16"]),
    (Fleet::Preview, Amd64, ["s-2vcpu-4gb", "s-2vcpu-4gb", "s-4vcpu-8gb", "s-8vcpu-16gb"]),
    (Fleet::Tester, Amd64, ["m-2vcpu-16gb", "m-4vcpu-32gb", "m-8vcpu-64gb", "m-16vcpu-128gb"]),
];
