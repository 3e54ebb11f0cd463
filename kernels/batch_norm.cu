// Batch normalisation of each channel over batch and pixels: one pass over the tensor for its statistics, one to
// normalise it; backward likewise.

#include "batch_norm.cuh"

// ---- forward: statistics ----------------------------------------------------------------------------------------------

// Sums differences from the chunk's first pixel, and their squares: wherever the mean lies, what cancels is then at most
// as large as what one of the chunk's own values adds to the squares.
template <int width>
static __device__ void chunk_moments(float* partial, const Element* x, int pixels, int channels, int x_stride,
                                     int chunk_pixels) {
  const int c = first_channel<width>();
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Sums<width> sums = {};
  Group<width> pivot = {};
  if (c < channels) {
    pivot = load<width>(x + chunk.start * x_stride + c);
    for_each_in_chunk(
        chunk, [&](int p) { return load_stored<width>(x + p * x_stride + c); },
        [&](int, const Stored<width, Element>& stored) {
          const Group<width> group = floats(stored);
#pragma unroll
          for (int k = 0; k < width; ++k) {
            const float difference = group[k] - pivot[k];
            sums.first[k] += difference;
            sums.second[k] += difference * difference;
          }
        });
  }
  sums = reduce_rows(sums, plus<width>);
  if (threadIdx.y > 0 || c >= channels) return;
  const float share = 1.0f / (chunk.end - chunk.start);
#pragma unroll
  for (int k = 0; k < width; ++k) {
    sums.second[k] -= sums.first[k] * sums.first[k] * share;
    pivot[k] += sums.first[k] * share;
  }
  float* own = partial + blockIdx.x * 2 * channels + c;
  store(own, pivot);
  store(own + channels, sums.second);
}

// A block for each chunk (x).
KERNEL_WITH_THREADS(batch_norm_forward_chunks, THREADS)(
    float* partial,  // [chunks, 2, channels]: mean, squared deviations
    const Element* x,  // [pixels, channels], stride x_stride
    int pixels, int channels, int x_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width)) chunk_moments<WIDE<Element>>(partial, x, pixels, channels, x_stride, chunk_pixels);
  else chunk_moments<1>(partial, x, pixels, channels, x_stride, chunk_pixels);
}

// How many values a chunk has, their mean, and their summed squared deviations from it.
struct Moments {
  float count, mean, squares;
};

// Threads along y share the chunks, whose means are taken from the first one's, as a chunk's values are from its first.
KERNEL_WITH_THREADS(batch_norm_forward_statistics, THREADS)(
    float* mean,              // [channels]
    float* inverse,           // [channels]: 1 / sqrt(variance + epsilon)
    float* running_mean,      // [channels], updated
    float* running_variance,  // [channels], updated
    float* scale,             // [channels]: gamma * inverse; not written where has_scale is 0
    float* shift,             // [channels]: beta - mean * scale; likewise
    const float* gamma,       // [channels]; not read where has_scale is 0
    const float* beta,        // [channels]; likewise
    const float* partial,     // [chunks, 2, channels]
    const float* momentum,    // [1]
    int pixels, int channels, int chunk_pixels, int chunks, int has_scale,
    float epsilon) {
  const int c = first_channel<1>();
  const float pivot = c < channels ? partial[c] : 0.0f;
  // What is read at the end is under way from the beginning: there each load would wait for the store before it.
  const bool writes = threadIdx.y == 0 && c < channels;
  const float factor = writes && has_scale ? gamma[c] : 0.0f, addend = writes && has_scale ? beta[c] : 0.0f;
  const float weight = writes ? *momentum : 0.0f;
  const float old_mean = writes ? running_mean[c] : 0.0f, old_variance = writes ? running_variance[c] : 0.0f;
  Sums<1> sums = {};
  if (c < channels) {
    for_each_chunk(
        chunks,
        [&](int index) {
          const Chunk chunk = chunk_of(index, pixels, chunk_pixels);
          const float* other = partial + index * 2 * channels + c;
          return Moments{static_cast<float>(chunk.end - chunk.start), other[0], other[channels]};
        },
        [&](int, const Moments& chunk) {
          const float difference = chunk.mean - pivot;
          sums.first[0] += chunk.count * difference;
          sums.second[0] += chunk.squares + chunk.count * difference * difference;
        });
  }
  sums = reduce_rows(sums, plus<1>);
  if (!writes) return;
  const float share = sums.first[0] / pixels, average = pivot + share;
  const float rest = sums.second[0] - sums.first[0] * share, squares = rest < 0.0f ? 0.0f : rest;  // NaN stays
  const float reciprocal = 1.0f / sqrtf(squares / pixels + epsilon);
  mean[c] = average;
  inverse[c] = reciprocal;
  if (has_scale) {
    scale[c] = factor * reciprocal;
    shift[c] = addend - average * factor * reciprocal;
  }
  running_mean[c] = old_mean + weight * (average - old_mean);
  running_variance[c] = old_variance + weight * (squares / max(pixels - 1, 1) - old_variance);
}

