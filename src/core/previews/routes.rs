//! Where the requests to each preview go.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::SecretString;
use stagely_protocol::WireId;
pub use stagely_state::Access;
use stagely_state::ids::MachineId;
use tokio::sync::watch;

/// One endpoint of a preview.
#[derive(Clone, Debug)]
pub struct Route {
    pub preview: WireId,
    /// The endpoint's name in DEPLOY.
    pub endpoint: String,
    pub access: Access,
    /// Opens this preview alone. It must change when `access` does.
    pub access_key: SecretString,
    /// The paths that need no access: whole ones, or those that begin with the text before a `*` at the end.
    pub public_paths: Vec<String>,
    pub state: PreviewState,
}

/// Whether a preview takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewState {
    Serving {
        machine: MachineId,
        generation: u64,
    },
    Deploying {
        /// How far it has come, as a sentence for people; empty if nothing is known.
        progress: String,
    },
    Waking {
        progress: String,
    },
    Asleep,
    /// Holds a sentence for people.
    Failed {
        message: String,
    },
}

impl PreviewState {
    /// The machine and the generation that requests go to.
    pub(crate) const fn serving(&self) -> Option<(MachineId, u64)> {
        match self {
            Self::Serving { machine, generation } => Some((*machine, *generation)),
            Self::Deploying { .. } | Self::Waking { .. } | Self::Asleep | Self::Failed { .. } => {
                None
            }
        }
    }

    /// The same without the words of the deployment, its log and the queue.
    pub(crate) fn without_details(self) -> Self {
        let progress = String::new();
        match self {
            Self::Deploying { .. } => Self::Deploying { progress },
            Self::Waking { .. } => Self::Waking { progress },
            Self::Failed { .. } => {
                Self::Failed { message: "Its page in Stagely says why.".to_owned() }
            }
            state @ (Self::Serving { .. } | Self::Asleep) => state,
        }
    }

    /// Whether waiting may help.
    pub(crate) const fn is_about_to_serve(&self) -> bool {
        match self {
            Self::Serving { .. } | Self::Deploying { .. } | Self::Waking { .. } | Self::Asleep => {
                true
            }
            Self::Failed { .. } => false,
        }
    }
}

/// The endpoints of all open previews, by label. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PreviewRoutes(Arc<watch::Sender<Routes>>);

type Routes = BTreeMap<String, Arc<Route>>;

impl PreviewRoutes {
    /// Removes the routes of the labels `removed`, and adds or replaces those of `added`.
    pub fn change(&self, removed: &[String], added: BTreeMap<String, Route>) {
        self.0.send_modify(|routes| {
            for label in removed {
                routes.remove(label);
            }
            routes.extend(added.into_iter().map(|(label, route)| (label, Arc::new(route))));
        });
    }

    pub(crate) fn find(&self, label: &str) -> Option<Arc<Route>> {
        self.0.borrow().get(label).cloned()
    }

    /// Waits until the route is as `is_wanted` says, or is gone.
    pub(crate) async fn wait_for(
        &self,
        label: &str,
        is_wanted: impl Fn(&Route) -> bool,
    ) -> Option<Arc<Route>> {
        let mut changes = self.0.subscribe();
        let is_done = |routes: &Routes| routes.get(label).is_none_or(|route| is_wanted(route));
        let routes = changes.wait_for(is_done).await;
        routes.expect("`self` holds the sender").get(label).cloned()
    }

    /// Waits until a machine serves no preview.
    pub(crate) async fn wait_until_unused(&self, machine: MachineId) {
        let serves = |route: &Arc<Route>| {
            route.state.serving().is_some_and(|(serving, _)| serving == machine)
        };
        let mut changes = self.0.subscribe();
        let unused = changes.wait_for(|routes| !routes.values().any(serves)).await;
        drop(unused.expect("`self` holds the sender"));
    }
}
