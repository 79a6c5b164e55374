#!/usr/bin/env bash
# Install the test cluster's packages without starting any of them as a service.
exec "$(dirname "$(readlink -f "$0")")/../packages.sh" slurm-wlm slurmdbd munge mariadb-server strace procps
