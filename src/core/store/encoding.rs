//! Records as bytes: JSON, and compressed JSON for what is seldom read.

use redb::TableHandle;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;

/// A record shrinks to a third or less; further levels take longer and save little.
const LEVEL: i32 = 3;

pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has string keys and no failing serializer")
}

pub(super) fn compressed(record: &impl Serialize) -> Vec<u8> {
    let json = encode(record);
    zstd::bulk::compress(&json, LEVEL).expect("a vector takes every byte")
}

pub(super) fn decompressed<T: DeserializeOwned>(
    table: &impl TableHandle,
    bytes: &[u8],
) -> Result<T, StoreError> {
    let json = zstd::decode_all(bytes).map_err(serde_json::Error::io);
    json.and_then(|json| serde_json::from_slice(&json))
        .map_err(|source| StoreError::record(table, source))
}
