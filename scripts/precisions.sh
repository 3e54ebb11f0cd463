#!/usr/bin/env bash
# Whether training on tensor cores comes to what f32 comes to: `scripts/precisions.sh [FOLDER]` makes synthetic patients, trains
# the same network on them in each precision from each seed, and prints the validation Dice in Markdown. It goes on where it
# was stopped. FOLDER is target/precisions unless given.
#
# DEVICE    cuda:0 unless set; or cpu, which rounds what a GPU stores in 16 bits
# SEEDS     "1 2 3" unless set; how each precision's runs differ
# DATA      flags of `phantom` that make the patients
# TRAIN     flags of `train`
# PROGRAM   rarunet-cuda, if it is not to be built by cargo
set -euo pipefail
[ -n "${PROGRAM:-}" ] || cd "$(dirname "$0")/.."
folder=${1:-target/precisions}
device=${DEVICE:-cuda:0}
read -ra seeds <<<"${SEEDS:-1 2 3}"
read -ra data <<<"${DATA:---patients 10 --slices 32 --size 64}"
read -ra flags <<<"${TRAIN:---widths 8,16,32,64,128 --size 64 --epochs 20 --schedule cosine --learning-rate 4e-3}"
if [ -z "${PROGRAM:-}" ]; then
  cargo build --quiet --release
  PROGRAM=target/release/rarunet-cuda
fi
PRECISIONS=(f32 tf32 bf16 fp16)

mkdir -p "$folder"
[ -d "$folder/data" ] || "$PROGRAM" phantom --quiet --out "$folder/data" "${data[@]}"
for seed in "${seeds[@]}"; do
  for precision in "${PRECISIONS[@]}"; do
    run=$folder/$device-$precision-$seed
    resume=()
    [ ! -e "$run/manifest.json" ] || resume=(--resume)
    "$PROGRAM" train "$folder/data" --out "$run" --device "$device" --precision "$precision" --seed "$seed" --quiet \
      --cache "$folder/cache" "${flags[@]}" "${resume[@]}" || echo "$run did not end well" >&2
  done
done

# The validation Dice of the weights that a run keeps; 0 if it did not come to its end.
dice() {
  local log=$folder/$device-$1-$2/log.jsonl
  [ "$(wc -l <"$log")" -eq "$(sed -n 's/.*"epochs": *\([0-9]*\).*/\1/p' "$(dirname "$log")/manifest.json" | head -n 1)" ] ||
    { echo 0; return; }
  sed -n 's/.*"val_dice":\([0-9.]*\).*/\1/p' "$log" | sort -g | tail -n 1
}

echo "\`phantom ${data[*]}\`, \`train ${flags[*]}\`, device $device"
echo
echo "| seed | f32 | tf32 | bf16 | fp16 | tf32 - f32 | bf16 - f32 | fp16 - f32 |"
echo "|---|---|---|---|---|---|---|---|"
for seed in "${seeds[@]}"; do
  echo "$seed $(for precision in "${PRECISIONS[@]}"; do dice "$precision" "$seed"; done | tr '\n' ' ')"
done | awk '
  function row(name, f32, tf32, bf16, fp16) {
    printf "| %s | %.4f | %.4f | %.4f | %.4f | %+.4f | %+.4f | %+.4f |\n", name, f32, tf32, bf16, fp16, tf32 - f32,
      bf16 - f32, fp16 - f32
  }
  { row($1, $2, $3, $4, $5) }
  $2 * $3 * $4 * $5 > 0 { whole++; f32 += $2; tf32 += $3; bf16 += $4; fp16 += $5 }
  END { if (whole) row("mean", f32 / whole, tf32 / whole, bf16 / whole, fp16 / whole) }'
