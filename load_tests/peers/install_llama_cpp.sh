#!/usr/bin/env bash
# Makes FOLDER/llama-cpp: the llama-server of the llama.cpp that llama-cpp-python ships, built for
# this machine, and an environment that converts checkpoints to its format.
#
#   load_tests/peers/install_llama_cpp.sh FOLDER      JOBS=2 compilers, PYTHON=python3.11
#
# Needs cmake and a C++ compiler. What is measured is the C++ server: Python's llama_cpp.server
# answers one request at a time.
set -eu -o pipefail

version=0.3.36
folder=$(mkdir -p "${1:?usage: $0 FOLDER}" && cd "$1" && pwd)
env=$folder/llama-cpp

"${PYTHON:-python3}" -m venv "$env"
"$env/bin/pip" download --no-deps --no-binary :all: --dest "$env" "llama-cpp-python==$version"
tar -xzf "$env/llama_cpp_python-$version.tar.gz" -C "$env"
source=$env/llama_cpp_python-$version/vendor/llama.cpp

# GGML_NATIVE: this machine's instructions. Neither OpenSSL nor the web page is needed to measure,
# and the page's files would be fetched from the network.
cmake -S "$source" -B "$env/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
cmake --build "$env/build" --target llama-server --parallel "${JOBS:-$(nproc)}"

# For to_gguf.py. The converter asks for older versions; these read the checkpoints made here.
"$env/bin/pip" install torch==2.13.0 transformers==5.23.0 sentencepiece "$source/gguf-py"
ln -sfn "$source" "$env/source"

{
  echo "llama-cpp-python==$version"
  "$env/build/bin/llama-server" --version 2>&1 | head -1
} >"$env/versions.txt"
cat "$env/versions.txt"
