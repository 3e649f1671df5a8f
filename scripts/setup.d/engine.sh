# shellcheck shell=bash
# The Docker engine with buildx and compose: from the distribution, from Docker's own packages, or from a newer Debian.

BUILDX_MIN=0.13
DAEMON_JSON=/etc/docker/daemon.json
DOCKER_URL=https://download.docker.com/linux
DOCKER_KEY=/etc/apt/keyrings/stagely-docker.asc
DOCKER_KEY_SHA256=1500c1f56fa9e26b9b8f42452a553675796ade0807cdce11975eb98170b3a570
DOCKER_SOURCE=/etc/apt/sources.list.d/stagely-docker.sources

engine_todo() {
    if engine_answers; then
        buildx_is_new_enough || say "install Docker's buildx $BUILDX_MIN or newer, $(describe_engine_source)"
        has_compose || say "install Docker's compose, $(describe_engine_source)"
    elif has dockerd && plugins_are_there; then
        say "start the Docker engine"
    else
        say "install a Docker engine with buildx $BUILDX_MIN or newer and compose, $(describe_engine_source)"
        [ -e "$DAEMON_JSON" ] || say "write $DAEMON_JSON, which chooses the containerd store"
        say "start the Docker engine"
    fi
}

engine_do() {
    if engine_answers; then
        install_docker "docker-buildx $(compose_package)" "docker-buildx-plugin docker-compose-plugin"
        return
    fi
    enter_docker_group
    { has dockerd && plugins_are_there; } || install_engine
    [ -e "$DAEMON_JSON" ] || engine_has_data || write_daemon_json
    start_engine
}

engine_report() {
    ok "Docker $(docker version -f '{{.Server.Version}}'), buildx $(buildx_version), compose $(docker compose version --short)"
    docker info -f '{{.DriverStatus}}' | grep -q io.containerd.snapshotter ||
        warn "this engine does not use the containerd store, so build caches cannot be exported: set {\"features\":{\"containerd-snapshotter\":true}} in $DAEMON_JSON and restart it"
}

buildx_version() { docker buildx version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1; }

buildx_is_new_enough() { has docker && version_at_least "$(buildx_version || echo 0)" "$BUILDX_MIN"; }

# Previews need it. Old programs called docker-compose are no plugins.
has_compose() { has docker && docker compose version >/dev/null 2>&1; }

plugins_are_there() { buildx_is_new_enough && has_compose; }

# Ubuntu's docker-compose is such an old program.
compose_package() { if [ "$DISTRIBUTION" = ubuntu ]; then echo docker-compose-v2; else echo docker-compose; fi; }

engine_answers() { has docker && timeout 20 docker info >/dev/null 2>&1; }

# An engine that root reaches and this user does not wants a group, not a second engine.
enter_docker_group() {
    [ "$(id -u)" != 0 ] && has docker && sudo docker info >/dev/null 2>&1 || return 0
    if ! in_docker_group "$(id -un)"; then
        doing "add $(id -un) to the group docker, whose members may use Docker (and so become root)"
        sudo usermod -aG docker "$(id -un)"
    fi
    take_docker_group "${ARGUMENTS[@]}"
    die "Docker runs, but $(id -un) may not use it, though in the group docker" "docker info; ls -l /var/run/docker.sock"
}

# --- packages --------------------------------------------------------------------------------

install_engine() {
    # Ubuntu's docker.io is the client too.
    local packages
    packages="docker.io docker-buildx $(compose_package)"
    [ "$DISTRIBUTION" = ubuntu ] || packages+=" docker-cli"
    install_docker "$packages" "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin"
}

# install_docker DEBIAN_PACKAGES DOCKER_PACKAGES
install_docker() {
    apt_update
    # shellcheck disable=SC2086  # the packages are words
    case "$(engine_source)" in
    distribution) apt_install $1 ;;
    docker) add_docker_source && apt_install $2 ;;
    debian)
        install_from_newer_debian "Neither this release nor Docker's own packages bring buildx $BUILDX_MIN ($DOCKER_URL does not answer)." $1 ||
            die "Debian $NEWER_DEBIAN's Docker engine does not fit this system" "install Docker from its own packages, then run this again"
        ;;
    none) die "this release has no docker-buildx $BUILDX_MIN, and $DOCKER_URL does not answer" "install Docker from its own packages, then run this again" ;;
    esac
    buildx_is_new_enough || die "docker buildx $BUILDX_MIN or newer is needed, found '$(buildx_version)'" "which -a docker"
    has_compose || die "docker compose is needed and was not installed" "docker compose version"
}

