//! QEMU's arguments: a guest with the disk of a golden image, a seed and a network of its own.

use std::ffi::OsString;
use std::path::Path;

use stagely_protocol::Arch;

use super::disk::Disk;
use super::resources::Resources;

/// The file of the console in the guest's folder.
pub(super) const CONSOLE: &str = "serial.log";

#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) name: &'a str,
    pub(super) arch: Arch,
    /// Whether it runs on the host's own processor, which has the same arch.
    pub(super) kvm: bool,
    pub(super) resources: Resources,
    pub(super) kernel: &'a Path,
    pub(super) disk: &'a Disk,
    pub(super) seed: &'a Path,
    /// Holds the console.
    pub(super) folder: &'a Path,
}

/// The program that runs guests of `arch`, and its Debian package.
pub(super) const fn program(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }
}

impl Guest<'_> {
    /// QEMU's arguments. The process ends when the guest powers off, restarts or panics.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut all = Vec::new();
        let mut add = |option: &str, value: &str| all.extend([option.into(), value.into()]);
        add("-name", self.name);
        let (machine, cpu) = self.processor();
        add("-accel", if self.kvm { "kvm" } else { "tcg,thread=multi" });
        add("-machine", machine);
        add("-cpu", cpu);
        add("-smp", &self.resources.cpus.to_string());
        add("-m", &self.resources.memory_mib.to_string());
        // A guest that breaks out of the emulation can start no programs and gain no rights.
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny");
        add("-display", "none");
        add("-monitor", "none");
        add("-nic", "user,model=virtio-net-pci");
        // The image's kernel has NVMe built in, so there is no initrd. Writes go to a file that is deleted with the
        // process, so QEMU does not wait until they are on the disk.
        let (disk, drive) = match self.disk {
            Disk::Image(file) => {
                (file, "format=raw,if=none,cache=unsafe,discard=unmap,snapshot=on")
            }
            Disk::Overlay(file) => (file, "format=qcow2,if=none,cache=unsafe,discard=unmap"),
        };
        let disk = escape_commas(disk);
        add("-drive", &format!("file={disk},id=root,{drive}"));
        add("-device", "nvme,drive=root,serial=root");
        // Two NVMe disks would appear in any order, so this one is a virtio disk. Its driver is a module, and the disk
        // is absent when cloud-init detects the cloud, so the guest's serial number names the data source.
        let seed = escape_commas(self.seed);
        add("-drive", &format!("file={seed},format=raw,if=virtio,readonly=on"));
        add("-smbios", "type=1,serial=ds=nocloud");
        // QEMU appends to the file, so that core can truncate it while the guest runs.
        let console = escape_commas(&self.folder.join(CONSOLE));
        add("-chardev", &format!("file,id=console,append=on,path={console}"));
        add("-serial", "chardev:console");
        add("-kernel", &self.kernel.display().to_string());
        add("-append", &self.kernel_line());
        all.extend(["-nodefaults".into(), "-no-user-config".into(), "-no-reboot".into()]);
        all
    }

    const fn processor(&self) -> (&'static str, &'static str) {
        match (self.arch, self.kvm) {
            (Arch::Amd64, true) => ("q35", "host"),
            (Arch::Amd64, false) => ("q35", "qemu64,-svm"),
            (Arch::Arm64, true) => ("virt", "host"),
            // The default interrupt controller is limited to eight processors.
            (Arch::Arm64, false) => ("virt,gic-version=3", "cortex-a72"),
        }
    }

    fn kernel_line(&self) -> String {
        let console = match self.arch {
            // Without it the kernel waits for timer ticks, and panics where a busy host delivers none in time.
            Arch::Amd64 => "console=ttyS0 no_timer_check",
            Arch::Arm64 => "console=ttyAMA0",
        };
        // A guest runs one build, so mitigations between its processes would only cost time. After a panic the
        // kernel restarts, which ends QEMU.
        format!("root=/dev/nvme0n1 rw {console} mitigations=off panic=-1 quiet")
    }
}

/// A file's name as a value in QEMU's lists of settings, which are separated by commas.
fn escape_commas(file: &Path) -> String {
    file.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use stagely_state::MachineSize;

    use super::*;

    fn arguments(arch: Arch, kvm: bool) -> String {
        arguments_of(arch, kvm, &Disk::Image("/i/root.img".into()))
    }

    fn arguments_of(arch: Arch, kvm: bool, disk: &Disk) -> String {
        let guest = Guest {
            name: "vm_1",
            arch,
            kvm,
            resources: Resources::of(MachineSize::Small, 2),
            kernel: Path::new("/i/vmlinuz"),
            disk,
            seed: Path::new("/m/vm_1/seed.iso"),
            folder: Path::new("/m/vm_1"),
        };
        let words = guest.arguments();
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_emulated_guest_has_its_disk_its_seed_and_its_console() {
        assert_eq!(
            arguments(Arch::Amd64, false),
            "-name vm_1 -accel tcg,thread=multi -machine q35 -cpu qemu64,-svm -smp 2 -m 3072 \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny -display none \
             -monitor none -nic user,model=virtio-net-pci \
             -drive file=/i/root.img,id=root,format=raw,if=none,cache=unsafe,discard=unmap,snapshot=on \
             -device nvme,drive=root,serial=root \
             -drive file=/m/vm_1/seed.iso,format=raw,if=virtio,readonly=on \
             -smbios type=1,serial=ds=nocloud -chardev file,id=console,append=on,path=/m/vm_1/serial.log -serial chardev:console \
             -kernel /i/vmlinuz \
             -append root=/dev/nvme0n1 rw console=ttyS0 no_timer_check mitigations=off panic=-1 quiet \
             -nodefaults -no-user-config -no-reboot"
        );
    }

    #[test]
    fn each_processor_has_its_machine_and_its_console() {
        let arm64 = arguments(Arch::Arm64, false);
        assert!(arm64.contains("-machine virt,gic-version=3 -cpu cortex-a72 "), "{arm64}");
        assert!(arm64.contains(" console=ttyAMA0 "), "{arm64}");
        for (arch, machine) in [(Arch::Amd64, "q35"), (Arch::Arm64, "virt")] {
            let kvm = arguments(arch, true);
            assert!(kvm.contains(&format!("-accel kvm -machine {machine} -cpu host ")), "{kvm}");
        }
    }

    #[test]
    fn a_larger_disk_keeps_the_writes_in_its_own_file() {
        let disk = Disk::Overlay("/m/vm_1/root.qcow2".into());
        let arguments = arguments_of(Arch::Amd64, false, &disk);
        let drive = "-drive file=/m/vm_1/root.qcow2,id=root,format=qcow2,if=none,cache=unsafe,discard=unmap ";
        assert!(arguments.contains(drive) && !arguments.contains("snapshot"), "{arguments}");
    }

    #[test]
    fn a_comma_in_a_file_name_is_escaped() {
        assert_eq!(escape_commas(Path::new("/a,b/root.img")), "/a,,b/root.img");
    }
}
