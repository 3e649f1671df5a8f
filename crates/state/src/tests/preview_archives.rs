//! Archives that fail, and agents that are away while they archive.

use super::previews::{SLEEP_AFTER, TTL};
use super::*;

impl Core {
    /// Has each archive fail until `is_done`. Returns how many were tried.
    fn fail_archives(&mut self, machine: MachineId, is_done: impl Fn(&Self) -> bool) -> usize {
        let preview = self.preview(1).id;
        let mut tries = 0;
        while !is_done(self) {
            self.now = self.state.next_deadline().unwrap();
            self.step(Event::Tick);
            if matches!(self.preview(1).state, PreviewState::Archiving { .. }) {
                tries += 1;
                let problem = "core's disk is full".to_owned();
                self.step(Event::PreviewArchiveFailed { machine, preview, problem });
            }
        }
        tries
    }
}

#[test]
fn a_preview_whose_archives_fail_is_tried_again_and_ends_with_its_ttl() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let deployed_at = core.now;
    let has_ended = |core: &Core| core.preview(1).state.is_over();
    let tries = core.fail_archives(machine, has_ended);
    assert_eq!(core.now, deployed_at.after(TTL));
    // Not more often than every 15 minutes.
    assert!((2..=7 * 24 * 4).contains(&tries), "{tries}");
}

#[test]
fn a_preview_whose_archives_fail_does_not_outlive_its_lease() {
    let mut core = amd64(1);
    core.state.limits.previews.lease = Duration::from_hours(2);
    let (_, _, machine) = core.live(1);
    let (lease, grace) =
        (core.state.machines[&machine].lease_until.unwrap(), core.state.limits.job_grace);
    core.fail_archives(machine, |core| core.machine_state(machine) == MachineState::Terminating);
    assert!(core.now <= lease.after(grace), "{:?}", core.now.since(lease));
    assert!(core.preview(1).data_loss.is_some());
}

#[test]
fn an_agent_that_was_away_has_the_whole_time_for_its_archive() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.now = core.now.after(SLEEP_AFTER).before(Duration::from_secs(1));
    core.disconnect(machine);
    core.wait(Duration::from_secs(1));
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
    let almost = core.state.limits.previews.archive.saturating_sub(Duration::from_mins(1));
    core.wait(almost);
    let effects = core.connect_serving(machine, &[preview]);
    assert_eq!(effects, [Effect::Sleep { machine, preview }]);
    core.wait(almost);
    core.archived(machine, preview);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    assert!(core.preview(1).archive.is_some());
}