# Prints which of the sources is used: the first one that has a buildx that is new enough.
engine_source() {
    if distribution_has_buildx; then
        echo distribution
    elif curl -sf -o /dev/null -m 10 "$(docker_release_url)" 2>/dev/null; then
        echo docker
    elif [ "$DISTRIBUTION" = debian ]; then
        echo debian
    else
        echo none
    fi
}

describe_engine_source() {
    local newer="of Debian $NEWER_DEBIAN: that upgrades packages of this system, libc6 among them, so scripts/setup names them and asks first"
    if ! lists_are_there; then
        echo "of this distribution where it has one (apt-get update tells)"
    elif ! has curl && ! distribution_has_buildx; then
        echo "of Docker's own packages where $DOCKER_URL answers, else $newer"
    else
        case "$(engine_source)" in
        distribution) echo "of this distribution" ;;
        docker) echo "of Docker's own packages, whose source $DOCKER_URL is added" ;;
        debian) echo "$newer" ;;
        none) echo "but no source has it" ;;
        esac
    fi
}

distribution_has_buildx() {
    local version
    version="$(candidate docker-buildx)"
    [ -n "$version" ] && version_at_least "$version" "$BUILDX_MIN"
}

docker_release_url() {
    printf '%s/%s/dists/%s/Release' "$DOCKER_URL" "$DISTRIBUTION" "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
}

add_docker_source() {
    local key
    key="$(mktemp)"
    fetch "$DOCKER_URL/$DISTRIBUTION/gpg" "$DOCKER_KEY_SHA256" "$key" ||
        die "the key of Docker's packages cannot be had" "curl -I $DOCKER_URL/$DISTRIBUTION/gpg"
    as_root install -D -m 0644 "$key" "$DOCKER_KEY"
    rm "$key"
    as_root tee "$DOCKER_SOURCE" >/dev/null <<SOURCE
Types: deb
URIs: $DOCKER_URL/$DISTRIBUTION
Suites: $(. /etc/os-release && echo "$VERSION_CODENAME")
Components: stable
Signed-By: $DOCKER_KEY
SOURCE
    apt_source_added
}

# --- the service -----------------------------------------------------------------------------

# Images of another store would be out of sight after the change, so that is left to their owner.
engine_has_data() { [ -n "$(as_root ls -A /var/lib/docker 2>/dev/null)" ]; }

# Only the containerd store lets the default builder export caches and build several platforms.
write_daemon_json() {
    local mirrors=''
    public_registry_answers || mirrors="\"http://127.0.0.1:$MIRROR_PORT\""
    as_root install -d /etc/docker
    printf '{\n  "features": { "containerd-snapshotter": true },\n  "registry-mirrors": [%s]\n}\n' "$mirrors" |
        as_root tee "$DAEMON_JSON" >/dev/null
}

# BuildKit cuts a step's log at 2 MiB and 200 KiB/s unless the daemon's environment says otherwise.
start_engine() {
    doing "start the Docker engine"
    if has_systemd; then
        as_root install -d /etc/systemd/system/docker.service.d
        printf '[Service]\nEnvironment=BUILDKIT_STEP_LOG_MAX_SIZE=-1 BUILDKIT_STEP_LOG_MAX_SPEED=-1\n' |
            as_root tee /etc/systemd/system/docker.service.d/stagely.conf >/dev/null
        as_root systemctl daemon-reload
        as_root systemctl enable --quiet --now docker
    else
        remove_stale_pid_file
        as_root env BUILDKIT_STEP_LOG_MAX_SIZE=-1 BUILDKIT_STEP_LOG_MAX_SPEED=-1 \
            setsid --fork nohup dockerd >"$SETUP_DIR/dockerd.log" 2>&1 </dev/null 9>&-
    fi
    wait_until 60 as_root docker info || die "Docker did not start" "tail $SETUP_DIR/dockerd.log; journalctl -u docker"
    engine_answers || enter_docker_group
}

# A killed dockerd takes a moment to die, and a new one refuses to start while its process id lives,
# even if that id has gone to another program since.
remove_stale_pid_file() {
    local file=/var/run/docker.pid pid
    pid="$(cat $file 2>/dev/null)" || return 0
    wait_until 10 is_stopped "$pid" || [ "$(ps -o comm= -p "$pid")" != dockerd ] ||
        die "dockerd (process $pid) runs but does not answer" "kill $pid"
    as_root rm -f $file
}
