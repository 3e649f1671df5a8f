# shellcheck shell=bash
# A registry on loopback that stands in for Docker Hub where that does not answer, with the few base images
# that are needed, made of Debian packages.

MIRROR_DIR="$SETUP_DIR/mirror"
IMAGES_DIR="$SETUP_DIR/images"
BASE_SUITE=trixie

# What the example builds from. The tests also start a registry in a container.
wanted_images() {
    say busybox debian:13-slim gcc:14
    [ "$PURPOSE" != test ] || say registry:2
}

base_images_todo() {
    local missing
    ! docker_hub_is_used || return 0
    missing="$(missing_images)"
    [ -z "$missing" ] || say "make base images, $(has curl && echo since || echo where) Docker Hub does not answer: ${missing//$'\n'/ }"
    port_answers "$MIRROR_PORT" || say "start the base images' registry on 127.0.0.1:$MIRROR_PORT"
}

base_images_do() {
    install -d "$MIRROR_DIR" "$IMAGES_DIR"
    if [ -n "$(missing_images)" ]; then
        make_missing_images
    else
        doing "start the base images' registry on port $MIRROR_PORT"
        serve_mirror true
    fi
}

base_images_report() {
    if docker_hub_is_used; then
        ok "base images come from Docker Hub"
        return
    fi
    docker info -f '{{.RegistryConfig.Mirrors}}' | grep -q "127.0.0.1:$MIRROR_PORT" ||
        warn "FROM busybox will not be found: add \"registry-mirrors\": [\"http://127.0.0.1:$MIRROR_PORT\"] to $DAEMON_JSON and restart Docker"
    ok "base images in 127.0.0.1:$MIRROR_PORT: $(filled_images)"
}

docker_hub_is_used() { [ ! -e "$MIRROR_DIR/filled" ] && public_registry_answers; }

# Any answer will do: without credentials it is 401.
public_registry_answers() { curl -s -o /dev/null -m 4 https://registry-1.docker.io/v2/ 2>/dev/null; }

filled_images() { cat "$MIRROR_DIR/filled" 2>/dev/null || true; }

missing_images() {
    local image
    for image in $(wanted_images); do
        [[ " $(filled_images) " == *" $image "* ]] || say "$image"
    done
}

# --- the registry ----------------------------------------------------------------------------

# serve_mirror READONLY : the registry is writable only while it is being filled
serve_mirror() {
    registry_config "$MIRROR_DIR/data" "$MIRROR_PORT" "$1" >"$MIRROR_DIR/config.yml"
    start_registry "$MIRROR_DIR" "$MIRROR_PORT"
}

make_missing_images() {
    local image filled
    install_image_tools
    # An earlier run may have been cut off while its registry was open.
    ! { port_answers "$MIRROR_PORT" && [ -e "$MIRROR_DIR/pid" ]; } || stop_registry "$MIRROR_DIR"
    serve_mirror false
    for image in $(missing_images); do
        case "$image" in
        busybox) make_and_push_busybox ;;
        debian:13-slim) make_and_push_debian debian 13-slim ;;
        gcc:14) make_and_push_debian gcc 14 gcc,libc6-dev,make ;;
        registry:2) push_registry_image ;;
        esac
        filled="$(filled_images)"
        echo "${filled:+$filled }$image" >"$MIRROR_DIR/filled.new"
        mv "$MIRROR_DIR/filled.new" "$MIRROR_DIR/filled"
    done
    stop_registry "$MIRROR_DIR"
    serve_mirror true
}

# push_image IMAGE PLATFORMS CONTEXT [BUILDX OPTION...]
push_image() {
    local image="$1" platforms="$2" context="$3"
    shift 3
    # The engine's own builder reaches loopback; another that the user has chosen may not.
    docker buildx build --builder "$(docker context show)" --quiet --provenance=false --platform "$platforms" --push "$@" \
        -t "127.0.0.1:$MIRROR_PORT/library/$image" "$context" >/dev/null ||
        die "the base image $image could not be pushed" "tail $MIRROR_DIR/log"
}

# push_root NAME TAG PLATFORMS SHELL : the archives NAME-ARCH.tar as an image
push_root() {
    # shellcheck disable=SC2016  # BuildKit fills TARGETARCH in
    printf 'FROM scratch\nARG TARGETARCH\nADD %s-${TARGETARCH}.tar /\nCMD ["%s"]\n' "$1" "$4" |
        push_image "$1:$2" "$3" "$IMAGES_DIR" -f -
}

# --- root file systems -----------------------------------------------------------------------

