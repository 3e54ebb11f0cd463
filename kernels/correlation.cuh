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
  int source_stride, offsets[T::a_quads];
  unsigned bits[T::a_quads];
  int weight_offset, columns_left;
  Axes tap = {0, 0, 0};
  int channel = 0;

  __device__ __forceinline__ AlignedOperands(const Geometry& g, const TilePlace<T>& place, const float* source,
                                             const float* weight, int source_stride)
      : g(g), place(place), source(source), weight(weight), source_stride(source_stride) {
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const int pixel = place.pixel + T::row_along(i);
      const Corner corner = corner_of(g, pixel_at(pixel, g.target));
      offsets[i] = corner.pixel * source_stride + place.group * place.inputs + T::inner_along();
      bits[i] = pixel < g.pixels ? bits_inside(g, corner.at) : 0;
    }
    const int column = place.column + (transposed ? T::column_along(0) : T::column_across(0));
    columns_left = loads_b<T, transposed>() ? place.outputs - column : 0;
    if (transposed) {
      const int row = (volume(g.kernel) - 1) * place.outputs + column, columns = place.groups * place.inputs;
      weight_offset = row * columns + place.group * place.inputs + T::inner_along();
    } else {
      const int columns = place.groups * place.outputs;
      weight_offset = T::inner_across() * columns + place.group * place.outputs + column;
    }
  }

  __device__ __forceinline__ int steps() const { return volume(g.kernel) * divide_up(place.inputs, T::inner); }

  // Whether the step has an element of the inner dimension.
  __device__ __forceinline__ bool has(int inner) const { return !reaches_beyond<T>() || channel + inner < place.inputs; }

  __device__ __forceinline__ void operator()(Quad (&a)[T::a_quads], Quad (&b)[T::b_quads]) {
    const unsigned needed = bits_of(tap, g.kernel);
    const int offset = tap_offset(g, tap) * source_stride + channel;
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const bool found = (bits[i] & needed) == needed;  // which makes the offset a positive one
      a[i] = load_quad<true>(source + static_cast<unsigned>(offsets[i] + offset), found && has(T::inner_along()), 4);
    }
    const bool has_weight = has(transposed ? T::inner_along() : T::inner_across());
    const int column_stride = transposed ? place.groups * place.inputs : 1;
