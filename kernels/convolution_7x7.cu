// CBAM's spatial attention: the 7x7 convolution of two channels to one that keeps the size, in f32, and its gradients.
// There is little memory to read and much to add: a block holds a tile of pixels and its border in shared memory, a
// plane for each channel, and a thread reads it by quads, each of which serves several sums.

#include "matrix_tile.cuh"
#include "window.cuh"

constexpr int ATTENTION_THREADS = 256;
constexpr int ATTENTION_WIDTH = 32;        // pixels of a tile
constexpr int ATTENTION_ROWS = 32;
constexpr int ATTENTION_WEIGHT_ROWS = 16;  // of the weight gradient
constexpr int ATTENTION_CHANNELS = 2;
constexpr int SIDE = 7;
constexpr int BORDER = SIDE / 2, BORDERED_WIDTH = ATTENTION_WIDTH + 2 * BORDER;

// ---- tiles ------------------------------------------------------------------------------------------------------------

// A tile's image and its first pixel.
struct Place {
  int image, y, x;
};

__device__ __forceinline__ Place place_of(int tile, int rows, int height, int width) {
  const int across = divide_up(width, ATTENTION_WIDTH), row = tile / across, down = divide_up(height, rows);
  return {row / down, row % down * rows, tile % across * ATTENTION_WIDTH};
}

// The pixels of a rectangle on their way into shared memory, a few in each thread; zeros outside the image.
template <int rows, int columns, int channels> struct Rectangle {
  static constexpr int count = (rows * columns + ATTENTION_THREADS - 1) / ATTENTION_THREADS;
  float values[count][channels];

  __device__ __forceinline__ void load(const float* from, const Place& first, int height, int width, int stride) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int index = i * ATTENTION_THREADS + threadIdx.x, y = first.y + index / columns, x = first.x + index % columns;
      const bool inside = index < rows * columns && is_inside(y, height) && is_inside(x, width);
      const float* pixel = from + ((first.image * height + y) * width + x) * stride;
#pragma unroll
      for (int channel = 0; channel < channels; ++channel) values[i][channel] = inside ? pixel[channel] : 0.0f;
    }
  }

  template <int pitch> __device__ __forceinline__ void store(float (&to)[channels][rows][pitch]) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int index = i * ATTENTION_THREADS + threadIdx.x;
      if (index >= rows * columns) return;
#pragma unroll
      for (int channel = 0; channel < channels; ++channel)
        to[channel][index / columns][index % columns] = values[i][channel];
    }
  }
};

// The place of a tile's border.
__device__ __forceinline__ Place border_of(const Place& tile) { return {tile.image, tile.y - BORDER, tile.x - BORDER}; }

// Element `index` of quads that lie side by side.
template <int count> __device__ __forceinline__ float element(const Quad (&quads)[count], int index) {
  return quads[index / 4][index % 4];
}

// ---- forward and input gradient ---------------------------------------------------------------------------------------
// A thread has four neighbouring pixels of a row. Grid: tiles.

template <int sources, int targets, bool transposed>
__device__ __forceinline__ void correlate_7x7(float* target, const float* source, const float* weight, const float* bias,
                                              int height, int width, int target_stride, int source_stride, int has_bias,
                                              int relu) {
  constexpr int taps = SIDE * SIDE, pairs = sources * targets, rows = ATTENTION_ROWS + 2 * BORDER;
  static_assert(taps * pairs <= ATTENTION_THREADS, "a thread copies a weight");
  __shared__ __align__(16) float pixels[sources][rows][ATTENTION_WIDTH + 8];
  __shared__ __align__(16) float weights[pairs][SIDE][8];
  const Place place = place_of(blockIdx.x, ATTENTION_ROWS, height, width);
  Rectangle<rows, BORDERED_WIDTH, sources> copy;
  copy.load(source, border_of(place), height, width, source_stride);
  const int number = threadIdx.x, tap = number / pairs, from = number % pairs / targets, to = number % targets;
  const bool has_weight = number < taps * pairs;
  const int index = transposed ? ((taps - 1 - tap) * targets + to) * sources + from : number;
  const float factor = has_weight ? weight[index] : 0.0f;
  __syncwarp();  // keeps the compiler from moving each load down to its use
  copy.store(pixels);
  if (has_weight) weights[number % pairs][tap / SIDE][tap % SIDE] = factor;
  __syncthreads();

  const int row = threadIdx.x / (ATTENTION_WIDTH / 4), column = threadIdx.x % (ATTENTION_WIDTH / 4) * 4;
  float sums[targets][4] = {};
#pragma unroll
  for (int dy = 0; dy < SIDE; ++dy)
#pragma unroll
    for (int from = 0; from < sources; ++from) {
      Quad values[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) values[i] = load16(&pixels[from][row + dy][column + 4 * i]);
#pragma unroll
      for (int to = 0; to < targets; ++to) {
        const float* const line = weights[from * targets + to][dy];
        const Quad factors[2] = {load16(line), load16(line + 4)};
#pragma unroll
        for (int dx = 0; dx < SIDE; ++dx)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            sums[to][j] = fmaf(element(values, j + dx), element(factors, dx), sums[to][j]);
      }
    }

  const int y = place.y + row;
  if (y >= height) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int x = place.x + column + j;
    if (x >= width) return;
#pragma unroll
    for (int to = 0; to < targets; ++to) {
      const float sum = has_bias ? sums[to][j] + bias[to] : sums[to][j];
      target[((place.image * height + y) * width + x) * target_stride + to] = rectify(sum, relu);
    }
  }
}

