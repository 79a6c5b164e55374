#!/bin/bash
# make-venv.sh PYTHON FOLDER: create a virtual environment, or name the package that Python lacks for it.
set -euo pipefail
python=$1 folder=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "stagger needs Python 3.10 or newer; $python is $("$python" --version 2>&1). Try: make PYTHON=python3.12" >&2
    exit 2
fi
# Debian packages ensurepip separately; without it a virtual environment has no pip.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-venv
    else
        echo "$python cannot make virtual environments; install its venv package (Debian: python3-venv) and retry." >&2
        exit 2
    fi
fi
"$python" -m venv "$folder"
