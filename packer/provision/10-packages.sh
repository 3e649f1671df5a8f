#!/bin/sh
# Docker, Git and the rest of packer/packages, from the packages of the system that this is. What is there
# is left alone.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
folder="${STAGELY_FOLDER:?}"

main() {
    # Before the engine starts for the first time: images of another store would be lost.
    install -D -m 0644 "$folder/files/daemon.json" /etc/docker/daemon.json
    install -D -m 0644 "$folder/files/docker.conf" /etc/systemd/system/docker.service.d/stagely.conf
    install -D -m 0644 "$folder/dpkg.cfg" /etc/dpkg/dpkg.cfg.d/stagely
    missing="$(list_missing)"
    [ -z "$missing" ] || install_missing
    check
}

list_missing() {
    files="$folder/packages"
    [ "${STAGELY_TOOLCHAINS:-no}" = no ] || files="$files $folder/toolchains"
    # shellcheck disable=SC2013,SC2086  # words of several files
    for package in $(sed 's/#.*//' $files); do
        # Where networks are not ours to set, neither is who knows the names.
        [ "$package" != systemd-resolved ] || [ "${STAGELY_NETWORK:?}" = dhcp ] || continue
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
    done
}

install_missing() {
    sources=''
    [ -z "${STAGELY_SNAPSHOT:-}" ] || use_snapshot
    # A machine that has just booted may be updating itself.
    apt="apt-get -q -o DPkg::Lock::Timeout=300 $sources"
    $apt update -o APT::Update::Error-Mode=any
    here=''
    for package in $missing; do
        [ "$package" != docker-compose ] || package="$(compose_package)"
        # shellcheck disable=SC2086  # words
        if apt-cache $sources show "$package" >/dev/null 2>&1; then here="$here $package"; else echo "this release has no $package"; fi
    done
    # shellcheck disable=SC2086  # words
    $apt install -y --no-install-recommends $here
}

# Ubuntu's docker-compose is the program that came before the plugin.
compose_package() {
    # shellcheck disable=SC2086  # words
    if apt-cache $sources show docker-compose-v2 >/dev/null 2>&1; then echo docker-compose-v2; else echo docker-compose; fi
}

# Debian's archive as it was at one moment, for these packages and in place of what the image asks otherwise. Its
# lists are old, so that they have run out means nothing.
use_snapshot() {
    release="$(. /etc/os-release && echo "$ID $VERSION_CODENAME")"
    suite="${release#debian }"
    [ "$suite" != "$release" ] || fail "snapshots are of Debian, and this is $release"
    archive=http://snapshot.debian.org/archive
    options='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg check-valid-until=no]'
    cat >"$folder/snapshot.list" <<SOURCES
deb $options $archive/debian/$STAGELY_SNAPSHOT $suite main
deb $options $archive/debian/$STAGELY_SNAPSHOT $suite-updates main
deb $options $archive/debian-security/$STAGELY_SNAPSHOT $suite-security main
SOURCES
    sources="-o Dir::Etc::SourceList=$folder/snapshot.list -o Dir::Etc::SourceParts=-"
}

# What a release lacks must have come with another package.
check() {
    docker --version
    docker buildx version || fail "no docker buildx: take Debian 13, Ubuntu 24.04, or later"
    docker compose version || fail "no docker compose: take Debian 13, Ubuntu 24.04, or later"
    git --version
    cloud-init --version
    command -v growpart
    command -v resize2fs
    case "$(uname -m)" in x86_64) other=aarch64 ;; *) other=x86_64 ;; esac
    "qemu-$other-static" --version
}

fail() {
    echo "error: $1" >&2
    exit 1
}

main
