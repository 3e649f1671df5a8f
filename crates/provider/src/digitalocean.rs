//! Machines that are `DigitalOcean`'s droplets, over its API v2.
//!
//! A droplet has its machine's name from its creation, and its tags a little later. A droplet that may have just been
//! created is therefore found by its name, and others by their tags. The API has no idempotency token: after an
//! unclear response the droplet is searched for before another is created. If a machine has two droplets all the same,
//! the newer one is deleted.

mod settings;
mod types;

mod api;
mod error;

mod droplets;
mod images;
mod tags;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stagely_protocol::{Arch, ErrorChain};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::{CoreId, MachineId};
use stagely_state::{MachineSize, Placement, Usd};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::api::{ApiClient, ApiError};
use self::droplets::{CreateResponse, Droplet, Size, name_of};
use self::error::{CandidateError, LaunchProblem, Tried, creation_error, size_setting};
use self::images::{Image, ImageName, ImageSetting};
use self::tags::Tag;
use crate::catalog::{Candidate, Catalog};
use crate::settings::{ImageKind, MarketPolicy};
use crate::user_data::cloud_config;
use crate::{
    LaunchError, LaunchRequest, Listing, MachineSpec, Offer, OfferProblem, Provider, ProviderError,
};

pub use settings::DigitalOceanSettings;
#[cfg(test)]
pub(crate) use types::{DEFAULTS, KNOWN};

/// `DigitalOcean` refuses more creations at the same time. Further ones wait.
const CREATIONS_MAX: usize = 10;

/// The API's limit.
const USER_DATA_BYTES_MAX: usize = 64 * 1024;

/// The waits before each search for a droplet after an unclear response to its creation.
const SEARCH_WAITS: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2)];

/// The time for which the account's images are cached. Many machines may be launched at once, and golden images are
/// rarely made.
const IMAGES_TTL: Duration = Duration::from_mins(1);

/// The time between two searches for useless tags.
const TAGS_INTERVAL: Duration = Duration::from_hours(1);

/// The time limit of the removal of tags, which follows the list of droplets.
const TAGS_LIMIT: Duration = Duration::from_secs(10);

/// The most tags that are removed after one list. Each removal is one of 250 requests a minute.
const TAGS_REMOVED_MAX: usize = 30;

/// Launches machines as droplets.
pub struct DigitalOcean {
    api: ApiClient,
    config: DigitalOceanSettings,
    catalog: Catalog,
    core_id: CoreId,
    creations: Semaphore,
    /// The account's own images, and the time of the request for them.
    images: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Image>>)>>,
    /// All sizes by name, from the last response of the API.
    sizes: Mutex<Arc<BTreeMap<String, Size>>>,
    /// The time of the next search for useless tags.
    tags_at: Mutex<Instant>,
}

impl fmt::Debug for DigitalOcean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigitalOcean({})", self.config.api_url)
    }
}

/// The account of core's token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// The most droplets at the same time.
    pub droplet_limit: u64,
    /// `active`, `warning` or `locked`.
    pub status: String,
    /// The reason for the status, for people.
    #[serde(default)]
    pub status_message: String,
}

/// The image that machines of an arch boot from in a region.
#[derive(Clone, Debug, Serialize)]
pub struct RegionImage {
    pub arch: Arch,
    pub region: String,
    /// The image's name or slug.
    pub image: Option<String>,
    /// Why there is no image, with advice.
    pub problem: Option<String>,
}

#[derive(Deserialize)]
struct AccountPage {
    account: Account,
}

impl DigitalOcean {
    /// Machines are tagged with `core_id`.
    ///
    /// # Errors
    /// A setting that is missing, by its name.
    pub fn new(config: &DigitalOceanSettings, core_id: CoreId) -> anyhow::Result<Self> {
        let api = ApiClient::new(config)?;
        anyhow::ensure!(
            !config.regions.is_empty(),
            "there is no region to put machines in: set digitalocean.regions, such as [\"fra1\"]"
        );
        let has_image = config.image_amd64.is_some() || config.image_arm64.is_some();
        anyhow::ensure!(
            config.image_kind == ImageKind::Golden || has_image,
            "digitalocean.image-kind is \"stock\", and no image is named: set \
             digitalocean.image-amd64, such as \"debian-13-x64\""
        );
        Ok(Self {
            api,
            config: config.clone(),
            catalog: config.catalog()?,
            core_id,
            creations: Semaphore::new(CREATIONS_MAX),
            images: tokio::sync::Mutex::default(),
            sizes: Mutex::default(),
            tags_at: Mutex::new(Instant::now()),
        })
    }

    /// The account of the token.
    ///
    /// # Errors
    /// The API refuses, or does not answer.
    pub async fn account(&self) -> Result<Account, ProviderError> {
        Ok(self.api.get::<AccountPage>("account", &[]).await?.account)
    }

