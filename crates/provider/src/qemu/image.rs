//! The golden image that guests boot: a folder, made by `scripts/golden-image`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stagely_protocol::Arch;
use thiserror::Error;

/// A folder that holds no image for the wanted arch.
#[derive(Debug, Error)]
pub(super) enum ImageError {
    #[error("no golden image: {}: {error}; {}", .file.display(), advice(*.arch, .folder))]
    Missing { file: PathBuf, error: io::Error, arch: Arch, folder: PathBuf },
    #[error("{} does not describe an image: {error}; {}", .file.display(), advice(*.arch, .folder))]
    Description { file: PathBuf, error: io::Error, arch: Arch, folder: PathBuf },
    #[error("the image in {} is for {found}, not for {arch}; {}", .folder.display(), advice(*.arch, .folder))]
    OtherArch { found: Arch, arch: Arch, folder: PathBuf },
}

/// The command that makes an image.
fn advice(arch: Arch, folder: &Path) -> String {
    format!("scripts/golden-image --arch {arch} --out {}", folder.display())
}

/// A golden image in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Guests read the disk and never write to it.
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
}

/// The part of `image.json` that is needed here.
#[derive(Debug, Deserialize)]
struct Description {
    arch: Arch,
}

impl Image {
    /// The size of the disk, in bytes. A guest may write as much.
    pub(super) fn disk_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.disk)?.len())
    }

    /// Opens the image in `folder`, which must be for `arch`.
    pub(super) fn open(folder: &Path, arch: Arch) -> Result<Self, ImageError> {
        let owned = || folder.to_owned();
        let readable = |name: &str| {
            let file = folder.join(name);
            match fs::File::open(&file) {
                Ok(_) => Ok(file),
                Err(error) => Err(ImageError::Missing { file, error, arch, folder: owned() }),
            }
        };
        let (disk, kernel, description) =
            (readable("root.img")?, readable("vmlinuz")?, readable("image.json")?);
        let description = fs::read(&description)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
            .map_err(|error| {
                let file = description;
                ImageError::Description { file, error, arch, folder: owned() }
            });
        let Description { arch: found } = description?;
        if found != arch {
            return Err(ImageError::OtherArch { found, arch, folder: owned() });
        }
        Ok(Self { disk, kernel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of an image that the host reads.
    fn folder_with(description: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("root.img", ""), ("vmlinuz", ""), ("image.json", description)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn an_image_is_for_the_arch_in_its_description() {
        let folder = folder_with(
            r#"{ "version": "0.1.0-20261128", "arch": "amd64", "system": "Debian GNU/Linux 13",
                "docker": "26.1.5", "stagely": "0.1.0", "made": "2026-11-28T13:00:00Z" }"#,
        );
        let image = Image::open(folder.path(), Arch::Amd64).unwrap();
        assert_eq!(image.disk, folder.path().join("root.img"));
        assert_eq!(image.kernel, folder.path().join("vmlinuz"));
        let problem = Image::open(folder.path(), Arch::Arm64).unwrap_err().to_string();
        assert!(problem.contains("is for amd64, not for arm64"), "{problem}");
    }

    #[test]
    fn an_incomplete_image_is_refused_with_the_command_that_makes_one() {
        let incomplete = folder_with("{}");
        let missing = folder_with("");
        fs::remove_file(missing.path().join("vmlinuz")).unwrap();
        for (folder, what) in [(&incomplete, "missing field `arch`"), (&missing, "vmlinuz")] {
            let problem = Image::open(folder.path(), Arch::Arm64).unwrap_err().to_string();
            assert!(problem.contains(what), "{problem}");
            assert!(problem.contains("scripts/golden-image --arch arm64 --out /"), "{problem}");
        }
    }
}
