//! What machines may cost: the prices of the configuration, by which money is reserved before a launch.

use std::collections::BTreeMap;
use std::time::Duration;

use stagely_protocol::Arch;

use super::{Fleet, MachineSize, ProviderName, Usd};

/// A machine is paid for at least this long.
pub const MINIMUM_TIME: Duration = Duration::from_mins(1);

/// The hours of a month by which prices of disks are divided, as the clouds do it.
const MONTH_HOURS: u64 = 730;

/// The prices of the configuration. They are not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// The highest price of an hour among the instance types of each size. None for machines that cost nothing, or
    /// whose price is not known.
    pub machines: BTreeMap<(ProviderName, Fleet, Arch, MachineSize), Usd>,
    pub extras: BTreeMap<ProviderName, Extras>,
}

/// What a provider sells besides the machine itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// The price of a public IPv4 address for an hour.
    pub address: Usd,
    /// The price of a GiB of disk for a month.
    pub disk_gib_month: Usd,
    /// The size of a disk where nothing says it.
    pub disk_gib: u32,
}

impl Extras {
    /// The price of an hour of address and disk, rounded up.
    fn hour(self, disk_gib: Option<u32>) -> Usd {
        let gib = u64::from(disk_gib.unwrap_or(self.disk_gib));
        self.address + Usd(self.disk_gib_month.0.saturating_mul(gib).div_ceil(MONTH_HOURS))
    }
}

impl Prices {
    /// The highest price of an hour of the machine itself.
    pub(super) fn machine(
        &self,
        provider: ProviderName,
        fleet: Fleet,
        arch: Arch,
        size: MachineSize,
    ) -> Option<Usd> {
        self.machines.get(&(provider, fleet, arch, size)).copied()
    }

    /// The price of an hour of its address and disk.
    pub(super) fn extras(&self, provider: ProviderName, disk_gib: Option<u32>) -> Usd {
        self.extras.get(&provider).map_or(Usd::ZERO, |extras| extras.hour(disk_gib))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_disk_of_an_hour_are_rounded_up() {
        let extras = Extras { address: Usd(5_000), disk_gib_month: Usd(80_000), disk_gib: 50 };
        let prices = Prices { extras: [(ProviderName::Aws, extras)].into(), ..Prices::default() };

        assert_eq!(prices.extras(ProviderName::Aws, None), Usd(5_000 + 5_480));
        assert_eq!(prices.extras(ProviderName::Aws, Some(20)), Usd(5_000 + 2_192));
        assert_eq!(prices.extras(ProviderName::Local, Some(20)), Usd::ZERO);
    }
}
