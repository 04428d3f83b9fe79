#!/bin/bash
# The benchmark, from a fresh Debian 12, as root: installs what is missing (apt, pip), then measures.
# Options: --help; --quick shows in two minutes that everything works, all of it takes an hour.
# `run.sh start [--help]` measures slim-run instead, `run.sh policy` verdicts, each in a minute.

# shellcheck source=contrib/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

slim_require_root
slim_install_packages "${SLIM_BASE_PACKAGES[@]}" "${SLIM_PROGRAM_PACKAGES[@]}" gcc libc6-dev ethtool
slim_make_environment
export PYTHONPATH="$SLIM_ROOT/contrib" PYTHONDONTWRITEBYTECODE=1
module=bench
case "${1:-}" in
start | policy)
    module=bench.$1
    shift
    ;;
esac
exec "$SLIM_VENV/bin/python" -m "$module" "$@"
