# shellcheck shell=bash
# GitHub's description of its REST API and its examples of webhook deliveries, which the tests check against.

GITHUB_DESCRIPTION="$SETUP_DIR/github/api.json"
GITHUB_DESCRIPTION_PACKAGE="@octokit/openapi 23.0.2"
GITHUB_DESCRIPTION_SHA256=71a18407dd5e8464f4e0525daf03deabbe65abd9287d6adc7b5d98f516cd0d0c
GITHUB_EXAMPLES="$SETUP_DIR/github/deliveries.json"
GITHUB_EXAMPLES_PACKAGE="@octokit/webhooks-examples 7.6.1"
GITHUB_EXAMPLES_SHA256=89e6cb1c6345d32e3dd775617fa54effbdc26c859e514898d7728e95e9738280

github_api_todo() {
    is_from "$GITHUB_DESCRIPTION" "$GITHUB_DESCRIPTION_PACKAGE" || say "download $GITHUB_DESCRIPTION_PACKAGE from npm"
    is_from "$GITHUB_EXAMPLES" "$GITHUB_EXAMPLES_PACKAGE" || say "download $GITHUB_EXAMPLES_PACKAGE from npm"
}

github_api_do() {
    ensure_github_api_description
    ensure_github_examples
}

github_api_report() { ok "GitHub's description of its API and examples of its deliveries"; }

github_api_env() {
    [ ! -e "$GITHUB_DESCRIPTION" ] || say "STAGELY_GITHUB_DESCRIPTION=$GITHUB_DESCRIPTION"
    [ ! -e "$GITHUB_EXAMPLES" ] || say "STAGELY_GITHUB_EXAMPLES=$GITHUB_EXAMPLES"
}

# is_from FILE PACKAGE
is_from() { [ "$(cat "$1.from" 2>/dev/null)" = "$2" ]; }

# One file of 13 MB of a package of 385 MB.
ensure_github_api_description() {
    # shellcheck disable=SC2086  # the package and its version are words
    is_from "$GITHUB_DESCRIPTION" "$GITHUB_DESCRIPTION_PACKAGE" ||
        keep_file_of_npm $GITHUB_DESCRIPTION_PACKAGE "$GITHUB_DESCRIPTION_SHA256" generated/api.github.com.json "$GITHUB_DESCRIPTION"
}

ensure_github_examples() {
    # shellcheck disable=SC2086  # the package and its version are words
    is_from "$GITHUB_EXAMPLES" "$GITHUB_EXAMPLES_PACKAGE" ||
        keep_file_of_npm $GITHUB_EXAMPLES_PACKAGE "$GITHUB_EXAMPLES_SHA256" api.github.com/index.json "$GITHUB_EXAMPLES"
}
