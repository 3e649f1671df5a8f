# shellcheck shell=bash
# Prism, which checks the tests' requests to DigitalOcean against its description, where there is one: no
# package contains that description.

PRISM_DIR="$SETUP_DIR/prism"
PRISM_PROGRAM="$PRISM_DIR/node_modules/.bin/prism"
PRISM_PACKAGE="@stoplight/prism-cli 5.14.2"
DIGITALOCEAN_DESCRIPTION="${STAGELY_DIGITALOCEAN_DESCRIPTION:-}"

prism_todo() {
    [ -n "$DIGITALOCEAN_DESCRIPTION" ] || return 0
    is_from "$PRISM_DIR/prism" "$PRISM_PACKAGE" || say "install $PRISM_PACKAGE from npm in $PRISM_DIR"
}

prism_do() {
    local package="${PRISM_PACKAGE/ /@}"
    has npm || { apt_update && apt_install nodejs npm; }
    doing "install $package"
    install -d "$PRISM_DIR"
    npm install --no-audit --no-fund --no-save --prefix "$PRISM_DIR" "$package" >"$SETUP_DIR/npm.log" 2>&1 9>&- ||
        { tail -n 5 "$SETUP_DIR/npm.log" >&2 && die "$package could not be installed" "npm install $package"; }
    "$PRISM_PROGRAM" --version >/dev/null || die "prism does not start" "$PRISM_PROGRAM --version; node --version"
    echo "$PRISM_PACKAGE" >"$PRISM_DIR/prism.from"
}

prism_report() {
    if [ -z "$DIGITALOCEAN_DESCRIPTION" ]; then
        ok "no description of DigitalOcean's API: STAGELY_DIGITALOCEAN_DESCRIPTION can name one to check against"
        return
    fi
    [ -r "$DIGITALOCEAN_DESCRIPTION" ] || die "STAGELY_DIGITALOCEAN_DESCRIPTION names $DIGITALOCEAN_DESCRIPTION, which cannot be read"
    ok "prism, for DigitalOcean's description of its API"
}

prism_env() {
    [ -r "$DIGITALOCEAN_DESCRIPTION" ] || return 0
    say "STAGELY_DIGITALOCEAN_DESCRIPTION=$(realpath "$DIGITALOCEAN_DESCRIPTION")" "STAGELY_PRISM=$PRISM_PROGRAM"
}
