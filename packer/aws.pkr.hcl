# The golden image of AWS: an AMI, whose tags say what it is and for which processor. Core finds the newest.
#
#   packer build -var arch=arm64 -var version=… -var stagely_binary=… -var stagely_sha256=… packer/aws.pkr.hcl

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

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "copy_to_regions" {
  type    = list(string)
  default = []
}

variable "source_ami" {
  type        = string
  default     = ""
  description = "The image to begin with. Debian's newest where it is empty."
}

variable "source_ami_owner" {
  type        = string
  default     = "136693071363"
  description = "Who publishes it: Debian's own account."
}

variable "source_ami_name" {
  type        = string
  default     = ""
  description = "Its name. debian-13-ARCH-* where it is empty."
}

variable "root_device" {
  type        = string
  default     = "/dev/xvda"
  description = "What the image to begin with calls its root volume: Debian's /dev/xvda, Ubuntu's /dev/sda1."
}

variable "ssh_username" {
  type        = string
  default     = "admin"
  description = "Debian's images call the user admin, Ubuntu's ubuntu."
}

variable "instance_type" {
  type        = string
  default     = ""
  description = "What the image is made on. t3.small or t4g.small where it is empty."
}

variable "subnet_id" {
  type    = string
  default = ""
}

# Empty but for tests against another server than AWS.
variable "ec2_endpoint" {
  type    = string
  default = ""
}

variable "ssh_host" {
  type    = string
  default = ""
}

variable "ssh_port" {
  type    = number
  default = 22
}

variable "ssh_keypair_name" {
  type    = string
  default = ""
}

variable "ssh_private_key_file" {
  type    = string
  default = ""
}

locals {
  instance_type = var.instance_type != "" ? var.instance_type : (var.arch == "arm64" ? "t4g.small" : "t3.small")
  machine       = var.arch == "arm64" ? "arm64" : "x86_64"
  image_name    = var.source_ami_name != "" ? var.source_ami_name : "debian-13-${var.arch}-*"
  elsewhere     = var.ec2_endpoint != ""
  tags = {
    "Name"                 = "stagely-golden-${var.arch}-${var.version}"
    "stagely:golden-image" = var.version
    "stagely:arch"         = var.arch
  }
}

source "amazon-ebs" "golden" {
  ami_name        = "stagely-golden-${var.arch}-${var.version}"
  ami_description = "Stagely ${var.version} for ${var.arch}: Docker, Git and the agent"
  ami_regions     = var.copy_to_regions
  region          = var.region
  instance_type   = local.instance_type
  subnet_id       = var.subnet_id
  source_ami      = var.source_ami
  ssh_username    = var.ssh_username
  # A build that is cut off leaves a machine: it may then end itself.
  shutdown_behavior = "terminate"

  source_ami_filter {
    filters = {
      name                = local.image_name
      architecture        = local.machine
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = [var.source_ami_owner]
    most_recent = true
  }

  # The root volume of a machine is as large as its fleet wants: it grows at boot.
  launch_block_device_mappings {
    device_name = var.root_device
    volume_size = 8
    volume_type = "gp3"
    # What gp3 has for nothing.
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }

  tags            = local.tags
  snapshot_tags   = local.tags
  run_tags        = local.tags
  run_volume_tags = local.tags

  custom_endpoint_ec2        = var.ec2_endpoint
  skip_region_validation     = local.elsewhere
  skip_metadata_api_check    = local.elsewhere
  skip_credential_validation = local.elsewhere
  ssh_host                   = var.ssh_host
  ssh_port                   = var.ssh_port
  ssh_keypair_name           = var.ssh_keypair_name
  ssh_private_key_file       = var.ssh_private_key_file
}

build {
  sources = ["source.amazon-ebs.golden"]

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
