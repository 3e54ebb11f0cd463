// A linear layer of x * scale + shift, a scale and a shift for each input channel, as a layer of x itself: batch norm that
// is never applied. Weights are rows of inputs, a row for each output (of each tap). Rows are few hundred and short:
// latency decides.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

constexpr int FOLD_THREADS = 128;
constexpr int FOLD_AT_ONCE = 4;  // inputs that a thread has under way

// folded = weight * scale, and the bias takes the rest: bias + the sum over inputs of weight * shift. What rounding changes
// in the weights meets x, which may lie far from 0, at its mean; the bias makes up for it. Grid: a block for each row.
KERNEL_WITH_THREADS(fold_forward, FOLD_THREADS)(
    Element* folded,        // [outputs, inputs]
    float* folded_bias,     // [outputs]
    const Element* weight,  // [outputs, inputs]
    const float* bias,      // [biases]: outputs of each tap
    const float* scale,     // [inputs]
    const float* shift,     // [inputs]
    const float* mean,      // [inputs]: of x
    int inputs, int biases) {
  const int row = blockIdx.x;
  const Element* from = weight + row * inputs;
  const float own_bias = threadIdx.x == 0 ? bias[row % biases] : 0.0f;
  struct Terms {
    Element weight;
    float scale, shift, mean;
  };
  float sum = 0.0f;
  for_each_step<FOLD_AT_ONCE>(
      threadIdx.x, inputs, FOLD_THREADS, [&](int c) { return Terms{from[c], scale[c], shift[c], mean[c]}; },
      [&](int c, const Terms& terms) {
        const float value = to_float(terms.weight);
        const Element rounded = from_float<Element>(value * terms.scale);
        folded[row * inputs + c] = rounded;
        sum += value * terms.shift + terms.mean * fmaf(value, terms.scale, -to_float(rounded));
      });
  sum = block_sum(sum);
  if (threadIdx.x == 0) folded_bias[row] = own_bias + sum;
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// Two sums of a channel.
struct ScaleAndShift {
  float scale, shift;
};

// Threads along x have inputs, those along y share the outputs. The gradient of the bias is the first block's.
KERNEL_WITH_THREADS(fold_backward, THREADS)(
    float* dweight,             // [outputs, inputs]
    float* dbias,               // [biases]
    float* dscale,              // [inputs]
    float* dshift,              // [inputs]
    const float* dfolded,       // [outputs, inputs]
    const float* dfolded_bias,  // [outputs]
    const Element* weight,      // [outputs, inputs]
    const float* scale,         // [inputs]
    const float* shift,         // [inputs]
    int outputs, int inputs, int biases) {
  const int c = first_channel<1>();
  ScaleAndShift sums = {};
  if (c < inputs) {
    struct Terms {
      float dfolded, dbias, weight;
    };
    const float factor = scale[c], addend = shift[c];
    for_each_chunk(
        outputs, [&](int row) { return Terms{dfolded[row * inputs + c], dfolded_bias[row], to_float(weight[row * inputs + c])}; },
        [&](int row, const Terms& terms) {
          dweight[row * inputs + c] = factor * terms.dfolded + addend * terms.dbias;
          sums.scale += terms.weight * terms.dfolded;
          sums.shift += terms.weight * terms.dbias;
        });
  }
  sums = reduce_rows(sums, [](const ScaleAndShift& a, const ScaleAndShift& b) {
    return ScaleAndShift{a.scale + b.scale, a.shift + b.shift};
  });
  if (threadIdx.y == 0 && c < inputs) {
    dscale[c] = sums.scale;
    dshift[c] = sums.shift;
  }
  if (blockIdx.y > 0) return;
  for (int output = threadIdx.y * blockDim.x + threadIdx.x; output < biases; output += blockDim.x * blockDim.y) {
    float sum = 0.0f;
    for (int row = output; row < outputs; row += biases) sum += dfolded_bias[row];
    dbias[output] = sum;
  }
}
