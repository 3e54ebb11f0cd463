// Convolution on tensor cores in 16 bits, forward and input gradient: what the kernels for mma and for warp groups share. A
// tile says how a block's operands lie in shared memory, and multiplies them.
#pragma once

#include "batch_norm.cuh"
#include "border.cuh"
#include "patch.cuh"

// ---- the matrix product of forward and input gradient -----------------------------------------------------------------
// Rows are target pixels, columns target channels, and the inner dimension is (source channels by 16, tap, 16 channels).
// The weights are [tap][source][target]; transposed, for what is no 3x3 kernel's input gradient, [tap][target][source].
//
// For the 1x1 kernels, source or target may be the large image of a window. If the source is, its taps are more of the
// inner dimension, before the channels; if the target is, (tap, channel) are the columns, of which `outputs` are all.

// A block's target pixels are `rows` of `width`, its target channels `columns`; a step has `depth` source channels, and
// shared memory `stages` steps. Of its source, each pixel's channels lie side by side, or all pixels' first pieces come
// first, then the second ones.
template <int kernel_, int rows_, int width_, int columns_, int depth_, int stages_, bool transposed_, bool by_pieces>
struct TileSizes {
  static constexpr int kernel = kernel_, rows = rows_, width = width_, columns = columns_;
  static constexpr int depth = depth_, stages = stages_;
  static constexpr bool transposed = transposed_;
  static constexpr int taps = kernel * kernel, border = kernel / 2, rows_per_warp = rows / WARPS;
  static constexpr int source_width = width + kernel - 1, source_rows = rows + kernel - 1;
  static constexpr int source_pixels = source_width * source_rows, pixel_pieces = depth / PIECE;
  // Elements from one pixel, piece or line to the next: so that a warp meets each bank as often as any other.
  static constexpr int piece_pitch =
      by_pieces ? source_pixels * PIECE + (64 / pixel_pieces + 64 - source_pixels * PIECE % 64) % 64 : PIECE;
  static constexpr int pixel_pitch = by_pieces ? PIECE : depth + PIECE;
  static constexpr int pieces_per_line = (transposed ? depth : columns) / PIECE;
  static constexpr int weight_pitch = (pieces_per_line + !by_pieces) * PIECE;
  static constexpr int tap_lines = transposed ? columns : depth;  // lines of `depth` or `columns` elements
  static constexpr int source_elements = by_pieces ? pixel_pieces * piece_pitch : source_pixels * pixel_pitch;
  static constexpr int tap_elements = tap_lines * weight_pitch;
  static constexpr int stage_elements = source_elements + taps * tap_elements;
  // Pieces that a thread copies in a step. All threads copy the pieces of some taps at once, or a part of a tap's.
  static constexpr int source_pieces = source_pixels * pixel_pieces;
  static constexpr int tap_pieces = tap_lines * pieces_per_line, weight_pieces = taps * tap_pieces;
  static constexpr int taps_at_once = tap_pieces < TENSOR_THREADS ? TENSOR_THREADS / tap_pieces : 1;
  static constexpr int tap_parts = tap_pieces > TENSOR_THREADS ? tap_pieces / TENSOR_THREADS : 1;
  static constexpr int source_copies = (source_pieces + TENSOR_THREADS - 1) / TENSOR_THREADS;
  static constexpr int weight_copies = (weight_pieces + TENSOR_THREADS - 1) / TENSOR_THREADS;
  static_assert(tap_parts * TENSOR_THREADS == taps_at_once * tap_pieces, "whole taps");

  // Where a piece of a line of a tap's weights begins. Lines without padding have their pieces in another order, so that
  // neither a piece of eight lines nor all pieces of some meet a bank twice.
  static __device__ __forceinline__ int weight_place(int line, int piece) {
    static_assert(!by_pieces || (pieces_per_line & (pieces_per_line - 1)) == 0 && pieces_per_line <= 8, "an order");
    return line * weight_pitch + (by_pieces ? piece ^ line * pieces_per_line / 8 % pieces_per_line : piece) * PIECE;
  }
};

