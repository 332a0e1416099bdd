#!/usr/bin/env bash
# Makes FOLDER/transformers: plain torch and transformers, in an environment of its own.
#
#   load_tests/peers/install_transformers.sh FOLDER      PYTHON=python3.11 names another interpreter
set -eu -o pipefail

folder=$(mkdir -p "${1:?usage: $0 FOLDER}" && cd "$1" && pwd)
env=$folder/transformers

"${PYTHON:-python3}" -m venv "$env"
# Without psutil continuous batching cannot see how much memory is free, and says so.
"$env/bin/pip" install torch==2.13.0 transformers==5.23.0 psutil

"$env/bin/pip" freeze | grep -iE '^(torch|transformers)' >"$env/versions.txt"
cat "$env/versions.txt"
