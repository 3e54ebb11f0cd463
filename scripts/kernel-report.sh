#!/usr/bin/env bash
# What can be said about speed without a GPU: `scripts/kernel-report.sh [TARGET...]` compiles the kernels for these
# targets (75 80 90 unless given) and prints, in Markdown, what each takes and what its inner loop is made of; then what a
# training step moves and computes, launch by launch, and the least time that takes on some GPUs. It is checked in as
# benches/FLOORS.md. Needs nvcc with cuobjdump beside it (scripts/install-nvcc.sh), and cargo.
#
# KERNELS   the kernel files to look at, all of kernels/*.cu unless set
# PROGRAM   rarunet-cuda, if it is not to be built by cargo
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(75 80 90)
nvcc=${NVCC:-target/cuda/nvidia/cu13/bin/nvcc}
[ -x "$nvcc" ] || nvcc=$(command -v nvcc) || { echo "no nvcc: run scripts/install-nvcc.sh" >&2; exit 1; }
cuobjdump=$(dirname "$nvcc")/cuobjdump
out=target/kernel-report
mkdir -p "$out"
read -ra files <<<"${KERNELS:-$(echo kernels/*.cu)}"

# What a kernel file is compiled for, as build.rs does it.
elements() {
  if ! grep -qw Element "$1"; then
    echo none
  elif grep -q 'static_assert(sizeof(Element) == 2' "$1"; then
    echo bf16 f16
  else
    echo f32 bf16 f16
  fi
}

for cubin in "$out"/*.cubin; do  # of files that are there no more, or not for such elements
  IFS=. read -r name element _ <<<"$(basename "$cubin")"
  [ -e "kernels/$name.cu" ] && [[ " $(elements "kernels/$name.cu") " == *" $element "* ]] || rm -f "$cubin"
done

for target in "${targets[@]}"; do
  for file in "${files[@]}"; do
    for element in $(elements "$file"); do
      # bf16 is not of sm_75, and fp16 there is what bf16 is elsewhere.
      if [ "$target" = 75 ]; then [ "$element" != bf16 ] || continue; else [ "$element" != f16 ] || continue; fi
      cubin=$out/$(basename "$file" .cu).$element.$target.cubin
      flags=()
      [ "$element" = none ] || flags=("-DELEMENT_$element")
      if [ ! "$cubin" -nt "$file" ] || [ -n "$(find kernels -maxdepth 1 -name '*.cuh' -newer "$cubin")" ]; then
        "$nvcc" -cubin -O3 -std=c++17 -Ikernels "${flags[@]}" -arch "sm_${target/%90/90a}" "$file" -o "$cubin"
      fi
    done
  done
done

# NAME REGISTERS SHARED STACK of each kernel.
usage() {
  "$cuobjdump" -res-usage "$1" | awk '/Function/ { sub(":", "", $2); name = $2 }
    /REG:/ { for (i = 1; i <= NF; ++i) { split($i, pair, ":"); value[pair[1]] = pair[2] }
             print name, value["REG"], value["SHARED"], value["STACK"] + value["LOCAL"] }'
}

# NAME INSTRUCTIONS MMA COPIES SHARED GLOBAL16 GLOBAL of each kernel: of the loop with the most matrix instructions; its
# loads of global memory by 16 bytes, and all, in the whole kernel.
loops() {
  "$cuobjdump" -sass "$1" | awk '
    function finish(  i, start, best, mma, copies, shared, n, j) {
      if (name == "") return
      best = 0
      for (i = 1; i <= count; ++i) {
        if (text[i] !~ /BRA/ || !match(text[i], /0x[0-9a-f]+/)) continue
        start = at[substr(text[i], RSTART + 2, RLENGTH - 2)]
        if (!start || start >= i) continue
        mma = copies = shared = 0
        for (j = start; j <= i; ++j) {
          if (text[j] ~ /HG?MMA/) ++mma
          if (text[j] ~ /LDGSTS|LDGDEPBAR|DEPBAR/) ++copies
          if (text[j] ~ (name ~ /_tf32$/ ? "LDS" : "LDSM")) ++shared
        }
        if (mma > best) { best = mma; n = i - start + 1; best_copies = copies; best_shared = shared }
      }
      print name, best ? n : 0, best, best ? best_copies : 0, best ? best_shared : 0, wide, loads
    }
    /Function :/ { finish(); name = $3; count = wide = loads = 0; delete at; delete text }
    match($0, /\/\*[0-9a-f][0-9a-f][0-9a-f][0-9a-f]+\*\/ +[^\/]*;/) {
      address = substr($0, RSTART + 2); sub(/\*.*/, "", address); sub(/^0+/, "", address)
      if (address == "") address = "0"
      code = substr($0, RSTART); sub(/^[^ ]+ +/, "", code)
      text[++count] = code
      at[address] = count
      if (code ~ /LDG\.E|LDG\.|LDGSTS/) { ++loads; if (code ~ /128/) ++wide }
    }
    END { finish() }'
}

