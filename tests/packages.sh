#!/usr/bin/env bash
# packages.sh PACKAGE...: install Debian's packages (Debian 12 and 13, Ubuntu) without starting any of them as a service.
set -euo pipefail

packages=("$@")

installed() {
    local states
    states=$(dpkg-query -W -f '${db:Status-Status}\n' "${packages[@]}" 2>/dev/null) || return 1
    ! grep -qvx installed <<<"$states"
}

# apt runs policy-rc.d before it starts a service; exit status 101 forbids the start. An existing file is put back.
policy=/usr/sbin/policy-rc.d
forbid_services() {
    trap restore_policy EXIT
    [[ ! -e $policy ]] || mv "$policy" "$policy.before-stagger"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}
restore_policy() {
    rm -f "$policy"
    [[ ! -e $policy.before-stagger ]] || mv "$policy.before-stagger" "$policy"
}

if command -v dpkg-query >/dev/null && installed; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "packages.sh: there is no apt-get here; install what Debian calls ${packages[*]} by hand." >&2
    exit 2
fi
if ((EUID != 0)); then
    if sudo -n true 2>/dev/null; then
        exec sudo -n "$BASH" "$(readlink -f "$0")" "${packages[@]}"
    fi
    echo "packages.sh: needs root once; ask for: apt-get install --no-install-recommends ${packages[*]}" >&2
    exit 2
fi

export DEBIAN_FRONTEND=noninteractive
echo "packages.sh: installing ${packages[*]}" >&2
forbid_services
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
