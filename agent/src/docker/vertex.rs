//! Parses the names of `BuildKit`'s vertexes.
//!
//! Source: `BuildKit`, `frontend/dockerfile/dockerfile2llb` (`prefixCommand`).

/// `[linux/amd64 builder 2/6] RUN make`: an instruction of the Dockerfile, or its FROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepName<'a> {
    /// The stage's own name or `stage-N`; empty where the Dockerfile has one stage.
    pub(crate) stage: &'a str,
    /// Its position in the stage, from 1. FROM counts if it names an image of a registry.
    pub(crate) number: u32,
    /// `RUN`.
    pub(crate) keyword: &'a str,
    /// The arguments, with variables replaced by their values.
    pub(crate) text: &'a str,
}

impl<'a> StepName<'a> {
    /// `None` for `[internal] …`, `[auth] …`, `[context …] …` and `exporting …`.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (position, instruction) = name.strip_prefix('[')?.split_once("] ")?;
        let (before, count) = position.rsplit_once(' ').unwrap_or(("", position));
        let (number, total) = count.split_once('/')?;
        let (number, _) = (number.parse().ok()?, total.parse::<u32>().ok()?);
        // Numbers are padded to the width of the total. A platform may stand before the stage; the name of a stage
        // has no slash.
        let stage =
            before.trim_end().rsplit(' ').next().filter(|word| !word.contains('/')).unwrap_or("");
        let (keyword, text) = instruction.split_once(' ').unwrap_or((instruction, ""));
        Some(Self { stage, number, keyword, text })
    }

    /// Whether a cache may hold the step. The base image of a stage is not in a cache.
    pub(crate) fn is_cacheable(&self) -> bool {
        self.keyword != "FROM"
    }
}

/// An image that a build used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// The part of the build that uses the image.
    pub used_by: ImageUse,
    /// Without digest, `docker.io/library/busybox:latest`.
    pub reference: String,
    /// `sha256:…`
    pub digest: String,
}

/// The part of a build that uses a [`BaseImage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUse {
    /// The stage begins with the image. The name is that of [`StepName::stage`].
    Stage(String),
    /// The named context is this image.
    Context(String),
    /// `BuildKit` does not report it: several stages, or COPY.
    Unknown,
}

impl BaseImage {
    /// Parses the name of a vertex. `None`: the vertex is not an image with a digest.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (used_by, image) = if let Some(image) = name.strip_prefix("FROM ") {
            (ImageUse::Unknown, image)
        } else if let Some(context) = name.strip_prefix("[context ") {
            let (context, image) = context.split_once("] ")?;
            (ImageUse::Context(context.to_owned()), image)
        } else {
            let step = StepName::parse(name).filter(|step| !step.is_cacheable())?;
            (ImageUse::Stage(step.stage.to_owned()), step.text)
        };
        let (reference, digest) = image.split_once('@')?;
        if reference.contains(' ') || digest.contains(' ') {
            return None;
        }
        Some(Self { used_by, reference: reference.to_owned(), digest: digest.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_steps_are_parsed() {
        let parts = |name| {
            StepName::parse(name).map(|step| (step.stage, step.number, step.keyword, step.text))
        };
        assert_eq!(parts("[2/5] RUN make a b"), Some(("", 2, "RUN", "make a b")));
        assert_eq!(parts("[stage-1 3/4] COPY . ."), Some(("stage-1", 3, "COPY", ". .")));
        let cross = parts("[linux/amd64->arm64 tools 12/13] WORKDIR /w");
        assert_eq!(cross, Some(("tools", 12, "WORKDIR", "/w")));
        assert_eq!(parts("[linux/arm64 2/3] RUN true"), Some(("", 2, "RUN", "true")));
        let padded = parts("[linux/arm64 base  1/12] WORKDIR /w1");
        assert_eq!(padded, Some(("base", 1, "WORKDIR", "/w1")));
        assert_eq!(parts("[base  9/10] RUN a"), Some(("base", 9, "RUN", "a")));
        assert_eq!(parts("[base 10/10] RUN a"), Some(("base", 10, "RUN", "a")));
        assert_eq!(parts("[ 2/10] RUN a"), Some(("", 2, "RUN", "a")));
        assert_eq!(parts("[linux/arm64   2/100] RUN a"), Some(("", 2, "RUN", "a")));
        for other in [
            "[internal] load build context",
            "[auth] sharing credentials for 127.0.0.1:5000",
            "[context other] docker.io/library/busybox@sha256:00",
            "FROM docker.io/library/busybox:latest@sha256:00",
            "exporting to image",
        ] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn base_images_are_read_in_all_their_forms() {
        let base = |used_by, reference: &str| {
            Some(BaseImage {
                used_by,
                reference: reference.to_owned(),
                digest: "sha256:00".to_owned(),
            })
        };
        let busybox = "docker.io/library/busybox:latest";
        assert_eq!(
            BaseImage::parse(&format!("[tools 1/2] FROM {busybox}@sha256:00")),
            base(ImageUse::Stage("tools".to_owned()), busybox)
        );
        assert_eq!(
            BaseImage::parse(&format!("[tools  1/12] FROM {busybox}@sha256:00")),
            base(ImageUse::Stage("tools".to_owned()), busybox)
        );
        assert_eq!(
            BaseImage::parse(&format!("FROM {busybox}@sha256:00")),
            base(ImageUse::Unknown, busybox)
        );
        assert_eq!(
            BaseImage::parse("[context other] docker.io/library/busybox@sha256:00"),
            base(ImageUse::Context("other".to_owned()), "docker.io/library/busybox")
        );
        let metadata = "[context other] load metadata for docker.io/library/busybox@sha256:00";
        assert_eq!(BaseImage::parse(metadata), None);
        assert_eq!(BaseImage::parse("[2/5] RUN echo a@b"), None);
    }
}
