#!/bin/sh
# The program, its service, and the dead-man switch. All of them wait for a machine with user data; nothing
# starts here.
set -eu
folder="${STAGELY_FOLDER:?}"
files="$folder/files"

echo "${STAGELY_SHA256:?}  $folder/stagely" | sha256sum --check --quiet
install -m 0755 "$folder/stagely" /usr/local/bin/stagely
/usr/local/bin/stagely --version

install -d -m 0755 /etc/stagely
install -D -m 0755 "$files/stagely-deadman" /usr/local/lib/stagely/stagely-deadman
for unit in stagely-agent.service stagely-deadman.service stagely-deadman.timer; do
    install -m 0644 "$files/$unit" "/etc/systemd/system/$unit"
done
systemctl enable stagely-agent.service stagely-deadman.timer
