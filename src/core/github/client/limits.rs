//! The limits of requests: GitHub's rate limits, from its responses, and core's own limit for writes.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use governor::DefaultDirectRateLimiter;
use serde::{Deserialize, Serialize};
use stagely_state::Timestamp;
use stagely_state::ids::ProjectId;

use super::error::GithubError;
use crate::config::GithubConfig;

/// The wait after a secondary rate limit without `retry-after`. GitHub asks for at least a minute, and for
/// more after each further one.
const SECONDARY_WAIT: Duration = Duration::from_mins(1);

const SECONDARY_WAIT_MAX: Duration = Duration::from_mins(15);

/// A secondary limit that comes this long after the last one starts again with [`SECONDARY_WAIT`].
const SECONDARY_RESET: Duration = Duration::from_mins(10);

/// GitHub's limits hold for an hour. A longer wait comes from a wrong clock.
const WAIT_MAX: Duration = Duration::from_mins(61);

/// GitHub's times are in whole seconds.
const WAIT_MIN: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// The state of the connection to GitHub: `GET /github`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubHealth {
    /// Requests left in this hour, of the account that has the fewest.
    pub remaining: Option<u64>,
    /// When the requests of that account are counted anew.
    pub resets_at: Option<Timestamp>,
    /// No request is sent before this time, because a rate limit is used up.
    pub blocked_until: Option<Timestamp>,
    /// The last failure, for people; `None` after a success.
    pub problem: Option<String>,
}

/// The account whose rate limit a request counts against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Account {
    /// The owner of a project's own token.
    Project(ProjectId),
    /// The owner of the token that the configuration names for a repository.
    Repository(String),
    App,
    /// An installation of the app.
    Installation(u64),
    /// The owner of the token for all projects.
    Shared,
}

#[derive(Debug, Default)]
struct RateLimit {
    remaining: Option<u64>,
    resets_at: Option<Timestamp>,
    blocked_until: Option<Timestamp>,
    /// Secondary limits in a row.
    secondary_count: u32,
}

impl RateLimit {
    fn block(&mut self, until: Timestamp, now: Timestamp) -> Timestamp {
        let until = until.clamp(now.after(WAIT_MIN), now.after(WAIT_MAX));
        let until = self.blocked_until.map_or(until, |known| known.max(until));
        self.blocked_until = Some(until);
        until
    }

    /// The end of a secondary limit without `retry-after`.
    fn secondary_end(&mut self, now: Timestamp) -> Timestamp {
        let is_new = self.blocked_until.is_none_or(|last| now.since(last) > SECONDARY_RESET);
        self.secondary_count = if is_new { 1 } else { self.secondary_count.saturating_add(1) };
        let doublings = (self.secondary_count - 1).min(10);
        now.after((SECONDARY_WAIT * 2_u32.pow(doublings)).min(SECONDARY_WAIT_MAX))
    }
}

/// The parts of a response that are about rate limits.
#[derive(Debug)]
pub(super) struct RateLimitHeaders {
    remaining: Option<u64>,
    resets_at: Option<Timestamp>,
    retry_after: Option<Duration>,
    is_rate_limited: bool,
}

