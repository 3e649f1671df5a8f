//! Keywords of the file: platforms, machine sizes, emulation and submodules.

use stagely_protocol::{Emulation, Submodules};
use stagely_state::MachineSize;

pub(super) const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

pub(super) const MACHINE_SIZES: [(&str, MachineSize); 4] = [
    ("small", MachineSize::Small),
    ("medium", MachineSize::Medium),
    ("large", MachineSize::Large),
    ("xlarge", MachineSize::Xlarge),
];

pub(super) const EMULATIONS: [(&str, Emulation); 2] =
    [("allow", Emulation::Allow), ("forbid", Emulation::Forbid)];

/// As they are written; the first two are booleans.
pub(super) const SUBMODULES: [(&str, Submodules); 3] =
    [("true", Submodules::All), ("false", Submodules::None), ("shallow", Submodules::Shallow)];
