// Convolution between an image of one channel, stored in full, and one of many: the first layer, 3x3, and the head, 1x1,
// both keeping the size. Memory decides: a thread has 16 bytes of the many channels, for which it holds all weights, or
// their sums, in registers, and what several pixels need is on its way at once. One group; the many channels are aligned.

#include "pixels.cuh"
#include "window.cuh"

constexpr int ONE_CHANNEL_THREADS = 128;
constexpr int ONE_CHANNEL_WIDTH = WIDE<Element>;  // channels of a thread

using Channels = Group<ONE_CHANNEL_WIDTH>;
using Piece = Vector16<Element>;

// ---- threads ----------------------------------------------------------------------------------------------------------

// Neighbouring threads have the channels of a pixel, then those of the next one. Threads that are left over have none.
struct Slot {
  int groups, count;  // groups of channels; pixels at once
  int index, channel;

  __device__ __forceinline__ explicit Slot(int channels)
      : groups(channels / ONE_CHANNEL_WIDTH), count(ONE_CHANNEL_THREADS / groups), index(threadIdx.x / groups),
        channel(threadIdx.x % groups * ONE_CHANNEL_WIDTH) {}

  __device__ __forceinline__ bool exists() const { return index < count; }
};

__device__ __forceinline__ Piece load_or_zero(const Element* address, bool exists) {
  Piece stored;
  *reinterpret_cast<uint4*>(&stored) = exists ? *reinterpret_cast<const uint4*>(address) : uint4{0, 0, 0, 0};
  return stored;
}

__device__ __forceinline__ Piece to_piece(const Channels& channels) {
  Piece stored;
#pragma unroll
  for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) stored[k] = from_float<Element>(channels[k]);
  return stored;
}

// to[channel] = the sum over the block's slots. All threads have to call it.
__device__ __forceinline__ void write_slots_sum(float* to, const Channels& sums, const Slot& slot) {
  __shared__ float shared[ONE_CHANNEL_WIDTH][ONE_CHANNEL_THREADS + 4];  // neighbours of 8 channels are in other banks
  __syncthreads();  // the last sums were read
#pragma unroll
  for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) shared[k][threadIdx.x] = sums[k];
  __syncthreads();
  for (int channel = threadIdx.x; channel < slot.groups * ONE_CHANNEL_WIDTH; channel += ONE_CHANNEL_THREADS) {
    const float* from = &shared[channel % ONE_CHANNEL_WIDTH][channel / ONE_CHANNEL_WIDTH];
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < slot.count; ++i) sum += from[i * slot.groups];
    to[channel] = sum;
  }
}

// ---- one input channel, 3x3 -------------------------------------------------------------------------------------------
// A block goes over rows of pixels, a thread over every so many pixels of a row, side by side, so that they share what
// they meet. Grid: rows, in parts.

constexpr int SIDE = 3;
constexpr int TAPS = SIDE * SIDE;
constexpr int NEIGHBOURS = 4;  // pixels of a thread at once

// What the windows of neighbouring pixels meet of the one channel.
struct Met {
  float values[SIDE][NEIGHBOURS + SIDE - 1];

  __device__ __forceinline__ Met(const float* x, int stride, int row, int first, int height, int width) {
    const int y = row % height;
#pragma unroll
    for (int dy = 0; dy < SIDE; ++dy) {
      const bool has_row = is_inside(y + dy - SIDE / 2, height);
#pragma unroll
      for (int i = 0; i < NEIGHBOURS + SIDE - 1; ++i) {
        const int at = first + i - SIDE / 2;
        const bool inside = has_row && is_inside(at, width);
        values[dy][i] = inside ? x[((row + dy - SIDE / 2) * width + at) * stride] : 0.0f;
      }
    }
  }

  // What tap `tap` of the window of neighbour `i` meets.
  __device__ __forceinline__ float operator()(int i, int tap) const { return values[tap / SIDE][i + tap % SIDE]; }
};

KERNEL_WITH_THREADS(convolution_forward_one_input, ONE_CHANNEL_THREADS)(
    Element* out,         // [rows * width, outputs], stride out_stride
    const float* x,       // [rows * width, 1], stride x_stride
    const float* weight,  // [taps, outputs]
    const float* bias,    // [outputs]; not read where has_bias is 0
    int rows, int height, int width, int outputs, int out_stride, int x_stride, int part_rows, int has_bias, int relu) {
  const Slot slot(outputs);
  if (!slot.exists()) return;
  Channels weights[TAPS], first_sum = {};
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) weights[tap] = load<ONE_CHANNEL_WIDTH>(weight + tap * outputs + slot.channel);
  if (has_bias) first_sum = load<ONE_CHANNEL_WIDTH>(bias + slot.channel);
  const int begin = blockIdx.x * part_rows, end = min(begin + part_rows, rows);
  for (int row = begin; row < end; ++row)
    for (int first = slot.index * NEIGHBOURS; first < width; first += slot.count * NEIGHBOURS) {
      const Met met(x, x_stride, row, first, height, width);
#pragma unroll
      for (int i = 0; i < NEIGHBOURS; ++i) {
        Channels sums = first_sum;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap)
#pragma unroll
          for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] = fmaf(met(i, tap), weights[tap][k], sums[k]);
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] = rectify(sums[k], relu);
        if (first + i < width)
          store16(out + ((row * width + first + i) * out_stride + slot.channel), to_piece(sums));
      }
    }
}

