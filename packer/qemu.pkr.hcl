# The golden image of QEMU, from Debian's own cloud image. It has partitions and a boot loader; the one that
# scripts/golden-image makes has neither, needs no Packer, and boots sooner.
#
#   packer/qemu-seed SEED
#   packer build -var seed=SEED -var base=… -var base_checksum=… -var version=… -var stagely_binary=… \
#     -var stagely_sha256=… packer/qemu.pkr.hcl

variable "version" {
  type        = string
  description = "What the image is called by: 0.1.0-20261128, say."
}

variable "stagely_binary" {
  type        = string
  description = "The stagely program for the machines' processor, as scripts/release made it."
}

variable "stagely_sha256" {
  type        = string
  description = "Its checksum, as SHA256SUMS of the release says it."
}

variable "toolchains" {
  type        = string
  default     = "no"
  description = "yes: also Node.js, Go and Python, for steps that run outside of containers."
}

variable "snapshot" {
  type        = string
  default     = ""
  description = "20261101T000000Z, say: Debian's packages as they were then, of snapshot.debian.org. Today's where empty."
}

variable "arch" {
  type        = string
  default     = "amd64"
  description = "The machines' processor: amd64 or arm64."
}

variable "base" {
  type        = string
  description = "The disk to begin with: debian-13-genericcloud-ARCH.qcow2 of cloud.debian.org, a path or an address."
}

variable "base_checksum" {
  type        = string
  description = "sha512:… of Debian's SHA512SUMS."
}

variable "seed" {
  type        = string
  description = "What packer/qemu-seed made: user data for the build, and the key that it lets in."
}

variable "output" {
  type    = string
  default = "golden-image"
}

variable "disk_size" {
  type    = string
  default = "10G"
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "tcg where there is no KVM."
}

variable "ssh_timeout" {
  type    = string
  default = "10m"
}

variable "qemuargs" {
  type        = list(list(string))
  default     = []
  description = "Further arguments of QEMU's: -kernel and -append for a disk without a boot loader."
}

locals {
  firmware = var.arch == "arm64" ? [["-bios", "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"]] : []
  cpu      = var.accelerator == "kvm" ? "host" : (var.arch == "arm64" ? "cortex-a72" : "qemu64,-svm")
}

source "qemu" "golden" {
  qemu_binary      = var.arch == "arm64" ? "qemu-system-aarch64" : "qemu-system-x86_64"
  machine_type     = var.arch == "arm64" ? "virt" : "q35"
  accelerator      = var.accelerator
  cpus             = 2
  memory           = 2048
  headless         = true
  disk_image       = true
  iso_url          = var.base
  iso_checksum     = var.base_checksum
  disk_size        = var.disk_size
  format           = "qcow2"
  disk_compression = true
  output_directory = var.output
  vm_name          = "stagely-golden-${var.arch}-${var.version}.qcow2"
  net_device       = "virtio-net"
  cd_files         = ["${var.seed}/user-data", "${var.seed}/meta-data"]
  cd_label         = "cidata"
  qemuargs         = concat([["-cpu", local.cpu], ["-serial", "file:${var.output}.console"]], local.firmware, var.qemuargs)

  ssh_username         = "packer"
  ssh_private_key_file = "${var.seed}/key"
  ssh_timeout          = var.ssh_timeout
  # The user is for this build alone. Its home is root's to remove once it has gone.
  shutdown_command = "sudo sh -c 'userdel --force --remove packer; rm -f /etc/sudoers.d/90-cloud-init-users; poweroff'"
}

build {
  sources = ["source.qemu.golden"]

  # A machine that has just booted may still be changing what we are about to change.
  provisioner "shell" {
    inline = ["cloud-init status --wait || true", "mkdir -p /tmp/stagely"]
  }

  provisioner "file" {
    source      = "${path.root}/"
    destination = "/tmp/stagely"
  }

  provisioner "file" {
    source      = var.stagely_binary
    destination = "/tmp/stagely/stagely"
  }

  provisioner "shell" {
    execute_command = "chmod +x {{ .Path }}; sudo env {{ .Vars }} sh {{ .Path }}"
    environment_vars = [
      "STAGELY_FOLDER=/tmp/stagely",
      "STAGELY_VERSION=${var.version}",
      "STAGELY_SHA256=${var.stagely_sha256}",
      "STAGELY_TOOLCHAINS=${var.toolchains}",
      "STAGELY_SNAPSHOT=${var.snapshot}",
      "STAGELY_NETWORK=dhcp",
    ]
    scripts = [
      "${path.root}/provision/10-packages.sh",
      "${path.root}/provision/20-stagely.sh",
      "${path.root}/provision/30-boot.sh",
      "${path.root}/provision/90-seal.sh",
    ]
  }
}
