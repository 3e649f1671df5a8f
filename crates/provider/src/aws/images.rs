//! The images that machines boot from.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{ArchitectureValues, Filter, Image as Described, ImageState};
use stagely_protocol::Arch;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::IMAGE_TAG;
use super::error::Ec2Error;
use crate::aws::AwsSettings;

/// The time after which EC2 is asked again for the newest golden image.
const IMAGE_TTL: Duration = Duration::from_mins(5);

/// An image that is ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `ami-…`.
    pub(crate) id: String,
    /// The device name of its root volume.
    pub(crate) root_device: String,
    /// The smallest root volume that it fits on, in GiB.
    pub(crate) root_gib: u32,
    /// The creation time, in EC2's own form.
    pub(crate) created: String,
    /// The version of a golden image.
    pub(crate) version: Option<String>,
}

/// Why no image was found.
#[derive(Debug, Error)]
pub(super) enum ImageError {
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    /// There is none, with advice for people.
    #[error("{0}")]
    Missing(String),
}

/// The images of one account and region.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    named: HashMap<Arch, String>,
    /// Held while EC2 is asked, so that many launches at the same time send one request.
    found: Mutex<HashMap<Arch, (Instant, Image)>>,
}

/// EC2's name of an arch.
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

    /// The image that the configuration names, or the newest golden image of this account.
    pub(super) async fn of(&self, arch: Arch) -> Result<Image, ImageError> {
        let mut found = self.found.lock().await;
        if let Some((at, image)) = found.get(&arch)
            && at.elapsed() < IMAGE_TTL
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

    /// Removes an image that EC2 does not have any more, so that the next launch asks for it again.
    pub(super) async fn forget(&self, arch: Arch) {
        self.found.lock().await.remove(&arch);
    }

    async fn named(&self, arch: Arch, id: &str) -> Result<Image, ImageError> {
        let response = self.client.describe_images().image_ids(id).send().await;
        let missing =
            |what: &str| ImageError::Missing(format!("{id} {what}; check image-{arch} in [aws]"));
        let images = match response.map_err(Ec2Error::from) {
            Ok(response) => response.images.unwrap_or_default(),
            Err(error) if error.is_of_image() => return Err(missing(error.message())),
            Err(error) => return Err(error.into()),
        };
        let Some(image) = images.into_iter().next() else {
            return Err(missing("does not exist in this region"));
        };
        if let Some(state) = image.state.as_ref().filter(|state| **state != ImageState::Available) {
            return Err(missing(&format!("is {}", state.as_str())));
        }
        let found = image.architecture.as_ref().map(ArchitectureValues::as_str).unwrap_or_default();
        if found != architecture(arch) {
            let problem = format!("{id} is {found}, and image-{arch} in [aws] names it");
            return Err(ImageError::Missing(problem));
        }
        Ok(bootable(image))
    }

    async fn newest(&self, arch: Arch) -> Result<Image, ImageError> {
        let request = self.client.describe_images().owners("self").set_filters(Some(vec![
            filter("tag-key", IMAGE_TAG),
            filter("architecture", architecture(arch)),
            filter("state", "available"),
        ]));
        let mut pages = request.into_paginator().send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            images.extend(page.map_err(Ec2Error::from)?.images.unwrap_or_default());
        }
        // All times have the same form, so they are ordered as texts.
        let newest = images.into_iter().map(bootable).max_by(|a, b| a.created.cmp(&b.created));
        newest.ok_or_else(|| {
            ImageError::Missing(format!(
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
    // The name in images of Amazon and Debian.
    let root_device = image.root_device_name().unwrap_or("/dev/xvda").to_owned();
    let mut devices = image.block_device_mappings().iter();
    let root = devices.find(|device| device.device_name() == Some(&root_device));
    let root_gib = root.and_then(|device| device.ebs()?.volume_size());
    Image {
        version: version.and_then(|tag| tag.value()).map(str::to_owned),
        root_gib: root_gib.and_then(|gib| u32::try_from(gib).ok()).unwrap_or(0),
        root_device,
        id: image.image_id.unwrap_or_default(),
        created: image.creation_date.unwrap_or_default(),
    }
}

/// A filter with one value.
pub(super) fn filter(name: &str, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}
