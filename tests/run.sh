#!/bin/bash
# Run all tests, in four parts beside one another: two on a Slurm cluster each, which mostly wait, and two that need none.
# Arguments go to each pytest. With CI set, the tests marked each_version also run on Debian 13.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
logs=$(mktemp -d)
trap 'rm -rf "$logs"; kill $(jobs -p) 2>/dev/null' EXIT

part=("$python" -m pytest -p tests.kit.parts --part)
"${part[@]}" others "$@" >"$logs/others" 2>&1 &
others=$!
"${part[@]}" storage "$@" >"$logs/storage" 2>&1 &
storage=$!
(eval "$(tests/cluster/second.sh)" && exec "${part[@]}" second-cluster "$@") >"$logs/second" 2>&1 &
second=$!
"${part[@]}" first-cluster "$@"
statuses=($?)
if [[ -n ${CI:-} ]]; then
    tests/debian13/run.sh /opt/stagger/bin/python -m pytest -m each_version "$@"
    statuses+=($?)
fi
wait "$second"
statuses+=($?)
cat "$logs/second"
wait "$others"
statuses+=($?)
cat "$logs/others"
wait "$storage"
statuses+=($?)
cat "$logs/storage"
# pytest exits with 5 if no test was selected, for example by -k.
for status in "${statuses[@]}"; do
    [[ $status == 0 || $status == 5 ]] || exit "$status"
done
[[ " ${statuses[*]} " == *" 0 "* ]]
