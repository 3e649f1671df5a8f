#!/bin/sh
# What happens at boot, and no more: user data, DHCP, the agent, then Docker.
set -eu
files="${STAGELY_FOLDER:?}/files/image"

main() {
    # After the distribution's own files, which set the same.
    put cloud-init.cfg /etc/cloud/cloud.cfg.d/99-stagely.cfg
    put ds-identify.cfg /etc/cloud/ds-identify.cfg
    put after-agent.conf /etc/systemd/system/docker.service.d/stagely-order.conf
    put after-agent.conf /etc/systemd/system/containerd.service.d/stagely-order.conf
    if command -v sshd >/dev/null; then
        put cloud-init-ssh.cfg /etc/cloud/cloud.cfg.d/99-stagely-ssh.cfg
        put after-keys.conf /etc/systemd/system/ssh.service.d/stagely.conf
        # Before all other files there: the first word counts.
        put sshd.conf /etc/ssh/sshd_config.d/00-stagely.conf
        check_ssh
    fi
    put journald.conf /etc/systemd/journald.conf.d/stagely.conf
    put system.conf /etc/systemd/system.conf.d/stagely.conf
    case "${STAGELY_NETWORK:?}" in
    dhcp) ask_by_dhcp ;;
    # DigitalOcean has no DHCP: cloud-init reads the addresses from its metadata, and the image's own services
    # set them.
    cloud-init) ;;
    *) echo "error: STAGELY_NETWORK is dhcp or cloud-init" >&2 && exit 1 ;;
    esac
    mask_what_is_not_needed
}

put() { install -D -m 0644 "$files/$1" "$2"; }

# A configuration that reads no folder would still let passwords in.
check_ssh() {
    mkdir -p /run/sshd
    said="$(sshd -T)"
    for wanted in 'passwordauthentication no' 'kbdinteractiveauthentication no'; do
        echo "$said" | grep -qx "$wanted" || { echo "error: sshd does not say '$wanted'" >&2 && exit 1; }
    done
}

ask_by_dhcp() {
    put cloud-init-no-network.cfg /etc/cloud/cloud.cfg.d/99-stagely-network.cfg
    put dhcp.network /etc/systemd/network/05-stagely.network
    systemctl enable systemd-networkd.service
    ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
    # They would be asked for a second time.
    rm -f /etc/netplan/*.yaml /etc/network/interfaces.d/50-cloud-init
}

# A machine lives for minutes: nothing updates itself, checks or trims its disk, or waits for people at a
# console. Nothing waits for the network either: the agent tries until it is there. The last lines are what
# systemd does for hardware and settings that these machines have none of, a process each.
mask_what_is_not_needed() {
    for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service dpkg-db-backup.timer \
        e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer logrotate.timer motd-news.timer \
        update-notifier-download.timer update-notifier-motd.timer fwupd-refresh.timer ua-timer.timer \
        getty@tty1.service serial-getty@ttyS0.service serial-getty@ttyAMA0.service \
        ldconfig.service systemd-pstore.service systemd-networkd-wait-online.service \
        cloud-init-hotplugd.socket snapd.service snapd.socket snapd.seeded.service \
        multipathd.service multipathd.socket ModemManager.service \
        modprobe@drm.service modprobe@configfs.service sys-kernel-config.mount sys-kernel-debug.mount \
        sys-kernel-tracing.mount dev-hugepages.mount systemd-journal-flush.service \
        systemd-network-generator.service systemd-udev-load-credentials.service; do
        # In this order of names a unit is masked whether or not it is there.
        ln -sf /dev/null "/etc/systemd/system/$unit"
    done
}

main
