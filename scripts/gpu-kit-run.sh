#!/usr/bin/env bash
# Tests and times this kit on the machine at hand, which needs a GPU and its driver, and no Rust.
#
#   ./run.sh [FOLDER]     leaves report.txt, report.json and each step's output in FOLDER (report, unless given)
#
# DEVICE    cuda:0 unless set; another GPU is cuda:N, and `emulator` runs the same kernels on the CPU, at small sizes
# LIMIT     seconds a step may take, 1800 unless set
#
# A step passes, fails, or is skipped for a reason that the report says. The exit code is 1 if a step failed. Beside the
# kit's own files, peers/torch_rarunet.py is timed if it is there and python3 has torch.
set -u
kit=$(cd "$(dirname "$0")" && pwd)
device=${DEVICE:-cuda:0}
limit=${LIMIT:-1800}
mkdir -p "${1:-$kit/report}" && out=$(cd "${1:-$kit/report}" && pwd) || exit 1
rm -f "$out"/*.stdout "$out"/*.stderr

export RARUNET_GOLDEN_DIR=$kit/golden CRITERION_HOME=$out/criterion
unset RARUNET_TEST_DEVICE
program=$kit/rarunet-cuda
tests=("$kit/tests" --show-output --test-threads=1)
case $device in
  emulator)
    export RARUNET_EMULATOR_LIBRARY=$kit/emulator/libcuda.so.1
    benchmark=(--size 32 --batch 1 --widths 8,8,8,8,8 --steps 2)
    ;;
  cuda:*)
    export RARUNET_TEST_DEVICE=$device
    benchmark=(--size 256 --batch 8 --steps 20)
    ;;
  *) echo "DEVICE is cuda:N or emulator, not $device" >&2; exit 2 ;;
esac

# ---- steps ------------------------------------------------------------------------------------------------------------

failed=0
steps=()

# Text between quotes, as JSON has it.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')"; }

# record NAME RESULT SECONDS [NOTE]: a line of both reports.
record() {
  local name=$1 result=$2 seconds=$3 note=${4:-} json
  printf '%-24s %-8s %6s s  %s\n' "$name" "$result" "$seconds" "$note" | tee -a "$out/report.txt"
  json="{\"name\": $(quote "$name"), \"result\": $(quote "$result"), \"seconds\": $seconds, \"note\": $(quote "$note")"
  if [ "$result" = passed ] && [ "$(head -c 1 "$out/$name.stdout")" = "{" ]; then
    json+=", \"output\": $(cat "$out/$name.stdout")"
  fi
  steps+=("$json}")
  [ "$result" != FAILED ] || failed=1
}

# step NAME CHECK COMMAND...: passes if the command exits with 0 and CHECK, given the file of its output, finds no fault.
# CHECK prints what it finds.
step() {
  local name=$1 check=$2 start=$SECONDS code fault=
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.stdout" 2>"$out/$name.stderr" </dev/null
  code=$?
  if [ $code -eq 124 ] || [ $code -eq 137 ]; then
    fault="took more than $limit s"
  elif [ $code -ne 0 ]; then
    fault="exit code $code"
  else
    fault=$($check "$out/$name.stdout")
  fi
  if [ -z "$fault" ]; then
    record "$name" passed $((SECONDS - start)) "$(summary "$out/$name.stdout")"
  else
    record "$name" FAILED $((SECONDS - start)) "$fault"
    tail -n 20 "$out/$name.stdout" "$out/$name.stderr" | sed 's/^/    /' | tee -a "$out/report.txt"
  fi
}

skip() { record "$1" skipped 0 "$2"; }

# What of an output stands in the report: the device, how many tests passed, how fast it is.
summary() { grep -hoE "^ *$device +yes.*|^test result: .* failed|\"images_per_s\": *[0-9.e+-]+" "$1" | tail -n 1; }

# A check of what need only be there.
anything() { [ -s "$1" ] || echo "no output"; }

# Tests ran, and none of them skipped what it is for.
tests_ran() {
  grep -qE '^test result: ok\. [1-9][0-9]* passed' "$1" || echo "no test ran"
  grep -m 1 'skipped:' "$1"
}

device_is_there() { grep -qE "^ *$device +yes" "$1" || echo "$device is not available"; }

# ---- what is run ------------------------------------------------------------------------------------------------------

{
  echo "rarunet-cuda GPU kit, device $device"
  echo "$(date -u +%Y-%m-%dT%H:%M:%SZ), $(uname -srm), $(nproc) cores"
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  cat "$kit/VERSION"
  echo
} | tee "$out/report.txt"

step devices device_is_there "$program" devices
step cuda-tests tests_ran "${tests[@]}" cuda::
step golden-values tests_ran "${tests[@]}" --exact golden::golden_cuda_f32
step gradcheck anything "$program" gradcheck --device "$device" --json

PATH=$PATH:/usr/local/cuda/bin
for tool in memcheck racecheck synccheck initcheck; do
  if [ "$device" = emulator ]; then
    skip "$tool" "the emulator has checks of its own"
  elif ! command -v compute-sanitizer >/dev/null; then
    skip "$tool" "no compute-sanitizer"
  else
    # Not the tests that provoke errors of the driver: the sanitizer would report those.
    step "$tool" tests_ran compute-sanitizer --tool "$tool" --error-exitcode 97 \
      "${tests[@]}" cuda::cuda_gradients cuda::cuda_networks cuda::convolution
  fi
done

step bench-train anything "$program" bench --device "$device" --json "${benchmark[@]}"
step bench-infer anything "$program" bench --device "$device" --json "${benchmark[@]}" --infer
for bench in "$kit"/benches/*; do
  step "bench-$(basename "$bench")" anything env RARUNET_TEST_DEVICE="$device" "$bench" --bench --noplot "$device"
done

peer=$kit/peers/torch_rarunet.py
if [ ! -f "$peer" ]; then
  skip peer "no peers/torch_rarunet.py beside the kit"
elif [ "$device" = emulator ]; then
  skip peer "PyTorch knows no emulator"
elif ! python3 -c 'import torch' 2>/dev/null; then
  skip peer "python3 has no torch"
else
  for mode in train infer; do
    flags=(--device "$device" --size 256 --batch 8 --steps 20 --channels-last)
    [ $mode = train ] || flags+=(--infer)
    step "peer-$mode" anything python3 "$peer" "${flags[@]}"
  done
fi

# ---- the reports ------------------------------------------------------------------------------------------------------

if [ $failed -eq 0 ]; then passed=true; else passed=false; fi
{
  printf '{\n  "device": %s,\n  "version": %s,\n  "passed": %s,\n' "$(quote "$device")" "$(quote "$(cat "$kit/VERSION")")" $passed
  printf '  "steps": [\n'
  for index in "${!steps[@]}"; do
    [ "$index" -eq 0 ] || printf ',\n'
    printf '%s' "${steps[$index]}"
  done
  printf '\n  ]\n}\n'
} >"$out/report.json"
if [ $failed -eq 0 ]; then echo "all passed"; else echo "something FAILED"; fi | tee -a "$out/report.txt"
echo "$out/report.txt, $out/report.json"
exit $failed
