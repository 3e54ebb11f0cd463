#!/usr/bin/env bash
# Builds the feature `cust` and runs its test, or with `bench` its bench, on the emulator; with
# RARUNET_TEST_DEVICE=cuda:0 on the first GPU, by the driver that the machine has.
#
# cust links libcuda when it is built. The emulator's library serves, so no CUDA has to be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_LIBRARY_PATH=$PWD/target/cust
mkdir -p target/cust/lib64
# A check runs build.rs, which makes the emulator, and links nothing.
emulator=$(cargo check --release --features cust --test cust --message-format=json-render-diagnostics |
  sed -n 's/.*\["RARUNET_EMULATOR_LIBRARY","\([^"]*\)"\].*/\1/p')
[ -n "$emulator" ] || { echo "no emulator in this build, so no libcuda to link: install a C++ compiler" >&2; exit 1; }
ln -sfn "$emulator" target/cust/lib64/libcuda.so

case ${1:-test} in
  test) build=(test --release --test cust) arguments=() ;;
  bench) build=(bench --bench launch) arguments=(--bench) ;;
  *) echo "usage: scripts/cust.sh [test | bench]" >&2; exit 2 ;;
esac
program=$(cargo "${build[@]}" --features cust --no-run --message-format=json-render-diagnostics |
  sed -n 's/.*"name":"\(cust\|launch\)".*"executable":"\([^"]*\)".*/\2/p')
# The library it was linked with is found by name when it starts: the emulator's only if that is to run.
[ -n "${RARUNET_TEST_DEVICE:-}" ] || export LD_LIBRARY_PATH=$(dirname "$emulator")
exec "$program" "${arguments[@]}"
