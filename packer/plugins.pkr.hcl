# What Packer 1.7 and newer load: `packer init packer/plugins.pkr.hcl`, once. Older ones have it built in and
# do not know this block, so it stands apart from the templates.
packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = "1.3.9"
    }
    digitalocean = {
      source  = "github.com/digitalocean/digitalocean"
      version = "1.4.0"
    }
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = "1.1.0"
    }
  }
}
