#!/usr/bin/env bash
# Packs what a machine with a GPU needs to test and time this crate, without Rust there: `scripts/gpu-kit.sh [FOLDER]`
# makes FOLDER (target/gpu-kit, unless given). Copy it to the machine, and start its run.sh.
#
# RARUNET_CUDA_ARCHS  the GPUs it is for: 80 (with 86 and 89) and 90 unless set. Each executable carries the GPU code, so
#                     that all kinds at once would be too much
# EMULATOR=1          packs the emulator, too, for DEVICE=emulator
set -euo pipefail
cd "$(dirname "$0")/.."
kit=${1:-target/gpu-kit}
MAX_MIB=60
export RARUNET_CUDA_ARCHS=${RARUNET_CUDA_ARCHS:-80,90}
export CARGO_INCREMENTAL=0 # whose code is larger

sh scripts/install-nvcc.sh # which the build then finds

# `executable KIND NAME` is a program that cargo's messages tell of.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo test --release --test main --no-run --message-format=json-render-diagnostics >"$messages" # the tests need the program, too
cargo bench --bench kernels --bench cudnn --no-run --message-format=json-render-diagnostics >>"$messages"
executable() {
  sed -n 's/.*"kind":\["'"$1"'"\].*"name":"'"$2"'".*"executable":"\([^"]*\)".*/\1/p' "$messages" | tail -n 1
}
emulator=$(sed -n 's/.*\["RARUNET_EMULATOR_LIBRARY","\([^"]*\)"\].*/\1/p' "$messages" | tail -n 1)

rm -rf "$kit"
mkdir -p "$kit/benches" "$kit/golden"
strip -o "$kit/rarunet-cuda" "$(executable bin rarunet-cuda)"
strip -o "$kit/tests" "$(executable test main)"
for bench in kernels cudnn; do
  strip -o "$kit/benches/$bench" "$(executable bench $bench)"
done
cp tests/golden/*.safetensors "$kit/golden"
cp scripts/gpu-kit-run.sh "$kit/run.sh"
cp scripts/precisions.sh "$kit"
chmod +x "$kit/run.sh"
if [ -n "$emulator" ] && [ "${EMULATOR:-0}" = 1 ]; then
  from=$(dirname "$emulator")
  mkdir -p "$kit/emulator/modules"
  for library in "$from"/libcuda.so{,.1} "$from"/modules/*.so; do
    strip -g -o "$kit/emulator${library#"$from"}" "$library"
  done
fi
{
  "$kit/rarunet-cuda" --version
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', changed')"
  echo "for the GPUs $RARUNET_CUDA_ARCHS"
  echo "made with glibc $(ldd --version | sed -n '1s/.* //p'): the machine's must not be older"
} >"$kit/VERSION"

mib=$(($(du -sk "$kit" | cut -f1) / 1024))
echo "$kit: $mib MiB"
[ "$mib" -lt $MAX_MIB ] || { echo "that is $MAX_MIB MiB or more" >&2; exit 1; }
