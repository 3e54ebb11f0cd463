// A residual block of x * scale + shift, a scale and a shift for each input channel, as a block of x itself: batch norm that
// is never applied. The 3x3 kernel's taps and the 1x1 kernel are ten matrices, [inputs, outputs] each.
//
// x * scale is given to the weights. Of shift each tap makes a constant for each output, which is added to the bias; but at
// the border some taps meet zeros, and what they made is taken back there.

#include "border.cuh"
#include "pixels.cuh"

constexpr int FOLD_TAPS = 9;           // of the 3x3 kernel
constexpr int FOLD_COLUMNS = 8;        // outputs of a block forward
constexpr int FOLD_ROW_THREADS = 128;  // of a block backward
// Inputs whose weights a thread has under way forward. With four, the fp16 kernel has a stack frame on sm_90 and sm_100.
constexpr int FOLD_ROWS_AT_ONCE = 3;

constexpr int FOLD_MATRICES = FOLD_TAPS + 1;

// What stands at one place in each of the matrices: the 3x3 kernel's taps lie one after the other, `pitch` apart.
template <class T> struct Matrices {
  T of[FOLD_MATRICES];

  static __device__ __forceinline__ Matrices load(const T* main, const T* shortcut, int pitch) {
    Matrices loaded;
#pragma unroll
    for (int tap = 0; tap < FOLD_TAPS; ++tap) loaded.of[tap] = main[tap * pitch];
    loaded.of[FOLD_TAPS] = *shortcut;
    return loaded;
  }

  __device__ __forceinline__ void store(T* main, T* shortcut, int pitch) const {
#pragma unroll
    for (int tap = 0; tap < FOLD_TAPS; ++tap) main[tap * pitch] = of[tap];
    *shortcut = of[FOLD_TAPS];
  }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

// An input's weights for an output, and what they are folded with.
struct FoldedRow {
  Matrices<Element> weights;
  float scale, shift, mean;
};

// folded = weight * scale; of a row's sum of weight * shift, and of what rounding changes in the weights, which meets x, which
// may lie far from 0, at its mean. Threads along x have outputs, those along y share the inputs. Grid: outputs.
KERNEL_WITH_THREADS(fold_residual_forward, THREADS)(
    Element* folded,                // [FOLD_TAPS * inputs, outputs]
    float* folded_bias,             // [outputs]
    Element* folded_shortcut,       // [inputs, outputs]
    float* folded_shortcut_bias,    // [outputs]
    float* border,                  // [BORDER_KINDS, outputs]
    const Element* weight,          // [FOLD_TAPS * inputs, outputs]
    const float* bias,              // [outputs]
    const Element* shortcut,        // [inputs, outputs]
    const float* shortcut_bias,     // [outputs]
    const float* scale,             // [inputs]
    const float* shift,             // [inputs]
    const float* mean,              // [inputs]: of x
    int inputs, int outputs) {
  const int k = blockIdx.x * FOLD_COLUMNS + threadIdx.x, matrix = inputs * outputs;
  const bool writes = threadIdx.y == 0 && k < outputs;
  const float of_main = writes ? bias[k] : 0.0f, of_shortcut = writes ? shortcut_bias[k] : 0.0f;
  Matrices<float> sums = {};  // what each matrix makes of shift
  if (k < outputs)
    for_each_step<FOLD_ROWS_AT_ONCE>(
        threadIdx.y, inputs, blockDim.y,
        [&](int c) {
          const int place = c * outputs + k;
          return FoldedRow{Matrices<Element>::load(weight + place, shortcut + place, matrix), scale[c], shift[c], mean[c]};
        },
        [&](int c, const FoldedRow& row) {
          Matrices<Element> rounded;
#pragma unroll
          for (int tap = 0; tap < FOLD_MATRICES; ++tap) {
            const float value = to_float(row.weights.of[tap]);
            rounded.of[tap] = from_float<Element>(value * row.scale);
            sums.of[tap] += value * row.shift + row.mean * fmaf(value, row.scale, -to_float(rounded.of[tap]));
          }
          rounded.store(folded + c * outputs + k, folded_shortcut + c * outputs + k, matrix);
        });
  sums = reduce_rows(sums, [](Matrices<float> a, const Matrices<float>& b) {
#pragma unroll
    for (int tap = 0; tap < FOLD_MATRICES; ++tap) a.of[tap] += b.of[tap];
    return a;
  });
  if (!writes) return;
  float all = 0.0f;
#pragma unroll
  for (int tap = 0; tap < FOLD_TAPS; ++tap) all += sums.of[tap];
  folded_bias[k] = of_main + all;
  folded_shortcut_bias[k] = of_shortcut + sums.of[FOLD_TAPS];
#pragma unroll
  for (int kind = 0; kind < BORDER_KINDS; ++kind) {
    float missed = 0.0f;
#pragma unroll
    for (int tap = 0; tap < FOLD_TAPS; ++tap)
      if (is_missed(kind, tap)) missed += sums.of[tap];
    border[kind * outputs + k] = -missed;
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// A block for each input.
KERNEL_WITH_THREADS(fold_residual_backward, FOLD_ROW_THREADS)(
    float* dweight,                     // [FOLD_TAPS * inputs, outputs]
    float* dshortcut,                   // [inputs, outputs]
    float* dscale,                      // [inputs]
    float* dshift,                      // [inputs]
    const float* dfolded,               // [FOLD_TAPS * inputs, outputs]
    const float* dfolded_bias,          // [outputs]
    const float* dfolded_shortcut,      // [inputs, outputs]
    const float* dfolded_shortcut_bias,  // [outputs]
    const float* dborder,               // [BORDER_KINDS, outputs]
    const Element* weight,              // [FOLD_TAPS * inputs, outputs]
    const Element* shortcut,            // [inputs, outputs]
    const float* scale,                 // [inputs]
    const float* shift,                 // [inputs]
    int inputs, int outputs) {
  const int c = blockIdx.x, matrix = inputs * outputs;
  const float factor = scale[c], addend = shift[c];
  float of_scale = 0.0f, of_shift = 0.0f;
  for (int k = threadIdx.x; k < outputs; k += FOLD_ROW_THREADS) {
    // All loads before the first store, which they would wait for.
    const int place = c * outputs + k;
    const auto gradients = Matrices<float>::load(dfolded + place, dfolded_shortcut + place, matrix);
    const auto weights = Matrices<Element>::load(weight + place, shortcut + place, matrix);
    const float everywhere = dfolded_bias[k], of_shortcut = dfolded_shortcut_bias[k];
    float missed[FOLD_TAPS] = {};
    Matrices<float> found;
#pragma unroll
    for (int kind = 0; kind < BORDER_KINDS; ++kind) {
      const float sum = dborder[kind * outputs + k];
#pragma unroll
      for (int tap = 0; tap < FOLD_TAPS; ++tap)
        if (is_missed(kind, tap)) missed[tap] += sum;
    }
#pragma unroll
    for (int tap = 0; tap < FOLD_MATRICES; ++tap) {
      const float constant = tap < FOLD_TAPS ? everywhere - missed[tap < FOLD_TAPS ? tap : 0] : of_shortcut;
      const float gradient = gradients.of[tap], value = to_float(weights.of[tap]);
      found.of[tap] = factor * gradient + addend * constant;
      of_scale += value * gradient;
      of_shift += value * constant;
    }
    found.store(dweight + place, dshortcut + place, matrix);
  }
  of_scale = block_sum(of_scale);
  of_shift = block_sum(of_shift);
  if (threadIdx.x > 0) return;
  dscale[c] = of_scale;
  dshift[c] = of_shift;
}
