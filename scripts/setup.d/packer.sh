# shellcheck shell=bash
# Packer, which checks the templates of packer/: the distribution's, or HashiCorp's release.

# The last version under a free licence; it contains the plugins that the templates use.
PACKER_VERSION=1.9.4
PACKER_SHA256_AMD64=6cd5269c4245aa8c99e551d1b862460d63fe711c58bec618fade25f8492e80d9
PACKER_SHA256_ARM64=f00a4fc221b20a166cfac8a63513054775988a068667517bb3edcfab8b1700ba

packer_todo() {
    has packer || say "install Packer: of this distribution, or HashiCorp's release $PACKER_VERSION in $SETUP_DIR/bin"
}

packer_do() {
    apt_update
    if [ -n "$(candidate packer)" ]; then
        apt_install packer
    else
        install_packer_release || warn "neither $DISTRIBUTION nor releases.hashicorp.com has Packer for this machine"
    fi
}

packer_report() {
    if has packer; then
        ok "Packer $(CHECKPOINT_DISABLE=1 packer --version | grep -oE '[0-9.]+' | head -n 1)"
    else
        warn "Packer is missing: the templates of packer/ will not be checked"
    fi
}

install_packer_release() {
    local sha256="$PACKER_SHA256_AMD64"
    [ "$ARCH" = amd64 ] || sha256="$PACKER_SHA256_ARM64"
    doing "download Packer $PACKER_VERSION from releases.hashicorp.com"
    fetch "https://releases.hashicorp.com/packer/$PACKER_VERSION/packer_${PACKER_VERSION}_linux_$ARCH.zip" \
        "$sha256" "$SETUP_DIR/packer.zip" || return 1
    python3 -m zipfile -e "$SETUP_DIR/packer.zip" "$SETUP_DIR/bin"
    chmod 0755 "$SETUP_DIR/bin/packer"
    rm "$SETUP_DIR/packer.zip"
}
