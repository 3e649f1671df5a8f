//! A wait for something outside of core, of a run or a job.

use serde::{Deserialize, Serialize};
use stagely_state::Timestamp;
use utoipa::ToSchema;

/// A wait between two tries. Core tries again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitView {
    /// The error of the last try, or what takes long, for people.
    pub reason: String,
    /// The time of the first failed try, or when it was seen to take long.
    #[schema(value_type = u64)]
    pub since: Timestamp,
    /// The number of failed tries. 0 if the first one goes on.
    pub tries: u32,
    /// The time of the next try. Null while a try is under way.
    #[schema(value_type = Option<u64>)]
    pub retry_at: Option<Timestamp>,
    /// The time at which core stops trying, if it is known.
    #[schema(value_type = Option<u64>)]
    pub give_up_at: Option<Timestamp>,
}
