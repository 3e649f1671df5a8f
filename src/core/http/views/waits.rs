//! What runs and jobs wait for outside of core.

use crate::api::WaitView;
use crate::core::clock::now;
use crate::core::wait::Wait;

pub(super) fn wait(wait: Wait) -> WaitView {
    let Wait { reason, since, tries, retry_at, give_up_at } = wait;
    // The time of a try that is under way is over.
    let retry_at = retry_at.filter(|at| *at > now());
    WaitView { reason, since, tries, retry_at, give_up_at }
}
