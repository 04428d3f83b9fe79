#!/bin/bash
# All checks and tests, from a fresh Debian 12, as root: installs what is missing (apt, pip), then
# runs ruff, mypy and pytest, the last with the given arguments. Fails if one of them does.

# shellcheck source=contrib/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../contrib/setup.sh"

slim_require_root
packages=(
    "${SLIM_BASE_PACKAGES[@]}" "${SLIM_PROGRAM_PACKAGES[@]}"
    tcpdump gdb gcc libc6-dev musl-tools
    runc crun podman golang-github-containers-common systemd
)
# CPython's own tests, for the interpreter that contrib/setup.sh finds; others bring theirs.
python=$(slim_find_python)
if ! "$python" -c 'import test.test_socketserver' 2>/dev/null; then
    packages+=("lib$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-testsuite")
fi
# Programs without libc are tested, too; a Go that is not Debian's does as well.
command -v go >/dev/null || packages+=(golang-go)
slim_install_packages "${packages[@]}"
slim_make_environment dev

cd "$SLIM_ROOT"
# What this script could install must not be skipped for want of it.
export SLIM_REQUIRE=${SLIM_REQUIRE:-all}
failed=()
check() {
    slim_say "$*"
    "$@" || failed+=("$*")
}
check ruff check .
check ruff format --check .
check mypy
check pytest "$@"
if [ "${#failed[@]}" -ne 0 ]; then
    slim_fail "failed: $(IFS=';'; printf "%s" "${failed[*]}")"
fi
slim_say "all checks and tests passed"
