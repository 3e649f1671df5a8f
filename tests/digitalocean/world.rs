//! The state of one account: droplets, tags, images and sizes, and its responses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Below `/v2/`.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) body: Value,
}

#[derive(Clone, Debug)]
pub(crate) struct Droplet {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) size: String,
    pub(crate) image: Value,
    pub(crate) tags: Vec<String>,
    pub(crate) status: &'static str,
    pub(crate) user_data: String,
    created_at: jiff::Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) slug: Option<&'static str>,
    pub(crate) regions: Vec<&'static str>,
    pub(crate) min_disk_size: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) slug: &'static str,
    pub(crate) regions: Vec<&'static str>,
    pub(crate) available: bool,
    pub(crate) price_hourly: f64,
    pub(crate) disk: u64,
}

/// One account.
pub(crate) struct World {
    pub(crate) droplets: Vec<Droplet>,
    /// All tags that were created and not removed.
    pub(crate) tags: Vec<String>,
    pub(crate) images: Vec<Image>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) droplet_limit: usize,
    /// The largest page, whatever the request says.
    pub(crate) page_max: usize,
    /// New droplets have no tags while this is true.
    pub(crate) tags_come_later: bool,
    /// The newest droplet is missing from lists while this is true.
    pub(crate) newest_is_hidden: bool,
    /// The droplet that disappears when the second page of droplets is read.
    pub(crate) goes_while_listed: Option<u64>,
    /// Sizes and regions without capacity.
    pub(crate) full: Vec<(&'static str, &'static str)>,
    /// Requests that do not match the description.
    pub(crate) complaints: Vec<String>,
    last_id: u64,
}

pub(crate) const REGIONS: [&str; 3] = ["ams3", "fra1", "nyc3"];

impl World {
    pub(crate) fn new() -> Self {
        let size = |slug, price_hourly, disk| Size {
            slug,
            regions: vec!["fra1", "ams3"],
            available: true,
            price_hourly,
            disk,
        };
        let image = |id, name: &str, slug| Image {
            id,
            name: name.to_owned(),
            slug,
            regions: vec!["fra1", "ams3"],
            min_disk_size: 20,
        };
        Self {
            droplets: Vec::new(),
            tags: Vec::new(),
            images: vec![
                image(7001, "stagely-golden-amd64-1", None),
                image(7003, "stagely-golden-amd64-3", None),
                image(7002, "web", None),
                image(9001, "13 x64", Some("debian-13-x64")),
            ],
            sizes: vec![
                size("s-1vcpu-1gb", 0.008_93, 25),
                size("s-2vcpu-4gb", 0.035_71, 80),
                size("c-4", 0.125_01, 50),
                size("c-8", 0.25, 100),
            ],
            droplet_limit: 100,
            page_max: 3,
            tags_come_later: false,
            newest_is_hidden: false,
            goes_while_listed: None,
            full: Vec::new(),
            complaints: Vec::new(),
            last_id: 3_164_000,
        }
    }

    pub(crate) fn answer(&mut self, call: &Call) -> Answer {
        let words: Vec<&str> = call.path.split('/').collect();
        let tag = call.query.get("tag_name");
        match (&*call.method, &words[..]) {
            ("GET", ["account"]) => ok(json!({ "account": self.account() })),
            ("GET", ["droplets"]) => self.list_droplets(call),
            ("POST", ["droplets"]) => self.create(&call.body),
            ("DELETE", ["droplets"]) => {
                let Some(tag) = tag.filter(|tag| self.tags.contains(*tag)).cloned() else {
                    return refuse(
                        404,
                        "not_found",
                        "The resource you requested could not be found.",
                    );
                };
                self.droplets.retain(|droplet| !droplet.tags.contains(&tag));
                done()
            }
            ("DELETE", ["droplets", id]) => {
                let id: u64 = id.parse().unwrap();
                let before = self.droplets.len();
                self.droplets.retain(|droplet| droplet.id != id);
                if self.droplets.len() == before { not_found() } else { done() }
            }
            ("GET", ["images"]) => {
                let private = call.query.get("private").is_some_and(|value| value == "true");
                let images = self.images.iter().filter(|image| !private || image.slug.is_none());
                self.page(call, "images", images.map(Image::json).collect())
            }
            ("GET", ["sizes"]) => {
                self.page(call, "sizes", self.sizes.iter().map(Size::json).collect())
            }
            ("GET", ["tags"]) => {
                let tags = self.tags.iter().map(|tag| self.tag(tag)).collect();
                self.page(call, "tags", tags)
            }
            ("DELETE", ["tags", tag]) => {
                self.tags.retain(|name| name != tag);
                for droplet in &mut self.droplets {
                    droplet.tags.retain(|name| name != tag);
                }
                done()
            }
            _ => {
                self.complaints.push(format!("{} {}", call.method, call.path));
                not_found()
            }
        }
    }

