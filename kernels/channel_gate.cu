// CBAM's tensor times its map of pixels and its gate of channels, which is sigmoid(logits[n] + logits[batch + n]).

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width> static __device__ Group<width> load_gate(const float* logits, int c, int used, int stride) {
  const int n = blockIdx.z;
  Group<width> gate = load<width>(logits + n * stride + c);
  const Group<width> other = load<width>(logits + (gridDim.z + n) * stride + c);
#pragma unroll
  for (int k = 0; k < width; ++k) gate[k] = c + k < used ? 1.0f / (1.0f + expf(-(gate[k] + other[k]))) : 0.0f;
  return gate;
}

template <int width>
static __device__ void gate_pixels(Element* out, float* gate, const Element* x, const float* map, const float* logits,
                                   int pixels, int channels, int used, int out_stride, int gate_stride, int x_stride,
                                   int map_stride, int logits_stride) {
  const int c = first_channel<width>(), start = blockIdx.z * pixels;
  if (c >= channels) return;
  for_each_pixel_together(pixels, [&](const int* p) {
    Stored<width, Element> loaded[PIXELS_PER_THREAD];
    float factors[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      loaded[i] = load_stored<width>(x + (start + p[i]) * x_stride + c);
      factors[i] = map[(start + p[i]) * map_stride];
    }
    const Group<width> own = load_gate<width>(logits, c, used, logits_stride);
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      Group<width> group = floats(loaded[i]);
#pragma unroll
      for (int k = 0; k < width; ++k) group[k] *= factors[i] * own[k];
      store(out + (start + p[i]) * out_stride + c, group);
    }
    if (blockIdx.x == 0 && threadIdx.y == 0) store(gate + blockIdx.z * gate_stride + c, own);
  });
}

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(channel_gate_forward, THREADS)(
    Element* out,         // [n, pixels, channels], stride out_stride
    float* gate,          // [n, channels], stride gate_stride; zero from channel `used` on
    const Element* x,     // [n, pixels, channels], stride x_stride
    const float* map,     // [n, pixels, 1], stride map_stride
    const float* logits,  // [2 n, channels], stride logits_stride: of the means, then of the maxima
    int pixels, int channels, int used, int out_stride, int gate_stride, int x_stride, int map_stride, int logits_stride,
    int width) {
  if (is_wide<Element>(width))
    gate_pixels<WIDE<Element>>(out, gate, x, map, logits, pixels, channels, used, out_stride, gate_stride, x_stride,
                               map_stride, logits_stride);
  else
    gate_pixels<1>(out, gate, x, map, logits, pixels, channels, used, out_stride, gate_stride, x_stride, map_stride,
                   logits_stride);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// The gate's gradient is the sum of dout * x * map over a sample's pixels: chunk by chunk, then of all chunks.

template <int width> static __device__ Group<width> plus(Group<width> a, const Group<width>& b) {
#pragma unroll
  for (int k = 0; k < width; ++k) a[k] += b[k];
  return a;
}

template <int width> struct PairAndFactor {
  StoredPair<width, Element> stored;
  float factor;
};

template <int width>
static __device__ void sum_chunk(float* sums, const Element* dout, const Element* x, const float* map, int pixels,
                                 int channels, int dout_stride, int x_stride, int map_stride, int chunk_pixels) {
  const int c = first_channel<width>(), n = blockIdx.z;
  const Chunk chunk = chunk_of(blockIdx.x, pixels, chunk_pixels);
  Group<width> sum = {};
  if (c < channels) {
    for_each_in_chunk(
        chunk,
        [&](int p) {
          const int q = n * pixels + p;
          return PairAndFactor<width>{
              {load_stored<width>(dout + q * dout_stride + c), load_stored<width>(x + q * x_stride + c)},
              map[q * map_stride]};
        },
        [&](int, const PairAndFactor<width>& pixel) {
          const Group<width> given = floats(pixel.stored.a), value = floats(pixel.stored.b);
#pragma unroll
          for (int k = 0; k < width; ++k) sum[k] += given[k] * (value[k] * pixel.factor);
        });
  }
  sum = reduce_rows(sum, plus<width>);
  if (threadIdx.y == 0 && c < channels) store(sums + (n * gridDim.x + blockIdx.x) * channels + c, sum);
}

// A block for each chunk (x) and sample (z).
KERNEL_WITH_THREADS(channel_gate_backward_chunks, THREADS)(
    float* sums,          // [n, chunks, channels]
    const Element* dout,  // [n, pixels, channels], stride dout_stride
    const Element* x,     // [n, pixels, channels], stride x_stride
    const float* map,     // [n, pixels, 1], stride map_stride
    int pixels, int channels, int dout_stride, int x_stride, int map_stride, int chunk_pixels, int width) {
  if (is_wide<Element>(width))
    sum_chunk<WIDE<Element>>(sums, dout, x, map, pixels, channels, dout_stride, x_stride, map_stride, chunk_pixels);
  else sum_chunk<1>(sums, dout, x, map, pixels, channels, dout_stride, x_stride, map_stride, chunk_pixels);
}

// A block for each sample (z), threads along y sharing the chunks.
KERNEL_WITH_THREADS(channel_gate_backward, THREADS)(
    float* dlogits,     // [2 n, channels], stride dlogits_stride
    const float* sums,  // [n, chunks, channels]
    const float* gate,  // [n, channels], stride gate_stride
    int channels, int dlogits_stride, int gate_stride, int chunks) {
  const int c = first_channel<1>(), n = blockIdx.z;
  const bool writes = threadIdx.y == 0 && c < channels;
  const float factor = writes ? gate[n * gate_stride + c] : 0.0f;
  Group<1> sum = {};
  if (c < channels)
    for_each_chunk(
        chunks, [&](int chunk) { return sums[(n * chunks + chunk) * channels + c]; },
        [&](int, float other) { sum[0] += other; });
  sum = reduce_rows(sum, plus<1>);
  if (!writes) return;
  const float gradient = sum[0] * factor * (1.0f - factor);
  dlogits[n * dlogits_stride + c] = gradient;
  dlogits[(gridDim.z + n) * dlogits_stride + c] = gradient;
}
