#!/bin/bash
# Run all tests, in five parts beside one another: two on a Slurm cluster each, which mostly wait, two that need none, and
# one with torch. The tests of models that are marked each_transformers also run with the oldest transformers.
# Arguments go to each pytest. With CI set, the tests marked each_version also run on Debian 13.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"; kill $(jobs -p) 2>/dev/null' EXIT

pytest=(-m pytest -p tests.kit.parts --part)
part=(.venv/bin/python "${pytest[@]}")
"${part[@]}" others "$@" >"$logs/others" 2>&1 &
others=$!
"${part[@]}" storage "$@" >"$logs/storage" 2>&1 &
storage=$!
.venv-models/bin/python "${pytest[@]}" models "$@" >"$logs/models" 2>&1 &
models=$!
(eval "$(tests/cluster/second.sh)" && exec "${part[@]}" second-cluster "$@") >"$logs/second" 2>&1 &
second=$!
"${part[@]}" first-cluster "$@"
statuses=($?)
.venv-models-oldest/bin/python "${pytest[@]}" models "$@" -m each_transformers
statuses+=($?)
if [[ -n ${CI:-} ]]; then
    tests/debian13/run.sh /opt/stagger/bin/python -m pytest -m each_version "$@"
    statuses+=($?)
fi
for name in second others storage models; do
    wait "${!name}"
    statuses+=($?)
    cat "$logs/$name"
done
# pytest exits with 5 if no test was selected, for example by -k.
for status in "${statuses[@]}"; do
    [[ $status == 0 || $status == 5 ]] || exit "$status"
done
[[ " ${statuses[*]} " == *" 0 "* ]]
