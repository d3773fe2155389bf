#!/bin/sh
# Install the Debian packages of tools/packages.txt that are missing.
# It lists them first. Without root, and with something missing, it says what
# in one line and exits 77; with --if-root it only says so.
set -eu

list=$(dirname "$0")/packages.txt
wanted=$(sed 's/#.*//' "$list" | tr -s ' \n' ' ')

if ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian system; install the equivalents of:$wanted" >&2
    exit 77
fi

missing=
for name in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || :)
    [ "$status" = installed ] || missing="$missing $name"
done

if [ -z "$missing" ]; then
    echo "setup: every package is installed"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "setup: as root, first: apt-get install$missing" >&2
    [ "${1:-}" = --if-root ] || exit 77
    exit 0
fi

echo "setup: about to install with apt-get, and what they depend on:"
for name in $missing; do echo "  $name"; done
export DEBIAN_FRONTEND=noninteractive
# An index that does not answer matters only if a package is then not found.
apt-get -q update || echo "setup: apt-get update was not complete" >&2
# shellcheck disable=SC2086 # a list of names
apt-get -q -y --no-install-recommends install $missing
