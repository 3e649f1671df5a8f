#!/bin/sh
# Greets whoever is named, or the world, and says which machine it runs on.
set -eu
echo "hello ${1:-world}, this is $(uname -m)"
