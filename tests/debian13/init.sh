#!/usr/bin/env bash
# init.sh ROOT CHECKOUT COMMAND...: the first process of run.sh's namespaces. It mounts, and runs the command in the root.
set -euo pipefail
root=$1 checkout=$2
shift 2
mount -t proc proc "$root/proc"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
mount --bind "$checkout" "$root/stagger"
# The state of a cluster, and what tests write, is gone with the command.
for folder in tmp var/tmp run dev/shm; do
    mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"
done
for file in /etc/resolv.conf /etc/hosts; do
    cp -L "$file" "$root/etc/"
done
# Not exec: this process remains, to reap the processes whose parents have ended.
chroot "$root" bash -c 'cd /stagger; "$@"; exit $?' init "$@"
