#!/bin/bash
# Run all tests. Tests that need the Slurm cluster mostly wait, so the others run beside them. Arguments go to each pytest.
# With CI set, the tests marked each_version also run on Debian 13.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
others=$(mktemp)
trap 'rm -f "$others"; kill $(jobs -p) 2>/dev/null' EXIT
"$python" -m pytest -m "not slurm" "$@" >"$others" 2>&1 &
beside_pid=$!
"$python" -m pytest -m slurm "$@"
on_cluster=$?
on_debian13=5
if [[ -n ${CI:-} ]]; then
    tests/debian13/run.sh /opt/stagger/bin/python -m pytest -m each_version "$@"
    on_debian13=$?
fi
wait "$beside_pid"
beside=$?
cat "$others"
# pytest exits with 5 if no test was selected, for example by -k.
for status in "$on_cluster" "$on_debian13" "$beside"; do
    [[ $status == 0 || $status == 5 ]] || exit "$status"
done
[[ $on_cluster == 0 || $on_debian13 == 0 || $beside == 0 ]]
