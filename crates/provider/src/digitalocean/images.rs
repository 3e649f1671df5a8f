//! The image that a droplet boots from: which one the configuration means in a region.

use serde::{Deserialize, Serialize};
use stagely_protocol::Arch;

use crate::digitalocean::DigitalOceanSettings;

/// An image in the form of the API. A snapshot is an image, too.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Image {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    slug: Option<String>,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    created_at: Option<jiff::Timestamp>,
    /// The disk that it needs, in GB.
    #[serde(default)]
    min_disk_size: Option<u64>,
    #[serde(default)]
    status: Option<String>,
}

/// The name of an image in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum ImageName {
    /// The id of a snapshot or another image.
    Id(u64),
    /// The slug of one of `DigitalOcean`'s own images.
    Slug(String),
}

/// The setting for the image of an arch.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageSetting<'a> {
    arch: Arch,
    configured: Option<&'a str>,
}

impl<'a> ImageSetting<'a> {
    pub(super) fn of(config: &'a DigitalOceanSettings, arch: Arch) -> Self {
        let configured = match arch {
            Arch::Amd64 => &config.image_amd64,
            Arch::Arm64 => &config.image_arm64,
        };
        Self { arch, configured: configured.as_deref() }
    }

    /// The name in `stagely.toml`.
    pub(super) fn key(self) -> String {
        format!("digitalocean.image-{}", self.arch)
    }

    fn matches(self, image: &Image) -> bool {
        match self.configured {
            None => image.name.starts_with(&format!("stagely-golden-{}-", self.arch)),
            Some(configured) => {
                image.name == configured
                    || image.slug.as_deref() == Some(configured)
                    || configured.parse() == Ok(image.id)
            }
        }
    }

    /// The newest of `images` that matches the setting and is in `region`.
    ///
    /// # Errors
    /// There is none: the reason with advice, for people.
    pub(super) fn find<'i>(self, images: &'i [Image], region: &str) -> Result<&'i Image, String> {
        let matching: Vec<&Image> =
            images.iter().filter(|image| image.is_ready() && self.matches(image)).collect();
        let in_region =
            matching.iter().filter(|image| image.regions.iter().any(|name| name == region));
        let newest = in_region.max_by_key(|image| (image.created_at, image.id)).copied();
        newest.ok_or_else(|| match (self.configured, &regions_of(&matching)[..]) {
            (None, "") => format!(
                "there is no golden snapshot called stagely-golden-{}-…: make one with packer/, or set {}",
                self.arch,
                self.key()
            ),
            (Some(image), "") => {
                format!("there is no image {image}, which {} names", self.key())
            }
            (image, regions) => format!(
                "the image {} is in {regions} and not in {region}: transfer it there, or change \
                 digitalocean.regions",
                image.unwrap_or("stagely-golden"),
            ),
        })
    }

    /// The image's name in a request for a droplet in `region`. `own` are the account's own images. The API looks for
    /// an image that is none of them.
    pub(super) fn name(self, own: &[Image], region: &str) -> Result<ImageName, String> {
        match (self.find(own, region), self.configured) {
            (Ok(image), _) => Ok(ImageName::Id(image.id)),
            (Err(_), Some(configured)) if !own.iter().any(|image| self.matches(image)) => {
                let id = configured.parse().map(ImageName::Id);
                Ok(id.unwrap_or_else(|_| ImageName::Slug(configured.to_owned())))
            }
            (Err(problem), _) => Err(problem),
        }
    }
}

impl Image {
    /// An image is not ready during its upload.
    fn is_ready(&self) -> bool {
        !matches!(self.status.as_deref(), Some("NEW" | "pending" | "deleted"))
    }

    /// Checks that it fits on a disk of `disk` GB.
    pub(super) fn check_disk(&self, disk: u64) -> Result<(), String> {
        match self.min_disk_size {
            Some(min) if min > disk => {
                Err(format!("the image {} needs a disk of {min} GB, and it has {disk}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// The slug or name, for people.
    pub(super) fn label(&self) -> &str {
        self.slug.as_deref().unwrap_or(&self.name)
    }
}

fn regions_of(images: &[&Image]) -> String {
    let mut regions: Vec<&str> =
        images.iter().flat_map(|image| &image.regions).map(String::as_str).collect();
    regions.sort_unstable();
    regions.dedup();
    regions.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(id: u64, name: &str, day: u32, regions: &[&str]) -> Image {
        let created_at = format!("2026-11-{day:02}T10:00:00Z");
        let image = json!({
            "id": id, "name": name, "regions": regions, "created_at": created_at, "slug": null,
            "status": "available", "min_disk_size": 20,
        });
        serde_json::from_value(image).unwrap()
    }

    fn own() -> Vec<Image> {
        vec![
            image(1, "stagely-golden-amd64-1", 1, &["nyc3", "fra1"]),
            image(3, "stagely-golden-amd64-3", 9, &["nyc3"]),
            image(2, "stagely-golden-amd64-2", 5, &["nyc3"]),
            image(4, "stagely-golden-arm64-1", 10, &["nyc3"]),
            image(5, "web-2026", 20, &["nyc3"]),
        ]
    }

    fn name(configured: Option<&str>, region: &str) -> Result<ImageName, String> {
        ImageSetting { arch: Arch::Amd64, configured }.name(&own(), region)
    }

    #[test]
    fn the_newest_golden_snapshot_of_the_arch_that_is_in_the_region_is_taken() {
        assert_eq!(name(None, "nyc3"), Ok(ImageName::Id(3)));
        assert_eq!(name(None, "fra1"), Ok(ImageName::Id(1)));
        let error = name(None, "ams3").unwrap_err();
        assert!(error.contains("is in fra1, nyc3 and not in ams3: transfer it"), "{error}");
        let nothing =
            ImageSetting { arch: Arch::Amd64, configured: None }.name(&[], "nyc3").unwrap_err();
        assert!(nothing.contains("set digitalocean.image-amd64"), "{nothing}");
    }

    #[test]
    fn an_image_is_configured_by_id_or_name_or_slug() {
        assert_eq!(name(Some("web-2026"), "nyc3"), Ok(ImageName::Id(5)));
        assert_eq!(name(Some("2"), "nyc3"), Ok(ImageName::Id(2)));
        assert_eq!(name(Some("77"), "nyc3"), Ok(ImageName::Id(77)));
        let slug = ImageName::Slug("debian-13-x64".to_owned());
        assert_eq!(name(Some("debian-13-x64"), "ams3"), Ok(slug));
        assert!(name(Some("web-2026"), "ams3").unwrap_err().contains("not in ams3"));
    }

    #[test]
    fn an_image_that_is_being_uploaded_is_not_taken() {
        let mut own = own();
        own[1].status = Some("pending".to_owned());
        let choice = ImageSetting { arch: Arch::Amd64, configured: None };
        assert_eq!(choice.name(&own, "nyc3"), Ok(ImageName::Id(2)));
    }
}
