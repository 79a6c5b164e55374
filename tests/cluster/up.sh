#!/usr/bin/env bash
# Start or repair the test cluster: eval "$(tests/cluster/up.sh)". See README.md beside this file.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
source "$here/common.sh"
# shellcheck source=config.sh
source "$here/config.sh"
if [[ -n $site ]]; then
    # shellcheck source=site.sh
    source "$here/site.sh"
    ((EUID == 0)) || die "only root can start the site cluster: its jobs run as several users"
fi

# Slurm's commands retry for minutes if a daemon does not answer; limit them to 10 seconds.
ask() { timeout 10 "$@"; }

# start DAEMON COMMAND...: start a daemon that outlives this shell and holds neither its output nor the lock.
# The daemon gets a bare environment: no SLURM_* or LD_PRELOAD of the caller reaches it or its jobs.
start() {
    local daemon=$1 launcher=(setsid)
    shift
    [[ -z $site || $daemon != slurmd.* ]] || launcher+=("${job_rights[@]}")
    say "starting $daemon"
    (
        cd /
        exec "${launcher[@]}" env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C.UTF-8 SLURM_CONF="$conf" \
            MYSQL_UNIX_PORT="$state/run/mysql.socket" "$@"
    ) </dev/null >>"$state/log/$daemon.out" 2>&1 9>&- &
}

# give_up DAEMON TEXT: end with the text and the last lines of the logs; for a slurmd, also with what slurmctld knows.
give_up() {
    local logs=("$state/log/$1".{out,log})
    say "$2"
    [[ $1 != slurmd.* ]] || { logs+=("$state/log/slurmctld.log") && ask scontrol show node "${1#slurmd.}" >&2; } || true
    tail -n 20 "${logs[@]}" >&2 2>/dev/null || true
    exit 1
}

# bring_up SECONDS DAEMON CHECK COMMAND...: start the daemon unless it runs, and wait until CHECK succeeds.
# It may start the daemon several times: a daemon found running may be about to end, and still hold its port.
bring_up() {
    local limit=$((SECONDS + $1)) daemon=$2 check=$3 starts=0 launched=''
    shift 3
    while true; do
        if ! { kill -0 "$launched" 2>/dev/null || alive "$@"; }; then
            ((++starts <= 5)) || give_up "$daemon" "$daemon ends as soon as it is started:"
            start "$daemon" "$@"
            launched=$! # until setsid and env have run, pgrep cannot find the daemon by its name
        fi
        if $check >/dev/null 2>&1; then
            return
        fi
        if ((SECONDS >= limit)); then
            $check >&2 || true
            give_up "$daemon" "$daemon runs, but does not get ready:"
        fi
        sleep 0.1
    done
}