# mmdebstrap asks arch-test whether programs of an architecture run here.
install_image_tools() {
    local pair missing=()
    for pair in mmdebstrap:mmdebstrap arch-test:arch-test \
        /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring; do
        is_there "${pair%%:*}" || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} = 0 ] || { apt_update && apt_install "${missing[@]}"; }
}

# make_root TAR ARCH VARIANT [MMDEBSTRAP OPTION...]
make_root() {
    local tar="$IMAGES_DIR/$1" architecture="$2" variant="$3"
    shift 3
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main' \
        "${STAGELY_DEBIAN_MIRROR:-$(debian_mirror)}" "$BASE_SUITE" |
        as_root mmdebstrap --quiet --architectures="$architecture" --variant="$variant" --format=tar \
            --aptopt='APT::Install-Recommends "false"' "$@" "$BASE_SUITE" "$tar.new" - \
            >"$IMAGES_DIR/log" 2>&1 9>&- || die "$tar could not be made" "tail $IMAGES_DIR/log"
    as_root chmod a+r "$tar.new"
    as_root mv "$tar.new" "$tar"
}

# The example asks for amd64: on arm64 that image is made under emulation.
debian_archs() {
    say "$ARCH"
    [ "$ARCH" = amd64 ] || say amd64
}

# make_and_push_debian NAME TAG [PACKAGES]
make_and_push_debian() {
    local architecture
    for architecture in $(debian_archs); do
        [ -e "$IMAGES_DIR/$1-$architecture.tar" ] || make_debian "$1" "$architecture" "${3:-}"
    done
    push_root "$1" "$2" "$(debian_archs | sed 's|^|linux/|' | paste -sd ,)" bash
}

# make_debian NAME ARCH PACKAGES
make_debian() {
    doing "make the base image $1 for linux/$2 (a minute, or ten under emulation)"
    make_root "$1-$2.tar" "$2" minbase ${3:+--include="$3"} \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*'
}

# The host's own busybox prints the names of its commands, so it is made first, and no emulation is needed.
make_and_push_busybox() {
    local architecture
    for architecture in "$ARCH" "$OTHER_ARCH"; do
        [ -e "$IMAGES_DIR/busybox-$architecture.tar" ] || make_busybox "$architecture"
    done
    push_root busybox latest "linux/$ARCH,linux/$OTHER_ARCH" sh
}

# One static program, a link for each of its names, and the few files every image has.
make_busybox() {
    local root
    doing "make the base image busybox for linux/$1"
    root="$(mktemp -d)"
    make_root package.tar "$1" extract --include=busybox-static
    tar -xf "$IMAGES_DIR/package.tar" -C "$root" --wildcards '*bin/busybox' --transform 's|.*/||'
    [ "$1" != "$ARCH" ] || install -m 755 "$root/busybox" "$IMAGES_DIR/busybox-names"
    make_busybox_tree "$root" "$("$IMAGES_DIR/busybox-names" --list)"
    tar -C "$root" --owner=0 --group=0 -cf "$IMAGES_DIR/busybox-$1.tar" bin etc root tmp
    rm -rf "$root" "$IMAGES_DIR/package.tar"
}

# make_busybox_tree ROOT NAMES
make_busybox_tree() {
    local name
    install -d "$1/bin" "$1/etc" "$1/root"
    install -d -m 1777 "$1/tmp"
    install -m 755 "$1/busybox" "$1/bin/busybox"
    for name in $2; do
        [ "$name" = busybox ] || ln -s busybox "$1/bin/$name"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}

# The registry's own image, made of Debian's package, with the paths of the one that the CNCF publishes.
push_registry_image() {
    local folder="$IMAGES_DIR/registry"
    install -d "$folder"
    install -m 755 "$(command -v docker-registry)" "$folder/registry"
    cat >"$folder/config.yml" <<CONFIG
version: 0.1
log: { level: warn }
storage:
  filesystem: { rootdirectory: /var/lib/registry }
http: { addr: ":5000" }
CONFIG
    cat >"$folder/Dockerfile" <<DOCKERFILE
FROM 127.0.0.1:$MIRROR_PORT/library/debian:13-slim
COPY registry /bin/registry
COPY config.yml /etc/docker/registry/config.yml
VOLUME /var/lib/registry
EXPOSE 5000
ENTRYPOINT ["registry", "serve"]
CMD ["/etc/docker/registry/config.yml"]
DOCKERFILE
    push_image registry:2 "linux/$ARCH" "$folder"
}
