# The golden image of DigitalOcean: a snapshot, called stagely-golden-amd64-VERSION, by which core finds the
# newest. There are no ARM64 machines.
#
#   packer build -var version=… -var stagely_binary=… -var stagely_sha256=… packer/digitalocean.pkr.hcl

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

variable "token" {
  type        = string
  default     = env("DIGITALOCEAN_TOKEN")
  sensitive   = true
  description = "May create machines and snapshots. From DIGITALOCEAN_TOKEN."
}

variable "region" {
  type    = string
  default = "fra1"
}

variable "copy_to_regions" {
  type    = list(string)
  default = []
}

variable "image" {
  type        = string
  default     = "debian-13-x64"
  description = "The image to begin with."
}

variable "size" {
  type        = string
  default     = "s-1vcpu-2gb"
  description = "What the snapshot is made on. Its disk is the least that a machine of the snapshot may have."
}

# Empty but for tests against another server than DigitalOcean.
variable "api_url" {
  type    = string
  default = ""
}

# Of the machine that the snapshot is made on, so that what a build leaves when it is cut off can be found. A tag
# has no dots. Core goes by the snapshot's name, and its own machines' tags are others.
locals {
  tags = [
    "stagely-golden-image",
    "stagely:golden-image:${replace(var.version, ".", "_")}",
    "stagely:arch:amd64",
  ]
}

source "digitalocean" "golden" {
  api_token        = var.token
  api_url          = var.api_url
  region           = var.region
  snapshot_regions = var.copy_to_regions
  image            = var.image
  size             = var.size
  droplet_name     = "stagely-golden-amd64"
  snapshot_name    = "stagely-golden-amd64-${var.version}"
  ssh_username     = "root"
  tags             = local.tags
}

build {
  sources = ["source.digitalocean.golden"]

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
      "STAGELY_NETWORK=cloud-init",
    ]
    scripts = [
      "${path.root}/provision/10-packages.sh",
      "${path.root}/provision/20-stagely.sh",
      "${path.root}/provision/30-boot.sh",
      "${path.root}/provision/90-seal.sh",
    ]
  }
}
