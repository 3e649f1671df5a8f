//! Joins the proxy and the state: routes follow the records, and the use of previews becomes events.

use std::collections::{BTreeMap, BTreeSet};

use stagely_state::ids::PreviewId;
use stagely_state::{Event, Preview, PreviewState as State, Timestamp};
use tokio_util::sync::CancellationToken;

use super::links::deployment_of;
use super::waiting::{progress, rebuild_of};
use super::{EndpointAddress, PreviewActivity, PreviewLinks, PreviewRoutes, PreviewState, Route};
use crate::core::clock::now;
use crate::core::orchestrator::Events;
use crate::core::records::{Records, SharedRecords};

/// The two tasks between the proxy and the state.
pub(crate) struct PreviewFollower {
    pub(crate) records: SharedRecords,
    pub(crate) links: PreviewLinks,
    pub(crate) routes: PreviewRoutes,
    pub(crate) activity: PreviewActivity,
    pub(crate) events: Events,
}

impl PreviewFollower {
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_records() => {}
            () = self.report_use() => {}
        }
    }

    async fn follow_records(&self) {
        let mut changes = self.records.changes();
        let mut followed = FollowedPreviews::new();
        loop {
            // Most changes are of other records, on which only the progress of a deployment depends.
            let moving = followed.iter().filter(|(_, (followed, _))| followed.has_progress());
            let mut ids: BTreeSet<PreviewId> = moving.map(|(id, _)| *id).collect();
            ids.extend(self.records.take_changed_previews());
            for id in ids {
                self.follow(id, &mut followed);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Replaces the routes of a preview if they have changed.
    fn follow(&self, id: PreviewId, followed: &mut FollowedPreviews) {
        let (next, routes) = {
            let records = self.records.read();
            let next = records.previews.get(&id).map(|preview| Followed::of(&records, preview));
            if next.as_ref() == followed.get(&id).map(|(followed, _)| followed) {
                return;
            }
            let routes = next.as_ref().map(|next| next.routes(&records, &self.links));
            (next, routes.unwrap_or_default())
        };
        let labels: Vec<String> = routes.keys().cloned().collect();
        let before = match next {
            Some(next) => followed.insert(id, (next, labels)),
            None => followed.remove(&id),
        };
        let removed = before.map(|(_, labels)| labels).unwrap_or_default();
        self.routes.change(&removed, routes);
    }

    async fn report_use(&self) {
        loop {
            for preview in self.activity.touched().await {
                let Ok(preview) = preview.as_str().parse() else { continue };
                let event = Event::PreviewRequested { preview, at: now() };
                if self.events.store(event).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Each preview with the first labels of its host names.
type FollowedPreviews = BTreeMap<PreviewId, (Followed, Vec<String>)>;

/// What the routes of a preview depend on.
#[derive(PartialEq)]
struct Followed {
    /// Without the time of its last use.
    preview: Preview,
    /// `None` if it takes no requests any more.
    state: Option<PreviewState>,
}

impl Followed {
    fn of(records: &Records, preview: &Preview) -> Self {
        let state = state_of(records, preview);
        Self { preview: Preview { active_at: Timestamp::default(), ..preview.clone() }, state }
    }

    /// Whether its state depends on other records.
    fn has_progress(&self) -> bool {
        let is_moving = matches!(
            self.state,
            Some(PreviewState::Deploying { .. } | PreviewState::Waking { .. })
        );
        is_moving || self.preview.rebuilt_by.is_some()
    }

    /// The routes of its endpoints, by label.
    fn routes(&self, records: &Records, links: &PreviewLinks) -> BTreeMap<String, Route> {
        let preview = &self.preview;
        let (Some(state), Some(deployment)) = (&self.state, deployment_of(records, preview)) else {
            return BTreeMap::new();
        };
        let settings = &deployment.settings;
        let endpoints = links.endpoints(records, preview).into_iter();
        let route = |endpoint: EndpointAddress| {
            let route = Route {
                preview: preview.id.wire(),
                endpoint: endpoint.name,
                access: settings.access,
                access_key: links.access_key(preview, settings.access),
                public_paths: settings.public_paths.clone(),
                state: state.clone(),
            };
            (endpoint.label, route)
        };
        endpoints.map(route).collect()
    }
}

/// `None` if the preview takes no requests any more.
fn state_of(records: &Records, preview: &Preview) -> Option<PreviewState> {
    Some(match &preview.state {
        State::Live { machine } | State::Updating { machine, .. } => {
            PreviewState::Serving { machine: *machine, generation: preview.shown.as_ref()?.number }
        }
        State::Deploying { .. } => PreviewState::Deploying { progress: progress(records, preview) },
        State::Waking { .. } | State::Archiving { wakes: true, .. } => {
            PreviewState::Waking { progress: progress(records, preview) }
        }
        State::Asleep | State::Failed { .. } if rebuild_of(records, preview).is_some() => {
            PreviewState::Waking { progress: progress(records, preview) }
        }
        State::Asleep if preview.failed_wakes.is_some() => {
            let problem = preview.problem.as_deref().unwrap_or_default();
            let message = format!(
                "It could not be started: {problem}. It is tried again after a pause, or at once with `stagely previews \
                 wake`."
            );
            PreviewState::Failed { message }
        }
        State::Asleep | State::Archiving { wakes: false, .. } => PreviewState::Asleep,
        State::Failed { .. } => {
            let problem = preview.problem.as_deref().unwrap_or_default();
            let message = format!(
                "It could not be deployed: {problem}. The next commit deploys it again, and so does a rebuild."
            );
            PreviewState::Failed { message }
        }
        State::Ending | State::Ended => return None,
    })
}