// In parts, as correlation.cuh says.
KERNEL_WITH_THREADS(convolution_backward_weight_one_input, ONE_CHANNEL_THREADS)(
    float* parts,         // [parts, taps, outputs]
    float* bias_parts,    // [parts, outputs]; not written where has_bias is 0
    const Element* dout,  // [rows * width, outputs], stride dout_stride
    const float* x,       // [rows * width, 1], stride x_stride
    int rows, int height, int width, int outputs, int dout_stride, int x_stride, int part_rows, int has_bias) {
  const Slot slot(outputs);
  const int begin = blockIdx.x * part_rows, end = min(begin + part_rows, rows);
  Channels sums[TAPS] = {}, bias = {};
  for (int row = begin; row < end; ++row)
    for (int start = 0; start < width; start += slot.count * NEIGHBOURS) {
      const int first = start + slot.index * NEIGHBOURS, count = slot.exists() ? width - first : 0;
      Piece gradients[NEIGHBOURS];
#pragma unroll
      for (int i = 0; i < NEIGHBOURS; ++i)
        gradients[i] = load_or_zero(dout + ((row * width + first + i) * dout_stride + slot.channel), i < count);
      const Met met(x, x_stride, row, first, height, width);
      __syncwarp();  // keeps the compiler from moving each load down to its use
#pragma unroll
      for (int i = 0; i < NEIGHBOURS; ++i)
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) {
          const float gradient = to_float(gradients[i][k]);
#pragma unroll
          for (int tap = 0; tap < TAPS; ++tap) sums[tap][k] = fmaf(met(i, tap), gradient, sums[tap][k]);
          bias[k] += gradient;
        }
    }
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) write_slots_sum(parts + (blockIdx.x * TAPS + tap) * outputs, sums[tap], slot);
  if (has_bias) write_slots_sum(bias_parts + blockIdx.x * outputs, bias, slot);
}

// ---- one output channel, 1x1 ------------------------------------------------------------------------------------------
// Grid: pixels, in parts.

constexpr int AT_ONCE = 8;  // pixels of a thread

// Calls use(pixel, load(pixel)) for the slot's pixels of a part, the loads of several first.
template <class Load, class Use>
__device__ __forceinline__ void for_each_of_part(const Slot& slot, int pixels, int part_pixels, Load load, Use use) {
  const int begin = blockIdx.x * part_pixels, end = min(begin + part_pixels, pixels);
  if (!slot.exists()) return;
  for (int first = begin + slot.index; first < end; first += AT_ONCE * slot.count) {
    decltype(load(0)) loaded[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i)
      if (first + i * slot.count < end) loaded[i] = load(first + i * slot.count);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      if (first + i * slot.count >= end) return;
      use(first + i * slot.count, loaded[i]);
    }
  }
}

// The gradient of a pixel, and the input there.
struct Term {
  float gradient;
  Piece input;
};

constexpr int HEAD_LANES = 4;   // lanes that share a pixel's channels
constexpr int HEAD_PIXELS = 2;  // pixels of a lane
constexpr int HEAD_GROUPS = 4;  // groups of their channels that it loads at once

