//! The `[qemu]` table of `stagely.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stagely_protocol::Arch;

use crate::settings::SettingError;

/// The `[qemu]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QemuSettings {
    /// The folder of the AMD64 golden image, made by `scripts/golden-image`. Default: none.
    pub image_amd64: Option<PathBuf>,
    /// The folder of the ARM64 golden image. Default: none.
    pub image_arm64: Option<PathBuf>,
    /// `kvm` or `tcg` (emulation). Default: `kvm`.
    pub accelerator: Accelerator,
    /// Holds the data that guests write to their disks. Default: `machines` in core's `data-dir`.
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

    /// Checks that an image is named.
    pub(crate) fn check_images(&self) -> Result<(), SettingError> {
        if Arch::ALL.iter().any(|arch| self.image(*arch).is_some()) {
            return Ok(());
        }
        Err(SettingError {
            key: "qemu.image-amd64",
            problem: "is missing although builders are launched by qemu; name a folder that \
                      scripts/golden-image has made, or set qemu.image-arm64"
                .to_owned(),
        })
    }
}

/// How QEMU runs a guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// On the host's own processor.
    #[default]
    Kvm,
    /// By emulation. It works on any host and is five to twenty times slower.
    Tcg,
}