#pragma unroll
    for (int i = 0; i < T::b_quads; ++i) {
      const int column = T::column_step * i;
      const float* address = weight + static_cast<unsigned>(weight_offset + column * column_stride);
      b[i] = load_quad<true>(address, has_weight && column < columns_left, 4);
    }

    channel += T::inner;
    weight_offset += transposed ? T::inner : T::inner * place.groups * place.outputs;
    if (channel < place.inputs) return;
    if (transposed) weight_offset -= place.outputs * place.groups * place.inputs + channel;
    else if (reaches_beyond<T>()) weight_offset -= (channel - place.inputs) * place.groups * place.outputs;
    channel = 0;
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
  static_assert(T::b_quads == 1, "a thread loads one quad of the weights");
  const Geometry& g;
  const TilePlace<T>& place;
  const Source* source;
  const Weight* weight;
  int source_stride, channels;
  Corner corners[T::a_quads];
  int inner = 0;

  __device__ __forceinline__ AnyOperands(const Geometry& g, const TilePlace<T>& place, const Source* source,
                                         const Weight* weight, int source_stride)
      : g(g), place(place), source(source + place.group * place.inputs), weight(weight), source_stride(source_stride),
        channels(whole_quads(place.inputs)) {
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const int pixel = place.pixel + T::row_along(i);
      corners[i] = corner_of(g, pixel_at(pixel, g.target));
      if (pixel >= g.pixels) corners[i].at.depth = NOWHERE;
    }
  }

  __device__ __forceinline__ int steps() const { return divide_up(volume(g.kernel) * channels, T::inner); }

  __device__ __forceinline__ void operator()(Quad (&a)[T::a_quads], Quad (&b)[T::b_quads]) {
    const int taps = volume(g.kernel), number = (inner + T::inner_along()) / channels;
    const int channel = (inner + T::inner_along()) % channels, count = number < taps ? place.inputs - channel : 0;
    const Axes tap = tap_at(number, g.kernel);
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      int pixel;
      const bool found = source_pixel<dilated>(pixel, g, corners[i], tap, tap_offset(g, tap));
      a[i] = load_quad<false>(source + (pixel * source_stride + channel), found, count);
    }
    if constexpr (transposed) {
      const int column = place.column + T::column_along(0), row = (taps - 1 - number) * place.outputs + column;
      const Weight* address = weight + row * (place.groups * place.inputs) + place.group * place.inputs + channel;
      b[0] = load_quad<false>(address, loads_b<T, true>() && column < place.outputs, count);
    } else {
      const int column = place.column + T::column_across(0);
      const int across = inner + T::inner_across(), weight_tap = across / channels, weight_channel = across % channels;
      const int row = weight_tap * place.inputs + weight_channel;
      const Weight* address = weight + row * (place.groups * place.outputs) + place.group * place.outputs + column;
      const bool exists = weight_tap < taps && weight_channel < place.inputs && loads_b<T, false>();
      b[0] = load_quad<false>(address, exists, place.outputs - column);
    }
    inner += T::inner;
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
  Axes corners[T::a_quads];  // the source pixel that each quad's tap meets, if the step's first pixel were the first
  int offsets[T::a_quads], row_counts[T::a_quads], dout_offset, column_count;
  Pixel pixel;  // the step's first

  __device__ __forceinline__ PixelOperands(const Geometry& g, const Dout* dout, const X* x, int dout_stride,
                                           int x_stride, int group, int inputs, int outputs, int tile_row,
                                           int tile_column, int first_pixel)
      : g(g), dout(dout), x(x), dout_stride(dout_stride), x_stride(x_stride), pixel(pixel_at(first_pixel, g.target)) {
    const int channels = aligned ? inputs : whole_quads(inputs);
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const int row = tile_row + T::row_across(i), channel = row % channels;
      const Axes tap = tap_at(row / channels, g.kernel);
      corners[i] = {tap.depth - g.padding.depth, tap.height - g.padding.height,
                    tap.width - g.padding.width + T::inner_across() * g.stride.width};
      offsets[i] = tap_offset(g, corners[i]) * x_stride + group * inputs + channel;
      row_counts[i] = inputs - channel;
      if (tap.depth >= g.kernel.depth) corners[i].depth = NOWHERE;
    }
    const int column = tile_column + T::column_across(0);
    column_count = loads_b<T, false>() ? outputs - column : 0;
    dout_offset = (first_pixel + T::inner_across()) * dout_stride + group * outputs + column;
  }

  __device__ __forceinline__ void operator()(Quad (&a)[T::a_quads], Quad (&b)[T::b_quads]) {
    const bool in_row = pixel.at.width + T::inner_across() < g.target.width;
    const Axes source = {pixel.at.depth * g.stride.depth, pixel.at.height * g.stride.height,
                         pixel.at.width * g.stride.width};
    const int offset = (pixel.sample * volume(g.source) + tap_offset(g, source)) * x_stride;
#pragma unroll
    for (int i = 0; i < T::a_quads; ++i) {
      const bool found = is_inside(source.depth + corners[i].depth, g.source.depth) &&
                         is_inside(source.height + corners[i].height, g.source.height) &&
                         is_inside(source.width + corners[i].width, g.source.width);
      a[i] = load_quad<aligned>(x + static_cast<unsigned>(offsets[i] + offset), found && in_row, row_counts[i]);
    }
    const Dout* from = dout + static_cast<unsigned>(dout_offset);
#pragma unroll
    for (int i = 0; i < T::b_quads; ++i) {
      const int column = T::column_step * i, count = column_count - column;
      b[i] = load_quad<aligned>(from + column, in_row && count > 0, count);
    }

    pixel.at.width += T::inner;
    dout_offset += T::inner * dout_stride;
    if (pixel.at.width < g.target.width) return;
    dout_offset -= (pixel.at.width - g.target.width) * dout_stride;
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
  PixelOperands<T, aligned, Dout, X> operands(g, dout, x, dout_stride, x_stride, group, inputs, outputs, tile_row,
                                              tile_column, begin * g.target.width);
  typename T::Sums sums = {};
  accumulate<T, false, false>(sums, count * divide_up(g.target.width, T::inner), operands);

  parts += blockIdx.z * (taps * inputs) * (groups * outputs) + group * outputs;
  for_each_quad<T>(sums, [&](int row, int column, const Quad& quad) {
    const int tap = (tile_row + row) / channels, channel = (tile_row + row) % channels, output = tile_column + column;
    if (tap >= taps || channel >= inputs || output >= outputs) return;
    float* address = parts + (tap * inputs + channel) * (groups * outputs) + output;
    store_quad<aligned>(address, quad, outputs - output);
  });
}

// ---- kernels ----------------------------------------------------------------------------------------------------------
// The parameters of those between tensors of f32, and the arguments of all.

#define FORWARD_PARAMETERS                                                                                       \
  float* __restrict__ out,              /* [pixels, groups * outputs], stride out_stride */                      \
      const float* __restrict__ x,      /* [source pixels, groups * inputs], stride x_stride */                  \
      const float* __restrict__ weight, /* [taps * inputs, groups * outputs] */                                  \
      const float* __restrict__ bias,   /* [groups * outputs]; not read where has_bias is 0 */                   \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int out_stride, int x_stride, int has_bias, int relu

#define FORWARD_ARGUMENTS \
  out, x, weight, bias, GEOMETRY, groups, inputs, outputs, out_stride, x_stride, has_bias, relu

#define BACKWARD_INPUT_PARAMETERS                                                                                \
  float* __restrict__ dx,               /* [pixels, groups * outputs], stride dx_stride */                       \
      const float* __restrict__ dout,   /* [source pixels, groups * inputs], stride dout_stride */               \
      const float* __restrict__ weight, /* [taps * outputs, groups * inputs] */                                  \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dx_stride, int dout_stride

#define BACKWARD_INPUT_ARGUMENTS \
  dx, dout, weight, nullptr, GEOMETRY, groups, inputs, outputs, dx_stride, dout_stride, 0, 0

#define BACKWARD_WEIGHT_PARAMETERS                                                                               \
  float* __restrict__ parts,          /* [parts, taps * inputs, groups * outputs] */                             \
      const float* __restrict__ dout, /* [pixels, groups * outputs], stride dout_stride */                       \
      const float* __restrict__ x,    /* [source pixels, groups * inputs], stride x_stride */                    \
      GEOMETRY_PARAMETERS, int groups, int inputs, int outputs, int dout_stride, int x_stride, int part_rows

#define BACKWARD_WEIGHT_ARGUMENTS parts, dout, x, GEOMETRY, groups, inputs, outputs, dout_stride, x_stride, part_rows
