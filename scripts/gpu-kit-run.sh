#!/usr/bin/env bash
# Tests and times this kit on the machine at hand, which needs a GPU and its driver, and no Rust.
#
#   ./run.sh [FOLDER]     leaves report.txt, report.json and each step's output in FOLDER (report, unless given)
#
# DEVICE    cuda:0 unless set; another GPU is cuda:N, and `emulator` runs the same kernels on the CPU, at small sizes
# LIMIT     seconds a step may take, 1800 unless set
# ONLY      the steps to run: a pattern of the shell that their names match, as `bench-*`; all unless set
#
# A step passes, fails, or is skipped for a reason that the report says. The exit code is 1 if a step failed. Beside the
# kit's own files, peers/torch_rarunet.py is timed if it is there and python3 has torch; cuDNN is timed if python3 or the
# system has it, and cudnn.json is left in FOLDER.
set -u
kit=$(cd "$(dirname "$0")" && pwd)
device=${DEVICE:-cuda:0}
limit=${LIMIT:-1800}
only=${ONLY:-*}
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
    precisions=(f32)
    ;;
  cuda:*)
    export RARUNET_TEST_DEVICE=$device
    benchmark=(--size 256 --batch 8 --steps 20)
    precisions=(f32 bf16 fp16 tf32)
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
  is_wanted "$name" || return 0
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

skip() {
  is_wanted "$1" || return 0
  record "$1" skipped 0 "$2"
}

is_wanted() {
  # shellcheck disable=SC2053 # it is a pattern
  [[ $1 == $only ]]
}

# What of an output stands in the report: the device, how many tests passed, how fast it is, alone or beside cuDNN.
summary() { grep -hoE "^ *$device +yes.*|^test result: .* failed|\"images_per_s\": *[0-9.e+-]+|^. \*\*all\*\* .*" "$1" | tail -n 1; }

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

for precision in "${precisions[@]}"; do
  benchmarked=(bench --device "$device" --precision "$precision" --json "${benchmark[@]}")
  step "bench-train-$precision" anything "$program" "${benchmarked[@]}"
  step "bench-infer-$precision" anything "$program" "${benchmarked[@]}" --infer
done
for precision in "${precisions[@]}"; do
  step "bench-ops-$precision" anything "$program" bench --device "$device" --precision "$precision" --json \
    "${benchmark[@]}" --ops
done

# cuDNN's library, and those it needs, where Python has them; else wherever the system looks.
libraries=$(python3 -c 'import glob, nvidia.cudnn
roots = {path.rsplit("/", 1)[0] for path in nvidia.cudnn.__path__}
print(":".join(sorted(path for root in roots for path in glob.glob(root + "/*/lib"))))' 2>/dev/null)
for bench in "$kit"/benches/*; do
  name=$(basename "$bench") flags=(--noplot)
  [ "$device" != emulator ] || flags=(--test) # each once
  [ "$name" != cudnn ] || flags=(--json "$out/cudnn.json")
  step "bench-$name" anything env RARUNET_TEST_DEVICE="$device" \
    LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$bench" --bench "${flags[@]}"
done

# Whether training on tensor cores comes to what f32 comes to.
if [ "$device" = emulator ]; then
  skip precisions "it takes the emulator hours"
else
  step precisions anything env PROGRAM="$program" DEVICE="$device" bash "$kit/precisions.sh" "$out/precisions"
fi

# Where a step's time goes, kernel by kernel: of the first step, which is not captured into a graph.
if [ "$device" = emulator ]; then
  skip profile "the emulator's time is not a GPU's"
elif ! command -v ncu >/dev/null; then
  skip profile "no ncu"
else
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active,sm__warps_active.avg.pct_of_peak_sustained_active
  for mode in train infer; do
    flags=(--device "$device" --precision bf16 "${benchmark[@]}")
    [ $mode = train ] || flags+=(--infer)
    step "profile-$mode" anything ncu --clock-control none --cache-control none --csv --metrics "$metrics" \
      --launch-count "${PROFILED:-700}" "$program" bench "${flags[@]}" --steps 1
  done
fi

# PyTorch knows no other name for the device under which it waits for it: the GPU is picked by what it can see.
peer=$kit/peers/torch_rarunet.py
if [ ! -f "$peer" ]; then
  skip peer "no peers/torch_rarunet.py beside the kit"
elif [ "$device" = emulator ]; then
  skip peer "PyTorch knows no emulator"
elif ! python3 -c 'import torch' 2>/dev/null; then
  skip peer "python3 has no torch"
else
  for mode in train infer; do
    for how in eager compile; do
      flags=(--device cuda --size 256 --batch 8 --steps 20 --amp bf16 --channels-last)
      [ $mode = train ] || flags+=(--infer)
      [ $how = eager ] || flags+=(--compile --compile-mode max-autotune)
      step "peer-$mode-$how" anything env CUDA_VISIBLE_DEVICES="${device#cuda:}" python3 "$peer" "${flags[@]}"
    done
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
