# shellcheck shell=bash
# shellcheck disable=SC2154  # common.sh sets the variables
# The configuration of the test cluster. Sourced by up.sh, after common.sh.

# STAGGER_CLUSTER_CROWD makes room for 10,000 jobs, and keeps the daemons from searching all of /proc for each job.
slurm_conf() {
    local host node i=0 cpus=1000 track=linuxproc gather=linux
    host=$(hostname -s)
    [[ -z $site ]] || cpus=64
    [[ -z ${STAGGER_CLUSTER_CROWD:-} ]] || cpus=2500 track=pgid gather=none
    cat <<END
ClusterName=$cluster
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
SlurmctldPort=$port
StateSaveLocation=$state/spool/slurmctld
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/run/slurmctld.pid
SlurmdPidFile=$state/run/slurmd.%n.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.%n.log
MailProg=/bin/true

AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire + 1 seconds before it may start again; less than 5 gives the default, 120.
AuthInfo=socket=$state/run/munge.socket,cred_expire=5

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,default_queue_depth=10000
MaxArraySize=10001
MaxJobCount=50000
MinJobAge=300
KillWait=5
# Thousands of starts at once on few cores: answers come late, and late is not dead.
MessageTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=300
ReturnToService=2

ProctrackType=proctrack/$track
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/$gather
# A job that is looked at (--acctg-freq=task=1) and has more memory than it asked for is ended: OUT_OF_MEMORY.
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
# Not a password: the munge socket for talking to slurmdbd, which does not look at AuthInfo.
AccountingStoragePass=$state/run/munge.socket
AccountingStorageTRES=gres/gpu

GresTypes=gpu
# More CPUs and memory than the machine has: the tests are about many small jobs, not about load.
SlurmdParameters=config_overrides
# Without this a job that asks for no memory takes all of its node's.
DefMemPerCPU=100
END
    for node in "${nodes[@]}"; do
        i=$((i + 1))
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 10 + i))" \
            "CPUs=$cpus RealMemory=1000000 Gres=gpu:12 Feature=ib State=UNKNOWN"
    done
    if [[ -n $site ]]; then
        site_conf
        site_partitions
        return
    fi
    echo "PreemptType=preempt/partition_prio"
    echo "PreemptMode=REQUEUE"
    echo "PartitionName=cpu Nodes=n[1-4] PriorityTier=10 Default=YES MaxTime=INFINITE State=UP"
    echo "PartitionName=gpu Nodes=n[3-4] PriorityTier=10 MaxTime=INFINITE State=UP"
    echo "PartitionName=scavenge Nodes=n[3-4] PriorityTier=1 GraceTime=5 MaxTime=INFINITE State=UP"
}

gres_conf() {
    echo "NodeName=n[1-${#nodes[@]}] Name=gpu File=$state/dev/gpu[0-11]"
}

# Slurm's MySQL plug-in has no option for a socket, so up.sh sets MYSQL_UNIX_PORT.
slurmdbd_conf() {
    cat <<END
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=$me
AuthType=auth/munge
AuthInfo=socket=$state/run/munge.socket
PidFile=$state/run/slurmdbd.pid
LogFile=$state/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$me
StorageLoc=slurm_acct_db
END
    [[ -z $site ]] || echo "PrivateData=jobs"
}

my_cnf() {
    cat <<END
[mariadbd]
datadir=$state/mysql
socket=$state/run/mysql.socket
pid-file=$state/run/mariadbd.pid
user=$me
skip-networking
performance_schema=off
innodb_buffer_pool_size=256M
innodb_lock_wait_timeout=900
# A crash of the machine may lose the last second of accounting; a sync per job would cost more.
innodb_flush_log_at_trx_commit=0
END
}

# slurmd loads a cgroup plugin even if nothing in slurm.conf uses one, and exits if it finds no cgroups.
cgroup_conf() {
    echo "CgroupPlugin=disabled"
}