// A pixel of a block's source: whether it is one of the image's, and its place there.
template <class T> struct SourcePixel {
  bool valid;
  int place;

  __device__ __forceinline__ SourcePixel(int pixel, const Image& size, const Window& window, const Patch& patch) {
    const int y = patch.y - T::border + pixel / T::source_width, x = patch.x - T::border + pixel % T::source_width;
    valid = pixel < T::source_pixels && is_inside(y, size.height) && is_inside(x, size.width);
    place = T::kernel == 1 ? large_pixel(size, window, patch.image, y, x)
                           : (patch.image * size.height + y) * size.width + x;
  }
};

// The bits of a block's source: words of four groups of channels, of each pixel in turn.
constexpr int GROUPS_OF_WORD = 4;

// Begins the copies of all of them.
template <class T>
__device__ __forceinline__ void copy_bits(Bits* bits, const Bits* positive, int groups, const Image& size,
                                          const Window& window, const Patch& patch) {
#pragma unroll 1
  for (int i = threadIdx.x; i < groups / GROUPS_OF_WORD * T::source_pixels; i += TENSOR_THREADS) {
    const int word = i / T::source_pixels;
    const SourcePixel<T> pixel(i % T::source_pixels, size, window, patch);
    cp_async_or_zero<GROUPS_OF_WORD>(bits + i * GROUPS_OF_WORD,
                                     positive + (pixel.valid ? pixel.place * groups + word * GROUPS_OF_WORD : 0), pixel.valid);
  }
}

// Makes those channels of the pieces that the thread itself has copied zero that have no bit.
template <class T> __device__ __forceinline__ void mask_source(Element* stage, const Bits* bits, int step) {
  constexpr int at_once = 4, pixels = TENSOR_THREADS / T::pixel_pieces;  // that all threads have copied at once
  const int first = threadIdx.x / T::pixel_pieces, group = step * T::pixel_pieces + threadIdx.x % T::pixel_pieces;
  const Bits* own = bits + (group / GROUPS_OF_WORD * T::source_pixels + first) * GROUPS_OF_WORD + group % GROUPS_OF_WORD;
  Element* pieces = stage + first * T::pixel_pitch + threadIdx.x % T::pixel_pieces * T::piece_pitch;
#pragma unroll
  for (int begin = 0; begin < T::source_copies; begin += at_once) {
    const auto for_each = [&](auto body) {
#pragma unroll
      for (int i = begin; i < begin + at_once && i < T::source_copies; ++i)
        if ((i + 1) * pixels <= T::source_pixels || first + i * pixels < T::source_pixels) body(i);
    };
    Piece values[at_once];
    unsigned positive[at_once];
    for_each([&](int i) {
      values[i - begin] = load_piece(pieces + i * pixels * T::pixel_pitch);
      positive[i - begin] = own[i * pixels * GROUPS_OF_WORD];
    });
    for_each([&](int i) {
      keep_positive(values[i - begin], positive[i - begin]);
      store_piece(pieces + i * pixels * T::pixel_pitch, values[i - begin]);
    });
  }
}

