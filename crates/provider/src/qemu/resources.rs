//! The processors and the memory of a guest of each size.

use stagely_state::MachineSize;

/// A guest's share of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) cpus: usize,
    pub(super) memory_mib: u64,
}

impl Resources {
    /// The share of `size` on a host with `host_cpus` processors. A guest with more processors than its host would
    /// be slower.
    pub(super) fn of(size: MachineSize, host_cpus: usize) -> Self {
        let (cpus, gib) = match size {
            MachineSize::Small => (2, 3),
            MachineSize::Medium => (4, 8),
            MachineSize::Large => (8, 16),
            MachineSize::Xlarge => (16, 32),
        };
        Self { cpus: cpus.min(host_cpus), memory_mib: gib * 1024 }
    }

    /// The name that stands for an instance type.
    pub(super) fn name(self) -> String {
        let Self { cpus, memory_mib } = self;
        format!("{cpus} cpu{}, {} GiB", if cpus == 1 { "" } else { "s" }, memory_mib / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_never_has_more_processors_than_its_host() {
        let names = |host| MachineSize::ALL.map(|size| Resources::of(size, host).name());
        assert_eq!(
            names(64),
            ["2 cpus, 3 GiB", "4 cpus, 8 GiB", "8 cpus, 16 GiB", "16 cpus, 32 GiB"]
        );
        assert_eq!(
            names(6),
            ["2 cpus, 3 GiB", "4 cpus, 8 GiB", "6 cpus, 16 GiB", "6 cpus, 32 GiB"]
        );
        assert_eq!(names(1)[0], "1 cpu, 3 GiB");
    }
}
