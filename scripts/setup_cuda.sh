#!/usr/bin/env bash
# Puts nvcc and what it needs into a Python environment, from PyPI: no driver, no GPU, no root.
#   scripts/setup_cuda.sh [FOLDER]        (default ~/.cache/holdfast/cuda)
# Prints the CMake options to compile the CUDA kernels with. One consistent set of versions: mixed
# ones fail in ptxas.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast/cuda}
if [[ ! -x $folder/bin/python ]]; then python3 -m venv "$folder"; fi
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
  nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
nvcc=$(find "$folder" -path '*/bin/nvcc' | head -n 1)
"$nvcc" --version >&2
echo "-DHOLDFAST_CUDA=ON -DHOLDFAST_NVCC=$nvcc"