impl RateLimitHeaders {
    /// Reads the headers. `message` is that of a refusal: GitHub answers 403 for many reasons, and a secondary
    /// limit without a header is recognised by its message alone.
    ///
    /// Source: GitHub REST API, "Rate limits for the REST API".
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, message: &str) -> Self {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let remaining = number("x-ratelimit-remaining");
        let retry_after = number("retry-after").map(Duration::from_secs);
        let message = message.to_ascii_lowercase();
        let names_a_limit = message.contains("rate limit") || message.contains("abuse detection");
        let is_forbidden_by_limit = status == StatusCode::FORBIDDEN
            && (remaining == Some(0) || retry_after.is_some() || names_a_limit);
        Self {
            remaining,
            resets_at: number("x-ratelimit-reset")
                .map(|seconds| Timestamp(seconds.saturating_mul(1000))),
            retry_after,
            is_rate_limited: is_forbidden_by_limit || status == StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Limits {
    accounts: Mutex<HashMap<Account, RateLimit>>,
}

impl Limits {
    /// Refuses a request while its account is blocked: GitHub extends a block if requests continue.
    pub(super) fn check(&self, account: &Account, now: Timestamp) -> Result<(), GithubError> {
        let blocked_until = self.lock().get(account).and_then(|limit| limit.blocked_until);
        match blocked_until.filter(|until| *until > now) {
            Some(until) => Err(GithubError::RateLimited { until }),
            None => Ok(()),
        }
    }

    /// Notes the headers of a response. Returns the end of the block if the response is a refusal by a rate
    /// limit.
    pub(super) fn observe(
        &self,
        account: &Account,
        headers: &RateLimitHeaders,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut accounts = self.lock();
        let limit = accounts.entry(account.clone()).or_default();
        limit.remaining = headers.remaining.or(limit.remaining);
        limit.resets_at = headers.resets_at.or(limit.resets_at);
        let reset = headers.resets_at.filter(|_| headers.remaining == Some(0));
        if headers.is_rate_limited {
            let until = match (headers.retry_after, reset) {
                (Some(wait), _) => now.after(wait),
                (None, Some(reset)) => reset,
                (None, None) => limit.secondary_end(now),
            };
            return Some(limit.block(until, now));
        }
        if let Some(reset) = reset {
            limit.block(reset, now);
        }
        None
    }

    /// The limits of all accounts together.
    pub(super) fn health(&self, now: Timestamp) -> GithubHealth {
        let accounts = self.lock();
        let is_current = |limit: &&RateLimit| limit.resets_at.is_some_and(|at| at > now);
        let fewest = accounts.values().filter(is_current).min_by_key(|limit| limit.remaining);
        let blocked = accounts.values().filter_map(|limit| limit.blocked_until);
        GithubHealth {
            remaining: fewest.and_then(|limit| limit.remaining),
            resets_at: fewest.and_then(|limit| limit.resets_at),
            blocked_until: blocked.filter(|until| *until > now).max(),
            problem: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, RateLimit>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spreads writes over time. GitHub limits them too, and does not report how many are left.
pub(super) struct WriteLimiter {
    writes: DefaultDirectRateLimiter,
    comments: DefaultDirectRateLimiter,
}

impl WriteLimiter {
    pub(super) fn new(config: &GithubConfig) -> Self {
        Self {
            writes: DefaultDirectRateLimiter::direct(quota(config.writes_per_minute, MINUTE)),
            comments: DefaultDirectRateLimiter::direct(quota(config.comments_per_hour, HOUR)),
        }
    }

    /// Waits until a status may be written.
    pub(super) async fn status_allowed(&self) {
        self.writes.until_ready().await;
    }

    /// Waits until a comment may be written.
    pub(super) async fn comment_allowed(&self) {
        self.comments.until_ready().await;
        self.writes.until_ready().await;
    }
}

/// At most `count` in any `period`: an eighth of them at once, the others evenly after that.
fn quota(count: NonZeroU32, period: Duration) -> governor::Quota {
    let burst = NonZeroU32::new(count.get() / 8).unwrap_or(NonZeroU32::MIN);
    let rest = (count.get() - burst.get()).max(1);
    governor::Quota::with_period(period / rest)
        .expect("a minute or an hour, divided by 32 bits, is not zero")
        .allow_burst(burst)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use governor::middleware::NoOpMiddleware;
    use governor::state::InMemoryState;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn response(status: u16, headers: &[(&'static str, &str)], message: &str) -> RateLimitHeaders {
        let headers = headers.iter().map(|(name, value)| {
            (axum::http::HeaderName::from_static(name), value.parse().unwrap())
        });
        RateLimitHeaders::read(StatusCode::from_u16(status).unwrap(), &headers.collect(), message)
    }

    fn blocked_until(limits: &Limits, account: &Account) -> Option<Timestamp> {
        match limits.check(account, NOW) {
            Err(GithubError::RateLimited { until }) => Some(until),
            _ => None,
        }
    }

    #[test]
    fn the_last_request_of_an_hour_blocks_only_its_account_until_the_reset() {
        let limits = Limits::default();
        let reset = (NOW.0 / 1000 + 90).to_string();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];

        assert_eq!(limits.observe(&Account::Shared, &response(200, &headers, ""), NOW), None);

        let until = NOW.after(Duration::from_secs(90));
        assert_eq!(blocked_until(&limits, &Account::Shared), Some(until));
        assert_eq!(blocked_until(&limits, &Account::App), None);
        let health = limits.health(NOW);
        assert_eq!((health.remaining, health.resets_at), (Some(0), Some(until)));
        assert_eq!(health.blocked_until, Some(until));
        assert!(limits.check(&Account::Shared, until).is_ok());
    }

    #[test]
    fn a_refusal_with_retry_after_blocks_for_that_long() {
        let limits = Limits::default();
        let refusal = response(403, &[("retry-after", "30")], "slow down");
        let until = NOW.after(Duration::from_secs(30));
        assert_eq!(limits.observe(&Account::App, &refusal, NOW), Some(until));
    }

    #[test]
    fn secondary_limits_in_a_row_without_retry_after_block_longer_each_time() {
        let limits = Limits::default();
        let refusal = response(403, &[], "You have exceeded a secondary rate limit.");
        let mut now = NOW;
        for minutes in [1, 2, 4, 8, 15, 15] {
            let until = limits.observe(&Account::App, &refusal, now).unwrap();
            assert_eq!(until.since(now), Duration::from_mins(minutes));
            now = until;
        }
        let later = now.after(Duration::from_mins(11));
        let until = limits.observe(&Account::App, &refusal, later).unwrap();
        assert_eq!(until.since(later), Duration::from_mins(1));
    }

    #[test]
    fn a_403_for_another_reason_blocks_nothing() {
        let limits = Limits::default();
        let refusal = response(403, &[("x-ratelimit-remaining", "9")], "Resource not accessible");
        assert_eq!(limits.observe(&Account::App, &refusal, NOW), None);
        assert_eq!(blocked_until(&limits, &Account::App), None);
    }

    #[test]
    fn a_reset_from_a_wrong_clock_blocks_for_an_hour_at_most() {
        let limits = Limits::default();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999")];
        let until = limits.observe(&Account::App, &response(429, &headers, ""), NOW);
        assert_eq!(until, Some(NOW.after(WAIT_MAX)));
    }

    #[test]
    fn no_minute_has_more_writes_than_the_limit() {
        for count in [1, 2, 7, 8, 80, 500] {
            let clock = FakeRelativeClock::default();
            let limiter: governor::RateLimiter<_, InMemoryState, _, NoOpMiddleware<_>> =
                governor::RateLimiter::direct_with_clock(
                    quota(NonZeroU32::new(count).unwrap(), MINUTE),
                    clock.clone(),
                );
            let mut written = Vec::new();
            for millis in 0..180_000_u64 {
                while limiter.check().is_ok() {
                    written.push(millis);
                }
                clock.advance(Duration::from_millis(1));
            }
            let most = (written.iter().enumerate())
                .map(|(n, from)| written[n..].iter().take_while(|at| **at < from + 59_990).count())
                .max();
            // The burst has at least one write.
            assert!(most.unwrap() <= count.max(1) as usize, "{count}: {most:?}");
        }
    }
}