// ---- forward: normalise -----------------------------------------------------------------------------------------------

template <int width, class Statistics>
static __device__ void normalise(Element* out, const Element* x, const Statistics& statistics, int pixels, int channels,
                                 int out_stride, int x_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  const Normalisation<width> norm = statistics.template at<width>(c);
  for_each_pixel(
      pixels, [&](int p) { return load_stored<width>(x + p * x_stride + c); },
      [&](int p, const Stored<width, Element>& stored) { store(out + p * out_stride + c, norm(floats(stored))); });
}

KERNEL_WITH_THREADS(batch_norm_forward, THREADS)(
    Element* out,            // [pixels, channels], stride out_stride
    const Element* x,        // [pixels, channels], stride x_stride
    const float* gamma,    // [channels]
    const float* beta,     // [channels]
    const float* mean,     // [channels]
    const float* inverse,  // [channels]
    int pixels, int channels, int out_stride, int x_stride, int width) {
  const ByBatch statistics = {gamma, beta, mean, inverse};
  if (is_wide<Element>(width)) normalise<WIDE<Element>>(out, x, statistics, pixels, channels, out_stride, x_stride);
  else normalise<1>(out, x, statistics, pixels, channels, out_stride, x_stride);
}

// ---- inference --------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(batch_norm_inference, THREADS)(
    Element* out,             // [pixels, channels], stride out_stride; may be x
    const Element* x,         // [pixels, channels], stride x_stride
    const float* gamma,     // [channels]
    const float* beta,      // [channels]
    const float* mean,      // [channels]: the running ones
    const float* variance,  // [channels]
    int pixels, int channels, int out_stride, int x_stride, int width,
    float epsilon) {
  const ByRunning statistics = {gamma, beta, mean, variance, epsilon};
  if (is_wide<Element>(width)) normalise<WIDE<Element>>(out, x, statistics, pixels, channels, out_stride, x_stride);
  else normalise<1>(out, x, statistics, pixels, channels, out_stride, x_stride);
}

// Grid: channels.
KERNEL_WITH_THREADS(batch_norm_scale_inference, THREADS)(
    float* scale,           // [channels]
    float* shift,           // [channels]
    const float* gamma,     // [channels]
    const float* beta,      // [channels]
    const float* mean,      // [channels]: the running ones
    const float* variance,  // [channels]
    int channels,
    float epsilon) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= channels) return;
  const float factor = gamma[c] / sqrtf(variance[c] + epsilon);
  scale[c] = factor;
  shift[c] = beta[c] - mean[c] * factor;
}

// ---- backward: sums ---------------------------------------------------------------------------------------------------

// Of dout, and of dout (x - mean).
template <int width>
static __device__ void chunk_sums(float* partial, const Element* dout, const Element* x, const float* mean, int pixels,
                                  int channels, int dout_stride, int x_stride, int chunk_pixels) {
  const int c = first_channel<width>();
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Sums<width> sums = {};
  if (c < channels) {
    const Group<width> center = load<width>(mean + c);
    for_each_in_chunk(
        chunk,
        [&](int p) {
          return StoredPair<width, Element>{load_stored<width>(dout + p * dout_stride + c),
                                            load_stored<width>(x + p * x_stride + c)};
        },
        [&](int, const StoredPair<width, Element>& pair) {
          const Group<width> given = floats(pair.a), value = floats(pair.b);
#pragma unroll
          for (int k = 0; k < width; ++k) {
            sums.first[k] += given[k];
            sums.second[k] += given[k] * (value[k] - center[k]);
          }
        });
  }
  store_sums(partial, sums, c, channels);
}

// A block for each chunk (x).
KERNEL_WITH_THREADS(batch_norm_backward_chunks, THREADS)(
    float* partial,     // [chunks, 2, channels]: dbeta, dgamma times the deviation
    const Element* dout,  // [pixels, channels], stride dout_stride
    const Element* x,     // [pixels, channels], stride x_stride
    const float* mean,  // [channels]
    int pixels, int channels, int dout_stride, int x_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width)) chunk_sums<WIDE<Element>>(partial, dout, x, mean, pixels, channels, dout_stride, x_stride, chunk_pixels);
  else chunk_sums<1>(partial, dout, x, mean, pixels, channels, dout_stride, x_stride, chunk_pixels);
}