// What a thread copies into shared memory, step by step.
template <class T> struct Copies {
  const Element *source, *weight;
  const Element *first_source, *first_weight;  // of the first tap
  const Image& size;
  const Window& window;
  int inputs, outputs, source_stride, tap = 0;
  int source_offsets[T::source_copies];
  unsigned source_valid = 0;  // a bit for each copy
  int source_channel, weight_channel, weight_step, columns_left, channel = 0;

  __device__ __forceinline__ Copies(const Element* source, const Element* weight, const Image& size,
                                    const Window& window, const Patch& patch, int first_column, int inputs, int outputs,
                                    int source_stride)
      : source(source), first_source(source), size(size), window(window), inputs(inputs), outputs(outputs),
        source_stride(source_stride) {
    const int thread = threadIdx.x;
    source_channel = thread % T::pixel_pieces * PIECE;
#pragma unroll
    for (int i = 0; i < T::source_copies; ++i) {
      const SourcePixel<T> pixel((thread + i * TENSOR_THREADS) / T::pixel_pieces, size, window, patch);
      source_offsets[i] = pixel.valid ? pixel.place * source_stride + source_channel : 0;
      source_valid |= static_cast<unsigned>(pixel.valid) << i;
    }
    // A thread's copies of weights are of one line of each tap, or of every second one, or of every line that is a part
    // of a tap further on.
    const int line = thread / T::pieces_per_line % T::tap_lines, piece = thread % T::pieces_per_line * PIECE;
    const int tap = thread / T::tap_pieces;
    weight_channel = T::transposed ? piece : line;
    const int column = first_column + (T::transposed ? line : piece);
    this->weight = weight + (T::transposed ? (tap * outputs + column) * inputs + weight_channel
                                           : (tap * inputs + weight_channel) * outputs + column);
    first_weight = this->weight;
    weight_step = T::taps_at_once * inputs * outputs;
    columns_left = outputs - column;
  }

  // Begins the copies of the next step's channels.
  __device__ __forceinline__ void operator()(Element* stage) {
    const int thread = threadIdx.x;
    const bool has_channel = channel + source_channel < inputs;
    Element* to = stage + thread / T::pixel_pieces * T::pixel_pitch + thread % T::pixel_pieces * T::piece_pitch;
#pragma unroll
    for (int i = 0; i < T::source_copies; ++i) {
      const int pixels = TENSOR_THREADS / T::pixel_pieces;
      if ((i + 1) * TENSOR_THREADS <= T::source_pieces || thread + i * TENSOR_THREADS < T::source_pieces)
        cp_async_or_zero<16>(to + i * pixels * T::pixel_pitch, source + source_offsets[i],
                             has_channel && source_valid >> i & 1);
    }
    source += T::depth;
    copy_weights(stage + T::source_elements + thread / T::tap_pieces * T::tap_elements +
                 T::weight_place(thread / T::pieces_per_line % T::tap_lines, thread % T::pieces_per_line));
    channel += T::depth;
    if (T::kernel > 1 || channel < inputs) return;
    channel = 0;
    ++tap;
    source = first_source + window_offset(size, window, tap) * source_stride;
    weight = first_weight + tap * inputs * outputs;
  }

  __device__ __forceinline__ void copy_weights(Element* to) {
    const Element* from = weight;
    constexpr int lines = TENSOR_THREADS / T::pieces_per_line;  // that all threads copy at once
    static_assert(lines % 8 == 0, "a piece's place is the same so many lines further on");
#pragma unroll
    for (int i = 0; i < T::weight_copies; ++i) {
      const int line = i % T::tap_parts * lines;  // further on in the tap
      const bool valid = T::transposed ? line < columns_left && channel + weight_channel < inputs
                                       : columns_left > 0 && channel + weight_channel + line < inputs;
      if ((i + 1) * TENSOR_THREADS <= T::weight_pieces ||
          static_cast<int>(threadIdx.x) + i * TENSOR_THREADS < T::weight_pieces)
        cp_async_or_zero<16>(to + i / T::tap_parts * T::taps_at_once * T::tap_elements + line * T::weight_pitch,
                             from + line * (T::transposed ? inputs : outputs), valid);
      if (i % T::tap_parts == T::tap_parts - 1) from += weight_step;
    }
    weight += T::transposed ? T::depth : T::depth * outputs;
  }
};

// What becomes of the target before it is stored: what stands in another tensor of its shape is added, perhaps times a scale of
// its channel, and with the bias for an offset, which may cancel much of it; negative values become
// zero, and so do those where a mask is not above zero; and it is normalised. A stride of 0 says that there is no such tensor.
// Each step rounds as if it were a pass over the tensor of its own. What the element cannot hold is limited to what it can in
// the forward pass alone: where there is a bias, and no scale, which only a gradient has.
struct Epilogue {
  const Element *added, *mask;
  const float* scale;
  int added_stride, mask_stride, relu;
  bool limited, scaled, normalised;
  ByRunning norm;

  __device__ __forceinline__ float limit(float value) const { return limited ? saturate<Element>(value) : value; }

