//! What the previews' proxy and the state share: names, hosts, where requests go, and which previews are in use.

mod activity;
mod follower;
mod hosts;
mod links;
mod names;
mod reports;
mod routes;
mod waiting;

pub use activity::PreviewActivity;
pub(crate) use follower::PreviewFollower;
pub use hosts::{Host, PreviewHosts};
pub use links::{ACCESS_HEADER, ACCESS_PARAMETER, EndpointAddress, PreviewLinks, deployment_of};
pub use names::{LABEL_CHARS_MAX, artifacts_label, preview_label};
pub use reports::{PreviewReport, PreviewReports};
pub use routes::{Access, PreviewRoutes, PreviewState, Route};
pub(crate) use waiting::{is_tested, reason_of_wait, rebuild_of};
