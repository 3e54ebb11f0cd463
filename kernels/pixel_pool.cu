// CBAM's channel pooling: the mean and the maximum over the pixels of each channel of a sample, of x * map.

#include "pixels.cuh"

// A pixel's number as a float: exact, for a sample has at most 2^24 of them.
template <int width> struct Pooled {
  Group<width> sum, maximum, place;
};

template <int width> static __device__ Pooled<width> nothing() {
  Pooled<width> pooled;
#pragma unroll
  for (int k = 0; k < width; ++k) pooled.sum[k] = pooled.place[k] = 0.0f, pooled.maximum[k] = -INFINITY;
  return pooled;
}

// Of equal maxima the first pixel's wins.
template <int width> static __device__ Pooled<width> combine(Pooled<width> a, const Pooled<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) {
    a.sum[k] += b.sum[k];
    if (b.maximum[k] > a.maximum[k] || (b.maximum[k] == a.maximum[k] && b.place[k] < a.place[k]))
      a.maximum[k] = b.maximum[k], a.place[k] = b.place[k];
  }
  return a;
}

template <int width> struct PixelAndFactor {
  Stored<width, Element> stored;
  float factor;
};

template <int width>
static __device__ void pool_chunk(float* pooled, const Element* x, const float* map, int pixels, int channels,
                                  int x_stride, int map_stride, int chunk_pixels) {
  const int c = first_channel<width>(), n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Pooled<width> result = nothing<width>();
  if (c < channels)
    for_each_in_chunk(
        chunk,
        [&](int p) {
          const int q = n * pixels + p;
          return PixelAndFactor<width>{load_stored<width>(x + q * x_stride + c), map[q * map_stride]};
        },
        [&](int p, const PixelAndFactor<width>& pixel) {
          const Group<width> group = floats(pixel.stored);
          const float place = p;
#pragma unroll
          for (int k = 0; k < width; ++k) {
            const float refined = group[k] * pixel.factor;
            result.sum[k] += refined;
            if (refined > result.maximum[k]) result.maximum[k] = refined, result.place[k] = place;
          }
        });
  result = reduce_rows(result, combine<width>);
  if (threadIdx.y > 0 || c >= channels) return;
  float* own = pooled + (n * gridDim.x + blockIdx.x) * 3 * channels + c;
  store(own, result.sum);
  store(own + channels, result.maximum);
  store(own + 2 * channels, result.place);
}

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(pixel_pool_forward_chunks, THREADS)(
    float* pooled,     // [n, chunks, 3, channels]: sum, maximum, and its first pixel in the sample
    const Element* x,  // [n, pixels, channels], stride x_stride
    const float* map,  // [n, pixels, 1], stride map_stride
    int pixels, int channels, int x_stride, int map_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width))
    pool_chunk<WIDE<Element>>(pooled, x, map, pixels, channels, x_stride, map_stride, chunk_pixels);
  else pool_chunk<1>(pooled, x, map, pixels, channels, x_stride, map_stride, chunk_pixels);
}

// A block for each sample (z), threads along y sharing the chunks.
KERNEL_WITH_THREADS(pixel_pool_forward, THREADS)(
    float* out,           // [2 n, channels], stride out_stride: means, then maxima
    float* places,        // [n, channels], stride places_stride
    const float* pooled,  // [n, chunks, 3, channels]
    int pixels, int channels, int out_stride, int places_stride, int chunks) {
  const int c = first_channel<1>(), n = blockIdx.z;
  Pooled<1> result = nothing<1>();
  if (c < channels) {
    for_each_chunk(
        chunks,
        [&](int chunk) {
          const float* other = pooled + (n * chunks + chunk) * 3 * channels + c;
          return Pooled<1>{load<1>(other), load<1>(other + channels), load<1>(other + 2 * channels)};
        },
        [&](int, const Pooled<1>& other) { result = combine(result, other); });
  }
  result = reduce_rows(result, combine<1>);
  if (threadIdx.y > 0 || c >= channels) return;
  out[n * out_stride + c] = result.sum[0] / pixels;
  out[(gridDim.z + n) * out_stride + c] = result.maximum[0];
  places[n * places_stride + c] = result.place[0];
}
