//! Whether this host has the memory for one more guest. Where guests need more than there is, the kernel kills
//! processes.

use std::fs;
use std::io;

use nix::unistd::Pid;

use super::error::GuestError;

/// The memory of QEMU itself, beside that of the guest.
const OVERHEAD_MIB: u64 = 256;

/// The host's memory, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    /// The memory that programs can get without swapping.
    pub(super) available: u64,
}

impl Memory {
    /// The memory of this host at this moment.
    pub(super) fn of_host() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo says nothing of memory"))
    }

    fn parse(meminfo: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            let line =
                meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? / 1024)
        };
        Some(Self { total: field("MemTotal")?, available: field("MemAvailable")? })
    }

    /// Checks that a guest of `wanted` MiB fits. The other guests may still take `promised` MiB.
    pub(super) fn check(self, wanted: u64, promised: u64) -> Result<(), GuestError> {
        let (wanted, Self { available, .. }) = (wanted + OVERHEAD_MIB, self);
        if wanted + promised > available {
            return Err(GuestError::NoMemory { wanted, available, promised });
        }
        Ok(())
    }

    /// Whether a guest of `wanted` MiB does not fit even if no other guest runs.
    pub(super) const fn is_too_small_for(self, wanted: u64) -> bool {
        wanted + OVERHEAD_MIB > self.total
    }
}

/// The part of its memory that the guest of QEMU's process `pid` has not taken yet, in MiB. 0 if it has ended.
pub(super) fn not_yet_taken(pid: Pid) -> u64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let arguments = read("cmdline");
    let mut arguments = arguments.split('\0').skip_while(|argument| *argument != "-m").skip(1);
    let size = arguments.next().and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
    let status = read("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    size.saturating_sub(resident.unwrap_or(0) / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_other_guests_may_still_take_is_not_available() {
        let meminfo = "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n";
        let host = Memory::parse(meminfo).unwrap();
        assert_eq!(host, Memory { total: 32_768, available: 20_480 });
        host.check(8192, 0).unwrap();
        host.check(8192, 12_032).unwrap();
        let why = host.check(8192, 12_033).unwrap_err().to_string();
        assert!(why.contains("8448") && why.contains("20480") && why.contains("12033"), "{why}");
        assert!(host.is_too_small_for(32_768) && !host.is_too_small_for(16_384));
        assert_eq!(Memory::parse("nothing"), None);
    }

    #[test]
    fn this_host_has_memory() {
        let host = Memory::of_host().unwrap();
        assert!(0 < host.available && host.available <= host.total, "{host:?}");
    }
}