// Grid: pixels.
KERNEL_WITH_THREADS(convolution_forward_one_output, ONE_CHANNEL_THREADS)(
    float* out,           // [pixels, 1], stride out_stride
    const Element* x,     // [pixels, inputs], stride x_stride
    const float* weight,  // [inputs, 1]
    const float* bias,    // [1]; not read where has_bias is 0
    int pixels, int inputs, int out_stride, int x_stride, int has_bias, int relu) {
  constexpr int step = HEAD_LANES * ONE_CHANNEL_WIDTH, slots = ONE_CHANNEL_THREADS / HEAD_LANES;
  const int lane = threadIdx.x % HEAD_LANES, first = blockIdx.x * slots * HEAD_PIXELS + threadIdx.x / HEAD_LANES;
  float sums[HEAD_PIXELS] = {};
  for (int start = 0; start < inputs; start += HEAD_GROUPS * step) {
    Piece loaded[HEAD_GROUPS][HEAD_PIXELS];
#pragma unroll
    for (int group = 0; group < HEAD_GROUPS; ++group)
#pragma unroll
      for (int i = 0; i < HEAD_PIXELS; ++i) {
        const int channel = start + group * step + lane * ONE_CHANNEL_WIDTH, pixel = first + i * slots;
        loaded[group][i] = load_or_zero(x + (pixel * x_stride + channel), channel < inputs && pixel < pixels);
      }
    __syncwarp();  // keeps the compiler from moving each load down to its use
#pragma unroll
    for (int group = 0; group < HEAD_GROUPS; ++group) {
      const int channel = start + group * step + lane * ONE_CHANNEL_WIDTH;
      Channels factors = {};
      if (channel < inputs) factors = load<ONE_CHANNEL_WIDTH>(weight + channel);
#pragma unroll
      for (int i = 0; i < HEAD_PIXELS; ++i)
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[i] = fmaf(to_float(loaded[group][i][k]), factors[k], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < HEAD_PIXELS; ++i) {
#pragma unroll
    for (int distance = HEAD_LANES / 2; distance > 0; distance /= 2)
      sums[i] += __shfl_xor_sync(ALL_LANES, sums[i], distance);
    const int pixel = first + i * slots;
    if (lane == 0 && pixel < pixels) out[pixel * out_stride] = rectify(has_bias ? sums[i] + *bias : sums[i], relu);
  }
}

KERNEL_WITH_THREADS(convolution_backward_input_one_output, ONE_CHANNEL_THREADS)(
    Element* dx,          // [pixels, inputs], stride dx_stride
    const float* dout,    // [pixels, 1], stride dout_stride
    const float* weight,  // [inputs, 1]
    int pixels, int inputs, int dx_stride, int dout_stride, int part_pixels) {
  const Slot slot(inputs);
  const Channels weights = load<ONE_CHANNEL_WIDTH>(weight + slot.channel);
  for_each_of_part(
      slot, pixels, part_pixels, [&](int pixel) { return dout[pixel * dout_stride]; },
      [&](int pixel, float gradient) {
        Channels products;
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) products[k] = gradient * weights[k];
        store16(dx + (pixel * dx_stride + slot.channel), to_piece(products));
      });
}

// With x * scale + offset added.
KERNEL_WITH_THREADS(convolution_backward_input_one_output_affine, ONE_CHANNEL_THREADS)(
    Element* dx,          // [pixels, inputs], stride dx_stride
    const float* dout,    // [pixels, 1], stride dout_stride
    const float* weight,  // [inputs, 1]
    const Element* x,     // [pixels, inputs], stride x_stride
    const float* scale,   // [inputs]
    const float* offset,  // [inputs]
    int pixels, int inputs, int dx_stride, int dout_stride, int part_pixels, int x_stride) {
  const Slot slot(inputs);
  const Channels weights = load<ONE_CHANNEL_WIDTH>(weight + slot.channel);
  const Channels scales = load<ONE_CHANNEL_WIDTH>(scale + slot.channel);
  const Channels offsets = load<ONE_CHANNEL_WIDTH>(offset + slot.channel);
  for_each_of_part(
      slot, pixels, part_pixels,
      [&](int pixel) { return Term{dout[pixel * dout_stride], load16(x + (pixel * x_stride + slot.channel))}; },
      [&](int pixel, const Term& term) {
        Channels sums;
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k)
          sums[k] = term.gradient * weights[k] + (to_float(term.input[k]) * scales[k] + offsets[k]);
        store16(dx + (pixel * dx_stride + slot.channel), to_piece(sums));
      });
}

KERNEL_WITH_THREADS(convolution_backward_weight_one_output, ONE_CHANNEL_THREADS)(
    float* parts,       // [parts, inputs, 1]
    float* bias_parts,  // [parts, 1]; not written where has_bias is 0
    const float* dout,  // [pixels, 1], stride dout_stride
    const Element* x,   // [pixels, inputs], stride x_stride
    int pixels, int inputs, int dout_stride, int x_stride, int part_pixels, int has_bias) {
  const Slot slot(inputs);
  Channels sums = {};
  float bias = 0.0f;
  for_each_of_part(
      slot, pixels, part_pixels,
      [&](int pixel) { return Term{dout[pixel * dout_stride], load16(x + (pixel * x_stride + slot.channel))}; },
      [&](int, const Term& term) {
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] = fmaf(to_float(term.input[k]), term.gradient, sums[k]);
        bias += term.gradient;
      });
  write_slots_sum(parts + blockIdx.x * inputs, sums, slot);
  if (!has_bias) return;
  bias = block_sum(slot.channel == 0 ? bias : 0.0f);
  if (threadIdx.x == 0) bias_parts[blockIdx.x] = bias;
}

// ---- a bias's gradient alone ------------------------------------------------------------------------------------------

// The sum of dout over the part's pixels, for each tap of a window whose stride is its size over those that it meets. Grid:
// windows, in parts; taps.
KERNEL_WITH_THREADS(convolution_backward_bias_aligned, ONE_CHANNEL_THREADS)(
    float* parts,         // [parts, taps, channels]
    const Element* dout,  // [pixels * taps, channels], stride dout_stride
    WINDOWS_PARAMETERS, int channels, int dout_stride, int part_pixels) {
  const Slot slot(channels);
  const Windows windows = WINDOWS;
  const Axes tap = tap_at(blockIdx.y, windows.kernel);
  Channels sums = {};
  for_each_of_part(
      slot, pixels, part_pixels,
      [&](int pixel) { return load16(dout + (window_pixel(pixel, tap, windows) * dout_stride + slot.channel)); },
      [&](int, const Piece& gradient) {
#pragma unroll
        for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] += to_float(gradient[k]);
      });
  write_slots_sum(parts + (blockIdx.x * gridDim.y + blockIdx.y) * channels, sums, slot);
}
