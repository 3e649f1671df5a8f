//! What a build was made of, and why a step of the next one did not come from the cache.

mod dockerfile;
mod files;
mod miss;
mod patterns;

#[cfg(test)]
mod recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::dockerfile::Dockerfile;
use self::files::{Files, Short, open_regular};
pub use self::miss::cache_miss;
use stagely_protocol::{BuildArgs, FINGERPRINT_BYTES_MAX, Fingerprint};

use self::patterns::Ignore;
use crate::docker::{BaseImage, BaseUser};

/// Comes first in every fingerprint. One of another version is not read.
const VERSION: u8 = 1;

/// The longest fingerprint when unpacked: a few times what [`Inputs`] can hold.
const UNPACKED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A Dockerfile or `.dockerignore` longer than this is not read.
const TEXT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Fast, and most of a fingerprint are digests, which do not shrink.
const COMPRESSION_LEVEL: i32 = 3;

/// What a build is made of. It holds digests and names, and no value of a build argument; of secret
/// arguments it holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    files: Files,
    /// The value of each argument that the Dockerfile declares.
    args: BTreeMap<String, Short>,
    /// The instructions that make steps, each with what it depends on.
    instructions: BTreeSet<Short>,
    /// By the name of a stage, the image that it begins with, with digest.
    bases: BTreeMap<String, String>,
    /// The digest of each image, by its reference or the name of its context.
    images: BTreeMap<String, String>,
    /// Known only of the build at hand.
    #[serde(skip)]
    dockerfile: Parsed,
}

/// A Dockerfile, which does not count where inputs are compared.
#[derive(Clone, Debug, Default)]
struct Parsed(Dockerfile);

impl PartialEq for Parsed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Inputs {
    /// Reads a build's context and Dockerfile. This blocks: 6,000 files take a fraction of a second.
    /// After `stop` it ends soon.
    ///
    /// # Errors
    /// What the file system answers; and `stop`. A context that is too large is no error: less is known of it.
    pub fn read(
        context: &Path,
        dockerfile: &Path,
        args: &BuildArgs,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let files = Files::read(context, &read_ignore(context, dockerfile)?, stop)?;
        let dockerfile = Dockerfile::parse(&read_text(dockerfile)?, args);
        let layers = dockerfile.stages.iter().flat_map(|stage| &stage.layers);
        Ok(Self {
            files,
            args: dockerfile.args.clone(),
            instructions: layers.map(|layer| layer.key).collect(),
            dockerfile: Parsed(dockerfile),
            ..Self::default()
        })
    }

    /// Adds the images that the build used, as it reported them.
    pub fn add_images(&mut self, images: &[BaseImage]) {
        for image in images {
            let name = match &image.user {
                BaseUser::Context(name) => name.clone(),
                BaseUser::Stage(_) | BaseUser::Some => image.reference.clone(),
            };
            self.images.insert(name, image.digest.clone());
        }
        for (index, stage) in self.dockerfile.0.stages.iter().enumerate() {
            let is_own = |image: &&BaseImage| match &image.user {
                BaseUser::Stage(label) => self.dockerfile.0.stage(label) == Some(index),
                BaseUser::Context(name) => *name == stage.image,
                BaseUser::Some => image.reference == normalized(&stage.image),
            };
            if let Some(image) = images.iter().find(is_own).filter(|_| stage.parent.is_none()) {
                let image = format!("{}@{}", image.reference, image.digest);
                self.bases.insert(stage.label.clone(), image);
            }
        }
    }

    /// Packs it. `None`: it does not fit, not even without its files.
    pub fn seal(&self) -> Option<Fingerprint> {
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

    /// Unpacks `fingerprint`. `None`: another version made it, or it is damaged.
    pub fn open(fingerprint: &Fingerprint) -> Option<Self> {
        let packed = STANDARD.decode(fingerprint.as_str()).ok()?;
        let mut unpacked = Vec::new();
        let reader = zstd::Decoder::new(&packed[..]).ok()?;
        reader.take(UNPACKED_BYTES_MAX).read_to_end(&mut unpacked).ok()?;
        let (&version, inputs) = unpacked.split_first()?;
        let (inputs, rest) = postcard::take_from_bytes(inputs).ok()?;
        // A rest, too, says that this is not what `seal` made.
        (version == VERSION && rest.is_empty()).then_some(inputs)
    }
}

/// The rules for this Dockerfile alone come before those of the context.
fn read_ignore(context: &Path, dockerfile: &Path) -> io::Result<Ignore> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [Path::new(&own), &context.join(".dockerignore")] {
        match read_text(path) {
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

/// `image` without digest, as `BuildKit` writes it: `docker.io/library/busybox:latest`.
fn normalized(image: &str) -> String {
    let (image, digest) =
        image.split_once('@').map_or((image, None), |(it, digest)| (it, Some(digest)));
    let host = image.split_once('/').map(|(host, _)| host);
    let has_host = host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost");
    let image = match (has_host, host) {
        (true, _) => image.to_owned(),
        (false, Some(_)) => format!("docker.io/{image}"),
        (false, None) => format!("docker.io/library/{image}"),
    };
    let has_tag = image.rsplit('/').next().is_some_and(|name| name.contains(':'));
    if has_tag || digest.is_some() { image } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_fingerprint_that_cannot_be_read_is_none() {
        let fingerprint = |bytes: &[u8]| {
            let text = STANDARD.encode(zstd::encode_all(bytes, 19).unwrap());
            Fingerprint::try_from(text).unwrap()
        };
        let sealed = Inputs::default().seal().unwrap();
        assert_eq!(Inputs::open(&sealed), Some(Inputs::default()));
        assert_eq!(Inputs::open(&Fingerprint::try_from("no base64".to_owned()).unwrap()), None);
        assert_eq!(Inputs::open(&fingerprint(b"")), None);
        assert_eq!(Inputs::open(&fingerprint(&[VERSION, 255, 255, 255, 255, 255])), None);
        let mut other = vec![VERSION];
        other.extend(postcard::to_stdvec(&Inputs::default()).unwrap());
        assert_eq!(Inputs::open(&fingerprint(&other)), Some(Inputs::default()));
        other[0] = VERSION + 1;
        assert_eq!(Inputs::open(&fingerprint(&other)), None);
        // A few KiB that unpack to 64 MiB.
        let large = vec![VERSION; 64 * 1024 * 1024];
        let bomb = STANDARD.encode(zstd::encode_all(&large[..], 1).unwrap());
        assert_eq!(Inputs::open(&Fingerprint::try_from(bomb).unwrap()), None);
    }

    #[test]
    fn what_does_not_fit_is_known_by_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Dockerfile"), "FROM a\n").unwrap();
        for number in 0..40_u32 {
            // Names that do not shrink.
            let name = |seed: u32| {
                let bytes = format!("{number} {seed}");
                STANDARD.encode(files::short([bytes.as_bytes()])).replace('/', "_")
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
            Inputs::read(folder.path(), &dockerfile, &BuildArgs::default(), &stop).unwrap()
        };
        let inputs = read();
        let sealed = inputs.seal().unwrap();
        assert!(sealed.as_str().len() < 10_000, "{sealed:?}");
        fs::write(folder.path().join("7/new"), "").unwrap();
        let changes =
            Files::changes(&Inputs::open(&sealed).unwrap().files, &read().files, |_| true);
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
    fn pipes_and_links_are_not_waited_for() {
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
