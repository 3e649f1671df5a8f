//! Turns the resolved compose file of a commit into the one that is run: our images, loopback ports, names of the preview.
//!
//! `docker compose config` has read all files and variables of the result, so what was checked is what runs. An override
//! file beside the commit's own one would be merged again at each command, with files that may have changed.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use stagely_protocol::{Deploy, ImageRef, WireId};
use thiserror::Error;

use super::containers::{GENERATION_LABEL, MACHINE_LABEL, PREVIEW_LABEL};

/// The service of a preview without a compose file.
pub(crate) const ONLY_SERVICE: &str = "app";

/// The most services of a preview, over all profiles.
const SERVICES_MAX: usize = 64;

/// The most containers of all services.
const CONTAINERS_MAX: u64 = 64;

/// The engine's log of a container is two files of this size.
const LOG_FILE_SIZE_MAX: &str = "16m";

/// Why a compose file cannot be run.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ModelError {
    #[error("the compose file has no services")]
    NoServices,
    #[error("the compose file asks for more than {CONTAINERS_MAX} containers: lower `{0}`")]
    TooManyContainers(String),
    #[error("the compose file has more than {SERVICES_MAX} services")]
    TooManyServices,
    #[error(
        "`{field}` names the service `{service}`, which the compose file does not have; it has {}",
        names(.services)
    )]
    NoSuchService { field: String, service: String, services: Vec<String> },
    #[error(
        "the service `{0}` has a `build`, and this run did not build it: add it to `images` of `preview` in \
         stagely.yaml, with the name of a build"
    )]
    NotBuilt(String),
    #[error("the service `{0}` has neither an `image` nor a build of this run")]
    NoImage(String),
    #[error(
        "the endpoint `{endpoint}` names the service `{service}`, which only starts with a profile ({profiles}): set \
         COMPOSE_PROFILES in the file .env, or remove `profiles`"
    )]
    Inactive { endpoint: String, service: String, profiles: String },
    #[error(
        "the endpoint `{endpoint}` names the service `{service}`, which has no ports of its own (`network_mode: {mode}`){}",
        owner(.mode)
    )]
    NoPorts { endpoint: String, service: String, mode: String },
}

/// The service whose ports a `network_mode` uses, as advice.
fn owner(mode: &str) -> String {
    let owner = mode.strip_prefix("service:").map(|owner| format!(": name the service `{owner}`"));
    owner.unwrap_or_default()
}

fn names(services: &[String]) -> String {
    let names: Vec<_> = services.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// The compose file of a preview that is one container of the image of DEPLOY.
pub(crate) fn of_one_image(deploy: &Deploy) -> Value {
    json!({
        "services": { ONLY_SERVICE: { "image": deploy.image, "restart": "unless-stopped" } },
    })
}

/// The service of an endpoint or a command; without a compose file there is only one.
pub(crate) fn service_of<'a>(deploy: &Deploy, service: &'a str) -> &'a str {
    if deploy.compose_path.is_none() { ONLY_SERVICE } else { service }
}

/// The images of DEPLOY, by service.
fn built_images(deploy: &Deploy, services: &Map<String, Value>) -> BTreeMap<String, ImageRef> {
    if deploy.compose_path.is_none() {
        return [(ONLY_SERVICE.to_owned(), deploy.image.clone())].into();
    }
    let by_name = deploy.default_images.iter().filter(|(name, _)| services.contains_key(*name));
    let of_builds = by_name.chain(&deploy.images);
    of_builds.map(|(service, image)| (service.clone(), image.clone())).collect()
}

/// A compose file that can be run, and what it consists of.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) file: Value,
    /// The services that start with the preview.
    pub(crate) active: Vec<String>,
    /// The image of each service that may start, and its `platform`.
    pub(crate) images: BTreeMap<String, (String, Option<String>)>,
    /// The services whose images this run built.
    pub(crate) built: BTreeSet<String>,
    /// The named volumes.
    pub(crate) volumes: Vec<String>,
    /// Sentences about fields that were removed and that somebody may miss.
    pub(crate) warnings: Vec<String>,
}

/// Fields of a service's networks that choose an address.
const ADDRESS_FIELDS: [&str; 4] = ["ipv4_address", "ipv6_address", "link_local_ips", "mac_address"];