  // The scales and offsets of what is added, or of the result, for the channels from c on.
  __device__ __forceinline__ void load_scales(float (&scales)[PIECE], float (&offsets)[PIECE], const float* bias,
                                              int c) const {
    Normalisation<PIECE> terms = {};
    if (normalised) terms = norm.at<PIECE>(c);
#pragma unroll
    for (int k = 0; k < PIECE; ++k) {
      scales[k] = normalised ? terms.scale[k] : scale[c + k];
      offsets[k] = normalised ? terms.shift[k] : bias[c + k];
    }
  }

  __device__ __forceinline__ void apply(Piece& values, const Piece& added, const Piece& mask, const float (&scales)[PIECE],
                                        const float (&offsets)[PIECE]) const {
    if (added_stride) {
#pragma unroll
      for (int i = 0; i < Piece::size; ++i) {
        const float2 value = values_of(values[i]);
        float2 addend = values_of(added[i]);
        if (scaled) {
          addend.x = addend.x * scales[2 * i] + offsets[2 * i];
          addend.y = addend.y * scales[2 * i + 1] + offsets[2 * i + 1];
        }
        values[i] = pair_of(limit(value.x + addend.x), limit(value.y + addend.y));
      }
    }
    if (relu) {
#pragma unroll
      for (int i = 0; i < Piece::size; ++i) values[i] = rectify_pair<Element>(values[i]);
    }
    if (mask_stride) {
#pragma unroll
      for (int i = 0; i < Piece::size; ++i) values[i] &= positive_masks<Element>(mask[i]);
    }
    if (normalised) {
#pragma unroll
      for (int i = 0; i < Piece::size; ++i) {
        const float2 value = values_of(values[i]);
        values[i] = pair_of(value.x * scales[2 * i] + offsets[2 * i], value.y * scales[2 * i + 1] + offsets[2 * i + 1]);
      }
    }
  }
};

// Where a thread writes the target: pieces of one channel group, of pixels some way apart. Pixels are counted over the rows
// of a warp.
template <class T> struct Pieces {
  static constexpr int per_pixel = T::columns / PIECE, pixels = WARP_SIZE / per_pixel;  // that a warp writes at once
  static constexpr int count = T::rows_per_warp * T::width / pixels;
  const Image& size;
  const Window& window;
  const Patch& patch;
  int channel, offset = 0;
  bool has_channel;

  __device__ __forceinline__ Pieces(const Image& size, const Window& window, const Patch& patch, int first_column,
                                    int outputs)
      : size(size), window(window), patch(patch) {
    channel = first_column + first_channel();
    has_channel = channel < outputs;
    if (T::kernel > 1) return;
    const int channels = outputs / (window.height * window.width), tap = channel / channels;
    offset = window_offset(size, window, tap);
    channel -= tap * channels;
  }

  static __device__ __forceinline__ int first_channel() { return threadIdx.x % per_pixel * PIECE; }
  static __device__ __forceinline__ int pixel(int index) { return index * pixels + threadIdx.x % WARP_SIZE / per_pixel; }

  // The pixel of the target; none below 0.
  __device__ __forceinline__ int place(int index) const {
    const int row = pixel(index) / T::width;
    const int y = patch.y + threadIdx.x / WARP_SIZE * T::rows_per_warp + row, x = patch.x + pixel(index) % T::width;
    if (!has_channel || y >= size.height || x >= size.width) return -1;
    return T::kernel == 1 ? large_pixel(size, window, patch.image, y, x) + offset
                          : (patch.image * size.height + y) * size.width + x;
  }
};

// Brings what the epilogue will read closer, while the sums are computed.
template <class T>
__device__ __forceinline__ void prefetch_epilogue(const Epilogue& epilogue, const Pieces<T>& pieces) {
  if (!epilogue.added_stride && !epilogue.mask_stride) return;
  if (pieces.first_channel() % (LINE_BYTES / sizeof(Element))) return;
#pragma unroll 4
  for (int i = 0; i < Pieces<T>::count; ++i) {
    const int place = pieces.place(i);
    if (place < 0) continue;
    if (epilogue.added_stride) prefetch(epilogue.added + place * epilogue.added_stride + pieces.channel);
    if (epilogue.mask_stride && epilogue.mask != epilogue.added)
      prefetch(epilogue.mask + place * epilogue.mask_stride + pieces.channel);
  }
}

