# shellcheck shell=bash
# The registry with a password that the demo and the tests push to, and how a registry is started and stopped.

REGISTRY_DIR="$SETUP_DIR/registry"

registry_todo() {
    [ -e "$REGISTRY_DIR/htpasswd" ] || say "make a password for the registry, in $REGISTRY_DIR"
    registry_accepts_password || say "start the registry on 127.0.0.1:$REGISTRY_PORT"
}

registry_do() {
    [ -e "$REGISTRY_DIR/htpasswd" ] || make_password "$REGISTRY_DIR"
    doing "start the registry on port $REGISTRY_PORT"
    {
        registry_config "$REGISTRY_DIR/data" "$REGISTRY_PORT" false
        echo "auth: { htpasswd: { realm: stagely, path: $REGISTRY_DIR/htpasswd } }"
    } >"$REGISTRY_DIR/config.yml"
    start_registry "$REGISTRY_DIR" "$REGISTRY_PORT"
    registry_accepts_password || die "the registry refuses its own password" "rm -r $REGISTRY_DIR/htpasswd, then run this again"
}

registry_report() { ok "registry 127.0.0.1:$REGISTRY_PORT, user stagely"; }

registry_env() {
    [ -e "$REGISTRY_DIR/password" ] || return 0
    say "STAGELY_REGISTRY=127.0.0.1:$REGISTRY_PORT" STAGELY_REGISTRY_USERNAME=stagely \
        "STAGELY_REGISTRY_PASSWORD_FILE=$REGISTRY_DIR/password"
}

make_password() {
    install -d -m 0700 "$1"
    (umask 077 && random_text >"$1/password")
    htpasswd -iBn stagely <"$1/password" >"$1/htpasswd.new"
    mv "$1/htpasswd.new" "$1/htpasswd"
}

random_text() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# The password goes in by a file descriptor, where no process list shows it.
registry_accepts_password() {
    curl --noproxy '*' -sf -o /dev/null -m 5 -K <(printf 'user = "stagely:%s"' "$(cat "$REGISTRY_DIR/password" 2>/dev/null)") \
        "http://127.0.0.1:$REGISTRY_PORT/v2/" 2>/dev/null
}

# registry_config DATA_FOLDER PORT READONLY
registry_config() {
    cat <<CONFIG
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage:
  filesystem: { rootdirectory: $1 }
  delete: { enabled: true }
  maintenance: { readonly: { enabled: $3 } }
http:
  addr: 127.0.0.1:$2
  secret: $(random_text)
CONFIG
}

# start_registry FOLDER PORT : runs FOLDER/config.yml and leaves the process id in FOLDER/pid
start_registry() {
    refuse_taken_port "$2"
    # The registry outlives this script, so it must hold neither its lock nor its output.
    setsid nohup docker-registry serve "$1/config.yml" >"$1/log" 2>&1 </dev/null 9>&- &
    echo $! >"$1/pid"
    wait_until 20 port_answers "$2" || die "the registry on port $2 did not start" "tail $1/log"
}

# stop_registry FOLDER
stop_registry() {
    local pid
    pid="$(cat "$1/pid")"
    # The id in an old file may have gone to another program since.
    [ "$(ps -o comm= -p "$pid")" = docker-registry ] || return 0
    kill "$pid"
    wait_until 10 is_stopped "$pid" || die "the registry of $1 does not stop" "kill -9 $pid"
}

# A proxy of the user's cannot reach this machine's loopback.
port_answers() { curl --noproxy '*' -s -o /dev/null -m 2 "http://127.0.0.1:$1/v2/" 2>/dev/null; }

refuse_taken_port() {
    [ -z "$(ss -ltnH "sport = :$1")" ] ||
        die "port $1 is taken by another program; STAGELY_REGISTRY_PORT and STAGELY_MIRROR_PORT choose other ports" "ss -ltnp 'sport = :$1'"
}
