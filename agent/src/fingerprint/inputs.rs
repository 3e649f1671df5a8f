//! The inputs of a build: its files, instructions, arguments and images, and the fingerprint made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use stagely_protocol::paths::ignore_file_of;
use stagely_protocol::{BuildArgs, FINGERPRINT_BYTES_MAX, Fingerprint};
use tokio_util::sync::CancellationToken;

use super::dockerfile::Dockerfile;
use super::files::{ContextFiles, ShortDigest, open_regular};
use super::patterns::Ignore;
use crate::docker::{BaseImage, ImageUse};

/// The first byte of every fingerprint. Fingerprints of other versions are not read.
const VERSION: u8 = 1;

/// The longest fingerprint when unpacked: a few times the largest [`BuildInputs`].
const UNPACKED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A Dockerfile or `.dockerignore` longer than this is not read.
const TEXT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A fast level: most of a fingerprint are digests, which cannot be compressed.
const COMPRESSION_LEVEL: i32 = 3;

/// The inputs of a build: names and digests. Secret arguments are missing, also as digests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildInputs {
    pub(super) files: ContextFiles,
    /// The digest of each argument that the Dockerfile declares.
    pub(super) args: BTreeMap<String, ShortDigest>,
    /// The digests of the instructions that make steps, each with everything that it depends on.
    pub(super) instructions: BTreeSet<ShortDigest>,
    /// For each stage, its base image with digest.
    pub(super) bases: BTreeMap<String, String>,
    /// The digest of each image, by its reference or the name of its context.
    pub(super) images: BTreeMap<String, String>,
    /// Empty in inputs that are read from a fingerprint.
    #[serde(skip)]
    dockerfile: UncomparedDockerfile,
}

/// A Dockerfile that does not count in comparisons of inputs.
#[derive(Clone, Debug, Default)]
struct UncomparedDockerfile(Dockerfile);

impl PartialEq for UncomparedDockerfile {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl BuildInputs {
    /// Reads a build's context and Dockerfile. This blocks: 6,000 files take a fraction of a second. It ends soon
    /// after `stop` fires.
    ///
    /// # Errors
    /// The error of the file system, or one because `stop` has fired. A context that is too large is no error: its
    /// files are recorded with less detail.
    pub fn read(
        context: &Path,
        dockerfile: &Path,
        args: &BuildArgs,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let files = ContextFiles::read(context, &read_ignore(context, dockerfile)?, stop)?;
        let dockerfile = read_dockerfile(dockerfile, args)?;
        let layers = dockerfile.stages.iter().flat_map(|stage| &stage.layers);
        Ok(Self {
            files,
            args: dockerfile.args.clone(),
            instructions: layers.map(|layer| layer.key).collect(),
            dockerfile: UncomparedDockerfile(dockerfile),
            ..Self::default()
        })
    }

    /// The parsed Dockerfile. Empty in inputs that are read from a fingerprint.
    pub(super) const fn dockerfile(&self) -> &Dockerfile {
        &self.dockerfile.0
    }

    pub fn add_images(&mut self, images: &[BaseImage]) {
        for image in images {
            let name = match &image.used_by {
                ImageUse::Context(name) => name.clone(),
                ImageUse::Stage(_) | ImageUse::Unknown => image.reference.clone(),
            };
            self.images.insert(name, image.digest.clone());
        }
        for (index, stage) in self.dockerfile.0.stages.iter().enumerate() {
            let is_own = |image: &&BaseImage| match &image.used_by {
                ImageUse::Stage(label) => self.dockerfile.0.stage(label) == Some(index),
                ImageUse::Context(name) => *name == stage.image,
                ImageUse::Unknown => image.reference == normalized(&stage.image),
            };
            if let Some(image) = images.iter().find(is_own).filter(|_| stage.parent.is_none()) {
                let image = format!("{}@{}", image.reference, image.digest);
                self.bases.insert(stage.label.clone(), image);
            }
        }
    }

    /// Packs the inputs. `None`: they do not fit, even without the files.
    pub fn to_fingerprint(&self) -> Option<Fingerprint> {
        let mut inputs = self.clone();
        loop {
            let mut packed = vec![VERSION];
            packed.extend(postcard::to_stdvec(&inputs).ok()?);
            let text = STANDARD.encode(zstd::encode_all(&packed[..], COMPRESSION_LEVEL).ok()?);
            if text.len() <= FINGERPRINT_BYTES_MAX {
                return text.try_into().ok();
            }
            if !inputs.files.coarsen() {
                return None;
            }
        }
    }

