// CBAM's channel pooling: the mean and the maximum over the pixels of each channel of a sample.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width> struct Pooled {
  Group<width> sum, maximum;
};

template <int width> static __device__ Pooled<width> nothing() {
  Pooled<width> pooled;
#pragma unroll
  for (int k = 0; k < width; ++k) pooled.sum[k] = 0.0f, pooled.maximum[k] = -INFINITY;
  return pooled;
}

template <int width> static __device__ Pooled<width> combine(Pooled<width> a, const Pooled<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) {
    a.sum[k] += b.sum[k];
    if (b.maximum[k] > a.maximum[k]) a.maximum[k] = b.maximum[k];
  }
  return a;
}

template <int width>
static __device__ void pool_chunk(float* pooled, const Element* x, int pixels, int channels, int x_stride,
                                  int chunk_pixels) {
  const int c = first_channel<width>(), n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Pooled<width> result = nothing<width>();
  if (c < channels)
    for_each_in_chunk(
        chunk, [&](int p) { return load_stored<width>(x + (n * pixels + p) * x_stride + c); },
        [&](int, const Stored<width, Element>& stored) {
          const Group<width> group = floats(stored);
          result = combine(result, Pooled<width>{group, group});
        });
  result = reduce_rows(result, combine<width>);
  if (threadIdx.y > 0 || c >= channels) return;
  float* own = pooled + (n * gridDim.x + blockIdx.x) * 2 * channels + c;
  store(own, result.sum);
  store(own + channels, result.maximum);
}

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(pixel_pool_forward_chunks, THREADS)(
    float* pooled,   // [n, chunks, 2, channels]: sum, maximum
    const Element* x,  // [n, pixels, channels], stride x_stride
    int pixels, int channels, int x_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width)) pool_chunk<WIDE<Element>>(pooled, x, pixels, channels, x_stride, chunk_pixels);
  else pool_chunk<1>(pooled, x, pixels, channels, x_stride, chunk_pixels);
}

// A block for each sample (z), threads along y sharing the chunks.
KERNEL_WITH_THREADS(pixel_pool_forward, THREADS)(
    float* out,           // [2 n, channels], stride out_stride: means, then maxima
    const float* pooled,  // [n, chunks, 2, channels]
    int pixels, int channels, int out_stride, int chunks) {
  const int c = first_channel<1>(), n = blockIdx.z;
  Pooled<1> result = nothing<1>();
  if (c < channels) {
    for_each_chunk(
        chunks,
        [&](int chunk) {
          const float* other = pooled + (n * chunks + chunk) * 2 * channels + c;
          return Pooled<1>{load<1>(other), load<1>(other + channels)};
        },
        [&](int, const Pooled<1>& other) { result = combine(result, other); });
  }
  result = reduce_rows(result, combine<1>);
  if (threadIdx.y > 0 || c >= channels) return;
  out[n * out_stride + c] = result.sum[0] / pixels;
  out[(gridDim.z + n) * out_stride + c] = result.maximum[0];
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// Which pixel holds a channel's first maximum, chunk by chunk, then of all; then dx, which needs x no more.

constexpr int NOWHERE = 2147483647;

template <int width> struct Places {
  int values[width];
};

template <int width> static __device__ Places<width> earlier(Places<width> a, const Places<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) a.values[k] = min(a.values[k], b.values[k]);
  return a;
}

template <int width>
static __device__ void find_in_chunk(int* places, const Element* x, const float* out, int pixels, int channels,
                                     int x_stride, int out_stride, int chunk_pixels) {
  const int c = first_channel<width>(), n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Places<width> found;
#pragma unroll
  for (int k = 0; k < width; ++k) found.values[k] = NOWHERE;
  if (c < channels) {
    const Group<width> maxima = load<width>(out + (gridDim.z + n) * out_stride + c);
    for_each_in_chunk(
        chunk, [&](int p) { return load_stored<width>(x + (n * pixels + p) * x_stride + c); },
        [&](int p, const Stored<width, Element>& stored) {
          const Group<width> group = floats(stored);
#pragma unroll
          for (int k = 0; k < width; ++k)
            if (group[k] == maxima[k]) found.values[k] = min(found.values[k], p);
        });
  }
  found = reduce_rows(found, earlier<width>);
  if (threadIdx.y > 0 || c >= channels) return;
#pragma unroll
  for (int k = 0; k < width; ++k) places[(n * gridDim.x + blockIdx.x) * channels + c + k] = found.values[k];
}

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(pixel_pool_backward_chunks, THREADS)(
    int* places,       // [n, chunks, channels]: the first maximum's pixel in the sample, or NOWHERE
    const Element* x,    // [n, pixels, channels], stride x_stride
    const float* out,  // [2 n, channels], stride out_stride
    int pixels, int channels, int x_stride, int out_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width)) find_in_chunk<WIDE<Element>>(places, x, out, pixels, channels, x_stride, out_stride, chunk_pixels);
  else find_in_chunk<1>(places, x, out, pixels, channels, x_stride, out_stride, chunk_pixels);
}

// A block for each sample (z), threads along y sharing the chunks.
KERNEL_WITH_THREADS(pixel_pool_backward_place, THREADS)(
    int* place,         // [n, channels]
    const int* places,  // [n, chunks, channels]
    int channels, int chunks) {
  const int c = first_channel<1>(), n = blockIdx.z;
  Places<1> found = {{NOWHERE}};
  if (c < channels)
    for_each_chunk(
        chunks, [&](int chunk) { return Places<1>{{places[(n * chunks + chunk) * channels + c]}}; },
        [&](int, const Places<1>& other) { found = earlier(found, other); });
  found = reduce_rows(found, earlier<1>);
  if (threadIdx.y == 0 && c < channels) place[n * channels + c] = found.values[0];
}

// What stands in `added` is added, unless its stride is 0.
template <int width>
static __device__ void pool_backward(Element* dx, const float* dout, const int* place, const Element* added, int pixels,
                                     int channels, int dx_stride, int dout_stride, int added_stride) {
  const int c = first_channel<width>(), n = blockIdx.z;
  if (c >= channels) return;
  const Group<width> dmean = load<width>(dout + n * dout_stride + c);
  const Group<width> dmaximum = load<width>(dout + (gridDim.z + n) * dout_stride + c);
  const float scale = 1.0f / pixels;
  int places[width];
#pragma unroll
  for (int k = 0; k < width; ++k) places[k] = place[n * channels + c + k];
  for_each_pixel(
      pixels,
      [&](int p) {
        Stored<width, Element> other = {};
        if (added_stride) other = load_stored<width>(added + (n * pixels + p) * added_stride + c);
        return other;
      },
      [&](int p, const Stored<width, Element>& other) {
        Group<width> gradient = floats(other);
#pragma unroll
        for (int k = 0; k < width; ++k) gradient[k] += dmean[k] * scale + (p == places[k] ? dmaximum[k] : 0.0f);
        store(dx + (n * pixels + p) * dx_stride + c, gradient);
      });
}

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(pixel_pool_backward, THREADS)(
    Element* dx,          // [n, pixels, channels], stride dx_stride
    const float* dout,  // [2 n, channels], stride dout_stride
    const int* place,   // [n, channels]
    const Element* added,  // as dx, stride added_stride; not read where that is 0
    int pixels, int channels, int dx_stride, int dout_stride, int added_stride, int width) {
  if (is_wide<Element>(width))
    pool_backward<WIDE<Element>>(dx, dout, place, added, pixels, channels, dx_stride, dout_stride, added_stride);
  else pool_backward<1>(dx, dout, place, added, pixels, channels, dx_stride, dout_stride, added_stride);
}
