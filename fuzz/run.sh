#!/bin/sh
# Fuzzes one reader: run.sh TARGET SECONDS. New inputs go to target/corpus/TARGET, failures to target/failures/.
set -eu
cd "$(dirname "$0")"
target=$1 seconds=$2
# libFuzzer's instrumentation, from the compiler's own pass; build scripts are left out by naming the platform.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
platform=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="$coverage --cfg fuzzing" cargo build --release --target "$platform" --bin "$target"
mkdir -p "target/corpus/$target" target/failures
exec "target/$platform/release/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256 \
    -max_len=65536 -artifact_prefix="target/failures/$target-" "target/corpus/$target" "corpus/$target"