    fn account(&self) -> Value {
        json!({
            "droplet_limit": self.droplet_limit, "floating_ip_limit": 5, "email": "sammy@example.com",
            "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef", "email_verified": true,
            "status": "active", "status_message": "",
        })
    }

    fn tag(&self, tag: &str) -> Value {
        let count = self
            .droplets
            .iter()
            .filter(|droplet| droplet.tags.iter().any(|name| name == tag))
            .count();
        json!({ "name": tag, "resources": { "count": count, "droplets": { "count": count } } })
    }

    fn list_droplets(&mut self, call: &Call) -> Answer {
        let query = |name: &str| call.query.get(name);
        if query("tag_name").is_some() && query("name").is_some() {
            self.complaints.push("tag_name and name cannot be combined".to_owned());
        }
        if query("page").is_some_and(|page| page == "2")
            && let Some(id) = self.goes_while_listed.take()
        {
            self.droplets.retain(|droplet| droplet.id != id);
        }
        let matches = |droplet: &&Droplet| {
            query("tag_name").is_none_or(|tag| droplet.tags.contains(tag))
                && query("name").is_none_or(|name| droplet.name.eq_ignore_ascii_case(name))
        };
        let hidden =
            self.droplets.last().filter(|_| self.newest_is_hidden).map(|droplet| droplet.id);
        let shown =
            self.droplets.iter().filter(matches).filter(|droplet| Some(droplet.id) != hidden);
        let shown = shown.map(|droplet| self.droplet(droplet)).collect();
        self.page(call, "droplets", shown)
    }

    fn page(&self, call: &Call, key: &str, all: Vec<Value>) -> Answer {
        let number = |name: &str| call.query.get(name).map(|value| value.parse::<usize>().unwrap());
        let size = number("per_page").unwrap_or(20).min(self.page_max);
        let (page, total) = (number("page").unwrap_or(1), all.len());
        let entries: Vec<Value> = all.into_iter().skip((page - 1) * size).take(size).collect();
        let mut pages = json!({});
        // The API always returns its public address, whatever host the request has.
        let address = |page: usize| {
            format!("https://api.digitalocean.com/v2/{}?page={page}&per_page={size}", call.path)
        };
        if page * size < total {
            pages["next"] = json!(address(page + 1));
            pages["last"] = json!(address(total.div_ceil(size)));
        }
        if page > 1 {
            pages["first"] = json!(address(1));
            pages["prev"] = json!(address(page - 1));
        }
        let links = if pages == json!({}) { pages } else { json!({ "pages": pages }) };
        ok(json!({ key: entries, "links": links, "meta": { "total": total } }))
    }

    /// Records a complaint for each field that the API does not have.
    fn check_fields(&mut self, body: &Value) {
        const FIELDS: [&str; 10] = [
            "name",
            "size",
            "image",
            "region",
            "tags",
            "user_data",
            "vpc_uuid",
            "backups",
            "monitoring",
            "with_droplet_agent",
        ];
        let unknown =
            body.as_object().unwrap().keys().filter(|field| !FIELDS.contains(&field.as_str()));
        self.complaints.extend(unknown.map(|field| format!("no field {field}")));
    }

