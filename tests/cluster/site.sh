# shellcheck shell=bash
# shellcheck disable=SC2154  # common.sh sets the variables
# The "site" cluster: a small cluster with the rules that real sites have. Sourced by up.sh when STAGGER_CLUSTER_SITE is set.

# Ordinary users that every Debian has. The second may have five jobs at once.
users=(games news)

site_conf() {
    cat <<END
JobSubmitPlugins=require_timelimit,lua
AccountingStorageEnforce=associations,limits,qos,safe
PrivateData=jobs,usage,users
TaskProlog=$state/task_prolog
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
END
}

site_partitions() {
    local name options
    while read -r name options; do
        echo "PartitionName=$name Nodes=n[1-2] MaxTime=1-0 PriorityTier=10 $options"
    done <<END
cpu Default=YES
gpu
funded
hidden Hidden=YES
whole OverSubscribe=EXCLUSIVE
short MaxTime=00:02:00
nosubmit
scavenge PriorityTier=1 GraceTime=1
END
}

# What the site asks of every job, and its prefix of job names. require_timelimit asks for the time.
job_submit_lua() {
    cat <<'END'
function slurm_job_submit(job, partitions, submit_uid)
    local function refuse(text)
        slurm.log_user(text)
        return slurm.ERROR
    end
    local partition = job.partition or "cpu"
    if job.pn_min_memory == slurm.NO_VAL64 then
        return refuse("This site asks every job for its memory: --mem or --mem-per-cpu.")
    end
    if partition == "gpu" and not (job.tres_per_node or job.tres_per_job or job.tres_per_task) then
        return refuse("The partition gpu is for jobs with GPUs: --gres=gpu:N.")
    end
    if partition == "funded" and not (job.account and job.comment and job.features) then
        return refuse("The partition funded asks every job for its -A account, --comment and --constraint.")
    end
    if partition == "whole" and job.min_nodes == slurm.NO_VAL then
        return refuse("Give the number of nodes with -N: the partition whole has whole nodes only.")
    end
    job.name = "u" .. submit_uid .. "_" .. (job.name or "")
    return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, modify_uid)
    return slurm.SUCCESS
end

return slurm.SUCCESS
END
}

# Nodes of the partition nosubmit have every command but Slurm's.
task_prolog() {
    cat <<END
#!/bin/sh
[ "\$SLURM_JOB_PARTITION" != nosubmit ] || echo "export PATH=$state/compute"
END
}

make_compute_commands() {
    [[ ! -e $state/compute ]] || return 0
    mkdir "$state/compute"
    ln -s /usr/bin/* "$state/compute"
    (cd "$state/compute" && rm -f salloc sattach sbatch sbcast scancel scontrol sinfo sprio squeue srun sacct sacctmgr)
}

write_site() {
    job_submit_lua | install_file "$state/job_submit.lua" 644
    task_prolog | install_file "$state/task_prolog" 755
    make_compute_commands
}

# Starts slurmd so that jobs can read what only root can: Python may lie in root's home. They can write what their user can.
job_rights=(setpriv --securebits=+no_setuid_fixup --inh-caps=+dac_read_search --ambient-caps=+dac_read_search)

register_users() {
    sacctmgr -iQ add qos brief maxwall=00:05:00 flags=DenyOnLimit >/dev/null || true
    sacctmgr -iQ add qos few maxsubmitjobsperuser=5 >/dev/null || true
    sacctmgr -iQ add account team cluster="$cluster" >/dev/null || true
    sacctmgr -iQ add user "${users[0]}" cluster="$cluster" account=team qos=normal,brief,few >/dev/null || true
    sacctmgr -iQ add user "${users[1]}" cluster="$cluster" account=team maxsubmitjobs=5 >/dev/null ||
        die "sacctmgr could not add ${users[1]}, see $state/log/slurmdbd.log"
}
