#!/bin/bash
# make-models-venvs.sh VENV: make or update VENV-models, which adds the extra models to the environment VENV, and
# VENV-models-oldest, which adds the oldest transformers to that. VENV itself stays without torch: spaCy imports any torch
# that it finds, and the tests that need no torch would take longer.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
venv=$(readlink -f "$1")

# site_of VENV: where its packages lie.
site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# lay NEW BELOW...: make the environment NEW, which sees the packages of the environments BELOW, unless it is there for
# this version of Python. `addsitedir` also heeds their .pth files, one of which is stagger's.
lay() {
    local new=$1 below
    shift
    [[ $("$new/bin/python" -V 2>/dev/null) == "$("$venv/bin/python" -V)" ]] || {
        rm -rf "$new"
        "$venv/bin/python" -m venv "$new"
    }
    for below in "$@"; do
        echo "import site; site.addsitedir('$(site_of "$below")')"
    done >"$(site_of "$new")/below.pth"
}

# add VENV PACKAGES...: install them with pip.
add() {
    local python=$1/bin/python
    shift
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

# torch on PyPI brings gigabytes of CUDA. Without a GPU, torch's own index has it without CUDA, as version X+cpu, which
# pip prefers to X; if that index does not answer at once, pip's configured indexes decide.
cpu_wheels=https://download.pytorch.org/whl/cpu
indexes=()
if [[ ! -e /proc/driver/nvidia/version ]] && curl --silent --fail --head --max-time 5 "$cpu_wheels/torch/" >/dev/null; then
    indexes=(--extra-index-url "$cpu_wheels")
fi

lay "$venv-models" "$venv"
add "$venv-models" "${indexes[@]}" --constraint "$here/../constraints.txt" --requirement "$here/models.txt"
lay "$venv-models-oldest" "$venv-models" "$venv"
add "$venv-models-oldest" --no-deps --requirement "$here/models-oldest.txt"