    /// The droplet's tags, or the message of `DigitalOcean`'s refusal.
    fn check_creation(&self, body: &Value) -> Result<Vec<String>, &'static str> {
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        let (name, slug, region) = (text("name"), text("size"), text("region"));
        let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || ".-".contains(letter);
        if name.is_empty() || !name.chars().all(is_allowed) {
            return Err("Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)");
        }
        if self.droplets.len() >= self.droplet_limit {
            return Err("creating this/these droplet(s) will exceed your droplet limit");
        }
        if !REGIONS.contains(&&*region) {
            return Err("You specified an invalid region for Droplet creation.");
        }
        let Some(size) = self.sizes.iter().find(|size| size.slug == slug) else {
            return Err("You specified an invalid size for Droplet creation.");
        };
        let is_full = self.full.iter().any(|full| *full == (&*slug, &*region));
        if !size.available || !size.regions.contains(&&*region) || is_full {
            return Err("Size is not available in this region.");
        }
        let Some(image) = self.images.iter().find(|image| image.is_called(&body["image"])) else {
            return Err("You specified an invalid image for Droplet creation.");
        };
        if !image.regions.contains(&&*region) {
            return Err("The image you specified is not available in the selected region.");
        }
        if body["vpc_uuid"] != Value::Null && text("vpc_uuid") != VPC {
            return Err("Invalid VPC uuid.");
        }
        if text("user_data").len() > 64 * 1024 {
            return Err("User data may not exceed 64 KiB.");
        }
        let tags: Vec<String> = serde_json::from_value(body["tags"].clone()).unwrap();
        let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || ":-_".contains(letter);
        if tags.iter().any(|tag| tag.len() > 255 || !tag.chars().all(is_allowed)) {
            return Err("Invalid tag.");
        }
        Ok(tags)
    }

    fn create(&mut self, body: &Value) -> Answer {
        self.check_fields(body);
        let tags = match self.check_creation(body) {
            Ok(tags) => tags,
            Err(problem) => return refuse(422, "unprocessable_entity", problem),
        };
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        self.last_id += 1;
        let id = self.last_id;
        let droplet = Droplet {
            id,
            name: text("name"),
            region: text("region"),
            size: text("size"),
            image: body["image"].clone(),
            tags: if self.tags_come_later { Vec::new() } else { tags.clone() },
            status: "new",
            user_data: text("user_data"),
            created_at: jiff::Timestamp::now(),
        };
        for tag in tags {
            if !self.tags.contains(&tag) {
                self.tags.push(tag);
            }
        }
        let shown = self.droplet(&droplet);
        self.droplets.push(droplet);
        let actions =
            [json!({ "id": id + 1, "rel": "create", "href": "https://api.digitalocean.com/" })];
        Answer { status: 202, body: json!({ "droplet": shown, "links": { "actions": actions } }) }
    }

    fn droplet(&self, droplet: &Droplet) -> Value {
        let size = self.sizes.iter().find(|size| size.slug == droplet.size).unwrap();
        let image = self.images.iter().find(|image| image.is_called(&droplet.image)).unwrap();
        json!({
            "id": droplet.id, "name": droplet.name, "memory": 8192, "vcpus": 4, "disk": size.disk,
            "locked": false, "status": droplet.status, "created_at": seconds(droplet.created_at),
            "features": [], "backup_ids": [], "next_backup_window": null, "snapshot_ids": [],
            "image": image.json(), "volume_ids": [], "size": size.json(), "size_slug": size.slug,
            "networks": { "v4": [], "v6": [] }, "tags": droplet.tags, "vpc_uuid": VPC,
            "region": {
                "name": droplet.region, "slug": droplet.region, "features": [], "available": true,
                "sizes": [size.slug],
            },
        })
    }
}

pub(crate) const VPC: &str = "760e09ef-dc84-11e8-981e-3cfdfeaae000";

/// The API's times have no fractions.
fn seconds(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).unwrap().to_string()
}

impl Image {
    /// Whether `name` is its id or slug.
    fn is_called(&self, name: &Value) -> bool {
        json!(self.id) == *name || json!(self.slug) == *name
    }

    fn json(&self) -> Value {
        let created_at = jiff::Timestamp::from_second(1_790_000_000).unwrap();
        let created_at = created_at + std::time::Duration::from_secs(60 * self.id);
        json!({
            "id": self.id, "name": self.name, "slug": self.slug, "public": self.slug.is_some(),
            "type": if self.slug.is_some() { "base" } else { "snapshot" },
            "distribution": "Debian", "regions": self.regions, "created_at": seconds(created_at),
            "min_disk_size": self.min_disk_size, "size_gigabytes": 2.34, "description": "", "tags": [],
            "status": "available",
        })
    }
}

impl Size {
    fn json(&self) -> Value {
        json!({
            "slug": self.slug, "memory": 8192, "vcpus": 4, "disk": self.disk, "transfer": 5.0,
            "price_monthly": self.price_hourly * 672.0, "price_hourly": self.price_hourly,
            "regions": self.regions, "available": self.available, "description": "CPU-Optimized",
        })
    }
}

fn ok(body: Value) -> Answer {
    Answer { status: 200, body }
}

fn done() -> Answer {
    Answer { status: 204, body: Value::Null }
}

fn not_found() -> Answer {
    refuse(404, "not_found", "The resource you were accessing could not be found.")
}

pub(crate) fn refuse(status: u16, id: &str, message: &str) -> Answer {
    let request_id = "4d9d8375-3c56-4925-a3e7-eb137fed17e9";
    Answer { status, body: json!({ "id": id, "message": message, "request_id": request_id }) }
}
