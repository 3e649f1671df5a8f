//! The inputs of a build, and why a step of the next build did not come from the cache.

mod miss;

mod inputs;

mod dockerfile;
mod files;
mod patterns;

#[cfg(test)]
mod recorded;

pub(crate) use self::dockerfile::{Dockerfile, NameUse, Target};
pub use self::inputs::BuildInputs;
pub(crate) use self::inputs::read_dockerfile;
pub use self::miss::cache_miss;
