#!/usr/bin/env bash
# The build of scripts/benches/build.rs without Stagely: clone, login, build, push.
#     bare-build.sh REPOSITORY SALT IMAGE CACHE
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export DOCKER_CONFIG="$work/docker"

git clone --quiet --depth 1 "file://$1" "$work/checkout"
docker login --username "$STAGELY_REGISTRY_USERNAME" --password-stdin "$STAGELY_REGISTRY" \
    <"$STAGELY_REGISTRY_PASSWORD_FILE" >/dev/null 2>&1
docker buildx build --progress=plain --push --provenance=false --sbom=false \
    --platform="linux/$(dpkg --print-architecture)" --tag="$3" --build-arg="SALT=$2" \
    --cache-from="type=registry,ref=$4" \
    --cache-to="type=registry,ref=$4,mode=max,ignore-error=true" \
    --metadata-file "$work/metadata.json" --file "$work/checkout/Dockerfile" -- "$work/checkout"