// Elements from one pixel of the sums to the next in shared memory.
template <class T> constexpr int PITCH = T::columns + PIECE;

// Writes the sums to shared memory, where the operands were. Returns the first pixel of the warp's rows.
template <class T> __device__ __forceinline__ const Element* share_sums(Element* shared, const typename T::Sums& sums) {
  constexpr int pixels = T::rows_per_warp * T::width;
  static_assert(WARPS * pixels * PITCH<T> <= T::stages * T::stage_elements, "the sums have room where the operands were");
  T::store(shared, PITCH<T>, sums);
  return shared + threadIdx.x / WARP_SIZE * pixels * PITCH<T>;
}

// Adds the bias, and writes the block's pixels, by 16 bytes, by way of shared memory. What the epilogue reads is under way
// for several pieces at once.
template <class T>
__device__ __forceinline__ void write_sums(Element* target, typename T::Sums& sums, Element* shared,
                                           const float* bias, const Epilogue& epilogue, const Pieces<T>& pieces,
                                           int first_column, int outputs, int biases, int target_stride) {
  constexpr int at_once = 8, together = 4;  // pieces whose operands, and whose sums, are under way
  static_assert(Pieces<T>::count % at_once == 0, "no piece is left");
  const bool has_bias = biases && !epilogue.scaled;
  T::add(
      sums,
      [&](int column) {
        if (!has_bias || first_column + column >= outputs) return 0.0f;
        return bias[T::kernel == 1 ? (first_column + column) % biases : first_column + column];
      },
      [&](float sum) { return epilogue.limit(sum); });
  const Element* own = share_sums<T>(shared, sums);
  float scales[PIECE] = {}, offsets[PIECE] = {};
  if ((epilogue.scaled || epilogue.normalised) && pieces.has_channel)
    epilogue.load_scales(scales, offsets, bias, pieces.channel);
#pragma unroll 1
  for (int first = 0; first < Pieces<T>::count; first += at_once) {
    int places[at_once];
    Piece added[at_once] = {}, mask[at_once] = {};
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      places[i] = pieces.place(first + i);
      if (places[i] < 0) continue;
      if (epilogue.added_stride) added[i] = load_piece(epilogue.added + places[i] * epilogue.added_stride + pieces.channel);
      if (epilogue.mask_stride)
        mask[i] = epilogue.added_stride && epilogue.mask == epilogue.added
                      ? added[i]
                      : load_piece(epilogue.mask + places[i] * epilogue.mask_stride + pieces.channel);
    }
    Piece values[together];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (i % together == 0) {
#pragma unroll
        for (int j = 0; j < together; ++j)
          values[j] = load_piece(own + pieces.pixel(first + i + j) * PITCH<T> + pieces.first_channel());
      }
      if (places[i] < 0) continue;
      Piece& piece = values[i % together];
      epilogue.apply(piece, added[i], mask[i], scales, offsets);
      store_piece(target + places[i] * target_stride + pieces.channel, piece);
    }
  }
}

// The tensor that a product reads, and its weights. Of the source what has no bit is taken for zero, unless there are no
// `groups` of channels.
struct Factors {
  const Element *source, *weight;
  int inputs, source_stride;
  const Bits* positive;
  int groups;
};

