//! What the compose file of a preview may not ask for: access to the machine, or to what other previews have.
//!
//! The fields of a service that are not listed here are refused, because a later compose may give them any meaning.

mod mounts;

use std::path::Path;

use serde_json::{Map, Value};

use self::mounts::{BindMount, path_of, text_of};
pub(crate) use self::mounts::{lost_writes, missing_sources};

/// Fields without influence on anything outside the service's containers.
const HARMLESS: [&str; 56] = [
    "attach",
    "blkio_config",
    "build",
    "command",
    "configs",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "depends_on",
    "develop",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "entrypoint",
    "environment",
    "expose",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "labels",
    "links",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "networks",
    "pids_limit",
    "platform",
    "ports",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "scale",
    "secrets",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
];

/// Capabilities that reach nothing outside the container: Docker's default ones, and some for databases.
const CAPABILITIES: [&str; 16] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
];

/// Drivers that write logs where `docker logs` finds them.
const LOG_DRIVERS: [&str; 3] = ["json-file", "local", "none"];

/// Returns a sentence for each field of the resolved compose file that a preview may not have. `checkout` is the folder
/// whose files may be mounted, without symlinks in its path.
///
/// Replaces the paths of the file by those without symlinks that were checked: a container may change a symlink before the
/// engine follows it.
pub fn violations(file: &mut Value, checkout: &Path) -> Vec<String> {
    let mut check = Check { checkout, found: Vec::new(), binds: Vec::new() };
    for (name, service) in entries_mut(file, "services") {
        if let Some(service) = service.as_object_mut() {
            check.service(name, service);
        }
    }
    for (name, volume) in entries(file, "volumes") {
        check.volume(name, volume);
    }
    for (name, network) in entries(file, "networks") {
        check.network(name, network);
    }
    for kind in ["configs", "secrets"] {
        for (name, source) in entries_mut(file, kind) {
            check.file_source(kind, name, source);
        }
    }
    check.nested_binds();
    check.found
}

fn entries<'a>(file: &'a Value, kind: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    file.get(kind).and_then(Value::as_object).into_iter().flatten()
}

fn entries_mut<'a>(
    file: &'a mut Value,
    kind: &str,
) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    file.get_mut(kind).and_then(Value::as_object_mut).into_iter().flatten()
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Whether a field says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

struct Check<'a> {
    checkout: &'a Path,
    found: Vec<String>,
    binds: Vec<BindMount>,
}

