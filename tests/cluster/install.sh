#!/usr/bin/env bash
# install.sh [PACKAGE...]: install the packages of the test cluster, and more, without starting any of them as a service.
exec "$(dirname "$(readlink -f "$0")")/../packages.sh" slurm-wlm slurmdbd munge mariadb-server strace procps "$@"