// Adds the products of a block. `begun` is called once the first copies are under way.
template <class T, class Begun>
__device__ __forceinline__ void accumulate(typename T::Sums& sums, Element* shared, const Factors& factors,
                                           const Image& size, const Window& window, const Patch& patch,
                                           int first_column, int outputs, Begun begun) {
  Copies<T> copy(factors.source, factors.weight, size, window, patch, first_column, factors.inputs, outputs,
                 factors.source_stride);
  int steps = (factors.inputs + T::depth - 1) / T::depth;
  if (T::kernel == 1) steps *= window.height * window.width;
  Bits* bits = reinterpret_cast<Bits*>(shared + T::stages * T::stage_elements);
  if (factors.groups) copy_bits<T>(bits, factors.positive, factors.groups, size, window, patch);
#pragma unroll
  for (int step = 0; step < T::stages - 1; ++step) {
    if (step < steps) copy(shared + step * T::stage_elements);
    cp_async_commit();
  }
  begun();
  Element *stage = shared, *free_stage = shared + (T::stages - 1) * T::stage_elements;
  Element* const end = shared + T::stages * T::stage_elements;
  if (factors.groups) {
    cp_async_wait<T::stages - 2>();
    __syncthreads();  // the bits are there for all
  }
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<T::stages - 2>();
    if (factors.groups) mask_source<T>(stage, bits, step);
    T::before_products();
    __syncthreads();  // the step's operands are there for all, and nobody reads the stage that is filled next
    if (step + T::stages - 1 < steps) copy(free_stage);
    cp_async_commit();
    T::add_products(sums, stage);
    stage = stage + T::stage_elements == end ? shared : stage + T::stage_elements;
    free_stage = free_stage + T::stage_elements == end ? shared : free_stage + T::stage_elements;
  }
  __syncthreads();
}

// A 1x1 kernel beside a 3x3 one; none without inputs. In the forward pass, where it reads the same tensor, the 3x3 kernel's
// sums end in a ReLU before; where they, as an Element, are above zero is written, unless there are no `groups` of channels.
// Pixels at the border may have something of their kind added to their sums.
struct Shortcut {
  Factors factors;
  const float* bias;
  Bits* positive;
  int groups;
  const float* border;
  bool has_border;
};

// Adds what stands in `border`, [BORDER_KINDS, outputs], to the sums of pixels there.
template <class T>
__device__ __forceinline__ void add_border(typename T::Sums& sums, const float* border, const Image& size,
                                           const Patch& patch, int first_column, int outputs) {
  if (patch.y > 0 && patch.x > 0 && patch.y + T::rows < size.height && patch.x + T::width < size.width) return;
  T::add_rows(sums, outputs - first_column, [&](int row, int column) -> const float* {
    const int kind = border_kind(patch.y + row, patch.x + column, size.height, size.width);
    return kind < 0 ? nullptr : border + kind * outputs + first_column;
  });
}

// Adds the bias to the sums, and makes those below zero zero.
template <class T>
__device__ __forceinline__ void rectify(typename T::Sums& sums, Element* shared, const float* bias,
                                        const Shortcut& shortcut, const Pieces<T>& pieces, int first_column, int outputs) {
  if (shortcut.has_border) add_border<T>(sums, shortcut.border, pieces.size, pieces.patch, first_column, outputs);
  T::add(
      sums, [&](int column) { return first_column + column < outputs ? bias[first_column + column] : 0.0f; },
      rectified);
  if (!shortcut.groups) return;
  const Element* own = share_sums<T>(shared, sums);
  constexpr int at_once = 4;
  static_assert(Pieces<T>::count % at_once == 0, "no piece is left");
#pragma unroll 1
  for (int first = 0; first < Pieces<T>::count; first += at_once) {
    Piece values[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      values[i] = load_piece(own + pieces.pixel(first + i) * PITCH<T> + pieces.first_channel());
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int place = pieces.place(first + i);
      if (place >= 0) shortcut.positive[place * shortcut.groups + pieces.channel / PIECE] = positive_bits(values[i]);
    }
  }
  __syncthreads();  // the shortcut's operands come where the sums are
}

