// Convolution of f32 in f32: matrix products where channels come by 8 and 4, at multiples of 16 bytes, whose like in tf32
// are in convolution_tensor_tf32.cu; a few vectors times a matrix; and the sums of a gradient's parts.

#include "correlation.cuh"
#include "window.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_forward_128x64, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile128x64, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_128x32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile128x32, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_64x32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<Tile64x32, false>>(FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_backward_input_128x64, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile128x64, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_128x32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile128x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_64x32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<Tile64x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- few pixels: a matrix times vectors, CBAM's shared MLP ------------------------------------------------------------
// 1x1 kernels of one group. Latency decides: a block has a few columns and divides the inner dimension among its
// threads.

constexpr int VECTORS_THREADS = 256;
constexpr int VECTORS_WARPS = VECTORS_THREADS / WARP_SIZE;
constexpr int VECTORS_FORWARD_THREADS = 512;
constexpr int VECTORS_PIXELS = 4;   // of a block: each weight is read once for them
constexpr int VECTORS_AT_ONCE = 8;  // weights that a thread loads at once, and what they are multiplied by

// Adds the products of `pixels` vectors at `values` and every `step`th of `count` weights from `first` on.
__device__ __forceinline__ void sum_vectors(float (&sums)[VECTORS_PIXELS], const float* values, const float* weight,
                                            int pixels, int first, int count, int step, int value_stride,
                                            int weight_stride) {
  for (int start = 0; start < count; start += VECTORS_AT_ONCE * step) {
    float factors[VECTORS_AT_ONCE], loaded[VECTORS_PIXELS][VECTORS_AT_ONCE];
#pragma unroll
    for (int k = 0; k < VECTORS_AT_ONCE; ++k) {
      const int at = start + first + k * step;
      const bool exists = at < count;
      factors[k] = exists ? weight[at * weight_stride] : 0.0f;
#pragma unroll
      for (int i = 0; i < VECTORS_PIXELS; ++i)
        loaded[i][k] = exists && i < pixels ? values[i * value_stride + at] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < VECTORS_AT_ONCE; ++k)
#pragma unroll
      for (int i = 0; i < VECTORS_PIXELS; ++i) sums[i] = fmaf(loaded[i][k], factors[k], sums[i]);
  }
}

// Each lane has a column and each warp every sixteenth row of the weights. Grid: columns by 32; pixels by 4.
KERNEL_WITH_THREADS(convolution_forward_vectors, VECTORS_FORWARD_THREADS)(
    float* __restrict__ out,           // [pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [inputs, outputs]
    const float* __restrict__ bias,    // [outputs]; not read where has_bias is 0
    int pixels, int inputs, int outputs, int out_stride, int x_stride, int has_bias, int relu) {
  constexpr int warps = VECTORS_FORWARD_THREADS / WARP_SIZE;
  __shared__ float partial[VECTORS_PIXELS][warps][WARP_SIZE];
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int column = blockIdx.x * WARP_SIZE + lane, first = blockIdx.y * VECTORS_PIXELS;
  float sums[VECTORS_PIXELS] = {};
  if (column < outputs)
    sum_vectors(sums, x + first * x_stride, weight + column, pixels - first, warp, inputs, warps, x_stride, outputs);
#pragma unroll
  for (int i = 0; i < VECTORS_PIXELS; ++i) partial[i][warp][lane] = sums[i];
  __syncthreads();
  const int pixel = first + warp;
  if (warp >= VECTORS_PIXELS || pixel >= pixels || column >= outputs) return;
  float sum = has_bias ? bias[column] : 0.0f;
  for (int i = 0; i < warps; ++i) sum += partial[warp][i][lane];
  out[pixel * out_stride + column] = rectify(sum, relu);
}

// Each warp has a row of the weights, which is a channel of dx. Grid: channels by 8; pixels by 4.
KERNEL_WITH_THREADS(convolution_backward_input_vectors, VECTORS_THREADS)(
    float* __restrict__ dx,            // [pixels, outputs], stride dx_stride
    const float* __restrict__ dout,    // [pixels, inputs], stride dout_stride
    const float* __restrict__ weight,  // [outputs, inputs]
    int pixels, int inputs, int outputs, int dx_stride, int dout_stride) {
  const int lane = threadIdx.x % WARP_SIZE, row = blockIdx.x * VECTORS_WARPS + threadIdx.x / WARP_SIZE;
  const int first = blockIdx.y * VECTORS_PIXELS;
  if (row >= outputs) return;
  float sums[VECTORS_PIXELS] = {};
  sum_vectors(sums, dout + first * dout_stride, weight + row * inputs, pixels - first, lane, inputs, WARP_SIZE,
              dout_stride, 1);
#pragma unroll
  for (int i = 0; i < VECTORS_PIXELS; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && first + i < pixels) dx[(first + i) * dx_stride + row] = sum;
  }
}

