# shellcheck shell=bash
# What the demonstration, the benchmark and the tests need on a fresh Debian 12, as functions to be
# sourced. Packages that are there already are left alone; Python packages go into an environment of
# their own: $SLIM_VENV, by default .venv in the clone.
#
# Debian starts the servers of the packages when it installs them. That is prevented here; where an
# init system runs, it will start them at the next boot, as with any installation of theirs.

set -euo pipefail

SLIM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SLIM_VENV=$(realpath --canonicalize-missing "${SLIM_VENV:-$SLIM_ROOT/.venv}")

# Python and libseccomp for Slim itself; the others make and enter namespaces.
SLIM_BASE_PACKAGES=(python3 python3-venv libseccomp2 iproute2 nftables util-linux)
# The kernel guard is compiled when the package is built, and loaded by libbpf.
SLIM_BASE_PACKAGES+=(clang llvm libbpf-dev)
# The programs of the demonstration, with their load tools.
SLIM_PROGRAM_PACKAGES=(
    nginx-light wrk memcached libmemcached-tools redis-server redis-tools postgresql
)

slim_say() {
    printf '== %s\n' "$*"
}

slim_fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

slim_require_root() {
    if [ "$(id -u)" -ne 0 ]; then
        slim_fail "this makes network namespaces and may install packages: run it as root"
    fi
}

# slim_install_packages PACKAGE...: with apt-get, only those that are missing.
slim_install_packages() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        slim_fail "this is for Debian and its descendants; elsewhere install by hand: $*"
    fi
    for package in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        slim_say "Debian packages: all there"
        return
    fi
    slim_say "installing Debian packages with apt-get: ${missing[*]}"
    slim_run_apt "${missing[@]}"
}

# A subshell, so that its trap ends with it.
slim_run_apt() (
    policy=/usr/sbin/policy-rc.d
    export DEBIAN_FRONTEND=noninteractive
    # Debian asks this program whether it may start a service; 101 means no (invoke-rc.d(8)).
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get update -q
    apt-get install -q -y --no-install-recommends "$@"
)

# slim_find_python: the first of $SLIM_PYTHON, Debian's own and the one on PATH that is new enough.
# Debian builds its Python with profile-guided optimisation, which is worth a third of a trapped
# call; what is first on PATH may be anybody's.
slim_find_python() {
    local python
    for python in ${SLIM_PYTHON:-/usr/bin/python3 python3}; do
        if "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$python"
            return
        fi
    done
    slim_fail "Slim needs Python 3.11 or newer with the module venv: none of ${SLIM_PYTHON:-/usr/bin/python3 python3} is"
}

# slim_make_environment [EXTRA]: Slim, from this clone, in $SLIM_VENV.
slim_make_environment() {
    local extra=${1:-} wanted stamp python
    python=$(slim_find_python)
    if [ ! -x "$SLIM_VENV/bin/pip" ]; then
        slim_say "making a Python environment: $SLIM_VENV"
        "$python" -m venv "$SLIM_VENV"
    fi
    wanted="$SLIM_ROOT $(cat "$SLIM_ROOT"/{pyproject.toml,hatch_build.py,kmod/*} | sha256sum)"
    stamp="$SLIM_VENV/.slim-installed${extra:+-$extra}"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        slim_say "Python packages: all there ($SLIM_VENV)"
    else
        slim_say "installing Slim and what it needs with pip into $SLIM_VENV"
        "$SLIM_VENV/bin/pip" install --quiet --disable-pip-version-check \
            --editable "$SLIM_ROOT${extra:+[$extra]}"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    export PATH="$SLIM_VENV/bin:$PATH"
}
