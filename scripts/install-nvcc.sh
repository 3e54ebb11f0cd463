#!/bin/sh
# Installs nvcc 13.0, without the rest of CUDA, into target/cuda, where build.rs finds it: about 105 MB from PyPI.
# All packages in one call: a second call of pip into the same folder installs nothing.
set -eu
cd "$(dirname "$0")/.."
folder=target/cuda
if [ -x "$folder/nvidia/cu13/bin/nvcc" ]; then
  echo "$folder/nvidia/cu13/bin/nvcc is there already"
  exit 0
fi
rm -rf "$folder"
# 13.0, not newer: a driver of the 580 series refuses the PTX of a newer nvcc.
python3 -m pip install --no-deps --target "$folder" \
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
  nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86
chmod -R u+x "$folder/nvidia/cu13/bin"
touch build.rs # so that the next cargo build looks for nvcc again
"$folder/nvidia/cu13/bin/nvcc" --version
