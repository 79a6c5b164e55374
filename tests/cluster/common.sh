# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this use the variables
# What up.sh and down.sh share: where things lie, the lock, which daemons run, how to stop them.

state=${STAGGER_CLUSTER_DIR:-/var/tmp/stagger-cluster}
port=${STAGGER_CLUSTER_PORT:-16800}
conf=$state/slurm.conf
nodes=(n1 n2 n3 n4)
me=$(id -un)
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$conf

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# What up.sh makes carries this mark; nothing else is written to or removed.
mark=$state/.stagger-cluster
check_state() {
    # Unix socket names end at 107 characters, and slurm.conf cannot quote.
    [[ $state =~ ^/[A-Za-z0-9_./-]{1,70}$ ]] ||
        die "STAGGER_CLUSTER_DIR=$state: use an absolute path of at most 71 letters, digits, '_', '.', '/', '-'"
    [[ -e $mark || -z $(ls -A "$state" 2>/dev/null) ]] ||
        die "STAGGER_CLUSTER_DIR=$state holds something else; name a new or empty folder"
}

# The lock lies beside the folder because down.sh removes the folder.
lock() {
    mkdir -p "$(dirname "$state")"
    { : >>"$state.lock"; } 2>/dev/null || die "cannot write $state.lock: set STAGGER_CLUSTER_DIR, or run as its owner"
    exec 9>>"$state.lock"
    flock -w 180 9 || die "another up.sh or down.sh has held $state.lock for 3 minutes"
}

# pids PROGRAM [ARGUMENT...]: our processes of that program whose command line has these arguments.
# "Ours" is read from the environment: pid files go stale, and others may run a Slurm of their own here.
# From Slurm 23.11 on, a daemon that reads its configuration again also executes itself again, by the name of its file:
# in Debian slurmd-wlm, not slurmd.
pids() {
    local program=$1 pid line
    shift
    for pid in $(pgrep -x "$program"; pgrep -x "$program-wlm"); do
        { grep -qzxF "SLURM_CONF=$conf" "/proc/$pid/environ" &&
            line=$(tr '\0' ' ' <"/proc/$pid/cmdline"); } 2>/dev/null || continue
        [[ " $line " == *" $* "* || $# == 0 ]] && echo "$pid"
    done
    return 0
}

alive() { [[ -n $(pids "$@") ]]; }

# Processes of jobs: slurmd marks them with the node's name.
job_pids() {
    { grep -lzxF "SLURM_CONF=$conf" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURMD_NODENAME=' | cut -d/ -f3; } \
        2>/dev/null || true
    pids slurmstepd
}

# end PROGRAM: SIGTERM, and SIGKILL where that does not help within 8 seconds.
end() {
    local list try
    for try in {1..100}; do
        list=$(pids "$1")
        [[ -n $list ]] || return 0
        # shellcheck disable=SC2086  # a list of pids
        case $try in
            1) kill $list || true ;;
            80) kill -9 $list || true ;;
        esac 2>/dev/null
        sleep 0.1
    done
    die "$1 does not stop"
}

kill_jobs() {
    local list _
    for _ in {1..50}; do
        list=$(job_pids)
        [[ -n $list ]] || return 0
        # shellcheck disable=SC2086
        kill -9 $list 2>/dev/null || true
        sleep 0.1
    done
    die "processes of jobs do not stop"
}

stop_daemons() {
    end slurmctld
    end slurmd
    kill_jobs
    end slurmdbd
    end mariadbd
    end munged
}
