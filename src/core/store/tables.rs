//! The tables, and the layout that they form together.

use redb::TableDefinition;

/// Keyed by the bits of an id, so rows are in the order in which they were made.
pub(super) type IdTable = TableDefinition<'static, u128, &'static [u8]>;

pub(super) const PROJECTS: IdTable = TableDefinition::new("projects");
pub(super) const ENVIRONMENTS: IdTable = TableDefinition::new("environments");
pub(super) const RUNS: IdTable = TableDefinition::new("runs");
pub(super) const JOBS: IdTable = TableDefinition::new("jobs");
pub(super) const MACHINES: IdTable = TableDefinition::new("machines");
pub(super) const PREVIEWS: IdTable = TableDefinition::new("previews");
pub(super) const OUTBOX: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("outbox");
/// Sealed by the keyring. A row is deleted when its run has ended.
pub(super) const RUN_SECRETS: IdTable = TableDefinition::new("run_secrets");
/// The secrets of the run that an open preview shows, which it needs to be deployed again: the run's id in 16 bytes, and
/// what was sealed for the run.
pub(super) const PREVIEW_SECRETS: IdTable = TableDefinition::new("preview_secrets");
/// Tokens of projects' repositories, sealed by the keyring. The table's name is older than secrets of projects.
pub(super) const PROJECT_TOKENS: IdTable = TableDefinition::new("project_secrets");
/// Secrets of projects by project and name: when each was set, and its value, sealed by the keyring.
pub(super) const PROJECT_SECRETS: TableDefinition<'static, (u128, &str), (u64, &[u8])> =
    TableDefinition::new("secrets_of_projects");
/// The hashes, 32 bytes each, of the tokens that a machine may use for HELLO.
pub(super) const MACHINE_TOKENS: IdTable = TableDefinition::new("machine_tokens");
/// Fingerprints of builds by the cache ref that holds their layers. Up to 768 KiB each, so they are read when they
/// are needed and not at the start.
pub(super) const FINGERPRINTS: TableDefinition<'static, &str, &str> =
    TableDefinition::new("fingerprints");
pub(super) const API_TOKENS: TableDefinition<'static, [u8; 32], &[u8]> =
    TableDefinition::new("api_tokens");
/// The time of each of GitHub's deliveries.
pub(super) const DELIVERIES: IdTable = TableDefinition::new("deliveries");
/// How often core was killed during work, and whether the work has begun since.
pub(super) const INTERRUPTED_WORK: TableDefinition<'static, (bool, u128), (u32, bool)> =
    TableDefinition::new("interrupted_work");
/// Ended runs, which core does not read at its start. A run is either here or among the others.
pub(super) const ENDED_RUNS: IdTable = TableDefinition::new("ended_runs");
/// The run of each job of an ended run.
pub(super) const ENDED_JOBS: TableDefinition<'static, u128, u128> =
    TableDefinition::new("ended_jobs");
/// The environment of each ended run, by project and run.
pub(super) const RUNS_OF_PROJECTS: TableDefinition<'static, (u128, u128), u128> =
    TableDefinition::new("runs_of_projects");
/// As [`ENDED_RUNS`].
pub(super) const ENDED_MACHINES: IdTable = TableDefinition::new("ended_machines");
pub(super) const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");

/// The tables that are keyed by ids.
pub(super) const ID_TABLES: [IdTable; 11] = [
    PROJECTS,
    ENVIRONMENTS,
    RUNS,
    JOBS,
    MACHINES,
    PREVIEWS,
    RUN_SECRETS,
    PREVIEW_SECRETS,
    PROJECT_TOKENS,
    MACHINE_TOKENS,
    DELIVERIES,
];

/// The version of the tables' layout. A store of a newer version is refused. New fields of records that have a default
/// need no new version.
pub(super) const LAYOUT: &str = "3";

/// Layouts from which core begins as it is: ended records leave the tables of open ones with its first step.
pub(super) const OLD_LAYOUTS: [&str; 1] = ["2"];