/// Removes the addresses that networks and services choose: a subnet may be that of another preview, or one in which the machine
/// reaches core or the registry. Returns a sentence for each of them.
fn remove_addresses(file: &mut Value) -> Vec<String> {
    const WHY: &str =
        "is ignored: the engine chooses addresses that are free. Use the names of services instead";
    let mut found = Vec::new();
    for (name, network) in entries_mut(file, "networks") {
        let Some(network) = network.as_object_mut() else { continue };
        let ipam = network.remove("ipam");
        if ipam.is_some_and(|ipam| ipam.as_object().is_none_or(|fields| !fields.is_empty())) {
            // Not every engine has a pool of IPv6 addresses.
            network.remove("enable_ipv6");
            found.push(format!("`ipam` of the network `{name}` {WHY}"));
        }
    }
    for (name, service) in entries_mut(file, "services") {
        for (network, settings) in entries_mut(service, "networks") {
            let Some(settings) = settings.as_object_mut() else { continue };
            for field in ADDRESS_FIELDS {
                if settings.remove(field).is_some() {
                    found.push(format!(
                        "`networks.{network}.{field}` of the service `{name}` {WHY}"
                    ));
                }
            }
        }
    }
    found
}

fn entries_mut<'a>(
    parent: &'a mut Value,
    field: &str,
) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    parent.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten()
}

/// Checks the number of containers. The message names the service that has most of them.
fn check_replicas(services: &Map<String, Value>) -> Result<(), ModelError> {
    let replicas = |service: &Value| {
        let of_deploy = service.pointer("/deploy/replicas").map(|count| (count, "deploy.replicas"));
        let found = of_deploy.or_else(|| Some((service.get("scale")?, "scale")));
        found.map_or((1, "image"), |(count, field)| (count.as_u64().unwrap_or(u64::MAX), field))
    };
    let counts = services.iter().map(|(name, service)| (name, replicas(service)));
    let sum = counts.clone().fold(0_u64, |sum, (_, (count, _))| sum.saturating_add(count));
    let most = counts.max_by_key(|(_, (count, _))| *count);
    match most.filter(|_| sum > CONTAINERS_MAX) {
        Some((name, (_, field))) => {
            Err(ModelError::TooManyContainers(format!("services.{name}.{field}")))
        }
        None => Ok(()),
    }
}

/// Makes the compose file that is run from `resolved`, the output of `docker compose config` with all profiles. `active`
/// are the services without those of profiles that are not chosen.
pub(crate) fn prepare(
    resolved: Value,
    active: Vec<String>,
    deploy: &Deploy,
    machine: &WireId,
    project: &str,
) -> Result<Model, ModelError> {
    let mut file = resolved;
    let warnings = remove_addresses(&mut file);
    let services = file.get_mut("services").and_then(Value::as_object_mut);
    let services =
        services.filter(|services| !services.is_empty()).ok_or(ModelError::NoServices)?;
    if services.len() > SERVICES_MAX {
        return Err(ModelError::TooManyServices);
    }
    check_replicas(services)?;
    check_names(services, &active, deploy)?;
    let built = built_images(deploy, services);
    let labels = |generation: Option<u64>| {
        let mut labels = Map::new();
        labels.insert(PREVIEW_LABEL.to_owned(), deploy.preview_id.as_str().into());
        labels.insert(MACHINE_LABEL.to_owned(), machine.as_str().into());
        labels.extend(
            generation
                .map(|number| (GENERATION_LABEL.to_owned(), Value::String(number.to_string()))),
        );
        labels
    };
    let variables = variables(deploy);
    let mut images = BTreeMap::new();
    let needed = needed(services, &active, deploy);
    for (name, service) in services.iter_mut() {
        let Some(service) = service.as_object_mut() else { return Err(ModelError::NoServices) };
        let had_build = service.remove("build").is_some();
        for field in ["container_name", "ports", "develop", "pull_policy"] {
            service.remove(field);
        }
        if active.contains(name) {
            service.remove("profiles");
        }
        let image = built.get(name);
        if let Some(image) = image {
            service.insert("image".to_owned(), image.as_str().into());
            object(service, "environment").extend(variables.clone());
        } else if had_build && needed.contains(name) {
            return Err(ModelError::NotBuilt(name.clone()));
        }
        object(service, "labels").extend(labels(image.map(|_| deploy.generation)));
        // The engine's own default keeps all that a service ever writes.
        service.entry("logging").or_insert_with(|| {
            let options = json!({ "max-size": LOG_FILE_SIZE_MAX, "max-file": "2" });
            json!({ "driver": "json-file", "options": options })
        });
        let ports = ports(deploy, name);
        if !ports.is_empty() {
            service.insert("ports".to_owned(), ports.into());
        }
        if needed.contains(name) {
            let text = |field: &str| service.get(field).and_then(Value::as_str).map(str::to_owned);
            let image = text("image").ok_or_else(|| ModelError::NoImage(name.clone()))?;
            images.insert(name.clone(), (image, text("platform")));
        }
    }
    for kind in ["volumes", "networks"] {
        let Some(resources) = file.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        for (name, resource) in resources.iter_mut() {
            if resource.is_null() {
                *resource = json!({});
            }
            let Some(resource) = resource.as_object_mut() else { continue };
            let is_external =
                resource.get("external").is_some_and(|external| external != &Value::Bool(false));
            if !is_external {
                // A name of the user's may be that of another preview.
                resource.insert("name".to_owned(), format!("{project}_{name}").into());
                object(resource, "labels").extend(labels(None));
            }
        }
    }
    let volumes = file.get("volumes").and_then(Value::as_object);
    let volumes = volumes.map(|volumes| volumes.keys().cloned().collect()).unwrap_or_default();
    if let Some(file) = file.as_object_mut() {
        file.insert("name".to_owned(), project.into());
    }
    let built = built.into_keys().collect();
    Ok(Model { file, active, images, built, volumes, warnings })
}

