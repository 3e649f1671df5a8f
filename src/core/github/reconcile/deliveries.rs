//! Reads the deliveries that GitHub failed to deliver, and stores them.

use std::sync::Arc;
use std::time::Duration;

use stagely_state::{Project, Timestamp};
use tracing::warn;

use super::reads::GithubReads;
use super::{ReconcileError, Reconciler};
use crate::core::clock::now;
use crate::core::github::webhook::event::{Irrelevant, WebhookEvent};
use crate::core::github::webhook::parse::parse;
use crate::core::github::{DeliveryContent, FailedDelivery, GithubError};
use crate::core::intake::github_events;

/// After so many deliveries without a response GitHub counts as unavailable, and the others are left to the
/// next round.
const UNAVAILABLE_MAX: usize = 3;

/// How long GitHub keeps deliveries.
const KEPT_FOR: Duration = Duration::from_hours(3 * 24);

impl<G: GithubReads> Reconciler<G> {
    /// Stores the failed deliveries. Those about pull requests of the projects `listed` are outdated by their
    /// lists.
    pub(super) async fn ingest_failed_deliveries(
        &self,
        listed: &[Project],
    ) -> Result<(), ReconcileError> {
        let since = now().0.saturating_sub(u64::try_from(KEPT_FOR.as_millis()).unwrap_or(0));
        let mut unread = UnreadDeliveries::default();
        for failed in self.github.failed_deliveries(Timestamp(since)).await? {
            if self.records.read().deliveries.contains_key(&failed.delivery) {
                continue;
            }
            match self.github.delivery(failed.id).await {
                Ok(content) => self.ingest_delivery(&failed, &content, listed).await?,
                Err(error) => unread.note(failed.id, error)?,
            }
        }
        unread.problem.map_or(Ok(()), |problem| Err(ReconcileError { problem, until: None }))
    }

    async fn ingest_delivery(
        &self,
        failed: &FailedDelivery,
        content: &DeliveryContent,
        listed: &[Project],
    ) -> Result<(), ReconcileError> {
        let event = match parse(&content.event, &content.payload) {
            Ok(event) if is_outdated(&event, listed) => {
                WebhookEvent::Irrelevant(Irrelevant::Outdated)
            }
            Ok(event) => event,
            Err(error) => {
                warn!(id = failed.id, %error, "a failed delivery cannot be read");
                WebhookEvent::Irrelevant(error.into())
            }
        };
        let config = Arc::clone(&self.config);
        let make = move |records: &_| github_events::late_event(records, &config.github, &event);
        self.intake.ingest(Some(failed.delivery), make).await?;
        Ok(())
    }
}

/// The failed deliveries that cannot be read from GitHub.
#[derive(Default)]
struct UnreadDeliveries {
    unavailable: usize,
    problem: Option<String>,
}

impl UnreadDeliveries {
    /// Notes one and lets the others be read. Each round tries it again.
    ///
    /// # Errors
    /// After an error that the other deliveries would have, too.
    fn note(&mut self, id: u64, error: GithubError) -> Result<(), ReconcileError> {
        let may_continue = match &error {
            GithubError::NotFound(_)
            | GithubError::Refused { .. }
            | GithubError::TooLarge { .. } => true,
            GithubError::Unavailable(_) => {
                self.unavailable += 1;
                self.unavailable < UNAVAILABLE_MAX
            }
            GithubError::Unusable(_)
            | GithubError::RateLimited { .. }
            | GithubError::Credentials(_) => false,
        };
        if !may_continue {
            return Err(error.into());
        }
        warn!(id, %error, "a failed delivery cannot be read");
        self.problem = Some(format!("a failed delivery cannot be read: {error}"));
        Ok(())
    }
}

/// Whether the list of pull requests of a project in `listed` is newer than `event` and says as much.
fn is_outdated(event: &WebhookEvent, listed: &[Project]) -> bool {
    let (WebhookEvent::HeadMoved { repository, .. }
    | WebhookEvent::PullRequestClosed { repository, .. }) = event
    else {
        return false;
    };
    let mut links = listed.iter().filter_map(|project| project.github.as_ref());
    links.any(|link| link.repository.is(repository.full_name.as_str()))
}
