#!/bin/bash
# The demonstration, from a fresh Debian 12, as root: installs what is missing (apt, pip), then shows
# four unmodified programs over host network, overlay and Slim. Options: --help.

# shellcheck source=contrib/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

slim_require_root
slim_install_packages "${SLIM_BASE_PACKAGES[@]}" "${SLIM_PROGRAM_PACKAGES[@]}"
slim_make_environment
slim_say "two hosts, an overlay, two slimd, four programs: about three minutes"
export PYTHONPATH="$SLIM_ROOT/contrib" PYTHONDONTWRITEBYTECODE=1
exec "$SLIM_VENV/bin/python" -m demo.demo "$@"
