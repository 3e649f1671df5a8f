//! Machines that are `DigitalOcean`'s droplets, over its API v2.
//!
//! A droplet has its name, which is its machine's, from the first moment, and its tags a little later: so it is
//! found by its name where it may have just been made, and by its tags everywhere else. There is no idempotency
//! token: after an answer that says nothing a droplet is looked for before another is created, and where two
//! of one machine turn up all the same, the older one stays.

mod api;
mod droplets;
mod images;
mod refusals;
mod settings;
mod tags;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stagely_protocol::Arch;
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::{CoreId, MachineId};
use stagely_state::{Placement, Usd};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::api::{Api, ApiError};
use self::droplets::{Created, Droplet, Size, name_of};
use self::images::{Choice, Image, ImageName};
use self::refusals::Refused;
use self::tags::Tag;
use super::catalog::Catalog;
use super::user_data::cloud_config;
use super::{Candidate, LaunchError, LaunchRequest, Listing, Offer, Provider, ProviderError, Want};
use crate::settings::{ImageKind, MarketPolicy};

pub use settings::DigitalOceanSettings;

/// `DigitalOcean` refuses more creations than this at once. Those that are asked for wait here for their turn.
const CREATIONS_MAX: usize = 10;

/// The largest user data that is taken, in bytes.
const USER_DATA_BYTES_MAX: usize = 64 * 1024;

/// The waits before the looks for a droplet whose creation had no clear answer.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2)];

/// How long the account's images are remembered: many machines may be launched in one moment, and a golden image
/// is made now and then.
const IMAGES_KEPT: Duration = Duration::from_mins(1);

/// How often the account's tags are looked through for those that nothing has any more.
const TAGS_INTERVAL: Duration = Duration::from_hours(1);

/// How long that may take after each look at the droplets.
const TAGS_LIMIT: Duration = Duration::from_secs(10);

/// The most tags that are removed between two looks at the droplets: each is a request of 250 in a minute.
const TAGS_REMOVED_MAX: usize = 30;

/// Launches machines as droplets.
pub struct DigitalOcean {
    api: Api,
    config: DigitalOceanSettings,
    catalog: Catalog,
    core_id: CoreId,
    creations: Semaphore,
    /// The account's own, and when they were asked for.
    images: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Image>>)>>,
    /// What an hour of each size costs, as the API said last.
    prices: Mutex<BTreeMap<String, Usd>>,
    /// When the tags are looked through next.
    tags_at: Mutex<Instant>,
}

impl fmt::Debug for DigitalOcean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigitalOcean({})", self.config.api_url)
    }
}

/// The account whose token core has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// How many droplets there may be at once.
    pub droplet_limit: u64,
    /// `active`, `warning` or `locked`.
    pub status: String,
    /// Why, for people.
    #[serde(default)]
    pub status_message: String,
}

