#!/usr/bin/env bash
# Makes FOLDER/sglang-router, FOLDER/vllm-router and FOLDER/dynamo, each in an environment of its own.
#
#   load_tests/peers/install_routers.sh FOLDER [ROUTER...]      PYTHON=python3.11 names another interpreter
set -eu -o pipefail

folder=$(mkdir -p "${1:?usage: $0 FOLDER [ROUTER...]}" && cd "$1" && pwd)
shift
declare -A versions=([sglang-router]=0.3.2 [vllm-router]=0.1.17 [dynamo]=1.6.1)
routers=("$@")
[ $# -gt 0 ] || routers=("${!versions[@]}")

# One of the frontend's requirements is a stub that fetches itself from elsewhere; neither frontend
# nor mocker use it. So all but that one, written out.
install_dynamo() {
  "$1" install "ai-dynamo-runtime==$2" "aiohttp<4" certifi "kubernetes<33,>=32.0.1" msgspec \
    "prometheus-client<1,>=0.23.1" "pyzmq>=26" "redis<9,>=6.2" tqdm "transformers>=4.56" \
    typing-extensions "zstandard<1"
  "$1" install --no-deps "ai-dynamo==$2"
}

for router in "${routers[@]}"; do
  env=$folder/$router
  version=${versions[$router]}
  "${PYTHON:-python3}" -m venv "$env"
  if [ "$router" = dynamo ]; then
    install_dynamo "$env/bin/pip" "$version"
  else
    "$env/bin/pip" install "$router==$version"
  fi
  "$env/bin/pip" freeze | grep -iE "^(ai-)?$router" | tee "$env/versions.txt"
done