/// The services that start or run a command, and those that these depend on.
fn needed(services: &Map<String, Value>, active: &[String], deploy: &Deploy) -> BTreeSet<String> {
    let commands = [&deploy.migrate, &deploy.seed].into_iter().flatten();
    let commands = commands.map(|command| service_of(deploy, &command.service));
    let mut waiting: Vec<&str> = active.iter().map(String::as_str).chain(commands).collect();
    let mut needed = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if needed.insert(name.to_owned()) {
            let depends_on = services.get(name).and_then(|service| service.get("depends_on"));
            let depends_on = depends_on.and_then(Value::as_object).into_iter().flatten();
            waiting.extend(depends_on.map(|(name, _)| name.as_str()));
        }
    }
    needed
}

/// Checks that the compose file has the services that DEPLOY names.
fn check_names(
    services: &Map<String, Value>,
    active: &[String],
    deploy: &Deploy,
) -> Result<(), ModelError> {
    if deploy.compose_path.is_none() {
        return Ok(());
    }
    let find = |field: String, service: &str| {
        services.get(service).ok_or_else(|| ModelError::NoSuchService {
            field,
            service: service.to_owned(),
            services: services.keys().cloned().collect(),
        })
    };
    for service in deploy.images.keys() {
        find("preview.images".to_owned(), service)?;
    }
    for endpoint in &deploy.endpoints {
        let field = format!("preview.endpoints.{}.service", endpoint.name);
        let service = find(field, &endpoint.service)?;
        if !active.contains(&endpoint.service) {
            let profiles = service.get("profiles").and_then(Value::as_array);
            let profiles = profiles.into_iter().flatten().filter_map(Value::as_str);
            return Err(ModelError::Inactive {
                endpoint: endpoint.name.clone(),
                service: endpoint.service.clone(),
                profiles: profiles.collect::<Vec<_>>().join(", "),
            });
        }
        if let Some(mode) = service.get("network_mode").and_then(Value::as_str)
            && mode != "bridge"
        {
            return Err(ModelError::NoPorts {
                endpoint: endpoint.name.clone(),
                service: endpoint.service.clone(),
                mode: mode.to_owned(),
            });
        }
    }
    for (field, command) in [("migrate", &deploy.migrate), ("seed", &deploy.seed)] {
        if let Some(command) = command {
            find(format!("preview.{field}.service"), &command.service)?;
        }
    }
    Ok(())
}

