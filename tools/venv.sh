#!/bin/sh
# Make .venv from the system's Python and install the project and its tools.
# python3-nftables exists only as a distribution package, hence
# --system-site-packages; hence also the explicit lower bounds, without which
# pip keeps the distribution's older versions of what it finds there.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-/usr/bin/python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "venv: $python is older than Python 3.11" >&2
    exit 77
fi

echo "venv: about to install into .venv, and what they depend on:"
grep -v '^#' tools/requirements.txt | sed 's/^/  /'
[ -x .venv/bin/python ] || "$python" -m venv --system-site-packages .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
pip install -r tools/requirements.txt -e .
# Coverage-guided fuzzing is extra: the fuzz targets run without it, and no
# wheel exists for some Pythons.
pip install --only-binary :all: 'atheris>=2.3' 2>/dev/null ||
    echo "venv: no atheris for this Python; fuzzing is not coverage-guided"
touch .venv/.made
