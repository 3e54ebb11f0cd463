// Convolution between an image of one channel, stored in full, and one of many: the first layer, 3x3, and the head, 1x1.
// Memory decides: a thread has 16 bytes of the many channels, for which it holds all weights, or their sums, in
// registers, and several pixels' are on their way at once. One group; the many channels are aligned.

#include "pixels.cuh"
#include "window.cuh"

constexpr int ONE_CHANNEL_THREADS = 128;
constexpr int ONE_CHANNEL_WIDTH = WIDE<Element>;  // channels of a thread

using Channels = Group<ONE_CHANNEL_WIDTH>;

// ---- threads ----------------------------------------------------------------------------------------------------------

// Neighbouring threads have the channels of a pixel, then those of the next one. Threads that are left over have none.
struct Slot {
  int groups, count;  // groups of channels; pixels at once
  int index, channel;

  __device__ __forceinline__ explicit Slot(int channels)
      : groups(channels / ONE_CHANNEL_WIDTH), count(ONE_CHANNEL_THREADS / groups), index(threadIdx.x / groups),
        channel(threadIdx.x % groups * ONE_CHANNEL_WIDTH) {}
};

// Calls use(pixel, loaded) for the slot's pixels from `begin` to `end`; what lies at `address`, behind a pixel's stride,
// is loaded for `at_once` of them first.
template <int at_once, class Use>
__device__ __forceinline__ void for_each_of(const Slot& slot, int begin, int end, const Element* address, int stride,
                                            Use use) {
  if (slot.index >= slot.count) return;
  for (int first = begin + slot.index; first < end; first += at_once * slot.count) {
    Vector16<Element> loaded[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int pixel = first + i * slot.count;
      if (pixel < end) loaded[i] = load16(address + pixel * stride);
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int pixel = first + i * slot.count;
      if (pixel >= end) return;
      Channels channels;
#pragma unroll
      for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) channels[k] = to_float(loaded[i][k]);
      use(pixel, channels);
    }
  }
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

// ---- the window on the one channel ------------------------------------------------------------------------------------

constexpr int SIDE = 3;

// The rows of the one channel that a row of the other image meets.
struct WindowRows {
  const float* rows[SIDE];  // of their pixel 0; null where there is none
  int width, stride, padding, pixel_stride;

  __device__ __forceinline__ WindowRows(const Geometry& g, const float* image, int image_stride, int row)
      : width(g.source.width), stride(g.stride.width), padding(g.padding.width), pixel_stride(image_stride) {
    const Corner corner = corner_of(g, pixel_at(row * g.target.width, g.target));
#pragma unroll
    for (int dy = 0; dy < SIDE; ++dy) {
      const int y = corner.at.height + dy;
      const bool inside = is_inside(corner.at.depth, g.source.depth) && is_inside(y, g.source.height);
      const int first = corner.sample + (corner.at.depth * g.source.height + y) * g.source.width;
      rows[dy] = inside ? image + first * image_stride : nullptr;
    }
  }

  // What a pixel of the row meets.
  __device__ __forceinline__ void read(float (&values)[SIDE * SIDE], int pixel) const {
#pragma unroll
    for (int dx = 0; dx < SIDE; ++dx) {
      const int x = pixel * stride - padding + dx;
#pragma unroll
      for (int dy = 0; dy < SIDE; ++dy)
        values[dy * SIDE + dx] = rows[dy] != nullptr && is_inside(x, width) ? rows[dy][x * pixel_stride] : 0.0f;
    }
  }
};

// ---- weight gradient, and a bias's ------------------------------------------------------------------------------------
// In parts, as correlation.cuh says. Grid: parts.

// One input channel.
KERNEL_WITH_THREADS(convolution_backward_weight_one_input, ONE_CHANNEL_THREADS)(
    float* __restrict__ parts,         // [parts, taps, outputs]
    float* __restrict__ bias_parts,    // [parts, outputs]; not written where has_bias is 0
    const Element* __restrict__ dout,  // [pixels, outputs], stride dout_stride
    const float* __restrict__ x,       // [source pixels, 1], stride x_stride
    GEOMETRY_PARAMETERS, int outputs, int dout_stride, int x_stride, int part_rows, int has_bias) {
  constexpr int taps = SIDE * SIDE;
  const Geometry g = GEOMETRY;
  const Slot slot(outputs);
  const int begin = blockIdx.x * part_rows, end = min(begin + part_rows, pixels / g.target.width);
  Channels sums[taps] = {}, bias = {};
  for (int row = begin; row < end; ++row) {
    const WindowRows window(g, x, x_stride, row);
    const Element* from = dout + (row * g.target.width * dout_stride + slot.channel);
    for_each_of<4>(slot, 0, g.target.width, from, dout_stride, [&](int pixel, const Channels& gradient) {
      float values[taps];
      window.read(values, pixel);
#pragma unroll
      for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) {
#pragma unroll
        for (int tap = 0; tap < taps; ++tap) sums[tap][k] = fmaf(values[tap], gradient[k], sums[tap][k]);
        bias[k] += gradient[k];
      }
    });
  }
#pragma unroll
  for (int tap = 0; tap < taps; ++tap) write_slots_sum(parts + (blockIdx.x * taps + tap) * outputs, sums[tap], slot);
  if (has_bias) write_slots_sum(bias_parts + blockIdx.x * outputs, bias, slot);
}

// One output channel, 1x1.
KERNEL_WITH_THREADS(convolution_backward_weight_one_output, ONE_CHANNEL_THREADS)(
    float* __restrict__ parts,       // [parts, inputs, 1]
    float* __restrict__ bias_parts,  // [parts, 1]; not written where has_bias is 0
    const float* __restrict__ dout,  // [pixels, 1], stride dout_stride
    const Element* __restrict__ x,   // [pixels, inputs], stride x_stride
    int pixels, int inputs, int dout_stride, int x_stride, int part_pixels, int has_bias) {
  const Slot slot(inputs);
  const int begin = blockIdx.x * part_pixels, end = min(begin + part_pixels, pixels);
  Channels sums = {};
  float bias = 0.0f;
  for_each_of<8>(slot, begin, end, x + slot.channel, x_stride, [&](int pixel, const Channels& values) {
    const float gradient = dout[pixel * dout_stride];
#pragma unroll
    for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] = fmaf(values[k], gradient, sums[k]);
    bias += gradient;
  });
  write_slots_sum(parts + blockIdx.x * inputs, sums, slot);
  if (!has_bias) return;
  bias = block_sum(slot.channel == 0 ? bias : 0.0f);
  if (threadIdx.x == 0) bias_parts[blockIdx.x] = bias;
}

// The sum of all pixels.
KERNEL_WITH_THREADS(convolution_backward_bias_aligned, ONE_CHANNEL_THREADS)(
    float* __restrict__ parts,         // [parts, channels]
    const Element* __restrict__ dout,  // [pixels, channels], stride dout_stride
    int pixels, int channels, int dout_stride, int part_pixels) {
  const Slot slot(channels);
  const int begin = blockIdx.x * part_pixels, end = min(begin + part_pixels, pixels);
  Channels sums = {};
  for_each_of<8>(slot, begin, end, dout + slot.channel, dout_stride, [&](int, const Channels& gradient) {
#pragma unroll
    for (int k = 0; k < ONE_CHANNEL_WIDTH; ++k) sums[k] += gradient[k];
  });
  write_slots_sum(parts + blockIdx.x * channels, sums, slot);
}