/// The variables of built services. Compose replaces `$NAME` also in this file.
fn variables(deploy: &Deploy) -> Map<String, Value> {
    let plain = deploy.env.0.iter().map(|(name, value)| (name, value.as_str()));
    let secret = deploy.secrets.0.iter().map(|(name, value)| (name, value.expose_secret()));
    plain
        .chain(secret)
        .map(|(name, value)| (name.clone(), value.replace('$', "$$").into()))
        .collect()
}

/// The published ports of a service: those of its endpoints, each at a free port of loopback.
fn ports(deploy: &Deploy, service: &str) -> Vec<Value> {
    let endpoints = deploy.endpoints.iter();
    let own = endpoints.filter(|endpoint| service_of(deploy, &endpoint.service) == service);
    let ports: BTreeSet<u16> = own.map(|endpoint| endpoint.port).collect();
    ports.into_iter().map(|port| format!("127.0.0.1::{port}").into()).collect()
}

/// The map `field`, which is created where there is none.
fn object<'a>(parent: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(field).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("an object was put there")
}

/// Replaces secrets and configs of the compose file that come from variables of the preview by files, because the variables
/// are not there when compose starts the containers again. `write` stores a value and returns its path.
pub(crate) fn store_secrets<E>(
    file: &mut Value,
    deploy: &Deploy,
    mut write: impl FnMut(&str) -> Result<String, E>,
) -> Result<(), E> {
    for kind in ["secrets", "configs"] {
        let sources = file.get_mut(kind).and_then(Value::as_object_mut);
        let sources = sources.into_iter().flat_map(Map::values_mut);
        for source in sources.filter_map(Value::as_object_mut) {
            let Some(name) = source.get("environment").and_then(Value::as_str) else { continue };
            let plain = deploy.env.0.get(name).map(String::as_str);
            let value = deploy.secrets.0.get(name).map(SecretString::expose_secret).or(plain);
            if let Some(value) = value {
                let path = write(value)?;
                source.remove("environment");
                source.insert("file".to_owned(), path.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(fields: &Value) -> Deploy {
        let digest = format!("sha256:{}", "0".repeat(64));
        let mut message = json!({
            "job_id": "job_1", "preview_id": "prev_1", "generation": 3,
            "image": format!("r/a@{digest}"), "images": { "web": format!("r/a@{digest}") },
            "compose_path": "compose.yaml",
            "endpoints": [{ "name": "web", "service": "web", "port": 8080 }],
            "env": { "PRICE": "5$" }, "secrets": { "KEY": "s" },
        });
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(message).unwrap()
    }

    fn prepared(services: &Value, deploy: &Deploy) -> Result<Model, ModelError> {
        let active = services.as_object().unwrap().iter();
        let active = active.filter(|(_, service)| service.get("profiles").is_none());
        let active = active.map(|(name, _)| name.clone()).collect();
        let file = json!({
            "services": services, "volumes": { "data": { "name": "shared" } }, "networks": { "default": null },
        });
        prepare(file, active, deploy, &"vm_1".parse().unwrap(), "stagely-prev_1")
    }

    #[test]
    fn a_built_service_gets_the_image_and_the_variables_and_others_do_not() {
        let services = json!({
            "web": {
                "build": { "context": "." }, "container_name": "web", "ports": ["80:80"],
                "environment": { "PRICE": "1", "A": null },
            },
            "db": { "image": "postgres:17", "ports": ["5432:5432"], "labels": { "a": "b" } },
            "tool": { "build": { "context": "." }, "profiles": ["tools"] },
        });
        let Model { file, images, volumes, .. } = prepared(&services, &deploy(&json!({}))).unwrap();
        let web = &file["services"]["web"];
        assert_eq!(web["environment"], json!({ "PRICE": "5$$", "A": null, "KEY": "s" }));
        assert_eq!(web["ports"], json!(["127.0.0.1::8080"]));
        assert_eq!(web["labels"][GENERATION_LABEL], "3");
        assert!(web.get("build").is_none() && web.get("container_name").is_none());
        let db = &file["services"]["db"];
        assert!(db.get("ports").is_none() && db.get("environment").is_none());
        assert_eq!(db["logging"]["options"]["max-size"], "16m");
        // The database of an update stays as it is.
        let labels = json!({ "a": "b", "stagely.preview": "prev_1", "stagely.machine": "vm_1" });
        assert_eq!(db["labels"], labels);
        assert_eq!(images.keys().collect::<Vec<_>>(), ["db", "web"]);
        assert_eq!(file["volumes"]["data"]["name"], "stagely-prev_1_data");
        assert_eq!(file["networks"]["default"]["name"], "stagely-prev_1_default");
        assert_eq!(volumes, ["data"]);
    }

    #[test]
    fn networks_and_services_choose_no_addresses() {
        let subnet = json!({ "config": [{ "subnet": "10.0.0.0/8", "gateway": "10.0.0.1" }] });
        let file = json!({
            "services": { "web": { "build": {}, "networks": {
                "n": { "aliases": ["a"], "ipv4_address": "10.0.0.9", "link_local_ips": ["169.254.1.1"] },
                "default": null,
            } } },
            "networks": { "n": { "ipam": subnet, "enable_ipv6": true }, "default": { "ipam": {} } },
        });
        let active = vec!["web".to_owned()];
        let machine = "vm_1".parse().unwrap();
        let model = prepare(file, active, &deploy(&json!({})), &machine, "p").unwrap();
        for network in ["n", "default"] {
            let fields = model.file["networks"][network].as_object().unwrap();
            assert_eq!(fields.keys().collect::<Vec<_>>(), ["labels", "name"]);
        }
        let networks = json!({ "n": { "aliases": ["a"] }, "default": null });
        assert_eq!(model.file["services"]["web"]["networks"], networks);
        assert_eq!(model.warnings.len(), 3, "{:?}", model.warnings);
        assert!(model.warnings[0].starts_with("`ipam` of the network `n` is ignored"));
        assert!(model.warnings[1].contains("`networks.n.ipv4_address` of the service `web`"));
    }

    #[test]
    fn containers_are_limited_and_not_only_services() {
        for (service, field) in [
            (json!({ "image": "x", "deploy": { "replicas": 64 } }), Some("deploy.replicas")),
            (json!({ "image": "x", "scale": 1_000 }), Some("scale")),
            (json!({ "image": "x", "deploy": { "replicas": 63 } }), None),
        ] {
            let web = json!({ "web": { "build": {} }, "worker": service });
            let error = prepared(&web, &deploy(&json!({}))).err();
            let expected = field
                .map(|field| ModelError::TooManyContainers(format!("services.worker.{field}")));
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn names_of_services_must_be_right() {
        let web = json!({ "web": { "build": {} }, "worker": { "build": {} } });
        let error = prepared(&web, &deploy(&json!({}))).unwrap_err();
        assert_eq!(error, ModelError::NotBuilt("worker".to_owned()));
        assert!(error.to_string().contains("`images`"), "{error}");
        let digest = format!("sha256:{}", "1".repeat(64));
        let image = |name: &str| format!("r/{name}@{digest}");
        let named = deploy(&json!({
            "default_images": { "web": image("other"), "worker": image("worker"), "test": image("test") },
        }));
        let images = prepared(&web, &named).unwrap().images;
        assert!(images["web"].0.starts_with("r/a@") && images["worker"].0 == image("worker"));
        assert_eq!(images.len(), 2, "no service is called `test`");
        let other = json!({ "api": { "image": "x" } });
        let error = prepared(&other, &deploy(&json!({}))).unwrap_err().to_string();
        assert!(error.contains("`preview.images`") && error.contains("it has `api`"), "{error}");
        let wrong = deploy(
            &json!({ "images": {}, "endpoints": [], "migrate": { "service": "web", "command": [] } }),
        );
        let error = prepared(&other, &wrong).unwrap_err().to_string();
        assert!(error.contains("`preview.migrate.service`"), "{error}");
        for (mode, advice) in [("service:vpn", ": name the service `vpn`"), ("none", ")")] {
            let shared =
                json!({ "web": { "image": "x", "network_mode": mode }, "vpn": { "image": "x" } });
            let error = prepared(&shared, &deploy(&json!({}))).unwrap_err().to_string();
            let mode = format!("`network_mode: {mode}`");
            assert!(error.contains(&mode) && error.ends_with(advice), "{error}");
        }
        let hidden = json!({ "web": { "image": "x", "profiles": ["dev"] } });
        let error = prepared(&hidden, &deploy(&json!({}))).unwrap_err().to_string();
        assert!(error.contains("profile (dev)"), "{error}");
    }
}