/// What machines of an arch boot from in a region.
#[derive(Clone, Debug, Serialize)]
pub struct RegionImage {
    /// The arch.
    pub arch: Arch,
    /// The region.
    pub region: String,
    /// Its name or slug; `None` where there is none.
    pub image: Option<String>,
    /// Why there is none, and what to do.
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
        let api = Api::new(config)?;
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
            prices: Mutex::default(),
            tags_at: Mutex::new(Instant::now()),
        })
    }

    /// The account that the token is of.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub async fn account(&self) -> Result<Account, ProviderError> {
        Ok(self.api.get::<AccountPage>("account", &[]).await?.account)
    }

    /// What machines boot from, for each arch that there are sizes of.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub async fn region_images(&self) -> Result<Vec<RegionImage>, ProviderError> {
        let images = self.all_images().await?;
        let arches: BTreeSet<Arch> = self.catalog.sizes().map(|(_, arch, ..)| arch).collect();
        let mut found = Vec::new();
        for arch in arches {
            for region in &self.config.regions {
                let image = Choice::of(&self.config, arch).find(&images, region);
                let problem = image.as_ref().err().cloned();
                let image = image.ok().map(|image| image.label().to_owned());
                found.push(RegionImage { arch, region: region.clone(), image, problem });
            }
        }
        Ok(found)
    }

    /// Every image that the account can use, also `DigitalOcean`'s own.
    async fn all_images(&self) -> Result<Vec<Image>, ApiError> {
        self.api.list("images", "images", &[]).await
    }

    /// The account's own images.
    async fn own_images(&self) -> Result<Arc<Vec<Image>>, ApiError> {
        let mut kept = self.images.lock().await;
        if let Some((at, images)) = &*kept
            && at.elapsed() < IMAGES_KEPT
        {
            return Ok(Arc::clone(images));
        }
        let images = self.api.list("images", "images", &[("private", "true")]).await?;
        let images = Arc::new(images);
        *kept = Some((Instant::now(), Arc::clone(&images)));
        Ok(images)
    }

    /// The droplet of `machine`, found by its name. Of several, which creations leave whose answers were lost,
    /// all but the oldest are ended.
    async fn find(&self, machine: MachineId) -> Result<Option<Droplet>, ApiError> {
        let droplets = self.named(machine).await?;
        Ok(self.end_all_but_oldest(machine, droplets).await)
    }

    async fn named(&self, machine: MachineId) -> Result<Vec<Droplet>, ApiError> {
        self.api.list("droplets", "droplets", &[("name", &name_of(machine))]).await
    }

    /// What cannot be ended now is found again at the next look.
    async fn end_all_but_oldest(
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
                warn!(%machine, droplet = droplet.id, %error, "it is not ended yet");
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
    ) -> Result<Droplet, Refused> {
        let own = self.own_images().await?;
        let choice = Choice::of(&self.config, request.arch);
        let region = candidate.zone.as_deref().unwrap_or_default();
        let image = choice.name(&own, region).map_err(Refused::Setting)?;
        let body = self.creation(request, candidate, &image)?;
        let created = {
            let _permit = self.creations.acquire().await.expect("nobody closes it");
            self.api.post::<Created>("droplets", &body).await
        };
        match created {
            Ok(created) => Ok(created.droplet),
            Err(error @ ApiError::Unclear { .. }) => self.look_for(request.machine, error).await,
            Err(ApiError::Refused {
                status: StatusCode::UNPROCESSABLE_ENTITY, message, ..
            }) => Err(refusals::of_creation(&self.config, request, &message)),
            Err(error) => Err(error.into()),
        }
    }

    fn creation(
        &self,
        request: &LaunchRequest,
        candidate: &Candidate,
        image: &ImageName,
    ) -> Result<Value, Refused> {
        let user_data = cloud_config(request, self.config.image_kind);
        if user_data.len() > USER_DATA_BYTES_MAX {
            let size = user_data.len();
            let problem = format!("the user data has {size} bytes of {USER_DATA_BYTES_MAX}");
            return Err(Refused::Launch(LaunchError::Permanent(problem)));
        }
        let mut body = json!({
            "name": name_of(request.machine),
            "size": candidate.instance_type,
            "image": image,
            "tags": tags::of_machine(&self.core_id, request.machine, request.job),
            "user_data": user_data,
            "backups": false,
            "monitoring": false,
            // It lets those in who may use the control panel, and has to be installed first.
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

    /// Looks whether a droplet was created although nobody said so.
    async fn look_for(&self, machine: MachineId, unclear: ApiError) -> Result<Droplet, Refused> {
        for wait in LOOKS {
            sleep(wait).await;
            match self.find(machine).await {
                Ok(Some(droplet)) => {
                    info!(%machine, droplet = droplet.id, "it was created without a clear answer");
                    return Ok(droplet);
                }
                Ok(None) => {}
                Err(error) => {
                    let problem = format!("{unclear}; and then: {error}");
                    return Err(Refused::Launch(LaunchError::Unclear(problem)));
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
    ) -> Option<String> {
        let Some(size) = size else { return Some(format!("DigitalOcean has no size {name}")) };
        if !size.available {
            return Some(format!("DigitalOcean has no {name} for new droplets at the moment"));
        }
        let mut problem = None;
        for region in &self.config.regions {
            let found = if size.regions.contains(region) {
                let image = Choice::of(&self.config, arch).find(images, region);
                image.and_then(|image| image.fits(size.disk))
            } else {
                Err(format!("{name} is not in {region}, but in: {}", size.regions.join(", ")))
            };
            match found {
                Ok(()) => return None,
                Err(text) => problem = problem.or(Some(text)),
            }
        }
        problem
    }

    /// Why there is nothing to try.
    fn no_candidates(&self, request: &LaunchRequest) -> LaunchError {
        let (fleet, arch, size) = (request.fleet, request.arch, request.size);
        let setting = format!("digitalocean.{fleet}s.{arch}.{size}");
        if self.catalog.sizes().any(|(_, other, ..)| other == arch) {
            return LaunchError::Permanent(format!("no size is named for it: set {setting}"));
        }
        // Core asks for it only until it knows that, and lets it be emulated then.
        LaunchError::NoCapacity(format!(
            "DigitalOcean has no machines of {arch}, unless {setting} names one"
        ))
    }

    fn prices(&self) -> MutexGuard<'_, BTreeMap<String, Usd>> {
        self.prices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configured_price(&self, size: &str) -> Option<Usd> {
        self.config.instance_types.get(size)?.price
    }

    /// What an hour costs: what the configuration says, else the API, else the catalog.
    fn price(&self, size: &str) -> Option<Usd> {
        let told = || self.prices().get(size).copied();
        let known = || self.catalog.instance_type(size)?.price;
        self.configured_price(size).or_else(told).or_else(known)
    }

    fn placement(&self, droplet: &Droplet) -> Placement {
        let placement = droplet.placement();
        let size = &droplet.size_slug;
        let price = self.configured_price(size).or(placement.price).or_else(|| self.price(size));
        Placement { price, ..placement }
    }

    /// Removes tags that nothing has any more, if it is time to.
    async fn tidy_tags(&self) -> Result<(), ApiError> {
        let tags_at = || self.tags_at.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < *tags_at() {
            return Ok(());
        }
        // Before anything can go wrong: tags are in nobody's way.
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
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        // There is no spot market: what is wanted of it is bought on demand.
        let want = Want { market: MarketPolicy::OnDemand, max_price: None, ..*want };
        let mut candidates = self.catalog.candidates(&want);
        for candidate in &mut candidates {
            candidate.price = self.price(&candidate.instance_type);
        }
        candidates
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        if let Some(droplet) = self.find(request.machine).await? {
            return Ok(self.placement(&droplet));
        }
        if request.candidates.is_empty() {
            return Err(self.no_candidates(request));
        }
        let mut problems = Vec::new();
        for candidate in &request.candidates {
            let region = candidate.zone.as_deref().unwrap_or("any region");
            match self.create(request, candidate).await {
                Ok(droplet) => return Ok(self.placement(&droplet)),
                Err(Refused::Launch(error)) => return Err(error),
                Err(refused) => {
                    problems.push((format!("{} in {region}", candidate.instance_type), refused));
                }
            }
        }
        Err(refusals::of_all(&problems))
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        let tag = tags::machine_tag(machine);
        self.api.delete("droplets", &[("tag_name", &tag)]).await?;
        // One that was just created may not have its tags yet.
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
            self.end_all_but_oldest(machine, droplets).await;
            // Whatever its status is: one that is off or archived costs money until it is deleted.
            listed.push(Listed { machine, state: ListedState::Live });
        }
        // The list is what was asked for, and does not wait for this.
        match timeout(TAGS_LIMIT, self.tidy_tags()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the tags of machines that are gone stay for now"),
            Err(_) => debug!("the tags of machines that are gone stay for now: it takes too long"),
        }
        Ok(listed)
    }

    fn image_kind(&self) -> ImageKind {
        self.config.image_kind
    }

    fn listing(&self) -> Listing {
        // A look costs one request of 250 in a minute. Tags, by which it finds them, come within seconds of the
        // droplet; nobody promises that, so much more is allowed for.
        Listing { interval: Duration::from_mins(1), grace: Duration::from_mins(5) }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let sizes: Vec<Size> = self.api.list("sizes", "sizes", &[]).await?;
        let images = self.all_images().await?;
        let priced = sizes.iter().filter_map(|size| Some((size.slug.clone(), size.price()?)));
        *self.prices() = priced.collect();
        let mut offers = Vec::new();
        for (fleet, arch, size, names) in self.catalog.sizes() {
            for name in names {
                let found = sizes.iter().find(|it| it.slug == *name);
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
