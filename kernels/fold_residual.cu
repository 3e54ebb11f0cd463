// A residual block of x * scale + shift, a scale and a shift for each input channel, as a block of x itself: batch norm that
// is never applied. The 3x3 kernel's taps and the 1x1 kernel are ten matrices, [inputs, outputs] each.
//
// x * scale is given to the weights. Of shift each tap makes a constant for each output, which is added to the bias; but at
// the border some taps meet zeros, and what they made is taken back there.

#include "border.cuh"
#include "pixels.cuh"

constexpr int FOLD_TAPS = 9;          // of the 3x3 kernel
constexpr int FOLD_COLUMNS = 8;       // outputs of a block forward
constexpr int FOLD_ROW_THREADS = 128;  // of a block backward

// ---- forward ----------------------------------------------------------------------------------------------------------

// What the taps make of shift, and the 1x1 kernel.
struct Constants {
  float of[FOLD_TAPS + 1];
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
  const int k = blockIdx.x * FOLD_COLUMNS + threadIdx.x;
  Constants sums = {};
  if (k < outputs)
    for (int c = threadIdx.y; c < inputs; c += blockDim.y) {
      const float factor = scale[c], addend = shift[c], center = mean[c];
#pragma unroll
      for (int tap = 0; tap <= FOLD_TAPS; ++tap) {
        const bool is_main = tap < FOLD_TAPS;
        const int place = is_main ? (tap * inputs + c) * outputs + k : c * outputs + k;
        const float value = to_float((is_main ? weight : shortcut)[place]);
        const Element rounded = from_float<Element>(value * factor);
        (is_main ? folded : folded_shortcut)[place] = rounded;
        sums.of[tap] += value * addend + center * fmaf(value, factor, -to_float(rounded));
      }
    }
  sums = reduce_rows(sums, [](Constants a, const Constants& b) {
#pragma unroll
    for (int tap = 0; tap <= FOLD_TAPS; ++tap) a.of[tap] += b.of[tap];
    return a;
  });
  if (threadIdx.y > 0 || k >= outputs) return;
  float all = 0.0f;
#pragma unroll
  for (int tap = 0; tap < FOLD_TAPS; ++tap) all += sums.of[tap];
  folded_bias[k] = bias[k] + all;
  folded_shortcut_bias[k] = shortcut_bias[k] + sums.of[FOLD_TAPS];
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
  const int c = blockIdx.x;
  const float factor = scale[c], addend = shift[c];
  float of_scale = 0.0f, of_shift = 0.0f;
  for (int k = threadIdx.x; k < outputs; k += FOLD_ROW_THREADS) {
    const float everywhere = dfolded_bias[k];
    float missed[FOLD_TAPS] = {};
#pragma unroll
    for (int kind = 0; kind < BORDER_KINDS; ++kind) {
      const float sum = dborder[kind * outputs + k];
#pragma unroll
      for (int tap = 0; tap < FOLD_TAPS; ++tap)
        if (is_missed(kind, tap)) missed[tap] += sum;
    }
#pragma unroll
    for (int tap = 0; tap <= FOLD_TAPS; ++tap) {
      const bool is_main = tap < FOLD_TAPS;
      const int place = is_main ? (tap * inputs + c) * outputs + k : c * outputs + k;
      const float gradient = (is_main ? dfolded : dfolded_shortcut)[place];
      const float constant = is_main ? everywhere - missed[is_main ? tap : 0] : dfolded_shortcut_bias[k];
      const float value = to_float((is_main ? weight : shortcut)[place]);
      (is_main ? dweight : dshortcut)[place] = factor * gradient + addend * constant;
      of_scale += value * gradient;
      of_shift += value * constant;
    }
  }
  of_scale = block_sum(of_scale);
  of_shift = block_sum(of_shift);
  if (threadIdx.x > 0) return;
  dscale[c] = of_scale;
  dshift[c] = of_shift;
}
