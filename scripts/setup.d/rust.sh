# shellcheck shell=bash
# The Rust toolchain: the one that is there where it is new enough, or the stable one by rustup.

RUSTUP_URL=https://sh.rustup.rs

rust_todo() {
    if ! rust_is_new_enough; then
        say "install the stable Rust toolchain in $HOME/.rustup, since Rust $(rust_min) or newer is needed"
    elif [ "$PURPOSE" = test ]; then
        cargo clippy --version >/dev/null 2>&1 || say "install clippy"
        cargo fmt --version >/dev/null 2>&1 || say "install rustfmt"
    fi
}

rust_do() {
    rust_is_new_enough || install_rust
    rust_is_new_enough || die "Rust $(rust_min) or newer is needed, found '$(rust_version)'" "rustup update stable"
    [ "$PURPOSE" = test ] || return 0
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
}

rust_report() { ok "Rust $(rust_version)"; }

rust_min() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml" | head -n 1; }

rust_version() { rustc --version 2>/dev/null | cut -d' ' -f2; }

rust_is_new_enough() { has cargo && version_at_least "$(rust_version)" "$(rust_min)"; }

install_rust() {
    has rustup || install_rustup
    doing "install the stable Rust toolchain"
    rustup toolchain install stable --profile minimal --no-self-update >/dev/null
    rustup default stable >/dev/null
}

# Debian 12 and Ubuntu 22.04 have no package of it.
install_rustup() {
    apt_update
    if [ -n "$(candidate rustup)" ] && apt-get install -s rustup >/dev/null 2>&1; then
        apt_install rustup
    elif curl -s -o /dev/null -m 10 "$RUSTUP_URL"; then
        doing "install rustup from $RUSTUP_URL in $HOME/.cargo"
        curl -sSf "$RUSTUP_URL" | sh -s -- -q -y --no-modify-path --default-toolchain none 9>&-
    else
        install_rustup_of_newer_debian ||
            die "no package rustup fits, and $RUSTUP_URL does not answer" "install Rust $(rust_min) or newer"
    fi
}

install_rustup_of_newer_debian() {
    [ "$DISTRIBUTION" = debian ] || return 1
    install_from_newer_debian "This release has no package rustup, and $RUSTUP_URL does not answer." rustup
}