    /// The images of all arches and regions of the configuration.
    ///
    /// # Errors
    /// The API refuses, or does not answer.
    pub async fn region_images(&self) -> Result<Vec<RegionImage>, ProviderError> {
        let images = self.all_images().await?;
        let arches: BTreeSet<Arch> = self.catalog.sizes().map(|(_, arch, ..)| arch).collect();
        let mut found = Vec::new();
        for arch in arches {
            for region in &self.config.regions {
                let image = ImageSetting::of(&self.config, arch).find(&images, region);
                let problem = image.as_ref().err().cloned();
                let image = image.ok().map(|image| image.label().to_owned());
                found.push(RegionImage { arch, region: region.clone(), image, problem });
            }
        }
        Ok(found)
    }

    /// All images that the account can use, including `DigitalOcean`'s own.
    async fn all_images(&self) -> Result<Vec<Image>, ApiError> {
        self.api.list("images", "images", &[]).await
    }

    /// The account's own images.
    async fn own_images(&self) -> Result<Arc<Vec<Image>>, ApiError> {
        let mut cached = self.images.lock().await;
        if let Some((at, images)) = &*cached
            && at.elapsed() < IMAGES_TTL
        {
            return Ok(Arc::clone(images));
        }
        let images = self.api.list("images", "images", &[("private", "true")]).await?;
        let images = Arc::new(images);
        *cached = Some((Instant::now(), Arc::clone(&images)));
        Ok(images)
    }

    /// The droplet of `machine`, found by its name. Creations whose responses were lost may leave several; all but the
    /// oldest are deleted.
    async fn find(&self, machine: MachineId) -> Result<Option<Droplet>, ApiError> {
        let droplets = self.named(machine).await?;
        Ok(self.delete_all_but_oldest(machine, droplets).await)
    }

    async fn named(&self, machine: MachineId) -> Result<Vec<Droplet>, ApiError> {
        self.api.list("droplets", "droplets", &[("name", &name_of(machine))]).await
    }

    /// Returns the oldest droplet. The next call deletes those that cannot be deleted now.
    async fn delete_all_but_oldest(
        &self,
        machine: MachineId,
        mut droplets: Vec<Droplet>,
    ) -> Option<Droplet> {
        droplets.sort_by_key(|droplet| (droplet.created_at, droplet.id));
        droplets.dedup_by_key(|droplet| droplet.id);
        let mut droplets = droplets.into_iter();
        let oldest = droplets.next();
        for droplet in droplets {
            warn!(%machine, droplet = droplet.id, "a second droplet of the machine is ended");
            if let Err(error) = self.delete(&droplet).await {
                warn!(%machine, droplet = droplet.id, error = %ErrorChain(&error), "cannot delete the second droplet");
            }
        }
        oldest
    }

    async fn delete(&self, droplet: &Droplet) -> Result<(), ApiError> {
        self.api.delete(&format!("droplets/{}", droplet.id), &[]).await
    }

    /// Tries one candidate.
    async fn create(
        &self,
        request: &LaunchRequest,
        candidate: &Candidate,
    ) -> Result<Droplet, CandidateError> {
        let own = self.own_images().await?;
        let setting = ImageSetting::of(&self.config, request.spec.arch);
        let region = candidate.zone.as_deref().unwrap_or_default();
        let image = setting.name(&own, region).map_err(CandidateError::Setting)?;
        let body = self.creation(request, candidate, &image)?;
        let created = {
            let _permit = self.creations.acquire().await.expect("the semaphore is never closed");
            self.api.post::<CreateResponse>("droplets", &body).await
        };
        match created {
            Ok(created) => Ok(created.droplet),
            Err(error @ ApiError::Unclear { .. }) => self.search(request.machine, error).await,
            Err(ApiError::Refused {
                status: StatusCode::UNPROCESSABLE_ENTITY, message, ..
            }) => Err(creation_error(&self.config, request, message)),
            Err(error) => Err(error.into()),
        }
    }

    fn creation(
        &self,
        request: &LaunchRequest,
        candidate: &Candidate,
        image: &ImageName,
    ) -> Result<Value, LaunchError> {
        let user_data = cloud_config(request, self.config.image_kind);
        let (bytes, max) = (user_data.len(), USER_DATA_BYTES_MAX);
        if bytes > max {
            let problem = LaunchProblem::UserDataTooLarge { bytes, max };
            return Err(LaunchError::Permanent(problem.into()));
        }
        let mut body = json!({
            "name": name_of(request.machine),
            "size": candidate.instance_type,
            "image": image,
            "tags": tags::of_machine(&self.core_id, request),
            "user_data": user_data,
            "backups": false,
            "monitoring": false,
            // The agent of DigitalOcean gives users of the control panel access, and takes time to install.
            "with_droplet_agent": false,
        });
        if let Some(region) = &candidate.zone {
            body["region"] = json!(region);
        }
        if !self.config.ssh_keys.is_empty() {
            body["ssh_keys"] = json!(self.config.ssh_keys);
        }
        if let Some(vpc) = &self.config.vpc {
            body["vpc_uuid"] = json!(vpc);
        }
        Ok(body)
    }