echo "# Floors"
echo
echo "Made by \`scripts/kernel-report.sh ${targets[*]}\`, of ${KERNELS:-all kernels}: compiled, not run."
echo "Nothing here was measured on a GPU."
echo
echo "## Convolution on tensor cores"
echo
echo "Of the inner loop (of all instructions that one turn of it has): matrix products, asynchronous copies with their"
echo "commits and waits, loads from shared memory (ldmatrix; in tf32 of 16 bytes), all others. The two shares are products and"
echo "copies, and these with the loads. In tf32 copies go by way of registers, where they are rounded: they are among the"
echo "others. Warps are those that the registers of a multiprocessor have room for, of 64 (32 on sm_75); shared memory is"
echo "dynamic and allows two blocks of 4 warps of the large 3x3 tiles (one on multiprocessors of 100 KiB or less, and of"
echo "residual_backward_input_3x3_512x32 on sm_80), and four of the others; in tf32 it is static, and on sm_80 allows as many as the registers do. A product of a warp group (_hopper) is as much as 64 others, and runs on its own."
echo
echo "| kernel | target | registers | spilled bytes | warps | products | copies | shared loads | others | share | with loads |"
echo "|---|---|---|---|---|---|---|---|---|---|---|"
for target in "${targets[@]}"; do
  for cubin in "$out"/convolution_tensor*."$target".cubin; do
    join <(usage "$cubin" | sort) <(loops "$cubin" | sort) | awk -v target="sm_$target" '$6 > 0 {
      others = $5 - $6 - $7 - $8
      warps = int(65536 / (32 * 8 * int(($2 + 7) / 8)) / 4) * 4
      if (target == "sm_75" && warps > 32) warps = 32
      if (warps > 64) warps = 64
      printf "| %s | %s | %d | %d | %d | %d | %d | %d | %d | %.0f%% | %.0f%% |\n", $1, target, $2, $4, warps, $6, $7, $8,
        others, 100 * ($6 + $7) / $5, 100 * ($6 + $7 + $8) / $5 }'
  done
done
echo
echo "On sm_75 there are no asynchronous copies, and each product is two of half the depth."
echo
echo "## These kernels, all together"
echo
echo "Registers, static shared memory, bytes of spills and stack frames, and how many of the kernel's loads from global memory"
echo "are of 16 bytes; sm_${targets[${#targets[@]} - 1]}, in f32, bf16 where there is a choice."
echo
echo "| kernel | registers | shared bytes | spilled bytes | loads of 16 bytes | of all |"
echo "|---|---|---|---|---|---|"
last=${targets[${#targets[@]} - 1]}
for cubin in "$out"/*."$last".cubin; do
  join <(usage "$cubin" | sort) <(loops "$cubin" | sort) |
    awk '{ printf "| %s | %d | %d | %d | %d | %d |\n", $1, $2, $3, $4, $9, $10 }'
done
spills=$(for cubin in "$out"/*.cubin; do usage "$cubin"; done | awk '$4 > 0' | wc -l)
echo
echo "Kernels that spill or have a stack frame, on all these targets: $spills."
echo
echo "## A training step"
echo
echo "Each launch's bytes are those of all tensors that it reads or writes, each once, and twice if it is updated: what"
echo "caches save beyond that, or do not save, is not in them. The times are the larger of bytes over bandwidth and"
echo "operations over throughput, added up: no step can be faster with these launches."
echo
${PROGRAM:-cargo run --quiet --release --} bench --plan