// Threads along y share the chunks. To the gradients may be added what those of scale and shift make of them.
KERNEL_WITH_THREADS(batch_norm_backward_parameters, THREADS)(
    float* dgamma,         // [channels]
    float* dbeta,          // [channels]
    const float* partial,  // [chunks, 2, channels]
    const float* mean,     // [channels]; not read where has_scale is 0
    const float* inverse,  // [channels]
    const float* dscale,   // [channels]; not read where has_scale is 0
    const float* dshift,   // [channels]; likewise
    int channels, int chunks, int has_scale) {
  const int c = first_channel<1>();
  const bool writes = threadIdx.y == 0 && c < channels;  // and what it reads then is under way from the beginning
  const float reciprocal = writes ? inverse[c] : 0.0f, center = writes && has_scale ? mean[c] : 0.0f;
  const float of_scale = writes && has_scale ? dscale[c] : 0.0f, of_shift = writes && has_scale ? dshift[c] : 0.0f;
  Sums<1> sums = {};
  if (c < channels) {
    for_each_chunk(
        chunks,
        [&](int chunk) {
          const float* other = partial + chunk * 2 * channels + c;
          return Sums<1>{load<1>(other), load<1>(other + channels)};
        },
        [&](int, const Sums<1>& other) { sums = plus(sums, other); });
  }
  sums = reduce_rows(sums, plus<1>);
  if (!writes) return;
  if (has_scale) {
    sums.first[0] += of_shift;
    sums.second[0] += of_scale - center * of_shift;
  }
  dbeta[c] = sums.first[0];
  dgamma[c] = sums.second[0] * reciprocal;
}

// ---- backward: dx -----------------------------------------------------------------------------------------------------
// In the channels from masked_start up to masked_end it is zero where x is.
template <int width>
static __device__ void differentiate(Element* dx, const Element* dout, const Element* x, const float* gamma,
                                     const float* dgamma, const float* dbeta, const float* mean, const float* inverse,
                                     int pixels, int channels, int dx_stride, int dout_stride, int x_stride,
                                     int masked_start, int masked_end) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  const Slopes<width> dx_of = slopes<width>(gamma, dgamma, dbeta, mean, inverse, pixels, c);
  const bool masked = masked_start <= c && c < masked_end;  // slices start at whole groups
  for_each_pixel(
      pixels,
      [&](int p) {
        return StoredPair<width, Element>{load_stored<width>(dout + p * dout_stride + c),
                                          load_stored<width>(x + p * x_stride + c)};
      },
      [&](int p, const StoredPair<width, Element>& pair) {
        Group<width> gradient = floats(pair.a);
        const Group<width> value = floats(pair.b);
#pragma unroll
        for (int k = 0; k < width; ++k) {
          gradient[k] = dx_of(gradient[k], value[k], k);
          if (masked && !(value[k] > 0.0f)) gradient[k] = 0.0f;
        }
        store(dx + p * dx_stride + c, gradient);
      });
}

KERNEL_WITH_THREADS(batch_norm_backward, THREADS)(
    Element* dx,             // [pixels, channels], stride dx_stride
    const Element* dout,     // [pixels, channels], stride dout_stride
    const Element* x,        // [pixels, channels], stride x_stride
    const float* gamma,    // [channels]
    const float* dgamma,   // [channels]
    const float* dbeta,    // [channels]
    const float* mean,     // [channels]
    const float* inverse,  // [channels]
    int pixels, int channels, int dx_stride, int dout_stride, int x_stride, int width,
    int masked_start, int masked_end) {
  if (is_wide<Element>(width))
    differentiate<WIDE<Element>>(dx, dout, x, gamma, dgamma, dbeta, mean, inverse, pixels, channels, dx_stride, dout_stride,
                                 x_stride, masked_start, masked_end);
  else
    differentiate<1>(dx, dout, x, gamma, dgamma, dbeta, mean, inverse, pixels, channels, dx_stride, dout_stride, x_stride,
                     masked_start, masked_end);
}

// ---- backward: of scale and shift -------------------------------------------------------------------------------------

// By way of the statistics, dx is x * slope + offset, beside what scale and shift alone make of it. Grid: channels.
KERNEL_WITH_THREADS(batch_norm_scale_backward, THREADS)(
    float* dgamma,         // [channels]
    float* dbeta,          // [channels]
    float* slope,          // [channels]
    float* offset,         // [channels]
    const float* dscale,   // [channels]
    const float* dshift,   // [channels]
    const float* gamma,    // [channels]
    const float* mean,     // [channels]
    const float* inverse,  // [channels]
    int pixels, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= channels) return;
  const float center = mean[c], reciprocal = inverse[c], shifted = dshift[c];
  const float scaled = (dscale[c] - center * shifted) * reciprocal;  // of gamma
  const float factor = -gamma[c] * reciprocal / pixels, slanted = factor * reciprocal * scaled;
  dgamma[c] = scaled;
  dbeta[c] = shifted;
  slope[c] = slanted;
  offset[c] = factor * shifted - slanted * center;
}
