//! How much may be asked and written: what GitHub says of its limits, and a budget for what is written.

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

/// The wait after a secondary limit that names none. GitHub asks for a minute at least, and for more after
/// each further one.
const SECONDARY_WAIT: Duration = Duration::from_mins(1);

/// The longest of these waits.
const SECONDARY_WAIT_MAX: Duration = Duration::from_mins(15);

/// A secondary limit this long after the last one is the first again.
const SECONDARY_MEMORY: Duration = Duration::from_mins(10);

/// GitHub counts by the hour. A longer wait is a wrong clock.
const WAIT_MAX: Duration = Duration::from_mins(61);

/// GitHub's moments have whole seconds.
const WAIT_MIN: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// How core gets on with GitHub: `GET /github`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubHealth {
    /// Requests left in this hour, of the credentials that have the fewest.
    pub remaining: Option<u64>,
    /// When these are as many as at the start again.
    pub resets_at: Option<Timestamp>,
    /// Nothing is asked before this moment: GitHub's limit is reached.
    pub blocked_until: Option<Timestamp>,
    /// The last failure, for people; `None` after a success.
    pub problem: Option<String>,
}

/// Whose limits they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Account {
    /// The owner of a project's own token.
    Project(ProjectId),
    /// The owner of the token that the configuration names for a repository.
    Repository(String),
    /// The app itself.
    App,
    /// The app, where it is installed.
    Installation(u64),
    /// The owner of the token for all projects.
    Shared,
}

/// What is known of an account.
#[derive(Debug, Default)]
struct Quota {
    remaining: Option<u64>,
    resets_at: Option<Timestamp>,
    blocked_until: Option<Timestamp>,
    /// Secondary limits in a row.
    strikes: u32,
}

impl Quota {
    fn block(&mut self, until: Timestamp, now: Timestamp) -> Timestamp {
        let until = until.clamp(now.after(WAIT_MIN), now.after(WAIT_MAX));
        let until = self.blocked_until.map_or(until, |known| known.max(until));
        self.blocked_until = Some(until);
        until
    }

    /// The end of a block by a limit that names none.
    fn secondary(&mut self, now: Timestamp) -> Timestamp {
        let is_new = self.blocked_until.is_none_or(|last| now.since(last) > SECONDARY_MEMORY);
        self.strikes = if is_new { 1 } else { self.strikes.saturating_add(1) };
        let doublings = (self.strikes - 1).min(10);
        now.after((SECONDARY_WAIT * 2_u32.pow(doublings)).min(SECONDARY_WAIT_MAX))
    }
}

/// What an answer says of the limits.
#[derive(Debug)]
pub(super) struct Said {
    remaining: Option<u64>,
    resets_at: Option<Timestamp>,
    retry_after: Option<Duration>,
    is_refusal: bool,
}

