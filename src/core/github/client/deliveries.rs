//! Reads of webhook deliveries, which GitHub shows to an app for three days.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use stagely_state::{DeliveryId, Timestamp};

use super::api::{ApiRequest, path};
use super::error::GithubError;
use super::{Github, PAGES_MAX};
use crate::core::github::payload::timestamp;
use crate::core::github::webhook::delivery_id::delivery_id;

/// A delivery none of whose attempts succeeded.
#[derive(Clone, Debug)]
pub struct FailedDelivery {
    /// GitHub's number of the last attempt.
    pub id: u64,
    /// The id that all attempts share.
    pub delivery: DeliveryId,
    /// The time of the last attempt.
    pub at: Timestamp,
}

/// The event of a delivery and its body.
#[derive(Clone, Debug)]
pub struct DeliveryContent {
    pub event: String,
    pub payload: Vec<u8>,
}

#[derive(Deserialize)]
struct AttemptPayload {
    id: u64,
    guid: String,
    delivered_at: jiff::Timestamp,
    status_code: u16,
}

#[derive(Deserialize)]
struct DeliveryPayload {
    event: String,
    request: DeliveryRequestPayload,
}

#[derive(Deserialize)]
struct DeliveryRequestPayload {
    payload: Box<RawValue>,
}

impl Github {
    /// The deliveries since `since` that failed, the oldest first; none without a GitHub App.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> Result<Vec<FailedDelivery>, GithubError> {
        let Some(app) = self.noted(self.inner.credentials.app().await)? else {
            return Ok(Vec::new());
        };
        // `None`: another attempt succeeded.
        let mut last_failed: HashMap<String, Option<FailedDelivery>> = HashMap::new();
        let mut next = Some("/app/hook/deliveries?per_page=100".to_owned());
        for _ in 0..PAGES_MAX {
            let Some(address) = next else { break };
            let request = ApiRequest::get(address, "the deliveries of the GitHub App");
            let response = match self.read_as_app(&app, &request).await {
                // The app has no webhook.
                Err(GithubError::NotFound(_)) => break,
                response => response?,
            };
            let page: Vec<AttemptPayload> = response.json(&request)?;
            let is_in_time = |attempt: &AttemptPayload| timestamp(attempt.delivered_at) >= since;
            let is_last_page = page.last().is_none_or(|oldest| !is_in_time(oldest));
            for attempt in page.into_iter().filter(is_in_time) {
                let is_success = (200..300).contains(&attempt.status_code);
                let failed = FailedDelivery {
                    id: attempt.id,
                    delivery: delivery_id(&attempt.guid),
                    at: timestamp(attempt.delivered_at),
                };
                let known = last_failed.entry(attempt.guid).or_insert(Some(failed));
                if is_success {
                    *known = None;
                }
            }
            next = response.next_page().filter(|_| !is_last_page);
        }
        let mut failed: Vec<FailedDelivery> = last_failed.into_values().flatten().collect();
        failed.sort_by_key(|delivery| (delivery.at, delivery.id));
        Ok(failed)
    }

    /// The content of a delivery.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn delivery(&self, id: u64) -> Result<DeliveryContent, GithubError> {
        let Some(app) = self.noted(self.inner.credentials.app().await)? else {
            let problem = "deliveries are read by a GitHub App only: set github.app-id";
            return Err(GithubError::Credentials(problem.to_owned()));
        };
        let address = path(["app", "hook", "deliveries", &id.to_string()]);
        let request = ApiRequest::get(address, format!("delivery {id}"));
        let response = self.read_as_app(&app, &request).await?;
        let DeliveryPayload { event, request } = response.json(&request)?;
        Ok(DeliveryContent { event, payload: request.payload.get().as_bytes().to_vec() })
    }
}
