//! Which image machines boot from.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{Filter, Image as Described, ImageState};
use stagely_protocol::Arch;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::IMAGE_TAG;
use super::fault::Fault;
use crate::aws::AwsSettings;

/// How long the newest golden image counts as such.
const KEPT: Duration = Duration::from_mins(5);

/// An image that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `ami-…`.
    pub(crate) id: String,
    /// What it calls its root volume.
    pub(crate) root_device: String,
    /// When it was made, as EC2 writes it.
    pub(crate) created: String,
    /// The value of its tag, if it is a golden image.
    pub(crate) version: Option<String>,
}

/// Why there is no image to boot.
#[derive(Debug)]
pub(super) enum NoImage {
    Fault(Fault),
    /// With what to do about it.
    Missing(String),
}

impl From<Fault> for NoImage {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The images of one account and region.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    named: HashMap<Arch, String>,
    /// Held while EC2 is asked, so that fifty launches at once ask once.
    found: Mutex<HashMap<Arch, (Instant, Image)>>,
}

/// What EC2 calls it.
pub(super) const fn architecture(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64",
        Arch::Arm64 => "arm64",
    }
}

impl Images {
    pub(super) fn new(client: Client, config: &AwsSettings) -> Self {
        let named = [(Arch::Amd64, &config.image_amd64), (Arch::Arm64, &config.image_arm64)];
        let named = named.into_iter().filter_map(|(arch, id)| Some((arch, id.clone()?))).collect();
        Self { client, named, found: Mutex::default() }
    }

    /// The image that the configuration names, or the newest golden one of this account.
    pub(super) async fn of(&self, arch: Arch) -> Result<Image, NoImage> {
        let mut found = self.found.lock().await;
        if let Some((at, image)) = found.get(&arch)
            && at.elapsed() < KEPT
        {
            return Ok(image.clone());
        }
        let image = match self.named.get(&arch) {
            Some(id) => self.named(arch, id).await?,
            None => self.newest(arch).await?,
        };
        found.insert(arch, (Instant::now(), image.clone()));
        Ok(image)
    }

    /// Looks again at the next question: the image is gone.
    pub(super) async fn forget(&self, arch: Arch) {
        self.found.lock().await.remove(&arch);
    }

    async fn named(&self, arch: Arch, id: &str) -> Result<Image, NoImage> {
        let answer = self.client.describe_images().image_ids(id).send().await.map_err(Fault::from);
        let missing =
            |what: &str| NoImage::Missing(format!("{id} {what}; check image-{arch} in [aws]"));
        let images = match answer {
            Ok(answer) => answer.images.unwrap_or_default(),
            Err(fault) if fault.is_of_image() => return Err(missing(fault.words())),
            Err(fault) => return Err(fault.into()),
        };
        let Some(image) = images.into_iter().next() else {
            return Err(missing("does not exist in this region"));
        };
        if let Some(state) = image.state.as_ref().filter(|it| **it != ImageState::Available) {
            return Err(missing(&format!("is {}", state.as_str())));
        }
        let its = image.architecture.as_ref().map(|it| it.as_str().to_owned()).unwrap_or_default();
        if its != architecture(arch) {
            let problem = format!("{id} is {its}, and image-{arch} in [aws] names it");
            return Err(NoImage::Missing(problem));
        }
        Ok(bootable(image))
    }

    async fn newest(&self, arch: Arch) -> Result<Image, NoImage> {
        let request = self.client.describe_images().owners("self").set_filters(Some(vec![
            filter("tag-key", IMAGE_TAG),
            filter("architecture", architecture(arch)),
            filter("state", "available"),
        ]));
        let mut pages = request.into_paginator().send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            images.extend(page.map_err(Fault::from)?.images.unwrap_or_default());
        }
        // All times are written alike, so they sort as texts.
        let newest = images.into_iter().map(bootable).max_by(|a, b| a.created.cmp(&b.created));
        newest.ok_or_else(|| {
            NoImage::Missing(format!(
                "no golden image for {arch}: this account has no available image in this region with the \
                 tag {IMAGE_TAG} and architecture {}; build one with packer/, or name one: image-{arch} \
                 in [aws]",
                architecture(arch)
            ))
        })
    }
}

fn bootable(image: Described) -> Image {
    let version = image.tags().iter().find(|tag| tag.key() == Some(IMAGE_TAG));
    Image {
        version: version.and_then(|tag| tag.value()).map(str::to_owned),
        id: image.image_id.unwrap_or_default(),
        // What Amazon's and Debian's images have.
        root_device: image.root_device_name.unwrap_or_else(|| "/dev/xvda".to_owned()),
        created: image.creation_date.unwrap_or_default(),
    }
}

/// A filter with one value.
pub(super) fn filter(name: &str, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}
