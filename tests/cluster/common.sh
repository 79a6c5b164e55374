# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this use the variables
# Shared by up.sh and down.sh: paths, the lock, the running daemons, and how to stop them.

state=${STAGGER_CLUSTER_DIR:-/var/tmp/stagger-cluster}
port=${STAGGER_CLUSTER_PORT:-16800}
cluster=stagger
nodes=(n1 n2 n3 n4)
site=${STAGGER_CLUSTER_SITE:-}
if [[ -n $site ]]; then # Beside the first cluster, and in the same way wherever that one is.
    state+=-site
    port=$((port + 20))
    cluster=site
    nodes=(n1 n2)
fi
conf=$state/slurm.conf
me=$(id -un)
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$conf

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# up.sh puts this mark into the folder that it makes. The scripts never write to or remove any other folder.
mark=$state/.stagger-cluster
check_state() {
    # Unix socket paths have at most 107 characters, and slurm.conf has no quoting.
    [[ $state =~ ^/[A-Za-z0-9_./-]{1,70}$ ]] ||
        die "STAGGER_CLUSTER_DIR=$state: use an absolute path of at most 71 letters, digits, '_', '.', '/', '-'"
    [[ -e $mark || -z $(ls -A "$state" 2>/dev/null) ]] ||
        die "STAGGER_CLUSTER_DIR=$state holds something else; name a new or empty folder"
}

# The lock lies beside the folder, because down.sh removes the folder.
lock() {
    mkdir -p "$(dirname "$state")"
    { : >>"$state.lock"; } 2>/dev/null || die "cannot write $state.lock: set STAGGER_CLUSTER_DIR, or run as its owner"
    exec 9>>"$state.lock"
    flock -w 180 9 || die "another up.sh or down.sh has held $state.lock for 3 minutes"
}

# pids PROGRAM [ARGUMENT...]: print our processes of the program whose command line has these arguments.
# The environment shows whether a process is ours: pid files go stale, and others may run their own Slurm here.
# From Slurm 23.11 on, a daemon that rereads its configuration restarts under the name of its file: slurmd-wlm in Debian.
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

# The processes of jobs: slurmd sets the node's name in their environment.
job_pids() {
    { grep -lzxF "SLURM_CONF=$conf" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURMD_NODENAME=' | cut -d/ -f3; } \
        2>/dev/null || true
    pids slurmstepd
}

# end PROGRAM: send SIGTERM, and SIGKILL if the program still runs after 8 seconds.
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
