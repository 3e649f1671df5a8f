#!/bin/sh
# Says what this image is, and removes what belongs to the machine on which it was made.
set -eu
export LC_ALL=C

main() {
    write_version
    remove_engine_data
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt /var/log/journal /tmp/stagely
    rm -rf /usr/share/man/* /usr/share/info/*
    cloud-init clean --logs --seed
    rm -f /etc/ssh/ssh_host_* /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys /var/lib/systemd/random-seed
    rm -f /etc/hostname
    echo localhost >/etc/hostname
    # Empty, not absent: a system without the file takes this for its first boot and sets all services anew.
    : >/etc/machine-id
    rm -f /var/lib/dbus/machine-id
    # Otherwise systemd compares each file of /usr with caches at boot.
    touch /etc/.updated /var/.updated
    sync
}

write_version() {
    cat >/etc/stagely/image.json <<JSON
{
  "version": "${STAGELY_VERSION:?}",
  "arch": "$(dpkg --print-architecture)",
  "system": "$(. /etc/os-release && echo "$PRETTY_NAME")",
  "docker": "$(dpkg-query -W -f '${Version}' docker.io)",
  "stagely": "$(/usr/local/bin/stagely --version | cut -d' ' -f2)",
  "snapshot": "${STAGELY_SNAPSHOT:-}",
  "made": "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
}
JSON
    cat /etc/stagely/image.json
    # Of every package the version, as `apt-get install` takes it.
    dpkg-query -W -f '${db:Status-Abbrev}${binary:Package}=${Version}\n' | sed -n 's/^ii //p' >/etc/stagely/packages
}

# On a machine the engine has started with its packages.
remove_engine_data() {
    [ ! -d /run/systemd/system ] || systemctl stop docker.socket docker.service containerd.service
    rm -rf /var/lib/docker /var/lib/containerd
}

main
