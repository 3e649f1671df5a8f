//! What the previews' proxy and the state share: names, hosts, where requests go, and which previews are in use.

mod activity;
mod hosts;
mod names;
mod routes;

pub use activity::PreviewActivity;
pub use hosts::{Host, PreviewHosts};
pub use names::{LABEL_CHARS_MAX, preview_label};
pub use routes::{Access, PreviewRoutes, PreviewState, Route};
