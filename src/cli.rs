//! What people type: each command in a file of its own.

pub mod rebuild;
pub mod run;

pub mod approve;
pub mod environments;
pub mod explain;
pub mod fleets;
pub mod github;
pub mod machines;
pub mod project;
pub mod records;
pub mod sweep;
pub mod token;

pub mod doctor;
pub mod schema;
pub mod validate;

pub mod connect;
pub mod embedded;
pub mod settings;
pub mod signals;
mod table;
