//! Why a store cannot be used.

use std::path::Path;

use redb::TableHandle;
use thiserror::Error;

use super::ADVICE;
use super::tables::LAYOUT;
use crate::core::damage::DamagedDatabase;

#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the database is in use by another stagely process")]
    InUse,
    /// Another version of Stagely wrote it.
    #[error(
        "the database has layout {found}, and this version of stagely knows 2 and {LAYOUT} only; use the \
         version that made it, or move the folder away to begin anew"
    )]
    Layout { found: String },
    #[error("a record of table {table} cannot be read")]
    Record {
        table: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the database cannot be used")]
    Damaged(#[source] DamagedDatabase),
    #[error("the database failed")]
    Database(#[source] Box<redb::Error>),
}

impl StoreError {
    /// The database at `path` does not hold anything any more. `what` says why.
    pub(in crate::core) fn lost(path: &Path, what: &str) -> Self {
        Self::Damaged(DamagedDatabase::new(path, what, ADVICE))
    }

    pub(super) fn record(table: &impl TableHandle, source: serde_json::Error) -> Self {
        Self::Record { table: table.name().to_owned(), source }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            error => Self::Database(Box::new(error)),
        }
    }
}
