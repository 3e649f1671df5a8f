//! Limits of the file: sizes, counts and lengths.

use std::time::Duration;

/// The largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// The deepest nesting of a file, aliases included. A manifest needs 5 levels.
pub(super) const FILE_DEPTH_MAX: usize = 32;

/// The largest size of a file with its aliases expanded: bytes of text, and one for each value. A file
/// without aliases stays below twice [`FILE_BYTES_MAX`].
pub(super) const EXPANDED_SIZE_MAX: usize = 1024 * 1024;

/// The most builds of one file.
pub const BUILDS_MAX: usize = 64;

/// The most jobs of one file.
pub const FILE_JOBS_MAX: usize = 512;

/// The most jobs of one build: those of every platform of every combination, and the merges.
pub const JOBS_MAX: usize = 64;

/// The most build arguments of one build.
pub const BUILD_ARGS_MAX: usize = 128;

/// The longest build argument, in bytes. Linux allows 128 KiB for one argument of a command.
pub(super) const BUILD_ARG_BYTES_MAX: usize = 32 * 1024;

/// The most entries of one `cache_from`.
pub const CACHE_FROM_MAX: usize = 16;

/// The most patterns of one `only_branches` or `paths`.
pub const GLOBS_MAX: usize = 32;

/// The longest pattern, in bytes.
pub(super) const GLOB_BYTES_MAX: usize = 255;

/// The longest path, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 1024;

/// The longest `name` and `target`, in characters.
pub(super) const NAME_CHARACTERS_MAX: usize = 100;

/// The longest name of a job, in ASCII characters.
pub(super) const JOB_NAME_MAX: usize = 100;

/// The longest tag that an image has in every run. A registry allows 128 characters, and each run
/// appends a dot and its id.
pub(super) const IMAGE_TAG_MAX: usize = 128 - 27;

/// The default of `timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(30);

/// The largest `timeout`.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// The most names of one matrix.
pub(super) const MATRIX_KEYS_MAX: usize = 16;

/// The most values of one name of a matrix.
pub(super) const MATRIX_VALUES_MAX: usize = 256;

/// The most entries of `include`, and of `exclude`.
pub(super) const MATRIX_ENTRIES_MAX: usize = 256;

/// The most combinations before `exclude`. A larger matrix is refused before it is expanded.
pub(super) const COMBINATIONS_MAX: u128 = 1024;

/// The most builds that one build may depend on.
pub(super) const DEPENDS_ON_MAX: usize = 32;

/// The most images that one build may use. Each of its jobs names all of them.
pub(super) const USED_IMAGES_MAX: usize = 64;

/// The most endpoints of a preview. Each has a host name of its own.
pub const ENDPOINTS_MAX: usize = 8;

/// The longest name of an endpoint, in characters. It becomes part of a DNS label, which has at most 63.
pub const ENDPOINT_NAME_CHARACTERS_MAX: usize = 20;

/// The most variables of one `env`.
pub(super) const ENV_MAX: usize = 128;

/// The most secrets of one preview.
pub(super) const SECRETS_MAX: usize = 64;

/// The most texts of one command: the program and its arguments.
pub(super) const COMMAND_TEXTS_MAX: usize = 64;

/// The most tests of one file.
pub const TESTS_MAX: usize = 16;

/// The most shards of one test. Each has a machine of its own.
pub(super) const TEST_SHARDS_MAX: u32 = 16;

/// The most retries of one test.
pub(super) const TEST_RETRIES_MAX: u32 = 3;

/// The most `public_paths`.
pub(super) const PUBLIC_PATHS_MAX: usize = 32;

/// The default of a health check's `timeout`, and the largest.
pub(super) const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_mins(2);
pub(super) const HEALTH_TIMEOUT_MAX: Duration = Duration::from_mins(15);

/// The default of the `timeout` of `migrate` and `seed`, and the largest.
pub(super) const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_mins(10);
pub(super) const COMMAND_TIMEOUT_MAX: Duration = Duration::from_hours(1);

/// The default of `sleep_after`, the smallest and the largest.
pub(super) const DEFAULT_SLEEP_AFTER: Duration = Duration::from_mins(20);
pub(super) const SLEEP_AFTER_MIN: Duration = Duration::from_mins(5);
pub(super) const SLEEP_AFTER_MAX: Duration = Duration::from_hours(24);

/// The default of `ttl`, the smallest and the largest.
pub(super) const DEFAULT_TTL: Duration = Duration::from_hours(7 * 24);
pub(super) const TTL_MIN: Duration = Duration::from_hours(1);
pub(super) const TTL_MAX: Duration = Duration::from_hours(30 * 24);

/// One GiB, the unit of `disk`.
pub(super) const GIB_BYTES: u64 = 1 << 30;

/// The default of `disk`, the smallest and the largest.
pub(super) const DEFAULT_DISK_GIB: u64 = 20;
pub(super) const DISK_GIB_MIN: u64 = 10;
pub(super) const DISK_GIB_MAX: u64 = 200;
