//! The golden image that guests boot, as `scripts/golden-image` makes it: a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stagely_protocol::Arch;

/// A golden image in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// The disk, which guests read and never write.
    pub(super) disk: PathBuf,
    /// The kernel that boots it.
    pub(super) kernel: PathBuf,
}

/// What counts here of what an image says of itself.
#[derive(Debug, Deserialize)]
struct Description {
    arch: Arch,
}

impl Image {
    /// What a guest of it may write, in bytes: as much as its disk holds.
    pub(super) fn disk_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.disk)?.len())
    }

    /// The image in `folder`, which must be for `arch`.
    ///
    /// # Errors
    /// What is wrong with it and what to do, for people.
    pub(super) fn open(folder: &Path, arch: Arch) -> Result<Self, String> {
        let make = format!("scripts/golden-image --arch {arch} --out {}", folder.display());
        let file = |name: &str| {
            let path = folder.join(name);
            match fs::File::open(&path) {
                Ok(_) => Ok(path),
                Err(error) => Err(format!("no golden image: {}: {error}; {make}", path.display())),
            }
        };
        let (disk, kernel, description) =
            (file("root.img")?, file("vmlinuz")?, file("image.json")?);
        let cannot_read = |error: &dyn std::error::Error| {
            format!("{} does not describe an image: {error}; {make}", description.display())
        };
        let text = fs::read(&description).map_err(|error| cannot_read(&error))?;
        let Description { arch: found } =
            serde_json::from_slice(&text).map_err(|error| cannot_read(&error))?;
        if found != arch {
            let folder = folder.display();
            return Err(format!("the image in {folder} is for {found}, not for {arch}; {make}"));
        }
        Ok(Self { disk, kernel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with what makes an image, as far as the host looks at it.
    fn folder_with(description: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("root.img", ""), ("vmlinuz", ""), ("image.json", description)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn an_image_is_what_its_maker_says_of_it() {
        let folder = folder_with(
            r#"{ "version": "0.1.0-20261128", "arch": "amd64", "system": "Debian GNU/Linux 13",
                "docker": "26.1.5", "stagely": "0.1.0", "made": "2026-11-28T13:00:00Z" }"#,
        );
        let image = Image::open(folder.path(), Arch::Amd64).unwrap();
        assert_eq!(image.disk, folder.path().join("root.img"));
        assert_eq!(image.kernel, folder.path().join("vmlinuz"));
        let problem = Image::open(folder.path(), Arch::Arm64).unwrap_err();
        assert!(problem.contains("is for amd64, not for arm64"), "{problem}");
    }

    #[test]
    fn what_is_no_image_is_said_with_the_command_that_makes_one() {
        let incomplete = folder_with("{}");
        let missing = folder_with("");
        fs::remove_file(missing.path().join("vmlinuz")).unwrap();
        for (folder, what) in [(&incomplete, "missing field `arch`"), (&missing, "vmlinuz")] {
            let problem = Image::open(folder.path(), Arch::Arm64).unwrap_err();
            assert!(problem.contains(what), "{problem}");
            assert!(problem.contains("scripts/golden-image --arch arm64 --out /"), "{problem}");
        }
    }
}
