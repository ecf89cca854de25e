#!/bin/sh
# Install zero2r1 with the pinned versions of constraints/core.txt into .venv; done in an instant when nothing changed.
#
#   sh scripts/bootstrap.sh [EXTRAS]        EXTRAS as in pyproject.toml, such as dev,gguf
#
# PYTHON names the interpreter to start from, if it is not the first suitable one on the PATH.
# pip's own settings (environment, pip.conf) hold: where they offer a CPU build of the pinned torch, pip takes that one.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-}
venv=.venv
stamp="$venv/installed${extras:+-$extras}"

wanted() {
    printf '%s\n' "$PWD"
    cksum pyproject.toml constraints/core.txt scripts/bootstrap.sh
}

if [ -x "$venv/bin/python" ]; then
    now=$(wanted)
    for done in "$stamp" ${extras:-"$venv"/installed-*}; do # any set of extras holds the plain installation too
        if [ -f "$done" ] && [ "$now" = "$(cat "$done")" ]; then
            exit 0
        fi
    done
fi

suitable() {
    "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2])' >/dev/null 2>&1
}

if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.12 python3.13; do
        if suitable "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "zero2r1 needs Python 3.11 or newer: none on the PATH. Set PYTHON=/path/to/python3.11" >&2
        exit 1
    fi
    echo "Creating $venv with $("$python" --version)"
    rm -rf "$venv"
    # Debian keeps ensurepip in a package of its own; without it, pip from outside installs pip inside.
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
    else
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    fi
fi

# What reasoning-gym builds from source wants a compiler; its tests are skipped where there is none.
headers='import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
if ! command -v cc >/dev/null 2>&1 || ! "$venv/bin/python" -c "$headers"; then
    extras=$(printf '%s' "$extras" | sed 's/,puzzles//')
fi

echo "Installing zero2r1${extras:+[$extras]} and its pinned requirements into $venv (a few minutes the first time)"
# Both names, so that old and new versions of pip also hold the build backend to its pinned version.
PIP_CONSTRAINT=constraints/core.txt PIP_BUILD_CONSTRAINT=constraints/core.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$venv/bin/python" -m pip install -qq --no-compile --editable ".${extras:+[$extras]}" </dev/null
wanted >"$stamp"
