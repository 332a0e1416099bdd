#!/usr/bin/env bash
# Makes FOLDER/sglang-router and FOLDER/vllm-router, each in an environment of its own.
#
#   load_tests/peers/install_routers.sh FOLDER      PYTHON=python3.11 names another interpreter
set -eu -o pipefail

folder=$(mkdir -p "${1:?usage: $0 FOLDER}" && cd "$1" && pwd)

for router in sglang-router==0.3.2 vllm-router==0.1.17; do
  env=$folder/${router%%==*}
  "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/pip" install "$router"
  "$env/bin/pip" freeze | grep -i "^${router%%==*}" | tee "$env/versions.txt"
done
