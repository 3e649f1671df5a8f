//! `stagely.toml`: the sample file shows the defaults, and mistakes are reported.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use stagely::config::{ByteSize, Config, ConfigError};
use stagely_protocol::Arch;
use stagely_provider::AgentEnvironment;
use stagely_provider::settings::MarketPolicy;
use stagely_state::{Budget, Extras, Fleet, MachineSize, PreviewLimits, ProviderName, Usd};

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("stagely.sample.toml");
    fs::read_to_string(path).unwrap()
}

/// Addresses of core and of a registry that machines of other hosts can reach.
const REACHED: &str =
    "core.public-url = \"https://core.example\"\nregistry.url = \"registry.example\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stagely.toml");
    fs::write(&path, text).unwrap();
    Config::read(&path)
}

/// The problem of `text`.
fn error(text: &str) -> String {
    let error = read(text).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

/// The sample including its examples: `# key = value` without the `#`.
fn with_examples(sample: &str) -> String {
    let is_example = |line: &&str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let uncomment = |line| {
        let example = Option::<&str>::from(line).and_then(|line| line.strip_prefix("# "));
        example.filter(is_example).unwrap_or(line)
    };
    sample.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_shows_the_defaults() {
    assert_eq!(read(&sample()).unwrap(), Config::default());
}

#[test]
fn the_examples_in_the_sample_are_valid_settings() {
    // The examples name clouds, which cannot reach the default registry on loopback.
    let text = with_examples(&sample()).replace("127.0.0.1:5000", "registry.example");
    let config = read(&text).unwrap();
    let unset = [
        config.core.public_url.is_none(),
        config.registry.url.is_none(),
        config.registry.username.is_none(),
        config.registry.password_file.is_none(),
        config.local.agent_program.is_none(),
        config.local.docker_host.is_none(),
        config.agents.binaries.is_none(),
        config.agents.environment == AgentEnvironment::default(),
        config.agents.certificate_authorities.is_none(),
        config.builders.amd64.is_none(),
        config.builders.arm64.is_none(),
        config.builders.max_price.is_none(),
        config.previews.domain.is_none(),
        config.aws.region.is_none(),
        config.aws.profile.is_none(),
        config.aws.endpoint.is_none(),
        config.aws.instance_profile.is_none(),
        config.aws.image_amd64.is_none(),
        config.aws.image_arm64.is_none(),
        config.digitalocean.token_file.is_none(),
        config.digitalocean.vpc.is_none(),
        config.digitalocean.image_amd64.is_none(),
        config.digitalocean.image_arm64.is_none(),
        config.qemu.image_amd64.is_none(),
        config.qemu.image_arm64.is_none(),
        config.warm_up.schedule.is_none(),
        config.warm_up.projects.is_empty(),
        config.github.clone_url.is_none(),
        config.github.app_id.is_none(),
        config.github.private_key_file.is_none(),
        config.github.token_file.is_none(),
        config.github.webhook_secret_file.is_none(),
        config.prices.local.is_none(),
        config.prices.qemu.is_none(),
        config.budget.month.is_none(),
        config.budget.project.is_none(),
        config.budget.projects.is_empty(),
        config.budget.pull_request.is_none(),
        config.projects.is_empty(),
    ];
    assert!(!unset.contains(&true), "{unset:?} in\n{text}");
    for fleet in [&config.previews.fleet(), &config.testers.fleet()] {
        let is_set = fleet.provider.is_some() && fleet.amd64.is_some() && fleet.arm64.is_some();
        assert!(is_set && fleet.max_price.is_some(), "{fleet:?}");
    }
    let types =
        config.aws.instance_types.values().chain(config.digitalocean.instance_types.values());
    let types: Vec<_> = types.map(|known| known.arch.is_some() && known.price.is_some()).collect();
    assert_eq!(types, [true, true]);
}

/// Serde lists all known keys in its error for an unknown key.
#[test]
fn the_sample_shows_every_setting() {
    let text = with_examples(&sample());
    for table in [
        "core",
        "registry",
        "builders",
        "previews",
        "testers",
        "agents",
        "local",
        "aws",
        "aws.builders",
        "aws.previews",
        "aws.testers",
        "digitalocean",
        "digitalocean.builders",
        "digitalocean.previews",
        "digitalocean.testers",
        "qemu",
        "logs",
        "warm-up",
        "retention",
        "github",
        "priorities",
        "prices",
        "budget",
        "[projects]",
    ] {
        let error = error(&format!("[{table}]\nno-such-key = 1\n"));
        let known = error.split_once("expected ").expect("serde lists the keys").1;
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(!keys.is_empty(), "{error}");
        // Nested tables are written as `table.key`.
        let (table, below) = match table.split_once('.') {
            Some((table, below)) => (table, format!("{below}.")),
            None => (table, String::new()),
        };
        let section = text.split(&format!("[{table}]\n")).nth(1).expect(table);
        let section = section.split("\n[").next().unwrap_or_default();
        for key in keys {
            let shows = |line: &str, then| line.starts_with(&format!("{below}{key}{then}"));
            let is_shown = section.lines().any(|line| shows(line, " = ") || shows(line, "."));
            assert!(is_shown, "[{table}] of the sample does not show {below}{key}");
        }
    }
}

#[test]
fn mistakes_are_reported_with_the_file_and_the_line_or_the_setting() {
    let unknown = error("[core]\nlistn = \"127.0.0.1:1\"\n");
    assert!(unknown.contains("stagely.toml") && unknown.contains("line 2"), "{unknown}");
    assert!(unknown.contains("listn"), "{unknown}");
    let time = error("[agents]\nheartbeat-interval = \"soon\"\n");
    assert!(time.contains("line 2"), "{time}");
    let time = error("[agents]\nheartbeat-interval = \"1500ms\"\n");
    assert!(time.contains("agents.heartbeat-interval"), "{time}");
    let registry = error("[registry]\nurl = \"https://registry\"\n");
    assert!(
        registry.contains("registry.url") && registry.contains("without https://"),
        "{registry}"
    );
    let never = error("[warm-up]\nschedule = \"0 0 30 2 *\"\nprojects = [\"app\"]\n");
    assert!(never.contains("warm-up.schedule") && never.contains("never due"), "{never}");
    let cron = error("[warm-up]\nschedule = \"daily at four\"\nprojects = [\"app\"]\n");
    assert!(cron.contains("warm-up.schedule") && cron.contains("30 4 * * *"), "{cron}");
    let projects = error("[warm-up]\nschedule = \"30 4 * * *\"\n");
    assert!(projects.contains("warm-up.projects"), "{projects}");
    let branch = error("[warm-up]\nbranches = [\"a b\"]\n");
    assert!(branch.contains("warm-up.branches"), "{branch}");
    let key = error("[github]\napp-id = 7\n");
    assert!(key.contains("github.private-key-file") && key.contains("missing"), "{key}");
    let id = error("[github]\nprivate-key-file = \"/key\"\n");
    assert!(id.contains("github.app-id"), "{id}");
    let url = error("[github]\napi-url = \"https://me:secret@host/\"\n");
    assert!(url.contains("github.api-url") && !url.contains("secret"), "{url}");
    for key in ["reconcile-interval", "report-interval"] {
        let interval = error(&format!("[github]\n{key} = \"0s\"\n"));
        assert!(interval.contains(&format!("github.{key}")), "{interval}");
    }
    let twice = error("[[projects]]\ngithub = \"a/b\"\n[[projects]]\ngithub = \"A/b\"\n");
    assert!(twice.contains("projects.github") && twice.contains("A/b is given twice"), "{twice}");
    let name = error("[[projects]]\ngithub = \"a/b\"\nname = \"A B\"\n");
    assert!(name.contains("projects.name") && name.contains("a-b"), "{name}");
    assert!(error("[[projects]]\ngithub = \"https://github.com/a/b\"\n").contains("line 2"));
    assert!(error("[builders]\nmax-concurrent = 0\n").contains("line 2"));
    let provider = error("[builders]\nprovider = \"azure\"\n");
    assert!(provider.contains("line 2") && provider.contains("azure"), "{provider}");
    assert!(ProviderName::ALL.iter().all(|name| provider.contains(name.as_str())), "{provider}");
    let size = error("[aws.builders.amd64]\nhuge = [\"c5.xlarge\"]\n");
    assert!(size.contains("line 2") && size.contains("huge") && size.contains("xlarge"), "{size}");
    for (table, named) in [("aws.testers", "c99.xlarge"), ("digitalocean.builders", "c-99")] {
        let unknown = error(&format!("[{table}.amd64]\nmedium = [\"{named}\"]\n"));
        assert!(unknown.contains(table) && unknown.contains(named), "{unknown}");
        assert!(unknown.contains("instance-types"), "{unknown}");
    }
    let arch = error("[aws.builders.arm64]\nmedium = [\"c5.xlarge\"]\n");
    assert!(arch.contains("c5.xlarge, which is amd64"), "{arch}");
    let none = error("[aws.builders.amd64]\nmedium = []\n");
    assert!(none.contains("aws.builders") && none.contains("amd64.medium is empty"), "{none}");
    for price in ["-0.1", "nan", "inf", "\"0.1\""] {
        for table in ["builders", "previews", "testers"] {
            let price = error(&format!("[{table}]\nmax-price = {price}\n"));
            assert!(price.contains("line 2"), "{price}");
        }
    }
    let price = error("[aws]\ninstance-types.\"c5.xlarge\" = { price = -0.1 }\n");
    assert!(price.contains("line 2") && price.contains("US dollars"), "{price}");
    let market = error("[testers]\nmarket = \"cheap\"\n");
    assert!(market.contains("line 2") && market.contains("spot-first"), "{market}");
    assert!(error("[aws]\nvolume-gib = 0\n").contains("line 2"));
    let volume = error("[aws]\nvolume-gib = 65537\n");
    assert!(volume.starts_with("aws.volume-gib: ") && volume.contains("65536"), "{volume}");
    for table in ["builders", "previews", "testers"] {
        let price = error(&format!("[{table}]\nmax-price = 0\n"));
        assert!(price.starts_with(&format!("{table}.max-price: must be more")), "{price}");
    }
    assert!(error("[nowhere]\n").contains("nowhere"));
}

#[test]
fn a_domain_of_previews_is_a_plain_name() {
    for right in ["preview.example.com", "previews", "a-1.b"] {
        assert!(read(&format!("previews.domain = \"{right}\"\n")).is_ok(), "{right}");
    }
    let long = "a.".repeat(95) + "example";
    let wrong = [
        "",
        "*.example.com",
        "https://example.com",
        "example.com:80",
        "Example.com",
        "a..b",
        "example.com.",
        "-a.b",
        "10.1.2.3",
        &long,
    ];
    for domain in wrong {
        let error = error(&format!("previews.domain = {domain:?}\n"));
        assert!(error.starts_with("previews.domain: ") && error.contains(domain), "{error}");
    }
}

#[test]
fn limits_of_previews_are_read_and_wrong_ones_are_named() {
    let settings = "[previews]\nmax-concurrent = 3\nmax-per-project = 2\narchive-max = \"500MiB\"\n\
                    archive-limit = \"5m\"\nlease = \"7days\"\nallow-privileged = true\n";
    let config = read(settings).unwrap();
    let limits = config.limits().previews;
    assert_eq!((limits.max_concurrent, limits.max_of_project), (3, 2));
    assert_eq!(limits.archive, Duration::from_mins(5));
    assert_eq!(limits.lease, Duration::from_hours(7 * 24));
    assert_eq!(config.previews.archive_max, ByteSize(500 << 20));
    assert!(config.previews.allow_privileged);

    let defaults = Config::default();
    assert_eq!(defaults.limits().previews, PreviewLimits::default());

    for (setting, words) in [
        ("archive-max = \"0GiB\"", "previews.archive-max: must be more than 0"),
        ("archive-limit = \"0s\"", "previews.archive-limit: must be more than 0"),
        ("lease = \"15m\"", "previews.lease: must be longer than previews.archive-limit"),
    ] {
        let error = error(&format!("[previews]\n{setting}\n"));
        assert!(error.starts_with(words), "{error}");
    }
    for (setting, words) in [
        ("archive-max = \"2GB\"", "\"2GB\" is not a size"),
        ("archive-max = 2", "archive-max"),
        ("max-concurrent = 0", "max-concurrent"),
        ("max-per-project = 0", "max-per-project"),
        ("allow-privileged = \"yes\"", "allow-privileged"),
    ] {
        let error = error(&format!("[previews]\n{setting}\n"));
        assert!(error.contains("line 2") && error.contains(words), "{error}");
    }
}

#[test]
fn wrong_variables_of_agents_are_refused_without_their_passwords() {
    let environment =
        |variables: &str| error(&format!("[agents]\nenvironment = {{ {variables} }}\n"));
    let right = "HTTPS_PROXY = \"http://me:pass-1147@proxy.example:3128\"";
    let name = environment(&format!("{right}, LD_PRELOAD = \"/x.so\""));
    assert!(name.starts_with("agents.environment: \"LD_PRELOAD\" cannot be set"), "{name}");
    assert!(name.contains("NO_PROXY, SSL_CERT_FILE"), "{name}");
    let proxy = environment("https_proxy = \"socks5://me:pass-1147@proxy.example\"");
    assert!(proxy.contains("https_proxy must be http://"), "{proxy}");
    // These errors show the line.
    let wrong_type = environment(&format!("{right}, NO_PROXY = 3"));
    assert!(wrong_type.contains("line 2") && wrong_type.contains("proxy.example"), "{wrong_type}");
    let syntax = environment("HTTP_PROXY = 'me:pass-1147@proxy.example', NO_PROXY");
    assert!(syntax.contains("line 2") && syntax.contains("HTTP_PROXY"), "{syntax}");
    for error in [name, proxy, wrong_type, syntax] {
        assert!(!error.contains("pass-1147"), "{error}");
    }
    let config = read(&format!("[agents]\nenvironment = {{ {right} }}\n")).unwrap();
    assert!(!format!("{config:?}").contains("pass-1147"), "{config:?}");
    let both =
        "[agents]\ncertificate-authorities = \"/a.pem\"\nenvironment.SSL_CERT_FILE = \"/b\"\n";
    assert!(error(both).starts_with("agents.certificate-authorities: "), "{}", error(both));
}

#[test]
fn files_without_certificate_authorities_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("company.pem");
    let agents = format!("[agents]\ncertificate-authorities = \"{}\"\n", path.display());
    let config = read(&agents).unwrap();
    let problem = || config.agents.read_authorities().unwrap_err().to_string();
    assert!(problem().contains("company.pem, which cannot be read"), "{}", problem());
    for (content, reason) in [
        (&b"\x30\x82\x05\xa4"[..], "holds no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "is cut off"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "number 1"),
    ] {
        fs::write(&path, content).unwrap();
        assert!(problem().contains("company.pem") && problem().contains(reason), "{}", problem());
    }
}

/// The providers of each fleet, for AMD64 and ARM64.
fn providers_of_fleets(text: &str) -> [[Option<ProviderName>; 2]; 3] {
    let config = read(&format!("{REACHED}{text}")).unwrap();
    Fleet::ALL.map(|fleet| {
        let fleet = config.fleet(fleet);
        [fleet.provider_of(Arch::Amd64), fleet.provider_of(Arch::Arm64)]
    })
}

#[test]
fn fleets_use_the_providers_of_builders_by_default() {
    use ProviderName::{Aws, DigitalOcean, Local, Qemu};
    assert_eq!(Fleet::ALL, [Fleet::Builder, Fleet::Preview, Fleet::Tester]);
    assert_eq!(providers_of_fleets(""), [[Some(Local); 2]; 3]);
    let aws = "[builders]\nprovider = \"aws\"\namd64 = \"digitalocean\"\n";
    assert_eq!(providers_of_fleets(aws), [[Some(DigitalOcean), Some(Aws)]; 3]);
    let previews = format!(
        "{aws}[previews]\nprovider = \"qemu\"\n[testers]\narm64 = \"local\"\n\
                            [qemu]\nimage-arm64 = \"/image\"\n"
    );
    assert_eq!(
        providers_of_fleets(&previews),
        [
            [Some(DigitalOcean), Some(Aws)],
            [Some(Qemu), Some(Qemu)],
            [Some(DigitalOcean), Some(Local)]
        ]
    );
    let config = Config::default();
    assert_eq!(config.builders.capacity_wait, Duration::from_secs(30));
    assert_eq!(config.builders.capacity_limit, Duration::from_hours(1));
    let markets = [MarketPolicy::OnDemand, MarketPolicy::SpotFirst, MarketPolicy::OnDemand];
    for (fleet, market) in Fleet::ALL.into_iter().zip(markets) {
        let fleet = config.fleet(fleet);
        assert_eq!((fleet.market, fleet.max_price), (market, None));
    }
    // Each fleet has pricing of its own.
    let config = read("[builders]\nmarket = \"spot\"\nmax-price = 1\n").unwrap();
    assert_eq!(config.fleet(Fleet::Builder).market, MarketPolicy::Spot);
    assert_eq!(config.fleet(Fleet::Builder).max_price, Some(Usd(1_000_000)));
    assert_eq!(config.fleet(Fleet::Tester).market, MarketPolicy::OnDemand);
}

#[test]
fn qemu_requires_an_image_and_launches_only_its_arch() {
    let qemu = &format!("{REACHED}[builders]\nprovider = \"qemu\"\n");
    assert!(error(qemu).starts_with("qemu.image-amd64: is missing"), "{}", error(qemu));
    let config = read(&format!("{qemu}[qemu]\nimage-amd64 = \"/image\"\n")).unwrap();
    let launchable = config.limits().launchable;
    assert_eq!(launchable.into_iter().collect::<Vec<_>>(), [(Arch::Amd64, ProviderName::Qemu)]);

    let previews = &format!("{REACHED}[previews]\nprovider = \"qemu\"\n");
    assert!(error(previews).starts_with("qemu.image-amd64: is missing"), "{}", error(previews));
    let config = read(&format!("{previews}[qemu]\nimage-arm64 = \"/image\"\n")).unwrap();
    let limits = config.limits();
    let launchable = limits.launchable_previews.into_iter().collect::<Vec<_>>();
    assert_eq!(launchable, [(Arch::Arm64, ProviderName::Qemu)]);
    assert_eq!(limits.launchable.values().next(), Some(&ProviderName::Local));
}

#[test]
fn an_arch_without_instance_types_cannot_be_launched() {
    let text = format!("{REACHED}[builders]\nprovider = \"digitalocean\"\n");
    let launchable = read(&text).unwrap().limits().launchable;
    assert_eq!(launchable.into_keys().collect::<Vec<_>>(), [Arch::Amd64]);
}

#[test]
fn the_provider_none_launches_nothing() {
    let none = "[builders]\nprovider = \"none\"\n";
    assert_eq!(providers_of_fleets(none), [[None; 2]; 3]);
    assert!(read(none).unwrap().providers().is_empty());
    let no_arm = "[builders]\nprovider = \"aws\"\narm64 = \"none\"\n";
    assert_eq!(providers_of_fleets(no_arm), [[Some(ProviderName::Aws), None]; 3]);
    let only_testers = format!("{none}[testers]\nprovider = \"aws\"\n");
    assert_eq!(providers_of_fleets(&only_testers)[2], [Some(ProviderName::Aws); 2]);
}

#[test]
fn repositories_are_cloned_from_the_host_of_the_api() {
    for (settings, address) in [
        ("", "https://github.com/acme/shop.git"),
        ("api-url = \"https://git.example/api/v3\"", "https://git.example/acme/shop.git"),
        ("api-url = \"https://api.acme.ghe.com\"", "https://acme.ghe.com/acme/shop.git"),
        ("api-url = \"http://127.0.0.1:1234\"", "http://127.0.0.1:1234/acme/shop.git"),
        ("api-url = \"http://127.0.0.1:1234/api/v3/\"", "http://127.0.0.1:1234/acme/shop.git"),
        ("clone-url = \"https://mirror/git\"", "https://mirror/git/acme/shop.git"),
    ] {
        let config = read(&format!("[github]\n{settings}\n")).unwrap();
        let repository = "acme/shop".parse().unwrap();
        assert_eq!(config.github.clone_address(&repository).as_str(), address);
    }
}

#[test]
fn a_budget_needs_the_price_of_every_machine_and_amounts_are_of_dollars() {
    let unpriced = "[aws]\ninstance-types.\"x9.huge\" = { arch = \"amd64\" }\nbuilders.amd64.large = [\"x9.huge\"]\n";
    let aws = format!("{REACHED}[builders]\nprovider = \"aws\"\n{unpriced}");
    read(&aws).unwrap();
    let budget = error(&format!("{aws}[budget]\nmonth = 100\n"));
    assert!(budget.contains("budget: needs the price") && budget.contains("x9.huge"), "{budget}");
    let negative = error("[budget]\nmonth = -1.0\n");
    assert!(negative.contains("line 2") && negative.contains("US dollars"), "{negative}");
    let of_project = error("[budget]\nprojects = { app = \"much\" }\n");
    assert!(of_project.contains("line 2"), "{of_project}");
    let unknown = error("[prices]\naws-adress = 0.005\n");
    assert!(unknown.contains("aws-adress") && unknown.contains("aws-address"), "{unknown}");
}

#[test]
fn prices_and_budgets_of_the_configuration_are_those_of_core() {
    let text = "[builders]\nprovider = \"aws\"\n[aws]\nbuilders.amd64.medium = [\"c5.xlarge\", \"c5.2xlarge\"]\n\
                [prices]\naws-disk = 0.1\n[budget]\nmonth = 200\nprojects = { app = 80.5 }\npull-request = 2\n";
    let limits = read(&format!("{REACHED}{text}")).unwrap().limits();
    let medium = (ProviderName::Aws, Fleet::Builder, Arch::Amd64, MachineSize::Medium);
    assert_eq!(limits.prices.machines[&medium], Usd(340_000), "the highest of its types");
    let extras = limits.prices.extras[&ProviderName::Aws];
    let expected = Extras { address: Usd(5_000), disk_gib_month: Usd(100_000), disk_gib: 50 };
    assert_eq!(extras, expected);
    let is_here = |(provider, ..): &&(ProviderName, Fleet, Arch, MachineSize)| {
        *provider == ProviderName::Local
    };
    assert_eq!(limits.prices.machines.keys().find(is_here), None, "they cost nothing");
    let budget = Budget {
        month: Some(Usd(200_000_000)),
        project: None,
        projects: [("app".to_owned(), Usd(80_500_000))].into(),
        pull_request: Some(Usd(2_000_000)),
    };
    assert_eq!(limits.budget, budget);
}