impl Check<'_> {
    fn refuse(&mut self, service: &str, field: &str, why: &str) {
        self.found.push(format!("the service `{service}` has `{field}`: {why}"));
    }

    fn service(&mut self, name: &str, service: &mut Map<String, Value>) {
        for mount in service.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten()
        {
            self.mount(name, mount);
        }
        for (field, value) in service.iter().filter(|(_, value)| !is_empty(value)) {
            let text = value.as_str().unwrap_or_default();
            match field.as_str() {
                field if HARMLESS.contains(&field) || field.starts_with("x-") => {}
                "privileged" => self.refuse(name, "privileged", "it gives access to the machine"),
                "network_mode" if text == "none" || text.starts_with("service:") => {}
                "pid" | "ipc" if text.starts_with("service:") => {}
                "ipc" if matches!(text, "private" | "shareable" | "none") => {}
                "cgroup" if text == "private" => {}
                "network_mode" | "pid" | "ipc" | "uts" | "userns_mode" | "cgroup" => {
                    self.refuse(name, &format!("{field}: {text}"), "it leaves the container");
                }
                "cap_add" => self.capabilities(name, value),
                // Mounts are checked by themselves.
                "cap_drop" | "volumes" => {}
                "security_opt" => {
                    for option in texts(value) {
                        if !option.starts_with("no-new-privileges") {
                            let field = format!("security_opt: {option}");
                            self.refuse(name, &field, "it removes a protection of the machine");
                        }
                    }
                }
                "volumes_from" => {
                    for source in texts(value).iter().filter(|text| text.starts_with("container:"))
                    {
                        let field = format!("volumes_from: {source}");
                        self.refuse(name, &field, "the container is not of this preview");
                    }
                }
                "logging" => {
                    let driver = value.get("driver").and_then(Value::as_str).unwrap_or("json-file");
                    if !LOG_DRIVERS.contains(&driver) {
                        let field = format!("logging.driver: {driver}");
                        self.refuse(name, &field, "use json-file, local or none");
                    }
                }
                "deploy" => {
                    let devices = value.pointer("/resources/reservations/devices");
                    if devices.is_some_and(|devices| !is_empty(devices)) {
                        let field = "deploy.resources.reservations.devices";
                        self.refuse(name, field, "it gives access to devices of the machine");
                    }
                }
                "oom_score_adj" if value.as_i64().is_some_and(|number| number >= 0) => {}
                "runtime" if text == "runc" => {}
                "post_start" | "pre_stop" => {
                    let mut hooks = value.as_array().into_iter().flatten();
                    if hooks.any(|hook| hook.get("privileged").is_some_and(|is| !is_empty(is))) {
                        self.refuse(name, field, "its `privileged` gives access to the machine");
                    }
                }
                "devices" | "device_cgroup_rules" | "gpus" => {
                    self.refuse(name, field, "it gives access to devices of the machine");
                }
                field => self.refuse(name, field, "previews do not support it"),
            }
        }
    }

    fn capabilities(&mut self, service: &str, value: &Value) {
        for text in texts(value) {
            let name = text.to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name);
            if !CAPABILITIES.contains(&name) {
                let why = "the capability reaches beyond the container";
                self.refuse(service, &format!("cap_add: {text}"), why);
            }
        }
    }

    fn volume(&mut self, name: &str, volume: &Value) {
        let field = |name: &str| volume.get(name).filter(|value| !is_empty(value));
        if field("external").is_some() {
            self.found.push(format!(
                "the volume `{name}` is `external`: a preview has volumes of its own"
            ));
        }
        if field("driver").is_some_and(|driver| driver != "local") || field("driver_opts").is_some()
        {
            self.found.push(format!(
                "the volume `{name}` has `driver` or `driver_opts`, which can mount folders of the machine"
            ));
        }
    }

    fn network(&mut self, name: &str, network: &Value) {
        let field = |name: &str| network.get(name).filter(|value| !is_empty(value));
        if field("external").is_some() {
            self.found.push(format!(
                "the network `{name}` is `external`: a preview has networks of its own"
            ));
        }
        if let Some(driver) = field("driver").filter(|driver| *driver != "bridge") {
            self.found.push(format!("the network `{name}` has `driver: {}`", shown(driver)));
        }
        let options = field("driver_opts").and_then(Value::as_object).into_iter().flatten();
        for (option, _) in options.filter(|(name, _)| *name != "com.docker.network.driver.mtu") {
            self.found.push(format!("the network `{name}` has `driver_opts: {option}`"));
        }
    }

    fn file_source(&mut self, kind: &str, name: &str, source: &mut Value) {
        let kind = kind.trim_end_matches('s');
        let field = |name: &str| source.get(name).filter(|value| !is_empty(value));
        if field("external").is_some() || field("driver").is_some() {
            self.found.push(format!(
                "the {kind} `{name}` is not in the compose file or a file beside it"
            ));
        }
        let Some(file) = field("file").and_then(Value::as_str).map(path_of) else { return };
        match self.inside(&file) {
            Ok(file) => {
                source["file"] = text_of(&file);
                let owner = format!("the {kind} `{name}`");
                self.binds.push(BindMount { owner, source: file, is_writable: false });
            }
            Err(why) => self.found.push(format!("the {kind} `{name}` has `file`: {why}")),
        }
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
