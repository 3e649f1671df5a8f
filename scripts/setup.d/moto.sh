# shellcheck shell=bash
# moto, a server of EC2's API, in a virtual environment of Python; the tests of tests/aws start it.

MOTO_DIR="$SETUP_DIR/moto"
MOTO_PACKAGE="moto[server,ec2]==5.2.1"

moto_todo() {
    [ "$(cat "$MOTO_DIR/installed" 2>/dev/null)" = "$MOTO_PACKAGE" ] || say "install $MOTO_PACKAGE from PyPI in $MOTO_DIR"
}

# A virtual environment contains its own path, so it is made where it stays, and the mark comes last.
moto_do() {
    doing "install $MOTO_PACKAGE"
    rm -rf "$MOTO_DIR"
    python3 -m venv "$MOTO_DIR" || die "Python cannot make a virtual environment" "apt-get install python3-venv"
    "$MOTO_DIR/bin/pip" install --quiet --disable-pip-version-check "$MOTO_PACKAGE" ||
        die "moto cannot be installed from PyPI" "$MOTO_DIR/bin/pip install '$MOTO_PACKAGE'"
    echo "$MOTO_PACKAGE" >"$MOTO_DIR/installed"
}

moto_report() { ok "moto, a server of EC2's API"; }

moto_env() { [ ! -e "$MOTO_DIR/installed" ] || say "STAGELY_MOTO=$MOTO_DIR/bin/moto_server"; }