// A 3x3 kernel's products may be followed by those of a 1x1 kernel. Grid: patches; target channels in tiles.
template <class T, bool is_forward>
__device__ __forceinline__ void correlate(Element* target, const Factors& factors, const Shortcut& shortcut,
                                          const float* bias, const Epilogue& epilogue, const Image& size,
                                          const Window& source_window, const Window& target_window, int outputs,
                                          int target_stride, int biases) {
  DYNAMIC_SHARED(Element, shared);
  const Patch patch(blockIdx.x, T::rows, T::width, size);
  const int first_column = blockIdx.y * T::columns;
  const Pieces<T> pieces(size, target_window, patch, first_column, outputs);
  typename T::Sums sums = {};
  accumulate<T>(sums, shared, factors, size, source_window, patch, first_column, outputs,
                [&] { prefetch_epilogue(epilogue, pieces); });
  const float* last_bias = bias;
  if constexpr (T::kernel > 1) {
    using Beside = typename T::template Beside<!is_forward>;
    static_assert(Beside::stages * Beside::stage_elements <= T::stages * T::stage_elements, "there is room");
    if (shortcut.factors.inputs) {
      if constexpr (is_forward) {
        rectify<T>(sums, shared, bias, shortcut, pieces, first_column, outputs);
        last_bias = shortcut.bias;
      }
      accumulate<Beside>(sums, shared, shortcut.factors, size, source_window, patch, first_column, outputs, [] {});
    }
  }
  write_sums<T>(target, sums, shared, last_bias, epilogue, pieces, first_column, outputs, biases, target_stride);
}

// ---- kernels ----------------------------------------------------------------------------------------------------------
// They are named by their window, and by the pixels and channels of a block.

#define FORWARD_PARAMETERS                                                                                     \
  Element* __restrict__ out,              /* [n * height * width, outputs], stride out_stride */               \
      Bits* __restrict__ positive,        /* [n * height * width, groups]; not written where groups is 0 */    \
      const Element* __restrict__ x,      /* [n * height * width, inputs], stride x_stride */                  \
      const Element* __restrict__ weight, /* [9 * inputs, outputs] */                                          \
      const float* __restrict__ bias,     /* [outputs]; not read where has_bias is 0 */                        \
      const Element* __restrict__ shortcut,    /* [inputs, outputs]: a 1x1 kernel's weights, and its */        \
      const float* __restrict__ shortcut_bias, /* [outputs]; not read where has_shortcut is 0 */               \
      const float* __restrict__ border,   /* [BORDER_KINDS, outputs]; not read where has_border is 0 */        \
      const float* __restrict__ gamma,    /* [outputs]: of a batch norm; not read where has_norm is 0, nor */  \
      const float* __restrict__ beta,     /* [outputs] */                                                      \
      const float* __restrict__ mean,     /* [outputs]: the running one */                                     \
      const float* __restrict__ variance, /* [outputs]: likewise */                                            \
      int height, int width, int inputs, int outputs, int out_stride, int x_stride, int groups, int has_bias,  \
      int has_shortcut, int has_border, int has_norm, int relu, float epsilon

#define FORWARD_ARGUMENTS                                                                                          \
  out, {x, weight, inputs, x_stride},                                                                              \
      {{x, shortcut, has_shortcut ? inputs : 0, x_stride}, shortcut_bias, positive, groups, border, has_border != 0}, \
      bias,                                                                                                        \
      {nullptr, nullptr, nullptr, 0, 0, relu, has_bias != 0, false, has_norm != 0,                                  \
       {gamma, beta, mean, variance, epsilon}},                                                                     \
      {height, width}, {1, 1}, {1, 1}, outputs, out_stride, has_bias ? outputs : 0

#define BACKWARD_INPUT_POINTERS                                                                                \
  Element* __restrict__ dx,               /* [n * height * width, outputs], stride dx_stride */                \
      const Element* __restrict__ dout,   /* [n * height * width, inputs], stride dout_stride */               \
      const Element* __restrict__ weight, /* [9 * inputs, outputs], transposed */                              \
      const Element* added,               /* as dx, stride added_stride; not read where that is 0 */           \
      const float* __restrict__ scale,    /* [outputs], of added; not read where has_scale is 0, nor */        \
      const float* __restrict__ offset,   /* [outputs] */                                                      \
      const Element* mask                 /* as dx, stride mask_stride; may be added; not read where that is 0 */

#define BACKWARD_INPUT_SIZES                                                                                   \
  int height, int width, int inputs, int outputs, int dx_stride, int dout_stride, int added_stride, int mask_stride

#define BACKWARD_INPUT_PARAMETERS BACKWARD_INPUT_POINTERS, BACKWARD_INPUT_SIZES, int has_scale