    /// Unpacks `fingerprint`. `None`: it has another version, or is damaged.
    pub fn from_fingerprint(fingerprint: &Fingerprint) -> Option<Self> {
        let packed = STANDARD.decode(fingerprint.as_str()).ok()?;
        let mut unpacked = Vec::new();
        let reader = zstd::Decoder::new(&packed[..]).ok()?;
        reader.take(UNPACKED_BYTES_MAX).read_to_end(&mut unpacked).ok()?;
        let (&version, inputs) = unpacked.split_first()?;
        let (inputs, rest) = postcard::take_from_bytes(inputs).ok()?;
        // `to_fingerprint` leaves no rest.
        (version == VERSION && rest.is_empty()).then_some(inputs)
    }
}

/// Reads and parses a Dockerfile.
///
/// # Errors
/// Those of the file system.
pub(crate) fn read_dockerfile(path: &Path, args: &BuildArgs) -> io::Result<Dockerfile> {
    Ok(Dockerfile::parse(&read_text(path)?, args))
}

/// The rules of the Dockerfile's own ignore file, or else those of the context.
fn read_ignore(context: &Path, dockerfile: &Path) -> io::Result<Ignore> {
    for path in [ignore_file_of(dockerfile), context.join(".dockerignore")] {
        match read_text(&path) {
            Ok(text) => return Ok(Ignore::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Ignore::default())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `image` without digest, in the form of `BuildKit`: `docker.io/library/busybox:latest`.
pub(super) fn normalized(image: &str) -> String {
    let (image, has_digest) = match image.split_once('@') {
        Some((image, _)) => (image, true),
        None => (image, false),
    };
    let host = image.split_once('/').map(|(host, _)| host);
    let has_host = host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost");
    let image = match (has_host, host) {
        (true, _) => image.to_owned(),
        (false, Some(_)) => format!("docker.io/{image}"),
        (false, None) => format!("docker.io/library/{image}"),
    };
    let has_tag = image.rsplit('/').next().is_some_and(|name| name.contains(':'));
    if has_tag || has_digest { image } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::super::files::short_digest;
    use super::*;

    #[test]
    fn a_fingerprint_that_cannot_be_read_is_none() {
        let fingerprint = |bytes: &[u8]| {
            let text = STANDARD.encode(zstd::encode_all(bytes, 19).unwrap());
            Fingerprint::try_from(text).unwrap()
        };
        let valid = BuildInputs::default().to_fingerprint().unwrap();
        assert_eq!(BuildInputs::from_fingerprint(&valid), Some(BuildInputs::default()));
        assert_eq!(
            BuildInputs::from_fingerprint(&Fingerprint::try_from("no base64".to_owned()).unwrap()),
            None
        );
        assert_eq!(BuildInputs::from_fingerprint(&fingerprint(b"")), None);
        assert_eq!(
            BuildInputs::from_fingerprint(&fingerprint(&[VERSION, 255, 255, 255, 255, 255])),
            None
        );
        let mut other = vec![VERSION];
        other.extend(postcard::to_stdvec(&BuildInputs::default()).unwrap());
        assert_eq!(
            BuildInputs::from_fingerprint(&fingerprint(&other)),
            Some(BuildInputs::default())
        );
        other[0] = VERSION + 1;
        assert_eq!(BuildInputs::from_fingerprint(&fingerprint(&other)), None);
        // A few KiB that unpack to 64 MiB.
        let large = vec![VERSION; 64 * 1024 * 1024];
        let bomb = STANDARD.encode(zstd::encode_all(&large[..], 1).unwrap());
        assert_eq!(BuildInputs::from_fingerprint(&Fingerprint::try_from(bomb).unwrap()), None);
    }

    #[test]
    fn files_of_a_fingerprint_that_is_too_long_are_recorded_by_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Dockerfile"), "FROM a\n").unwrap();
        for number in 0..40_u32 {
            // Names that cannot be compressed.
            let name = |seed: u32| {
                let bytes = format!("{number} {seed}");
                STANDARD.encode(short_digest([bytes.as_bytes()])).replace('/', "_")
            };
            let below = folder.path().join(number.to_string());
            fs::create_dir_all(&below).unwrap();
            for file in 0..900 {
                let name: String = (0..4).map(|part| name(file * 4 + part)).collect();
                fs::write(below.join(name), "").unwrap();
            }
        }
        let read = || {
            let dockerfile = folder.path().join("Dockerfile");
            let stop = CancellationToken::new();
            BuildInputs::read(folder.path(), &dockerfile, &BuildArgs::default(), &stop).unwrap()
        };
        let inputs = read();
        let fingerprint = inputs.to_fingerprint().unwrap();
        assert!(fingerprint.as_str().len() < 10_000, "{fingerprint:?}");
        fs::write(folder.path().join("7/new"), "").unwrap();
        let changes = ContextFiles::changes(
            &BuildInputs::from_fingerprint(&fingerprint).unwrap().files,
            &read().files,
            |_| true,
        );
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].path, "7/");
    }

    #[test]
    fn the_dockerfiles_own_ignore_file_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at(".dockerignore"), "*\n").unwrap();
        fs::write(at("Dockerfile"), "FROM a\n").unwrap();
        let ignores = |name: &str| read_ignore(folder.path(), &at(name)).unwrap().ignores("a.c");
        fs::write(at("api.Dockerfile.dockerignore"), "*.o\n").unwrap();
        assert!(ignores("Dockerfile"));
        assert!(!ignores("api.Dockerfile"));
    }

    #[test]
    fn pipes_and_links_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        symlink("pipe", at("link")).unwrap();
        for name in ["pipe", "link"] {
            assert!(read_text(&at(name)).is_err(), "{name}");
        }
        symlink("pipe", at(".dockerignore")).unwrap();
        assert!(read_ignore(folder.path(), &at("Dockerfile")).is_err());
    }

    #[test]
    fn image_names_are_written_as_buildkit_writes_them() {
        for (image, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("user/app:1", "docker.io/user/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
            ("busybox@sha256:00", "docker.io/library/busybox"),
        ] {
            assert_eq!(normalized(image), expected);
        }
    }
}
