//! The client commands, each in a file of its own.

pub mod rebuild;
pub mod run;
pub mod warm;

pub mod approve;
pub mod artifacts;
pub mod cancel;
pub mod explain;
pub mod jobs;
pub mod logs;
pub mod runs;
pub mod test_results;

pub mod budget;
pub mod cost;
pub mod environments;
pub mod fleets;
pub mod github;
pub mod machines;
pub mod previews;
pub mod project;
pub mod queue;
pub mod secret;
pub mod sweep;
pub mod token;

pub mod doctor;
pub mod schema;
pub mod validate;

pub mod connect;
mod core_handle;
pub mod embedded;
pub mod output;
mod prompt;
pub mod settings;
pub mod signals;
mod table;
