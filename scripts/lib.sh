# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use the names
# What all scripts share: folders, messages, and the few checks they have in common.

REPO_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Holds all that scripts/setup keeps outside of packages: the registry with its password, the base
# images, the tests' tools, and the logs of the services.
SETUP_DIR="${STAGELY_SETUP_DIR:-/var/lib/stagely-dev}"
SETUP_ENV="$SETUP_DIR/env"
REGISTRY_PORT="${STAGELY_REGISTRY_PORT:-5000}"
MIRROR_PORT="${STAGELY_MIRROR_PORT:-5002}"

# The demo and the tests share one profile and this folder, which lies outside the clone.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/stagely/target}"

# prepend_path DIR, append_path DIR
prepend_path() { [[ ":$PATH:" == *":$1:"* ]] || PATH="$1:$PATH"; }
append_path() { [[ ":$PATH:" == *":$1:"* ]] || PATH="$PATH:$1"; }

# A freshly installed toolchain is not on the PATH of this shell yet. It comes before the
# distribution's, which may be older.
prepend_path "$HOME/.cargo/bin"
# Ordinary users' PATH lacks the folders of root's programs.
append_path /usr/sbin
append_path /sbin
append_path "$SETUP_DIR/bin"

# say LINE...
say() { printf '%s\n' "$@"; }
ok() { printf 'ok    %s\n' "$*"; }
doing() { printf '...   %s\n' "$*"; }
warn() { printf 'note  %s\n' "$*" >&2; }

# die MESSAGE [REMEDY]
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  try: %s\n' "$2" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# version_at_least FOUND WANTED
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# in_docker_group [USER] : without USER, whether this process has the group
in_docker_group() { [[ " $(id -nG "$@") " == *" docker "* ]]; }

# needs_docker_group : a new member of the group docker has it only from the next login on
needs_docker_group() { ! in_docker_group && in_docker_group "$(id -un)"; }

# take_docker_group ARGUMENT... : where it is needed, starts the script anew with the group docker
take_docker_group() {
    needs_docker_group || return 0
    exec sg docker -c "$(printf '%q ' "$0" "$@")" 9>&-
}

# Puts the registry's address and credentials, as scripts/setup left them, in the environment.
load_setup_env() {
    [ -r "$SETUP_ENV" ] || die "$SETUP_ENV is missing" "scripts/setup"
    set -a
    # shellcheck source=/dev/null
    . "$SETUP_ENV"
    set +a
}

# The Debian mirror that this machine is configured with, or the public one: Ubuntu has none.
debian_mirror() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 !~ /-(updates|security|backports)/ && !mirror { mirror = $3 }
            END { print mirror ? mirror : "http://deb.debian.org/debian" }'
}
