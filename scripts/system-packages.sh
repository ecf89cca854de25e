#!/bin/sh
# What the tests use besides Python: bubblewrap (the code sandbox), Chromium and its driver (reports in a real browser).
# Installs what is missing with apt-get where that is allowed, and otherwise says what to install.
set -eu
missing=
command -v bwrap >/dev/null 2>&1 || missing="$missing bubblewrap"
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v chromedriver >/dev/null 2>&1 || missing="$missing chromium-driver"
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null 2>&1 && $as_root true >/dev/null 2>&1; then
    echo "Installing$missing"
    # shellcheck disable=SC2086  # both are lists of words
    if $as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"' apt $missing \
        </dev/null >/dev/null; then
        exit 0
    fi
fi
echo "Please install (names of Debian's packages):$missing. Without them some tests cannot run." >&2
[ -z "${CI:-}" ]