    /// Searches for a droplet after an unclear response to its creation.
    async fn search(
        &self,
        machine: MachineId,
        unclear: ApiError,
    ) -> Result<Droplet, CandidateError> {
        for wait in SEARCH_WAITS {
            sleep(wait).await;
            match self.find(machine).await {
                Ok(Some(droplet)) => {
                    info!(%machine, droplet = droplet.id, "a droplet was created without a clear response");
                    return Ok(droplet);
                }
                Ok(None) => {}
                Err(search) => {
                    let problem = LaunchProblem::SearchFailed { unclear, search };
                    return Err(LaunchError::Unclear(problem.into()).into());
                }
            }
        }
        Err(unclear.into())
    }

    /// Why a size cannot be launched in any region, if it cannot.
    fn problem(
        &self,
        arch: Arch,
        name: &str,
        size: Option<&Size>,
        images: &[Image],
    ) -> Option<OfferProblem> {
        let Some(size) = size else {
            return Some(OfferProblem::NotSold(format!("DigitalOcean has no size {name}")));
        };
        if !size.available {
            let problem = format!("DigitalOcean has no {name} for new droplets at the moment");
            return Some(OfferProblem::NotSold(problem));
        }
        let mut first_problem = None;
        for region in &self.config.regions {
            let problem = if size.regions.contains(region) {
                let image = ImageSetting::of(&self.config, arch).find(images, region);
                let checked = image.and_then(|image| image.check_disk(size.disk));
                checked.err().map(OfferProblem::NoImage)
            } else {
                let regions = size.regions.join(", ");
                let problem = format!("{name} is not in {region}, but in: {regions}");
                Some(OfferProblem::NotSold(problem))
            };
            // One region is enough.
            let problem = problem?;
            first_problem.get_or_insert(problem);
        }
        first_problem
    }

    /// The candidates for `spec`. `DigitalOcean` has no spot market, so all are on demand. A droplet has the disk of its
    /// size, so where that is too small, those of a larger machine are taken.
    async fn candidates(&self, spec: &MachineSpec) -> Result<Vec<Candidate>, LaunchError> {
        let of = |size| {
            let market = MarketPolicy::OnDemand;
            self.catalog.candidates(&MachineSpec { size, market, max_price: None, ..*spec })
        };
        let usual = of(spec.size);
        if usual.is_empty() {
            return Err(self.no_candidates(spec));
        }
        let Some(wanted_gib) = spec.disk_gib else { return Ok(usual) };
        let known = self.known_sizes().await?;
        // A size that the API does not list is tried. Its refusal says what to change.
        let disk = |candidate: &Candidate| {
            known.get(&candidate.instance_type).map_or(u64::MAX, |size| size.disk)
        };
        let mut largest_gib = 0;
        for size in MachineSize::ALL.into_iter().filter(|size| *size >= spec.size) {
            let mut candidates = of(size);
            largest_gib = candidates.iter().map(disk).max().unwrap_or(0).max(largest_gib);
            candidates.retain(|candidate| disk(candidate) >= u64::from(wanted_gib));
            if !candidates.is_empty() {
                return Ok(candidates);
            }
        }
        let problem =
            LaunchProblem::NoDisk { wanted_gib, largest_gib, setting: size_setting(spec) };
        Err(LaunchError::Permanent(problem.into()))
    }

    /// The error of a launch that has no candidates.
    fn no_candidates(&self, spec: &MachineSpec) -> LaunchError {
        let setting = size_setting(spec);
        if self.catalog.sizes().any(|(_, arch, ..)| arch == spec.arch) {
            return LaunchError::Permanent(LaunchProblem::NoSize(setting).into());
        }
        // Not permanent: once core knows that there is no such machine, the build is emulated.
        LaunchError::NoCapacity(LaunchProblem::NoArch { spec: *spec, setting }.into())
    }

    fn sizes(&self) -> MutexGuard<'_, Arc<BTreeMap<String, Size>>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sizes of the last response of the API, or of a new one if there was none.
    async fn known_sizes(&self) -> Result<Arc<BTreeMap<String, Size>>, ApiError> {
        let known = Arc::clone(&self.sizes());
        if known.is_empty() { self.read_sizes().await } else { Ok(known) }
    }