// ---- weight gradient --------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_backward_weight_128x64, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile128x64, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_128x32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile128x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_64x32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<Tile64x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

// ---- weight gradient of few pixels ------------------------------------------------------------------------------------

// Each thread has a weight; behind the weights are the biases, whose input is 1. Grid: weights and biases.
KERNEL_WITH_THREADS(convolution_backward_weight_vectors, VECTORS_THREADS)(
    float* __restrict__ dweight,     // [inputs, outputs]
    float* __restrict__ dbias,       // [outputs]; not written where has_bias is 0
    const float* __restrict__ dout,  // [pixels, outputs], stride dout_stride
    const float* __restrict__ x,     // [pixels, inputs], stride x_stride
    int pixels, int inputs, int outputs, int dout_stride, int x_stride, int has_bias) {
  const int number = blockIdx.x * VECTORS_THREADS + threadIdx.x, input = number / outputs, output = number % outputs;
  const bool is_bias = input >= inputs;
  if (input >= inputs + has_bias) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int pixel = 0; pixel < pixels; ++pixel)
    sum = fmaf(is_bias ? 1.0f : x[pixel * x_stride + input], dout[pixel * dout_stride + output], sum);
  if (is_bias) dbias[output] = sum;
  else dweight[number] = sum;
}

// ---- the sums of parts ------------------------------------------------------------------------------------------------

constexpr int SUM_THREADS = 256;
constexpr int SUM_AT_ONCE = 8;  // parts that a thread loads at once

// The sum of every `step`th part from `first` on of up to four elements.
template <bool aligned>
__device__ __forceinline__ Quad sum_quads(const float* parts, int elements, int count, int first, int part_count,
                                          int step) {
  Quad sum = zero_quad();
  for (int part = first; part < part_count; part += SUM_AT_ONCE * step) {
    Quad quads[SUM_AT_ONCE];
#pragma unroll
    for (int i = 0; i < SUM_AT_ONCE; ++i)
      quads[i] = load_quad<aligned>(parts + (part + i * step) * count, part + i * step < part_count, elements);
#pragma unroll
    for (int i = 0; i < SUM_AT_ONCE; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += quads[i][j];
  }
  return sum;
}

// out[i] = the sum of parts[part][i], of up to four gradients, whose parts lie one behind the other, as their blocks do.
// `rows` threads, a power of two, share the parts of four elements. Grid: elements by 4 * SUM_THREADS / rows.
KERNEL_WITH_THREADS(convolution_sum_parts, SUM_THREADS)(
    float* __restrict__ out0,         // [count0]
    float* __restrict__ out1,         // [count1]; not written where count1 is 0, and so on
    float* __restrict__ out2,         // [count2]
    float* __restrict__ out3,         // [count3]
    const float* __restrict__ parts,  // [part_count, count0], [part_count, count1], ...
    int count0, int count1, int count2, int count3, int part_count, int rows) {
  __shared__ Quad shared[SUM_THREADS];
  const int quads = SUM_THREADS / rows, row = threadIdx.x / quads;
  float* const outs[] = {out0, out1, out2, out3};
  const int counts[] = {count0, count1, count2, count3};
  float* out = out0;
  int count = count0, block = blockIdx.x;
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    const int blocks = divide_up(count, 4 * quads);
    if (block < blocks) break;
    block -= blocks;
    parts += part_count * count;
    out = outs[i], count = counts[i];
  }
  const int element = (block * quads + threadIdx.x % quads) * 4, elements = count - element;
  const bool aligned = count % 4 == 0 && is_aligned16(out) && is_aligned16(parts);
  Quad sum = zero_quad();
  if (elements > 0)
    sum = aligned ? sum_quads<true>(parts + element, elements, count, row, part_count, rows)
                  : sum_quads<false>(parts + element, elements, count, row, part_count, rows);
  if (rows > 1) shared[threadIdx.x] = sum;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row >= half) continue;
    const Quad other = shared[threadIdx.x + half * quads];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += other[j];
    shared[threadIdx.x] = sum;
  }
  if (row > 0 || elements <= 0) return;
  if (aligned) store_quad<true>(out + element, sum, elements);
  else store_quad<false>(out + element, sum, elements);
}
