//! The `[qemu]` table of `stagely.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stagely_protocol::Arch;

/// The `[qemu]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QemuSettings {
    /// The folder of the AMD64 golden image, as `scripts/golden-image` makes it. Default: none.
    pub image_amd64: Option<PathBuf>,
    /// The folder of the ARM64 golden image. Default: none.
    pub image_arm64: Option<PathBuf>,
    /// `kvm` or `tcg`, which is emulation. Default: `kvm`.
    pub accelerator: Accelerator,
    /// Holds what guests write to their disks. Default: `machines` in core's `data-dir`.
    pub folder: Option<PathBuf>,
}

impl QemuSettings {
    /// The folder of the golden image of `arch`, if one is named.
    pub fn image(&self, arch: Arch) -> Option<&Path> {
        match arch {
            Arch::Amd64 => self.image_amd64.as_deref(),
            Arch::Arm64 => self.image_arm64.as_deref(),
        }
    }
}

/// How QEMU runs a guest's processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// On the host's own.
    #[default]
    Kvm,
    /// By emulation: it runs anywhere, five to twenty times slower.
    Tcg,
}