KERNEL_WITH_THREADS(convolution_forward_7x7, ATTENTION_THREADS)(
    float* __restrict__ out,           // [n * height * width, 1], stride out_stride
    const float* __restrict__ x,       // [n * height * width, 2], stride x_stride
    const float* __restrict__ weight,  // [taps * 2, 1]
    const float* __restrict__ bias,    // [1]; not read where has_bias is 0
    int height, int width, int out_stride, int x_stride, int has_bias, int relu) {
  correlate_7x7<ATTENTION_CHANNELS, 1, false>(out, x, weight, bias, height, width, out_stride, x_stride, has_bias, relu);
}

KERNEL_WITH_THREADS(convolution_backward_input_7x7, ATTENTION_THREADS)(
    float* __restrict__ dx,            // [n * height * width, 2], stride dx_stride
    const float* __restrict__ dout,    // [n * height * width, 1], stride dout_stride
    const float* __restrict__ weight,  // [taps * 2, 1]
    int height, int width, int dx_stride, int dout_stride) {
  correlate_7x7<1, ATTENTION_CHANNELS, true>(dx, dout, weight, nullptr, height, width, dx_stride, dout_stride, 0, 0);
}

// ---- weight gradient --------------------------------------------------------------------------------------------------
// In parts, as correlation.cuh says. A thread has the seven weights of a row of the window and a channel, for a row of
// the tile; sixteen lanes have the tile's rows, and those for whom no weights are left the bias. The pitches let eight
// rows' quads meet all banks. Grid: parts.

KERNEL_WITH_THREADS(convolution_backward_weight_7x7, ATTENTION_THREADS)(
    float* __restrict__ parts,       // [parts, taps * 2, 1]
    float* __restrict__ bias_parts,  // [parts, 1]; not written where has_bias is 0
    const float* __restrict__ dout,  // [n * height * width, 1], stride dout_stride
    const float* __restrict__ x,     // [n * height * width, 2], stride x_stride
    int height, int width, int dout_stride, int x_stride, int tiles, int part_tiles,
    int has_bias) {
  constexpr int rows = ATTENTION_WEIGHT_ROWS;
  __shared__ __align__(16) float pixels[ATTENTION_CHANNELS][rows + 2 * BORDER][ATTENTION_WIDTH + 12];
  __shared__ __align__(16) float gradients[1][rows][ATTENTION_WIDTH + 4];
  const int row = threadIdx.x % rows, line = threadIdx.x / rows;
  const int channel = line % ATTENTION_CHANNELS, dy = line / ATTENTION_CHANNELS;
  const int begin = blockIdx.x * part_tiles, end = min(begin + part_tiles, tiles);
  Rectangle<rows + 2 * BORDER, BORDERED_WIDTH, ATTENTION_CHANNELS> copy;
  Rectangle<rows, ATTENTION_WIDTH, 1> gradients_copy;
  const auto load = [&](int tile) {
    const Place place = place_of(tile, rows, height, width);
    copy.load(x, border_of(place), height, width, x_stride);
    gradients_copy.load(dout, place, height, width, dout_stride);
  };
  load(begin);
  float sums[SIDE] = {};
  for (int tile = begin; tile < end; ++tile) {
    __syncthreads();  // the last tile was read
    copy.store(pixels);
    gradients_copy.store(gradients);
    __syncthreads();
    if (tile + 1 < end) load(tile + 1);
    if (dy >= SIDE) {
      for (int column = 0; column < ATTENTION_WIDTH; ++column) sums[0] += gradients[0][row][column];
      continue;
    }
    const float* const from = pixels[channel][row + dy];
    Quad values[3] = {load16(from), load16(from + 4), zero_quad()};
#pragma unroll
    for (int column = 0; column < ATTENTION_WIDTH; column += 4) {
      const Quad gradient = load16(&gradients[0][row][column]);
      values[2] = load16(from + column + 8);
#pragma unroll
      for (int dx = 0; dx < SIDE; ++dx)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[dx] = fmaf(element(values, j + dx), gradient[j], sums[dx]);
      values[0] = values[1];
      values[1] = values[2];
    }
  }
#pragma unroll
  for (int dx = 0; dx < SIDE; ++dx) {
#pragma unroll
    for (int distance = rows / 2; distance > 0; distance /= 2)
      sums[dx] += __shfl_xor_sync(ALL_LANES, sums[dx], distance);
    if (row == 0 && dy < SIDE)
      parts[(blockIdx.x * SIDE * SIDE + dy * SIDE + dx) * ATTENTION_CHANNELS + channel] = sums[dx];
  }
  if (row == 0 && dy == SIDE && channel == 0 && has_bias) bias_parts[blockIdx.x] = sums[0];
}
