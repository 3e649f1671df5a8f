//! Base images in a registry that only the user's Docker has a login for.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::caches::HoldingProxy;
use crate::laptop::docker;
use crate::person::{Ended, Person};

/// A private registry that has an image of AMD64 alone, as the mirror has it.
struct PrivateRegistry {
    address: String,
    base: String,
    user: String,
    password: String,
}

impl PrivateRegistry {
    /// The tests' registry under another name, so a second registry with a login. `person` is logged in to it.
    fn start(person: &Person) -> Self {
        let address = HoldingProxy::start().address.clone();
        let setting = |name: &str| std::env::var(name).unwrap();
        let password = fs::read_to_string(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
        let password = password.trim().to_owned();
        let user = setting("STAGELY_REGISTRY_USERNAME");
        let base = format!("{address}/{}/base:1", person.name);
        docker(person, &["login", "--username", &user, "--password", &password, &address]);
        docker(person, &["pull", "--quiet", "debian:13-slim"]);
        docker(person, &["tag", "debian:13-slim", &base]);
        docker(person, &["push", "--quiet", &base]);
        docker(person, &["rmi", &base]);
        Self { address, base, user, password }
    }

    fn dockerfile(&self) -> String {
        format!("FROM {}\nRUN true\n", self.base)
    }

    /// Exchanges the login that stands in the file for one that a credential helper has. The helper serves this registry
    /// alone or, as Docker Desktop sets it up, all of them.
    fn move_login_to_helper(&self, person: &Person) {
        docker(person, &["logout", &self.address]);
        let login =
            json!({ "ServerURL": self.address, "Username": self.user, "Secret": self.password });
        let helper = person.path("bin/docker-credential-held");
        fs::create_dir(person.path("bin")).unwrap();
        let listed = json!({ &self.address: self.user });
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in\nlist) echo '{listed}' ;;\nget) cat >/dev/null; echo '{login}' ;;\n*) exit 1 \
             ;;\nesac\n"
        );
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o700)).unwrap();
    }

    fn set_docker(person: &Person, config: &Value) {
        fs::write(person.path(".docker/config.json"), config.to_string()).unwrap();
    }
}

const YAML: &str = "builds: {app: {context: .}}\n";

#[test]
fn base_images_are_pulled_with_the_logins_of_the_users_docker() {
    let person = Person::new("logins");
    let registry = PrivateRegistry::start(&person);
    person.commit(&[("stagely.yaml", YAML), ("Dockerfile", &registry.dockerfile())]);

    let ended = person.does(&["run"]).with(0);
    assert!(!ended.stderr.contains(&registry.password), "{}", ended.stderr);
    docker(&person, &["logout", &registry.address]);
    // The engine may have the image already, so another one is asked for.
    let dockerfile = format!("FROM {}-of-nobody\nRUN true\n", registry.base);
    person.commit(&[("Dockerfile", &dockerfile)]);
    let refused = person.does(&["run"]).with(3).stdout;
    let address = &registry.address;
    let advice = format!("{address} needs a login for this image: `docker login {address}`");
    assert!(refused.contains(&advice), "{refused}");
    person.leaves_nothing();
}

#[test]
fn the_platform_of_a_private_base_image_is_compared_with_the_login_of_the_users_docker() {
    let person = Person::new("platforms");
    let registry = PrivateRegistry::start(&person);
    let yaml = "builds: {app: {context: ., platforms: [linux/arm64]}}\n";
    person.commit(&[("stagely.yaml", yaml), ("Dockerfile", &registry.dockerfile())]);
    let warning = format!(
        "the base image {} is for linux/amd64, and this build is for linux/arm64",
        registry.base
    );

    let ended = person.does(&["run"]).with(0);
    assert!(ended.stdout.contains(&warning), "--- {}\n--- {}", ended.stdout, ended.stderr);

    registry.move_login_to_helper(&person);
    let path = format!("{}:{}", person.path("bin").display(), std::env::var("PATH").unwrap());
    let one = json!({ "credHelpers": { &registry.address: "held" } });
    for (setting, config) in [("helper", one), ("store", json!({ "credsStore": "held" }))] {
        PrivateRegistry::set_docker(&person, &config);
        let dockerfile = registry.dockerfile() + &format!("LABEL login={setting}\n");
        person.commit(&[("Dockerfile", &dockerfile)]);
        let mut run = person.stagely(&["run"]);
        let ended = Ended::from(run.env("PATH", &path).output().unwrap()).with(0);
        assert!(ended.stdout.contains(&warning), "--- {}\n--- {}", ended.stdout, ended.stderr);
    }
    person.leaves_nothing();
}
