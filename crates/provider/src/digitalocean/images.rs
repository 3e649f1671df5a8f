//! What a droplet boots from: which image the configuration means in a region.

use serde::{Deserialize, Serialize};
use stagely_protocol::Arch;

use crate::digitalocean::DigitalOceanSettings;

/// An image, as the API tells of it. A snapshot is one too.
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
    /// GB of disk that it takes.
    #[serde(default)]
    min_disk_size: Option<u64>,
    #[serde(default)]
    status: Option<String>,
}

/// Names an image in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum ImageName {
    /// Of a snapshot or another image.
    Id(u64),
    /// Of one of `DigitalOcean`'s own.
    Slug(String),
}

/// What the configuration says of the image of an arch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    arch: Arch,
    configured: Option<&'a str>,
}

impl<'a> Choice<'a> {
    pub(super) fn of(config: &'a DigitalOceanSettings, arch: Arch) -> Self {
        let configured = match arch {
            Arch::Amd64 => &config.image_amd64,
            Arch::Arm64 => &config.image_arm64,
        };
        Self { arch, configured: configured.as_deref() }
    }

    /// The setting that decides.
    pub(super) fn setting(self) -> String {
        format!("digitalocean.image-{}", self.arch)
    }

    fn is_meant(self, image: &Image) -> bool {
        match self.configured {
            None => image.name.starts_with(&format!("stagely-golden-{}-", self.arch)),
            Some(configured) => {
                image.name == configured
                    || image.slug.as_deref() == Some(configured)
                    || configured.parse() == Ok(image.id)
            }
        }
    }

    /// The newest image of `images` that is meant and is in `region`.
    ///
    /// # Errors
    /// There is none, and what to do.
    pub(super) fn find<'i>(self, images: &'i [Image], region: &str) -> Result<&'i Image, String> {
        let meant: Vec<&Image> =
            images.iter().filter(|it| it.is_ready() && self.is_meant(it)).collect();
        let here = meant.iter().filter(|it| it.regions.iter().any(|it| it == region));
        let newest = here.max_by_key(|image| (image.created_at, image.id)).copied();
        newest.ok_or_else(|| match (self.configured, &regions_of(&meant)[..]) {
            (None, "") => format!(
                "there is no golden snapshot called stagely-golden-{}-…: make one with packer/, or set {}",
                self.arch,
                self.setting()
            ),
            (Some(image), "") => {
                format!("there is no image {image}, which {} names", self.setting())
            }
            (image, regions) => format!(
                "the image {} is in {regions} and not in {region}: transfer it there, or change \
                 digitalocean.regions",
                image.unwrap_or("stagely-golden"),
            ),
        })
    }

    /// What a request names for a droplet in `region`. `own` are the account's own images; what is none of
    /// them is left to the API to find.
    pub(super) fn name(self, own: &[Image], region: &str) -> Result<ImageName, String> {
        match (self.find(own, region), self.configured) {
            (Ok(image), _) => Ok(ImageName::Id(image.id)),
            (Err(_), Some(configured)) if !own.iter().any(|image| self.is_meant(image)) => {
                let id = configured.parse().map(ImageName::Id);
                Ok(id.unwrap_or_else(|_| ImageName::Slug(configured.to_owned())))
            }
            (Err(problem), _) => Err(problem),
        }
    }
}

impl Image {
    /// One that is uploaded is not there at once.
    fn is_ready(&self) -> bool {
        !matches!(self.status.as_deref(), Some("NEW" | "pending" | "deleted"))
    }

    /// Whether it fits on `disk`, in GB.
    pub(super) fn fits(&self, disk: u64) -> Result<(), String> {
        match self.min_disk_size {
            Some(min) if min > disk => {
                Err(format!("the image {} needs a disk of {min} GB, and it has {disk}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// For people.
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
        Choice { arch: Arch::Amd64, configured }.name(&own(), region)
    }

    #[test]
    fn the_newest_golden_snapshot_of_the_arch_that_is_in_the_region_is_taken() {
        assert_eq!(name(None, "nyc3"), Ok(ImageName::Id(3)));
        assert_eq!(name(None, "fra1"), Ok(ImageName::Id(1)));
        let error = name(None, "ams3").unwrap_err();
        assert!(error.contains("is in fra1, nyc3 and not in ams3: transfer it"), "{error}");
        let nothing = Choice { arch: Arch::Amd64, configured: None }.name(&[], "nyc3").unwrap_err();
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
    fn what_is_still_uploaded_is_not_taken() {
        let mut own = own();
        own[1].status = Some("pending".to_owned());
        let choice = Choice { arch: Arch::Amd64, configured: None };
        assert_eq!(choice.name(&own, "nyc3"), Ok(ImageName::Id(2)));
    }
}
