# shellcheck shell=bash
# Installs packages with apt, and asks before packages of another release replace those of this system.

POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="made by Stagely's scripts/setup"
APT_LOG="$SETUP_DIR/apt.log"
# Debian 12's engine has no buildx, and it has no rustup; the packages of this release run on it too.
NEWER_DEBIAN=trixie
NEWER_DEBIAN_SOURCE=/etc/apt/sources.list.d/stagely.sources
NEWER_DEBIAN_PIN=/etc/apt/preferences.d/stagely
# Cloud machines update themselves at their first boot, and hold apt's locks meanwhile.
APT_GET=(apt-get -qq -o DPkg::Lock::Timeout=300)

# Services of new packages must not start before they are configured.
forbid_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

# The mark tells our file, also one that a killed run left behind, from the owner's.
allow_services() { ! grep -qsF "$POLICY_MARK" "$POLICY" || as_root rm -f "$POLICY"; }

# Once a run is enough, unless a source was added since.
apt_update() {
    local tries=4
    [ "${APT_UPDATED:-no}" = no ] || return 0
    doing "update the package lists"
    # Only with this error mode does apt-get report what it could not fetch.
    while ! as_root "${APT_GET[@]}" update -o APT::Update::Error-Mode=any >"$APT_LOG" 2>&1 9>&-; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { judge_failed_update && break; }
        doing "the package lists cannot be updated: trying again in 15 s"
        sleep 15 9>&-
    done
    APT_UPDATED=yes
}

apt_source_added() {
    APT_UPDATED=no
    apt_update
}

# With old lists setup goes on: the failing source may be one that is not needed. Without lists every
# package would seem to be missing.
judge_failed_update() {
    tail -n 5 "$APT_LOG" >&2
    lists_are_there || die "apt-get update failed, and the lists of $DISTRIBUTION's packages are missing" "apt-get update"
    warn "apt-get update had errors: see $APT_LOG"
}

lists_are_there() { apt-cache policy | grep -i "o=$DISTRIBUTION," >/dev/null; }

# candidate PACKAGE : the version that would be installed of this release, if any
candidate() {
    local version
    version="$(apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }')"
    if [ -n "$version" ] && [ -e "$NEWER_DEBIAN_SOURCE" ]; then
        apt-cache madison "$1" | grep -F "| $version |" | grep -v " $NEWER_DEBIAN/" >/dev/null || return 0
    fi
    [ -z "$version" ] || say "$version"
}

# apt_install PACKAGE... : also takes options of apt-get
apt_install() {
    doing "install: $*"
    simulate_install "$@" | awk '
        $1 == "upgraded" { upgraded = upgraded " " $2 }
        $1 == "removed" { removed = removed " " $2 }
        END {
            if (upgraded) print "      upgraded for it:" upgraded
            if (removed) print "      removed for it:" removed
        }'
    forbid_services
    as_root env DEBIAN_FRONTEND=noninteractive "${APT_GET[@]}" install -y --no-install-recommends "$@" \
        >>"$APT_LOG" 2>&1 9>&- ||
        { tail -n 5 "$APT_LOG" >&2 && die "packages could not be installed" "apt-get install $*"; }
    allow_services
}

# simulate_install PACKAGE... : prints `upgraded NAME` and `removed NAME` for packages that are installed
simulate_install() {
    { apt-get install -s --no-install-recommends "$@" 2>/dev/null || true; } | awk '
        $1 == "Inst" && $3 ~ /^\[/ { print "upgraded", $2 }
        $1 == "Remv" { print "removed", $2 }'
}

# install_from_newer_debian REASON PACKAGE... : fails where the packages do not fit this system
install_from_newer_debian() {
    local reason="$1" upgraded added=no
    shift
    [ -e "$NEWER_DEBIAN_SOURCE" ] || { add_newer_debian && added=yes; }
    apt-get install -s -t "$NEWER_DEBIAN" --no-install-recommends "$@" >/dev/null 2>&1 || return 1
    upgraded="$(simulate_install -t "$NEWER_DEBIAN" "$@" | awk '$1 == "upgraded" { printf " %s", $2 }')"
    if [ -n "$upgraded" ] && ! agrees "$reason" "$upgraded"; then
        [ "$added" = no ] || remove_newer_debian
        die "$* cannot be installed without these upgrades, and nobody has agreed to them" "the same command with --yes"
    fi
    apt_install -t "$NEWER_DEBIAN" "$@"
}

# With priority 100 nothing is taken from this source unless a command names the release.
add_newer_debian() {
    as_root tee "$NEWER_DEBIAN_SOURCE" >/dev/null <<SOURCE
Types: deb
URIs: $(debian_mirror)
Suites: $NEWER_DEBIAN
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' "$NEWER_DEBIAN" |
        as_root tee "$NEWER_DEBIAN_PIN" >/dev/null
    apt_source_added
}

remove_newer_debian() { as_root rm -f "$NEWER_DEBIAN_SOURCE" "$NEWER_DEBIAN_PIN"; }

# agrees REASON PACKAGES : whether the owner of the machine lets these be upgraded to another release's
agrees() {
    local answer=''
    warn "$1"
    warn "Debian $NEWER_DEBIAN's packages can be used instead. They upgrade these packages of this system to $NEWER_DEBIAN's:"
    fold -s -w 100 <<<"${2# }" | sed 's/^/      /' >&2
    [ "$YES" = no ] || return 0
    [ -t 0 ] || return 1
    read -r -p "      Upgrade them? [y/N] " answer
    [[ "$answer" =~ ^[yY]([eE][sS])?$ ]]
}
