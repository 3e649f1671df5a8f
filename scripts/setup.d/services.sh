# shellcheck shell=bash
# Waiting for services, and telling whether their processes run.

has_systemd() { [ -d /run/systemd/system ]; }

# wait_until SECONDS COMMAND...
wait_until() {
    local tries=$(($1 * 5))
    shift
    while ! "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.2
    done
}

# is_stopped PID : a zombie has stopped too; in a container there may be nobody to reap it
is_stopped() { [[ "$(ps -o stat= -p "$1")" =~ ^(Z.*)?$ ]]; }
