//! Requests to previews that do not serve: which of them wake a preview, and which wait until it serves.

use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::WireId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answers::Answer;
use super::places::Places;
use super::{PreviewParts, Serving};
use crate::core::previews::{PreviewState, Route};

/// How long a request waits for a preview that is deployed or wakes.
const HOLD_LIMIT: Duration = Duration::from_mins(1);

/// The most requests that wait at the same time: for all previews, for one, and for one without having shown that they
/// may open it.
const HELD_MAX: usize = 1024;
const HELD_OF_EACH_MAX: usize = 128;
const STRANGERS_MAX: usize = 32;

/// The requests that wait. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    parts: PreviewParts,
    held: Arc<Semaphore>,
    held_of_each: Places<WireId>,
    strangers: Places<WireId>,
}

/// What a request to a preview that does not serve is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    /// Whether the client has shown that it may open the preview.
    pub(super) is_authorized: bool,
    /// Whether it wakes the preview.
    pub(super) is_use: bool,
    /// Whether a page that loads again is shown meanwhile.
    pub(super) wants_page: bool,
}

impl Holding {
    pub(super) fn new(parts: PreviewParts) -> Self {
        Self {
            parts,
            held: Arc::new(Semaphore::new(HELD_MAX)),
            held_of_each: Places::new(HELD_OF_EACH_MAX),
            strangers: Places::new(STRANGERS_MAX),
        }
    }

    /// Waits until the preview serves, if the request is one that waits.
    pub(super) async fn serving(
        &self,
        label: &str,
        route: Arc<Route>,
        visit: Visit,
    ) -> Result<Serving, Answer> {
        let route = match Serving::try_from(route) {
            Ok(serving) => return Ok(serving),
            Err(route) => route,
        };
        if visit.is_use {
            self.parts.activity.request_wake(&route.preview, route.access);
        }
        let wakes = visit.is_use || route.state != PreviewState::Asleep;
        if visit.wants_page || !wakes || !route.state.is_about_to_serve() {
            let is_woken =
                visit.is_use && visit.is_authorized && route.state == PreviewState::Asleep;
            return Err(Answer::NotServing(if is_woken {
                PreviewState::Waking { progress: String::new() }
            } else {
                route.state.clone()
            }));
        }
        let busy = || Answer::NotServing(route.state.clone());
        let _places = self.places(&route.preview, visit).ok_or_else(busy)?;
        let is_settled =
            |route: &Route| route.state.serving().is_some() || !route.state.is_about_to_serve();
        let settled = timeout(HOLD_LIMIT, self.parts.routes.wait_for(label, is_settled)).await;
        let route = settled.map_err(|_| {
            let newest = self.parts.routes.find(label).unwrap_or_else(|| Arc::clone(&route));
            Answer::NotServing(newest.state.clone())
        })?;
        Serving::try_from(route.ok_or(Answer::Unknown)?)
            .map_err(|route| Answer::NotServing(route.state.clone()))
    }

    /// The places of one request; `None` if too many wait.
    fn places(&self, preview: &WireId, visit: Visit) -> Option<Vec<OwnedSemaphorePermit>> {
        let strangers = (!visit.is_authorized).then(|| self.strangers.of(preview.clone()));
        let places = [Arc::clone(&self.held), self.held_of_each.of(preview.clone())];
        places.into_iter().chain(strangers).map(|places| places.try_acquire_owned().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http::StatusCode;
    use stagely_state::ids::MachineId;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Config;
    use crate::core::previews::{Access, PreviewActivity, PreviewHosts, PreviewRoutes};

    const LABEL: &str = "pr-7-app";

    fn parts(state: PreviewState) -> PreviewParts {
        let parts = PreviewParts {
            hosts: PreviewHosts::new(&Config::default()),
            routes: PreviewRoutes::default(),
            activity: PreviewActivity::default(),
        };
        set(&parts, state);
        parts
    }

    fn set(parts: &PreviewParts, state: PreviewState) {
        let route = Route {
            preview: "prev_1".parse().unwrap(),
            endpoint: "web".to_owned(),
            access: Access::Link,
            access_key: "key".into(),
            public_paths: Vec::new(),
            state,
        };
        parts.routes.change(&[], BTreeMap::from([(LABEL.to_owned(), route)]));
    }

    async fn visit(holding: &Holding, visit: Visit) -> Result<Serving, Answer> {
        let route = holding.parts.routes.find(LABEL).unwrap();
        holding.serving(LABEL, route, visit).await
    }

    const PROGRAM: Visit = Visit { is_authorized: true, is_use: true, wants_page: false };

    fn waking() -> PreviewState {
        PreviewState::Waking { progress: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_is_held_for_a_minute_and_then_gets_503() {
        let parts = parts(waking());
        let holding = Holding::new(parts.clone());
        let begin = Instant::now();
        let answer = visit(&holding, PROGRAM).await.err().unwrap();
        assert_eq!(begin.elapsed(), HOLD_LIMIT);
        let response = answer.into_response(false);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key("retry-after"));

        let deployed = async {
            tokio::time::sleep(HOLD_LIMIT / 2).await;
            set(&parts, PreviewState::Serving { machine: MachineId::from_bits(1), generation: 3 });
        };
        let (answer, ()) = tokio::join!(visit(&holding, PROGRAM), deployed);
        assert_eq!(answer.ok().unwrap().generation, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_requests_are_held() {
        let stranger = Visit { is_authorized: false, is_use: false, ..PROGRAM };
        let holding = Holding::new(parts(waking()));
        let mut held = tokio::task::JoinSet::new();
        let mut spawn = |visit: Visit| {
            let holding = holding.clone();
            held.spawn(async move { super::tests::visit(&holding, visit).await.map(|_| ()) });
        };
        for _ in 0..STRANGERS_MAX {
            spawn(stranger);
        }
        // Until all of them wait.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begin = Instant::now();
        assert!(visit(&holding, stranger).await.is_err());
        for _ in STRANGERS_MAX..HELD_OF_EACH_MAX {
            spawn(PROGRAM);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(visit(&holding, PROGRAM).await.is_err());
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
        assert_eq!(held.join_all().await.len(), HELD_OF_EACH_MAX);
        assert_eq!(begin.elapsed(), HOLD_LIMIT);
    }

    #[tokio::test]
    async fn the_page_of_a_visit_that_wakes_the_preview_says_so() {
        let holding = Holding::new(parts(PreviewState::Asleep));
        let page = Visit { wants_page: true, ..PROGRAM };
        let state = async |which: Visit| match visit(&holding, which).await {
            Err(Answer::NotServing(state)) => state,
            other => panic!("{:?}", other.err()),
        };
        assert_eq!(state(page).await, waking());
        assert_eq!(state(Visit { is_authorized: false, ..page }).await, PreviewState::Asleep);
        assert_eq!(state(Visit { is_use: false, ..page }).await, PreviewState::Asleep);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_a_bot_and_a_failed_preview_are_answered_at_once() {
        let begin = Instant::now();
        let holding = Holding::new(parts(PreviewState::Asleep));
        for quick in [Visit { wants_page: true, ..PROGRAM }, Visit { is_use: false, ..PROGRAM }] {
            assert!(visit(&holding, quick).await.is_err());
        }
        let message = "web has ended".to_owned();
        let holding = Holding::new(parts(PreviewState::Failed { message }));
        assert!(visit(&holding, PROGRAM).await.is_err());
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
