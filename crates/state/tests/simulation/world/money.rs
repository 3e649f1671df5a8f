//! Money while a schedule plays: spot prices that change, and people who allow more. Without draws, so that schedules without
//! budgets stay the same.

use stagely_state::ids::MachineId;
use stagely_state::{BudgetScope, Event, Machine, Market, Month, QueueReason, Usd};

use super::World;
use crate::money;

impl World {
    /// While time passes, spot prices change, and now and then somebody allows more money.
    pub(super) fn move_money(&mut self) {
        if !money::has_budget(&self.core) {
            return;
        }
        let of_spot = |machine: &&Machine| {
            let market = machine.placement.as_ref().map(|placement| placement.market);
            market == Some(Market::Spot)
        };
        let spot: Vec<MachineId> =
            self.core.live_machines().filter(of_spot).map(|machine| machine.id).collect();
        for machine in spot {
            if self.now.0.is_multiple_of(3) {
                self.count("a spot price changes");
                let price = money::spot_price(machine, self.now);
                self.deliver(Event::SpotPriceChanged { machine, price });
            }
        }
        if self.now.0.is_multiple_of(5) {
            self.allow_what_is_missing();
        }
    }

    /// Somebody allows what the first waiting job needs. Returns false if none waits for money.
    pub(super) fn allow_what_is_missing(&mut self) -> bool {
        let shortage = self.core.queue().into_iter().find_map(|queued| match queued.reason {
            QueueReason::Budget(shortage) => Some(shortage),
            _ => None,
        });
        let Some(shortage) = shortage else { return false };
        self.count("a budget is allowed");
        let amount = Usd(shortage.missing().whole_dollars() * 1_000_000);
        let pull_request = match shortage.scope {
            BudgetScope::PullRequest(environment) => Some(environment),
            BudgetScope::Month(month) | BudgetScope::Project(_, month) => {
                if month != Month::of(self.now) {
                    // Money for the next month cannot be allowed yet.
                    return false;
                }
                None
            }
        };
        self.deliver(Event::BudgetAllowed { project: shortage.project, pull_request, amount });
        true
    }
}
