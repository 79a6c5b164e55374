#!/bin/bash
# Run all tests. Tests that need the Slurm cluster mostly wait, so the others run beside them. Arguments go to both.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
others=$(mktemp)
trap 'rm -f "$others"; kill $(jobs -p) 2>/dev/null' EXIT
"$python" -m pytest -m "not slurm" "$@" >"$others" 2>&1 &
"$python" -m pytest -m slurm "$@"
on_cluster=$?
wait $!
beside=$?
cat "$others"
# pytest exits with 5 if no test was selected, for example by -k.
for status in "$on_cluster" "$beside"; do
    [[ $status == 0 || $status == 5 ]] || exit "$status"
done
[[ $on_cluster == 0 || $beside == 0 ]]