    async fn read_sizes(&self) -> Result<Arc<BTreeMap<String, Size>>, ApiError> {
        let sizes: Vec<Size> = self.api.list("sizes", "sizes", &[]).await?;
        let sizes = sizes.into_iter().map(|size| (size.slug.clone(), size)).collect();
        let sizes = Arc::new(sizes);
        *self.sizes() = Arc::clone(&sizes);
        Ok(sizes)
    }

    fn configured_price(&self, size: &str) -> Option<Usd> {
        self.config.instance_types.get(size)?.price
    }

    /// The price of an hour: from the configuration, else from the API, else from the catalog.
    fn price(&self, size: &str) -> Option<Usd> {
        let current = || self.sizes().get(size)?.price();
        let known = || self.catalog.instance_type(size)?.price;
        self.configured_price(size).or_else(current).or_else(known)
    }

    fn placement(&self, droplet: &Droplet) -> Placement {
        let placement = droplet.placement();
        let size = &droplet.size_slug;
        let price = self.configured_price(size).or(placement.price).or_else(|| self.price(size));
        Placement { price, ..placement }
    }

    async fn remove_useless_tags(&self) -> Result<(), ApiError> {
        let tags_at = || self.tags_at.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < *tags_at() {
            return Ok(());
        }
        // Set before the requests, because useless tags do no harm and a failure need not be retried.
        *tags_at() = Instant::now() + TAGS_INTERVAL;
        let mut tags: Vec<Tag> = self.api.list("tags", "tags", &[]).await?;
        tags.retain(|tag| tag.is_left_over(SystemTime::now()));
        for tag in tags.iter().take(TAGS_REMOVED_MAX) {
            self.api.delete(&format!("tags/{}", tag.name), &[]).await?;
        }
        if tags.len() > TAGS_REMOVED_MAX {
            *tags_at() = Instant::now();
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for DigitalOcean {
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        if let Some(droplet) = self.find(request.machine).await? {
            return Ok(self.placement(&droplet));
        }
        let candidates = self.candidates(&request.spec).await?;
        let mut tried = Tried(Vec::new());
        for candidate in &candidates {
            let region = candidate.zone.as_deref().unwrap_or("any region");
            match self.create(request, candidate).await {
                Ok(droplet) => return Ok(self.placement(&droplet)),
                Err(CandidateError::Launch(error)) => return Err(error),
                Err(error) => {
                    tried.0.push((format!("{} in {region}", candidate.instance_type), error));
                }
            }
        }
        Err(tried.into_launch_error())
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        let tag = tags::machine_tag(machine);
        self.api.delete("droplets", &[("tag_name", &tag)]).await?;
        // A new droplet may not have its tags yet.
        let named = self.named(machine).await?;
        for droplet in named.iter().filter(|droplet| !droplet.tags.contains(&tag)) {
            self.delete(droplet).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        let tag = tags::of_core(&self.core_id);
        let droplets: Vec<Droplet> =
            self.api.list("droplets", "droplets", &[("tag_name", &tag)]).await?;
        let mut machines: BTreeMap<MachineId, Vec<Droplet>> = BTreeMap::new();
        for droplet in droplets {
            if let Some(machine) = droplet.machine() {
                machines.entry(machine).or_default().push(droplet);
            } else {
                warn!(droplet = droplet.id, tag, "a droplet of no machine has this tag");
            }
        }
        let mut listed = Vec::new();
        for (machine, droplets) in machines {
            self.delete_all_but_oldest(machine, droplets).await;
            // Live in any status: a droplet that is off or archived costs money until it is deleted.
            listed.push(Listed { machine, state: ListedState::Live });
        }
        match timeout(TAGS_LIMIT, self.remove_useless_tags()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(error = %ErrorChain(&error), "the tags of machines that are gone stay for now");
            }
            Err(_) => debug!("the tags of machines that are gone stay for now: it takes too long"),
        }
        Ok(listed)
    }

    fn image_kind(&self) -> ImageKind {
        self.config.image_kind
    }

    fn listing(&self) -> Listing {
        // A list is one of 250 requests a minute. It finds droplets by their tags, which appear within seconds. That
        // is not documented, so the grace is much longer.
        Listing { interval: Duration::from_mins(1), grace: Duration::from_mins(5) }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let sizes = self.read_sizes().await?;
        let images = self.all_images().await?;
        let mut offers = Vec::new();
        for (fleet, arch, size, names) in self.catalog.sizes() {
            for name in names {
                let found = sizes.get(name);
                offers.push(Offer {
                    fleet,
                    arch,
                    size,
                    instance_type: name.clone(),
                    price: self.price(name),
                    spot: false,
                    exists: found.is_some(),
                    problem: self.problem(arch, name, found, &images),
                });
            }
        }
        Ok(offers)
    }
}
