#!/usr/bin/env bash
# Print what makes up.sh and down.sh mean a second cluster beside the first: eval "$(tests/cluster/second.sh)".
echo "export STAGGER_CLUSTER_DIR='${STAGGER_CLUSTER_DIR:-/var/tmp/stagger-cluster}-second'"
echo "export STAGGER_CLUSTER_PORT=$((${STAGGER_CLUSTER_PORT:-16800} + 40))"
