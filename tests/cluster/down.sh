#!/usr/bin/env bash
# Stop the test cluster and the remaining processes of its jobs; remove its state folder unless --keep is given.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
source "$here/common.sh"

keep=false
case ${1:-} in
    '') ;;
    --keep) keep=true ;;
    *) die "unknown option $1; there is only --keep (leave $state in place)" ;;
esac
check_state
lock
stop_daemons
$keep || rm -rf "$state"