impl Said {
    /// Reads the headers, and of a refusal its message.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap, message: &str) -> Self {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let remaining = number("x-ratelimit-remaining");
        let retry_after = number("retry-after").map(Duration::from_secs);
        let message = message.to_ascii_lowercase();
        let names_a_limit = message.contains("rate limit") || message.contains("abuse detection");
        let is_forbidden = status == StatusCode::FORBIDDEN
            && (remaining == Some(0) || retry_after.is_some() || names_a_limit);
        Self {
            remaining,
            resets_at: number("x-ratelimit-reset")
                .map(|seconds| Timestamp(seconds.saturating_mul(1000))),
            retry_after,
            is_refusal: is_forbidden || status == StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// What is known of all accounts.
#[derive(Debug, Default)]
pub(super) struct Limits {
    accounts: Mutex<HashMap<Account, Quota>>,
}

impl Limits {
    /// Refuses while the account is blocked: asking all the same makes GitHub block for longer.
    pub(super) fn check(&self, account: &Account, now: Timestamp) -> Result<(), GithubError> {
        let blocked_until = self.lock().get(account).and_then(|quota| quota.blocked_until);
        match blocked_until.filter(|until| *until > now) {
            Some(until) => Err(GithubError::RateLimited { until }),
            None => Ok(()),
        }
    }

    /// Takes over what an answer says. Returns the end of the block if the answer is a refusal for a limit.
    pub(super) fn observe(
        &self,
        account: &Account,
        said: &Said,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut accounts = self.lock();
        let quota = accounts.entry(account.clone()).or_default();
        quota.remaining = said.remaining.or(quota.remaining);
        quota.resets_at = said.resets_at.or(quota.resets_at);
        let reset = said.resets_at.filter(|_| said.remaining == Some(0));
        if said.is_refusal {
            let until = match (said.retry_after, reset) {
                (Some(wait), _) => now.after(wait),
                (None, Some(reset)) => reset,
                (None, None) => quota.secondary(now),
            };
            return Some(quota.block(until, now));
        }
        if let Some(reset) = reset {
            quota.block(reset, now);
        }
        None
    }

    /// What there is to say of all accounts together.
    pub(super) fn health(&self, now: Timestamp) -> GithubHealth {
        let accounts = self.lock();
        let current = |quota: &&Quota| quota.resets_at.is_some_and(|at| at > now);
        let fewest = accounts.values().filter(current).min_by_key(|quota| quota.remaining);
        let blocked = accounts.values().filter_map(|quota| quota.blocked_until);
        GithubHealth {
            remaining: fewest.and_then(|quota| quota.remaining),
            resets_at: fewest.and_then(|quota| quota.resets_at),
            blocked_until: blocked.filter(|until| *until > now).max(),
            problem: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Quota>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may be written. GitHub does not say how much of it is left.
pub(super) struct Budget {
    writes: DefaultDirectRateLimiter,
    comments: DefaultDirectRateLimiter,
}

impl Budget {
    /// The whole of it.
    pub(super) fn new(config: &GithubConfig) -> Self {
        Self {
            writes: DefaultDirectRateLimiter::direct(quota(config.writes_per_minute, MINUTE)),
            comments: DefaultDirectRateLimiter::direct(quota(config.comments_per_hour, HOUR)),
        }
    }

    /// Waits until a status may be written.
    pub(super) async fn status(&self) {
        self.writes.until_ready().await;
    }

    /// Waits until a comment may be written.
    pub(super) async fn comment(&self) {
        self.comments.until_ready().await;
        self.writes.until_ready().await;
    }
}

/// At most `count` in any `period`: an eighth of them at once, the others evenly after it.
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

    fn said(status: u16, headers: &[(&'static str, &str)], message: &str) -> Said {
        let headers = headers.iter().map(|(name, value)| {
            (axum::http::HeaderName::from_static(name), value.parse().unwrap())
        });
        Said::of(StatusCode::from_u16(status).unwrap(), &headers.collect(), message)
    }

    fn blocked_until(limits: &Limits, account: &Account) -> Option<Timestamp> {
        match limits.check(account, NOW) {
            Err(GithubError::RateLimited { until }) => Some(until),
            _ => None,
        }
    }

    #[test]
    fn the_last_request_of_an_hour_blocks_this_account_alone_until_the_reset() {
        let limits = Limits::default();
        let reset = (NOW.0 / 1000 + 90).to_string();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];

        assert_eq!(limits.observe(&Account::Shared, &said(200, &headers, ""), NOW), None);

        let until = NOW.after(Duration::from_secs(90));
        assert_eq!(blocked_until(&limits, &Account::Shared), Some(until));
        assert_eq!(blocked_until(&limits, &Account::App), None);
        let health = limits.health(NOW);
        assert_eq!((health.remaining, health.resets_at), (Some(0), Some(until)));
        assert_eq!(health.blocked_until, Some(until));
        assert!(limits.check(&Account::Shared, until).is_ok());
    }

    #[test]
    fn a_refusal_is_waited_for_as_long_as_it_says() {
        let limits = Limits::default();
        let refusal = said(403, &[("retry-after", "30")], "slow down");
        let until = NOW.after(Duration::from_secs(30));
        assert_eq!(limits.observe(&Account::App, &refusal, NOW), Some(until));
    }

    #[test]
    fn secondary_limits_that_say_nothing_are_waited_for_ever_longer() {
        let limits = Limits::default();
        let refusal = said(403, &[], "You have exceeded a secondary rate limit.");
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
    fn a_403_that_has_nothing_to_do_with_limits_blocks_nothing() {
        let limits = Limits::default();
        let refusal = said(403, &[("x-ratelimit-remaining", "9")], "Resource not accessible");
        assert_eq!(limits.observe(&Account::App, &refusal, NOW), None);
        assert_eq!(blocked_until(&limits, &Account::App), None);
    }

    #[test]
    fn a_reset_by_a_wrong_clock_blocks_for_an_hour_at_most() {
        let limits = Limits::default();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999")];
        let until = limits.observe(&Account::App, &said(429, &headers, ""), NOW);
        assert_eq!(until, Some(NOW.after(WAIT_MAX)));
    }

    #[test]
    fn no_minute_has_more_writes_than_the_budget_allows() {
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
            // Two cannot be less than one and another.
            assert!(most.unwrap() <= count.max(1) as usize, "{count}: {most:?}");
        }
    }
}
