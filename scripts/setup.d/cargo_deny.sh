# shellcheck shell=bash
# cargo-deny, which checks the licences, sources and duplicates of what Stagely depends on: its published
# program, or compiled from crates.io.

CARGO_DENY_VERSION=0.19.8
CARGO_DENY_TARGET=x86_64-unknown-linux-musl
CARGO_DENY_SHA256=70e769ae3872e34d45132b17040859175e11401dc12dddb0303e0b8c7d088f3f

cargo_deny_todo() { has cargo-deny || say "install cargo-deny $CARGO_DENY_VERSION in $SETUP_DIR/bin"; }

cargo_deny_do() {
    download_cargo_deny || compile_cargo_deny ||
        warn "cargo-deny $CARGO_DENY_VERSION can be had neither from GitHub nor from crates.io"
}

cargo_deny_report() {
    if has cargo-deny; then
        ok "$(cargo-deny --version)"
    else
        warn "cargo-deny is missing: licences and sources will not be checked"
    fi
}

download_cargo_deny() {
    local name="cargo-deny-$CARGO_DENY_VERSION-$CARGO_DENY_TARGET" archive="$SETUP_DIR/cargo-deny.tar.gz"
    [ "$ARCH" = amd64 ] || return 1
    doing "download cargo-deny $CARGO_DENY_VERSION from GitHub"
    fetch "https://github.com/EmbarkStudios/cargo-deny/releases/download/$CARGO_DENY_VERSION/$name.tar.gz" \
        "$CARGO_DENY_SHA256" "$archive" || return 1
    install -d "$SETUP_DIR/bin"
    tar -xzf "$archive" -C "$SETUP_DIR/bin" --strip-components=1 "$name/cargo-deny"
    rm "$archive"
}

# Without optimizations it is compiled in a third of the time and still checks within seconds.
compile_cargo_deny() {
    doing "compile cargo-deny $CARGO_DENY_VERSION (some minutes, once)"
    cargo install --quiet --locked --debug --config profile.dev.debug=false --root "$SETUP_DIR" \
        --target-dir "$SETUP_DIR/cargo-deny" "cargo-deny@$CARGO_DENY_VERSION" >"$SETUP_DIR/cargo-deny.log" 2>&1 9>&- ||
        { tail -n 5 "$SETUP_DIR/cargo-deny.log" >&2 && return 1; }
    rm -rf "$SETUP_DIR/cargo-deny"
}
