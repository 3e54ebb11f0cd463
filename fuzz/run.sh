#!/bin/sh
# Fuzzes one reader: run.sh TARGET SECONDS. New inputs go to target/corpus/TARGET, failures to target/failures/.
set -eu
cd "$(dirname "$0")"
target=$1 seconds=$2
# libFuzzer's instrumentation, from the compiler's own pass, and AddressSanitizer, which the stable compiler has but
# does not offer; build scripts are left out by naming the platform.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Zsanitizer=address --cfg fuzzing"
platform=$(rustc -vV | sed -n 's/^host: //p')
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags CARGO_INCREMENTAL=1 CARGO_TARGET_DIR=target \
    cargo build --release --target "$platform" --bin "$target"
mkdir -p "target/corpus/$target" target/failures
export ASAN_OPTIONS=quarantine_size_mb=16:detect_odr_violation=0
exec "target/$platform/release/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256 \
    -max_len=65536 -detect_leaks=0 -print_final_stats=1 -artifact_prefix="target/failures/$target-" \
    "target/corpus/$target" "corpus/$target"
