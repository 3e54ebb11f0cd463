// A tensor times its attention map: one factor a pixel (spatial attention) or one a channel of a sample (channel
// attention).

#include "pixels.cuh"

// ---- forward, a factor a pixel ----------------------------------------------------------------------------------------

template <int width> struct PixelAndFactor {
  Stored<width, Element> stored;
  float factor;
};

template <int width>
static __device__ void multiply_pixels(Element* out, const Element* x, const float* map, int pixels, int channels,
                                       int out_stride, int x_stride, int map_stride) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(
      pixels,
      [&](int p) {
        return PixelAndFactor<width>{load_stored<width>(x + p * x_stride + c), map[p * map_stride]};
      },
      [&](int p, const PixelAndFactor<width>& pixel) {
        Group<width> group = floats(pixel.stored);
#pragma unroll
        for (int k = 0; k < width; ++k) group[k] *= pixel.factor;
        store(out + p * out_stride + c, group);
      });
}

KERNEL_WITH_THREADS(product_forward_pixel, THREADS)(
    Element* out,        // [pixels, channels], stride out_stride
    const Element* x,    // [pixels, channels], stride x_stride
    const float* map,  // [pixels, 1], stride map_stride
    int pixels, int channels, int out_stride, int x_stride, int map_stride, int width) {
  if (is_wide<Element>(width)) multiply_pixels<WIDE<Element>>(out, x, map, pixels, channels, out_stride, x_stride, map_stride);
  else multiply_pixels<1>(out, x, map, pixels, channels, out_stride, x_stride, map_stride);
}

// ---- forward, a factor a channel --------------------------------------------------------------------------------------

template <int width>
static __device__ void multiply_channels(Element* out, const Element* x, const float* map, int pixels, int channels,
                                         int out_stride, int x_stride, int map_stride) {
  const int c = first_channel<width>(), n = blockIdx.z;
  if (c >= channels) return;
  const Group<width> factors = load<width>(map + n * map_stride + c);
  for_each_pixel(
      pixels, [&](int p) { return load_stored<width>(x + (n * pixels + p) * x_stride + c); },
      [&](int p, const Stored<width, Element>& stored) {
        Group<width> group = floats(stored);
#pragma unroll
        for (int k = 0; k < width; ++k) group[k] *= factors[k];
        store(out + (n * pixels + p) * out_stride + c, group);
      });
}

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(product_forward_channel, THREADS)(
    Element* out,        // [n, pixels, channels], stride out_stride
    const Element* x,    // [n, pixels, channels], stride x_stride
    const float* map,  // [n, channels], stride map_stride
    int pixels, int channels, int out_stride, int x_stride, int map_stride, int width) {
  if (is_wide<Element>(width)) multiply_channels<WIDE<Element>>(out, x, map, pixels, channels, out_stride, x_stride, map_stride);
  else multiply_channels<1>(out, x, map, pixels, channels, out_stride, x_stride, map_stride);
}

// ---- backward, a factor a pixel ---------------------------------------------------------------------------------------
// dmap is the sum of dout * x over a pixel's channels, which neighbouring lanes share.

template <int width>
static __device__ void dot_pixels(float* dmap, const Element* dout, const Element* x, int pixels, int channels,
                                  int dmap_stride, int dout_stride, int x_stride) {
  for_each_pixel_together(pixels, [&](const int* p) {
    float sums[PIXELS_PER_THREAD] = {};
    for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
      StoredPair<width, Element> loaded[PIXELS_PER_THREAD];
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i)
        loaded[i] = {load_stored<width>(dout + p[i] * dout_stride + c), load_stored<width>(x + p[i] * x_stride + c)};
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
        const Group<width> given = floats(loaded[i].a), value = floats(loaded[i].b);
#pragma unroll
        for (int k = 0; k < width; ++k) sums[i] += given[k] * value[k];
      }
    }
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const float sum = reduce_lanes(sums[i], [](float a, float b) { return a + b; });
      if (threadIdx.x == 0) dmap[p[i] * dmap_stride] = sum;
    }
  });
}

KERNEL_WITH_THREADS(product_backward_map_pixel, THREADS)(
    float* dmap,        // [pixels, 1], stride dmap_stride
    const Element* dout,  // [pixels, channels], stride dout_stride
    const Element* x,     // [pixels, channels], stride x_stride
    int pixels, int channels, int dmap_stride, int dout_stride, int x_stride, int width) {
  if (is_wide<Element>(width)) dot_pixels<WIDE<Element>>(dmap, dout, x, pixels, channels, dmap_stride, dout_stride, x_stride);
  else dot_pixels<1>(dmap, dout, x, pixels, channels, dmap_stride, dout_stride, x_stride);
}

// ---- backward, a factor a channel -------------------------------------------------------------------------------------
// dmap is the sum of dout * x over a sample's pixels: chunk by chunk, then of all chunks.

template <int width> static __device__ Group<width> plus(Group<width> a, const Group<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) a[k] += b[k];
  return a;
}

template <int width>
static __device__ void dot_chunk(float* sums, const Element* dout, const Element* x, int pixels, int channels,
                                 int dout_stride, int x_stride, int chunk_pixels) {
  const int c = first_channel<width>(), n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Group<width> sum = {};
  if (c < channels) {
    for_each_in_chunk(
        chunk,
        [&](int p) {
          const int q = n * pixels + p;
          return StoredPair<width, Element>{load_stored<width>(dout + q * dout_stride + c),
                                            load_stored<width>(x + q * x_stride + c)};
        },
        [&](int, const StoredPair<width, Element>& pair) {
          const Group<width> given = floats(pair.a), value = floats(pair.b);
#pragma unroll
          for (int k = 0; k < width; ++k) sum[k] += given[k] * value[k];
        });
  }
  sum = reduce_rows(sum, plus<width>);
  if (threadIdx.y == 0 && c < channels) store(sums + (n * gridDim.x + blockIdx.x) * channels + c, sum);
}

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(product_backward_map_channel_chunks, THREADS)(
    float* sums,        // [n, chunks, channels]
    const Element* dout,  // [n, pixels, channels], stride dout_stride
    const Element* x,     // [n, pixels, channels], stride x_stride
    int pixels, int channels, int dout_stride, int x_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width)) dot_chunk<WIDE<Element>>(sums, dout, x, pixels, channels, dout_stride, x_stride, chunk_pixels);
  else dot_chunk<1>(sums, dout, x, pixels, channels, dout_stride, x_stride, chunk_pixels);
}

// A block for each sample (z), threads along y sharing the chunks.
KERNEL_WITH_THREADS(product_backward_map_channel, THREADS)(
    float* dmap,        // [n, channels], stride dmap_stride
    const float* sums,  // [n, chunks, channels]
    int channels, int dmap_stride, int chunks) {
  const int c = first_channel<1>(), n = blockIdx.z;
  Group<1> sum = {};
  if (c < channels)
    for_each_chunk(
        chunks, [&](int chunk) { return sums[(n * chunks + chunk) * channels + c]; },
        [&](int, float other) { sum[0] += other; });
  sum = reduce_rows(sum, plus<1>);
  if (threadIdx.y == 0 && c < channels) dmap[n * dmap_stride + c] = sum[0];
}
