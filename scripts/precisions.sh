#!/usr/bin/env bash
# Whether training on tensor cores comes to what f32 comes to: `scripts/precisions.sh [FOLDER]` makes synthetic patients, trains
# the same network on them in each precision from each seed, and prints the validation Dice in Markdown. It goes on where it
# was stopped. FOLDER is target/precisions unless given.
#
# DEVICE      cuda:0 unless set; or cpu, which rounds what a GPU stores in 16 bits
# PRECISIONS  f32, and what is compared with it: "f32 tf32 bf16 fp16" unless set, on the CPU "f32 bf16 fp16"
# SEEDS       "1 2 3" unless set; how each precision's runs differ
# DATA        flags of `phantom` that make the patients
# TRAIN       flags of `train`
# PROGRAM     rarunet-cuda, if it is not to be built by cargo
set -euo pipefail
[ -n "${PROGRAM:-}" ] || cd "$(dirname "$0")/.."
folder=${1:-target/precisions}
device=${DEVICE:-cuda:0}
case $device in
  cpu) all="f32 bf16 fp16" ;;
  *) all="f32 tf32 bf16 fp16" ;;
esac
read -ra precisions <<<"${PRECISIONS:-$all}"
read -ra seeds <<<"${SEEDS:-1 2 3}"
read -ra data <<<"${DATA:---patients 10 --slices 32 --size 64}"
read -ra flags <<<"${TRAIN:---widths 8,16,32,64,128 --size 64 --epochs 20 --schedule cosine --learning-rate 4e-3}"
if [ -z "${PROGRAM:-}" ]; then
  cargo build --quiet --release
  PROGRAM=target/release/rarunet-cuda
fi

mkdir -p "$folder"
[ -d "$folder/data" ] || "$PROGRAM" phantom --quiet --out "$folder/data" "${data[@]}"
for seed in "${seeds[@]}"; do
  for precision in "${precisions[@]}"; do
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
{
  echo "seed ${precisions[*]}"
  for seed in "${seeds[@]}"; do
    echo "$seed $(for precision in "${precisions[@]}"; do dice "$precision" "$seed"; done | tr '\n' ' ')"
  done
} | awk '
  function row(name, dice,  i) {
    printf "| %s |", name
    for (i = 2; i <= NF; ++i) printf " %.4f |", dice[i]
    for (i = 3; i <= NF; ++i) printf " %+.4f |", dice[i] - dice[2]
    print ""
  }
  NR == 1 {
    printf "| %s |", $1
    for (i = 2; i <= NF; ++i) printf " %s |", $i
    for (i = 3; i <= NF; ++i) printf " %s - %s |", $i, $2
    printf "\n|"
    for (i = 1; i < 2 * NF - 1; ++i) printf "---|"
    print ""
    next
  }
  {
    ended = 1
    for (i = 2; i <= NF; ++i) { dice[i] = $i; if ($i == 0) ended = 0 }
    row($1, dice)
    whole += ended
    for (i = 2; i <= NF; ++i) sum[i] += ended * $i
  }
  END {
    for (i = 2; i <= NF; ++i) mean[i] = whole ? sum[i] / whole : 0
    if (whole) row("mean", mean)
  }'
