// Convolution as matrix products in fp32, wherever tensor cores do not serve: forward and input gradient are one,
// `correlate`: its rows are target pixels, its columns target channels, and its inner dimension is (tap, source channel),
// whose elements are read where they lie. The weight gradient's inner dimension is the pixels, in parts that are summed
// in order at the end. `outputs` and `inputs` count the channels of a group, of the side that is written and of the side
// that is read.
#pragma once

#include "window.cuh"
#include "matrix_tile.cuh"

// ---- the matrix product of forward and input gradient -----------------------------------------------------------------
// Grid: pixels in tiles; groups, each with its target channels in tiles. The weight of a source channel c, a target
// channel n and a tap: forward in row (tap, c) and column n; transposed, for the input gradient, in row (the tap
// counted from the last one, n) and column c.

// Where a block's tile lies, and how many channels there are.
template <class T> struct TilePlace {
  int groups, inputs, outputs;
  int group, pixel, column;  // the tile's group; its first pixel and target channel of the group

  __device__ __forceinline__ TilePlace(int groups, int inputs, int outputs)
      : groups(groups), inputs(inputs), outputs(outputs) {
    const int column_tiles = divide_up(outputs, T::columns);
    group = blockIdx.y / column_tiles;
    column = blockIdx.y % column_tiles * T::columns;
    pixel = blockIdx.x * T::rows;
  }
};

// Loads where source channels come by 8, target channels by 4, all at multiples of 16 bytes, without dilation: a step
// of the inner dimension has one tap, the same for all threads, and what depends on the thread does not change.
template <class T_, bool transposed_> struct AlignedOperands {
  using T = T_;
  using Source = float;
  using Weight = float;
  static constexpr bool transposed = transposed_, aligned = true;
  const Geometry& g;
  const TilePlace<T>& place;
  const float *source, *weight;
  int source_stride, offsets[T::row_quads];
  unsigned bits[T::row_quads];
  bool has_column;
  Axes tap = {0, 0, 0};
  int channel = 0;

  __device__ __forceinline__ AlignedOperands(const Geometry& g, const TilePlace<T>& place, const float* source,
                                             const float* weight, int source_stride)
      : g(g), place(place), source(source + place.group * place.inputs + inner_along()), source_stride(source_stride) {
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int pixel = place.pixel + line_along(i);
      const Corner corner = corner_of(g, pixel_at(pixel, g.target));
      offsets[i] = corner.pixel * source_stride;
      bits[i] = pixel < g.pixels ? bits_inside(g, corner.at) : 0;
    }
    const int column = place.column + (transposed ? line_along(0) : quad_across(0));
    has_column = loads_b<T, transposed>() && column < place.outputs;
    if (transposed) {
      const int row = (volume(g.kernel) - 1) * place.outputs + column, columns = place.groups * place.inputs;
      this->weight = weight + row * columns + place.group * place.inputs + inner_along();
    } else {
      const int columns = place.groups * place.outputs;
      this->weight = weight + inner_across() * columns + place.group * place.outputs + column;
    }
  }

  __device__ __forceinline__ int steps() const { return volume(g.kernel) * place.inputs / TILE_INNER; }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const unsigned needed = bits_of(tap, g.kernel);
    const int offset = tap_offset(g, tap) * source_stride + channel;
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i)
      a[i] = load_quad<true>(source + (offsets[i] + offset), (bits[i] & needed) == needed, 4);
    b = load_quad<true>(weight, has_column, 4);

    channel += TILE_INNER;
    weight += transposed ? TILE_INNER : TILE_INNER * place.groups * place.outputs;
    if (channel < place.inputs) return;
    channel = 0;
    if (transposed) weight -= place.outputs * place.groups * place.inputs + place.inputs;
    next_tap(tap, g.kernel);
  }
};

