#!/usr/bin/env bash
# run.sh COMMAND...: run a command on Debian 13 (Slurm 24.11, Python 3.13). See ../cluster/README.md.
# It sees this checkout as /stagger, in namespaces of its own: with the command, its processes and mounts end.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
checkout=$(dirname "$(dirname "$here")")
root=${STAGGER_DEBIAN13_DIR:-/var/tmp/stagger-debian-13}
namespaces=(--mount --pid)

say() { echo "debian13/run.sh: $*" >&2; }
die() { say "$*"; exit 2; }

# The mirror that apt on this machine uses for Debian.
mirror() {
    local found=''
    ! command -v apt-get >/dev/null ||
        found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian')
    found=${found%%$'\n'*}
    echo "${found:-http://deb.debian.org/debian}"
}

# The machine's own settings of apt for proxies, certificates, retries, and the age of lists.
apt_settings() { apt-config dump | grep -E '^Acquire::(https?|Retries|Check-Date|Check-Valid-Until)\b' || true; }

# pip_settings FOLDER: the machine's own settings of pip for the index and how to reach it, as environment variables. The
# file of certificates is copied into the root.
pip_settings() {
    local key value
    python3 -m pip config list 2>/dev/null |
        sed -nE "s/^[^.]+\.(index-url|extra-index-url|trusted-host|proxy|default-timeout|cert)='(.*)'$/\1 \2/p" |
        while read -r key value; do
            key=${key//-/_}
            [[ $key != cert ]] || { cp -L "$value" "$1/etc/pip-certificates.crt" && value=/etc/pip-certificates.crt; }
            [[ $value == *file:* ]] || echo "PIP_${key^^}=$value"
        done
}

# contained COMMAND...: run it in the namespaces. If this script ends or is killed, so are all processes of the command.
contained() {
    local status=0
    setpriv --pdeathsig KILL unshare "${namespaces[@]}" --mount-proc --fork --kill-child "$@" <&0 9>&- &
    trap "kill -9 $! 2>/dev/null" EXIT
    trap 'exit 143' TERM HUP
    trap 'exit 130' INT
    wait $! || status=$?
    trap - EXIT INT TERM HUP
    return "$status"
}

# enter FOLDER COMMAND...: run the command in a root.
enter() {
    local folder=$1 settings
    shift
    mapfile -t settings < <(env | grep -iE '^(CI|TERM|(http|https|no)_proxy|STAGGER_CLUSTER_CROWD)=')
    mapfile -t -O "${#settings[@]}" settings < <(pip_settings "$folder")
    contained "$here/init.sh" "$folder" "$checkout" \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        "${settings[@]}" "$@"
}

# The root is built beside its place and moved there when it is complete, so an interrupted build is never used.
make_root() {
    local new=$root.new site
    "$checkout/tests/packages.sh" debootstrap debian-archive-keyring || die "install debootstrap, which makes the root"
    site=$(mirror)
    say "making $root from $site"
    rm -rf "$new" "$root.old"
    contained debootstrap --variant=minbase trixie "$new" "$site" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; die "debootstrap could not install Debian 13 from $site; see $root.log"; }
    apt_settings >"$new/etc/apt/apt.conf.d/90machine"
    echo force-unsafe-io >"$new/etc/dpkg/dpkg.cfg.d/unsafe-io" # no fsync per file: an incomplete root is thrown away
    mkdir "$new/stagger"
    enter "$new" tests/cluster/install.sh python3-venv iproute2 >>"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; die "the packages of the test cluster could not be installed; see $root.log"; }
    rm -rf "$new"/var/cache/apt/*
    packages >"$new/packages"
    [[ ! -e $root ]] || mv "$root" "$root.old"
    mv "$new" "$root"
    rm -rf "$root.old"
}

make_venv() {
    say "installing stagger's dependencies in $root"
    rm -f "$root/dependencies"
    enter "$root" python3 -m venv --clear /opt/stagger
    enter "$root" /opt/stagger/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
        --constraint constraints.txt --editable '.[dev]' || die "pip could not install stagger's dependencies"
    dependencies >"$root/dependencies"
}

# What the root was made from, and how. If it changes, the root is made anew.
packages() { { declare -f make_root && cat "$checkout"/tests/{packages,cluster/install}.sh; } | sha256sum; }
dependencies() { { declare -f make_venv && cat "$checkout"/{pyproject.toml,constraints.txt}; } | sha256sum; }
is() { [[ -e $root/$1 && $("$1") == $(<"$root/$1") ]]; }

main() {
    ((EUID == 0)) || die "needs root, for debootstrap and chroot: run it as root"
    [[ $root =~ ^/[A-Za-z0-9_./-]+$ ]] || die "STAGGER_DEBIAN13_DIR=$root: use an absolute path without blanks"
    mkdir -p "$(dirname "$root")"
    exec 9>>"$root.lock"
    # Many may use the root at once, but nobody while it is made.
    flock -s 9
    [[ ! -e $root || -e $root/packages ]] ||
        die "STAGGER_DEBIAN13_DIR=$root: name a folder that does not exist yet, or one that run.sh has made"
    if ! { is packages && is dependencies; }; then
        flock -n 9 || say "waiting for others that use $root"
        flock -w 1800 9 || die "others have used $root for half an hour; name another folder (STAGGER_DEBIAN13_DIR)"
        is packages || make_root
        is dependencies || make_venv
        flock -s 9
    fi
    # Ports of its own as well: another cluster may run on this machine. Slurm looks for an address besides 127.0.0.1.
    namespaces+=(--net)
    enter "$root" bash -c 'ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec "$@"' run "$@"
}

# bash reads a script while it runs it; with this line it has read all of it.
main "$@"; exit