make_folders() {
    { mkdir -p "$state" && touch "$mark"; } ||
        die "cannot write to $state: set STAGGER_CLUSTER_DIR, or run as its owner"
    mkdir -p "$state"/{run,log,dev,spool/slurmctld}
    chmod 755 "$state" "$state"/{run,log,dev,spool}
    chmod 700 "$state/spool/slurmctld"
    [[ -s $state/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$state/munge.key")
}

# Links to a character device: Slurm sets CUDA_VISIBLE_DEVICES only for devices. Links, unlike mknod, need no root.
make_gpus() {
    local gpu
    for gpu in "$state"/dev/gpu{0..11}; do
        ln -sfn /dev/null "$gpu"
    done
}

# install_file PATH MODE: write stdin to the file. Daemons read it only once, so a change stops all of them.
install_file() {
    local new
    new=$(cat)
    [[ ! -e $1 || $new != "$(<"$1")" ]] || return 0
    stop_daemons
    (umask 077 && cat <<<"$new" >"$1")
    chmod "$2" "$1"
}

# Since 24.05; an older slurmd exits at that value. slurmd tells its version without a configuration, clients do not.
knows_disabled_cgroups() {
    local version
    version=$(slurmd -V)
    ! [[ ${version##* } < 24.05 ]]
}

write_config() {
    slurm_conf | install_file "$conf" 644
    gres_conf | install_file "$state/gres.conf" 644
    ! knows_disabled_cgroups || cgroup_conf | install_file "$state/cgroup.conf" 644
    slurmdbd_conf | install_file "$state/slurmdbd.conf" 600
    my_cnf | install_file "$state/my.cnf" 644
    [[ -z $site ]] || write_site
}

munge_answers() { munge --socket="$state/run/munge.socket" -n; }

make_database() {
    say "making the database"
    rm -rf "$state/mysql"
    mariadb-install-db --defaults-file="$state/my.cnf" --skip-test-db --auth-root-authentication-method=socket \
        --auth-root-socket-user="$me" >"$state/log/mariadbd.out" 2>&1 9>&- ||
        die "mariadb-install-db failed, see $state/log/mariadbd.out"
    touch "$state/mysql/complete"
}

database_answers() {
    mariadb --no-defaults --socket="$state/run/mysql.socket" --user="$me" \
        -e 'create database if not exists slurm_acct_db'
}

slurmdbd_answers() { ask sacctmgr -n show cluster; }

# Run this before slurmctld starts: slurmctld needs its cluster to be registered.
register() {
    [[ -z $(sacctmgr -nP show assoc cluster="$cluster" account=stagger user="$me" format=user) ]] || return 0
    say "registering the cluster, the account and $me"
    sacctmgr -iQ add cluster "$cluster" >/dev/null || true
    sacctmgr -iQ add account stagger cluster="$cluster" >/dev/null || true
    [[ -z $site ]] || register_users
    sacctmgr -iQ add user "$me" cluster="$cluster" account=stagger adminlevel=admin >/dev/null ||
        die "sacctmgr could not add $me, see $state/log/slurmdbd.log"
}

slurmctld_answers() { ask scontrol ping; }

# Whether a node is ready for jobs. It may have any load: sinfo has a word for each mixture, such as planned or allocated+.
# A node that is down, drained or failed is resumed. See hail for one that does not respond.
node_ready() {
    local state
    state=$(ask scontrol -o show node "$node" | grep -o ' State=[^ ]*')
    case $state in
        *DOWN* | *DRAIN* | *FAIL*) ask scontrol update "nodename=$node" state=resume ;;
        *NOT_RESPONDING*) hail ;;
        *=IDLE* | *=MIXED* | *=ALLOCATED*) return 0 ;;
    esac
    return 1
}

# Make a node register anew, by another start of its slurmd, if it has registered 20 s ago and still does not respond:
# a message to a slurmd that was killed can fail after the next one has registered. slurmctld then takes the node for
# silent until its next ping, which can take SlurmdTimeout / 3.
hail() {
    ((SECONDS >= hailed + 20)) || return 0
    hailed=$SECONDS
    pids slurmd -f "$conf" -N "$node" | xargs -r kill -9
}

for program in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd; do
    command -v "$program" >/dev/null || die "$program is not installed: run $here/install.sh"
done
check_state
lock
make_folders
make_gpus
write_config

alive munged || rm -f "$state"/run/munge.socket*
bring_up 20 munged munge_answers munged --force --socket="$state/run/munge.socket" --key-file="$state/munge.key" \
    --pid-file="$state/run/munged.pid" --log-file="$state/log/munged.log" --seed-file="$state/run/munged.seed"
[[ -e $state/mysql/complete ]] || make_database
bring_up 60 mariadbd database_answers mariadbd --defaults-file="$state/my.cnf"
bring_up 60 slurmdbd slurmdbd_answers slurmdbd
register
bring_up 60 slurmctld slurmctld_answers slurmctld -f "$conf"
for node in "${nodes[@]}"; do
    hailed=$SECONDS
    bring_up 90 "slurmd.$node" node_ready slurmd -f "$conf" -N "$node"
done
ask sacct -n -X -S now >/dev/null || give_up slurmdbd "sacct does not answer:"
echo "export SLURM_CONF=$conf"