// Loads whatever there is, one by one. Each tap's source channels are rounded up to quads, of which each thread follows
// its own.
template <class T_, bool transposed_, class Source_ = float, class Weight_ = float> struct AnyOperands {
  using T = T_;
  using Source = Source_;
  using Weight = Weight_;
  static constexpr bool transposed = transposed_, aligned = false, dilated = transposed;
  const Geometry& g;
  const TilePlace<T>& place;
  const Source* source;
  const Weight* weight;
  int source_stride, channels;
  Corner corners[T::row_quads];
  int inner = 0;

  __device__ __forceinline__ AnyOperands(const Geometry& g, const TilePlace<T>& place, const Source* source,
                                         const Weight* weight, int source_stride)
      : g(g), place(place), source(source + place.group * place.inputs), weight(weight), source_stride(source_stride),
        channels(whole_quads(place.inputs)) {
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int pixel = place.pixel + line_along(i);
      corners[i] = corner_of(g, pixel_at(pixel, g.target));
      if (pixel >= g.pixels) corners[i].at.depth = NOWHERE;
    }
  }

  __device__ __forceinline__ int steps() const { return divide_up(volume(g.kernel) * channels, TILE_INNER); }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const int taps = volume(g.kernel), number = (inner + inner_along()) / channels;
    const int channel = (inner + inner_along()) % channels, count = number < taps ? place.inputs - channel : 0;
    const Axes tap = tap_at(number, g.kernel);
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      int pixel;
      const bool found = source_pixel<dilated>(pixel, g, corners[i], tap, tap_offset(g, tap));
      a[i] = load_quad<false>(source + (pixel * source_stride + channel), found, count);
    }
    if constexpr (transposed) {
      const int column = place.column + line_along(0), row = (taps - 1 - number) * place.outputs + column;
      const Weight* address = weight + row * (place.groups * place.inputs) + place.group * place.inputs + channel;
      b = load_quad<false>(address, loads_b<T, true>() && column < place.outputs, count);
    } else {
      const int column = place.column + quad_across(0);
      const int weight_tap = (inner + inner_across()) / channels, weight_channel = (inner + inner_across()) % channels;
      const int row = weight_tap * place.inputs + weight_channel;
      const Weight* address = weight + row * (place.groups * place.outputs) + place.group * place.outputs + column;
      const bool exists = weight_tap < taps && weight_channel < place.inputs && loads_b<T, false>();
      b = load_quad<false>(address, exists, place.outputs - column);
    }
    inner += TILE_INNER;
  }
};

