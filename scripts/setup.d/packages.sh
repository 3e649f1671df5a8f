# shellcheck shell=bash
# The distribution's packages that compiling, the demo and the tests need, except the Docker engine.

# Each pair is a command, or a file, and the package that brings it.
PACKAGES_BUILD="cc:gcc /usr/include/stdlib.h:libc6-dev pkg-config:pkg-config
    /usr/include/openssl/ssl.h:libssl-dev /etc/ssl/certs/ca-certificates.crt:ca-certificates curl:curl"
PACKAGES_DEMO="git:git ss:iproute2 htpasswd:apache2-utils docker-registry:docker-registry setsid:util-linux
    mount:mount sg:login ps:procps"
# openssh-client has ssh-keygen, for the user data of the qemu template.
PACKAGES_TEST="git-lfs:git-lfs python3:python3 jq:jq cloud-init:cloud-init shellcheck:shellcheck ssh-keygen:openssh-client
    mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs caddy:caddy pebble:pebble"
# For the golden image that the tests boot, which is for AMD64.
PACKAGES_TEST_AMD64="genisoimage:genisoimage qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils"

packages_todo() {
    local missing
    missing="$(missing_packages)"
    [ -z "$missing" ] || say "install packages: ${missing//$'\n'/ }"
}

packages_do() {
    # cloud-init only checks user data here. At the next boot it would take this machine for a new one.
    [ "$PURPOSE" != test ] || has cloud-init || as_root install -D -m 0644 /dev/null /etc/cloud/cloud-init.disabled
    apt_update
    install_missing_packages
    # Packages of one source can demand equal versions: apt removes one that is there for one that is missing.
    [ -z "$(missing_packages)" ] || install_missing_packages
    disable_packaged_servers
}

install_missing_packages() {
    # shellcheck disable=SC2046  # the packages are words
    apt_install $(missing_packages)
}

packages_report() {
    [ "$PURPOSE" = build ] || [ -x "$(git --exec-path)/git-http-backend" ] ||
        die "git came without git-http-backend" "apt-get install git"
    ok "packages of $DISTRIBUTION"
}

missing_packages() {
    local pair pairs="$PACKAGES_BUILD"
    [ "$PURPOSE" = build ] || pairs+=" $PACKAGES_DEMO"
    [ "$PURPOSE" != test ] || pairs+=" $PACKAGES_TEST $(browser_packages)"
    [ "$PURPOSE/$ARCH" != test/amd64 ] || pairs+=" $PACKAGES_TEST_AMD64"
    for pair in $pairs; do
        is_there "${pair%%:*}" || say "${pair##*:}"
    done
    [ "$PURPOSE" = build ] || find_qemu "$OTHER_MACHINE" >/dev/null || say qemu-user-static
    [ "$PURPOSE" != test ] || python3 -c 'import ensurepip, venv' 2>/dev/null || say python3-venv
}

# Ubuntu's packages install a snap.
browser_packages() {
    if [ "$DISTRIBUTION" = ubuntu ]; then
        say "chromium-browser:chromium-browser chromedriver:chromium-chromedriver"
    else
        say "chromium:chromium chromedriver:chromium-driver"
    fi
}

# is_there COMMAND_OR_FILE
is_there() {
    case "$1" in
    /*) [ -e "$1" ] ;;
    *) has "$1" ;;
    esac
}

# The package's own registry has no password and would take our port at the next boot. Caddy would take port 80.
disable_packaged_servers() {
    local server
    ! has_systemd || for server in docker-registry caddy; do
        as_root systemctl disable --quiet "$server" 2>/dev/null || true
    done
}