#define BACKWARD_INPUT_EPILOGUE \
  {added, mask, scale, added_stride, mask_stride, 0, false, has_scale != 0, false, {}}

#define BACKWARD_INPUT_ARGUMENTS                                                                               \
  dx, {dout, weight, inputs, dout_stride}, {}, offset, BACKWARD_INPUT_EPILOGUE, {height, width}, {1, 1}, {1, 1}, \
      outputs, dx_stride, 0

// Of a residual block. For the 3x3 kernel dout is zero where there is no bit, unless it is given so.
#define RESIDUAL_BACKWARD_INPUT_PARAMETERS                                                                     \
  BACKWARD_INPUT_POINTERS,                                                                                     \
      const Bits* __restrict__ positive,  /* [n * height * width, groups]; not read where groups is 0 */       \
      const Element* __restrict__ shortcut_dout, /* [n * height * width, inputs], stride shortcut_stride */    \
      const Element* __restrict__ shortcut,      /* [outputs, inputs]: the 1x1 kernel's weights */             \
      BACKWARD_INPUT_SIZES, int groups /* a multiple of 4 */, int shortcut_stride, int has_scale

#define RESIDUAL_BACKWARD_INPUT_ARGUMENTS                                                                      \
  dx, {dout, weight, inputs, dout_stride, positive, groups}, {{shortcut_dout, shortcut, inputs, shortcut_stride}}, \
      offset, BACKWARD_INPUT_EPILOGUE, {height, width}, {1, 1}, {1, 1}, outputs, dx_stride, 0

// Of the 1x1 kernels; forward, x may be the large image of a window.
#define PATCHES_FORWARD_PARAMETERS                                                                             \
  Element* __restrict__ out,              /* [n * height * width, outputs], stride out_stride */               \
      const Element* __restrict__ x,      /* [n * height * width, inputs], or of the large image; stride x_stride */ \
      const Element* __restrict__ weight, /* [taps * inputs, outputs] */                                       \
      const float* __restrict__ bias,     /* [biases] */                                                       \
      const Element* __restrict__ added,  /* as out, stride added_stride; not read where that is 0 */          \
      const float* __restrict__ scale,    /* [outputs], of added; not read where has_scale is 0 */             \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int out_stride,     \
      int x_stride, int added_stride, int biases, int has_scale, int relu

#define PATCHES_FORWARD_ARGUMENTS                                                                                 \
  out, {x, weight, inputs, x_stride}, {}, bias,                                                                   \
      {added, nullptr, scale, added_stride, 0, relu, biases && !has_scale, has_scale != 0, false, {}},              \
      {height, width}, {window_height, window_width}, {1, 1}, outputs, out_stride, biases

// Transposed convolution is the same as an input gradient: the target may be the large image of a window.
#define PATCHES_BACKWARD_INPUT_PARAMETERS                                                                      \
  Element* __restrict__ dx,               /* [n * height * width, outputs], or of the large image; stride dx_stride */ \
      const Element* __restrict__ dout,   /* [n * height * width, inputs], stride dout_stride */               \
      const Element* __restrict__ weight, /* [taps * outputs, inputs] */                                       \
      const float* __restrict__ bias,     /* [biases], those of all columns, again and again if they are fewer */ \
      const Element* __restrict__ added,  /* as dx, stride added_stride; not read where that is 0 */           \
      const float* __restrict__ scale,    /* [outputs], of added; not read where has_scale is 0 */             \
      const Element* __restrict__ mask,   /* as dx, stride mask_stride; not read where that is 0 */            \
      int height, int width, int window_height, int window_width, int inputs, int outputs, int dx_stride,      \
      int dout_stride, int added_stride, int mask_stride, int biases, int has_scale

#define PATCHES_BACKWARD_INPUT_ARGUMENTS                                                                          \
  dx, {dout, weight, inputs, dout_stride}, {}, bias,                                                              \
      {added, mask, scale, added_stride, mask_stride, 0, biases && !has_scale, has_scale != 0, false, {}},          \
      {height, width}, {1, 1}, {window_height, window_width}, outputs, dx_stride, biases