template <class Operands, class Target = float>
__device__ __forceinline__ void correlate(Target* target, const typename Operands::Source* source,
                                          const typename Operands::Weight* weight, const float* bias, const Geometry& g,
                                          int groups, int inputs, int outputs, int target_stride, int source_stride,
                                          int has_bias, int relu) {
  using T = typename Operands::T;
  constexpr bool aligned = Operands::aligned;
  const TilePlace<T> place(groups, inputs, outputs);
  Operands operands(g, place, source, weight, source_stride);
  typename T::Sums sums = {};
  accumulate<T, true, Operands::transposed>(sums, operands.steps(), operands);

  for_each_quad<T>(sums, [&](int row, int column, Quad quad) {
    const int pixel = place.pixel + row, output = place.column + column, channel = place.group * outputs + output;
    if (pixel >= g.pixels || output >= outputs) return;
    if (has_bias) {
      const Quad added = load_quad<aligned>(bias + channel, true, outputs - output);
#pragma unroll
      for (int j = 0; j < 4; ++j) quad[j] += added[j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) quad[j] = rectify(quad[j], relu);
    store_quad<aligned>(target + (pixel * target_stride + channel), quad, outputs - output);
  });
}

// ---- weight gradient --------------------------------------------------------------------------------------------------
// Rows are (tap, input channel), columns output channels; the inner dimension is the pixels of dout (the target), each
// row of the image rounded up to whole steps. It is divided into parts of `part_rows` image rows (of all samples); each
// part's sums go to a matrix of their own, for sum_parts, or to the gradient itself if there is one part. Grid: rows in
// tiles; groups, each with its columns in tiles; parts. `aligned`: all channels come by 4, at multiples of 16 bytes.

// All quads that a thread loads in a step are of one pixel: that which lies inner_across() after the step's first.
template <class T, bool aligned, class Dout, class X> struct PixelOperands {
  const Geometry& g;
  const Dout* dout;
  const X* x;
  int dout_stride, x_stride;
  Axes corners[T::row_quads];  // the source pixel that each quad's tap meets, if the step's first pixel were the first
  int offsets[T::row_quads], row_counts[T::row_quads], column_count;
  Pixel pixel;  // the step's first
  int index;    // its number

  __device__ __forceinline__ PixelOperands(const Geometry& g, const Dout* dout, const X* x, int dout_stride,
                                           int x_stride, int inputs, int outputs, int tile_row, int tile_column,
                                           int first_pixel)
      : g(g), dout_stride(dout_stride), x(x), x_stride(x_stride), pixel(pixel_at(first_pixel, g.target)),
        index(first_pixel) {
    const int channels = aligned ? inputs : whole_quads(inputs);
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const int row = tile_row + quad_across(i), channel = row % channels;
      const Axes tap = tap_at(row / channels, g.kernel);
      corners[i] = {tap.depth - g.padding.depth, tap.height - g.padding.height,
                    tap.width - g.padding.width + inner_across() * g.stride.width};
      offsets[i] = tap_offset(g, corners[i]) * x_stride + channel;
      row_counts[i] = inputs - channel;
      if (tap.depth >= g.kernel.depth) corners[i].depth = NOWHERE;
    }
    const int column = tile_column + quad_across(0);
    column_count = loads_b<T, false>() ? outputs - column : 0;
    this->dout = dout + inner_across() * dout_stride + column;
  }

  __device__ __forceinline__ void operator()(Quad (&a)[T::row_quads], Quad& b) {
    const bool in_row = pixel.at.width + inner_across() < g.target.width;
    const Axes source = {pixel.at.depth * g.stride.depth, pixel.at.height * g.stride.height,
                         pixel.at.width * g.stride.width};
    const int offset = (pixel.sample * volume(g.source) + tap_offset(g, source)) * x_stride;
#pragma unroll
    for (int i = 0; i < T::row_quads; ++i) {
      const bool found = is_inside(source.depth + corners[i].depth, g.source.depth) &&
                         is_inside(source.height + corners[i].height, g.source.height) &&
                         is_inside(source.width + corners[i].width, g.source.width);
      a[i] = load_quad<aligned>(x + (offsets[i] + offset), found && in_row, row_counts[i]);
    }
    b = load_quad<aligned>(dout + index * dout_stride, in_row && column_count > 0, column_count);

    pixel.at.width += TILE_INNER;
    index += TILE_INNER;
    if (pixel.at.width < g.target.width) return;
    index -= pixel.at.width - g.target.width;
    pixel.at.width = 0;
    if (++pixel.at.height < g.target.height) return;
    pixel.at.height = 0;
    if (++pixel.at.depth < g.target.depth) return;
    pixel.at.depth = 0;
    ++pixel.sample;
  }
};

template <class T, bool aligned, class Dout, class X>
__device__ __forceinline__ void correlate_weights(float* parts, const Dout* dout, const X* x, const Geometry& g,
                                                  int groups, int inputs, int outputs, int dout_stride, int x_stride,
                                                  int part_rows) {
  const int taps = volume(g.kernel), channels = aligned ? inputs : whole_quads(inputs);
  const int column_tiles = divide_up(outputs, T::columns);
  const int group = blockIdx.y / column_tiles, tile_column = blockIdx.y % column_tiles * T::columns;
  const int tile_row = blockIdx.x * T::rows;
  const int begin = blockIdx.z * part_rows, count = min(g.pixels / g.target.width - begin, part_rows);
  PixelOperands<T, aligned, Dout, X> operands(g, dout + group * outputs, x + group * inputs, dout_stride, x_stride, inputs,
                                     outputs, tile_row, tile_column, begin * g.target.width);
  typename T::Sums sums = {};
  accumulate<T, false, false>(sums, count * divide_up(g.target.width, TILE_INNER), operands);

  parts += blockIdx.z * (taps * inputs) * (groups * outputs) + group * outputs;
  for_each_quad<T>(sums, [&](int row, int column, const Quad& quad) {
    const int tap = (tile_row + row) / channels, channel = (tile_row + row) % channels, output = tile_column + column;
    if (tap >= taps || channel >= inputs || output >= outputs) return;
    float* address = parts + (tap * inputs + channel) * (groups * outputs) + output;
    store_quad<aligned>(address, quad, outputs - output);
  });
}
