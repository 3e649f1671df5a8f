//! What runs and jobs wait for outside of core.

use crate::api::WaitView;
use crate::core::waits::Wait;

pub(super) fn wait(wait: Wait) -> WaitView {
    let Wait { reason, since, tries, retry_at, give_up_at } = wait;
    WaitView { reason, since, tries, retry_at, give_up_at }
}
