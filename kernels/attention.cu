// The gradients of CBAM's tensor x and of its map of pixels, each in one pass. The gradient of x * map, which is never
// stored, is dout * gate + dmean / pixels, and + dmaximum at its place. An operand whose stride is 0 is missing, and with
// it its term.

#include "pixels.cuh"

// What a thread's channels have for all pixels of a sample.
template <int width> struct Channels {
  Group<width> gate, dmean, place;
};

template <int width>
static __device__ __forceinline__ Channels<width> load_channels(const float* gate, const float* dpooled,
                                                                const float* places, int c, int pixels, int gate_stride,
                                                                int dpooled_stride, int places_stride) {
  const int n = blockIdx.z;
  Channels<width> own;
#pragma unroll
  for (int k = 0; k < width; ++k) own.gate[k] = own.dmean[k] = 0.0f, own.place[k] = -1.0f;
  if (gate_stride) own.gate = load<width>(gate + n * gate_stride + c);
  if (dpooled_stride) {
    own.dmean = load<width>(dpooled + n * dpooled_stride + c);
    own.place = load<width>(places + n * places_stride + c);
  }
  const float scale = 1.0f / pixels;
#pragma unroll
  for (int k = 0; k < width; ++k) own.dmean[k] *= scale;
  return own;
}

// The gradient of x * map at pixel p of the sample. Few pixels hold a maximum: what they get is loaded when it is needed.
template <int width>
static __device__ __forceinline__ Group<width> refined_gradient(const Channels<width>& own,
                                                                const Stored<width, Element>& dout,
                                                                const float* dpooled, int c, int dpooled_stride, int p) {
  Group<width> gradient = floats(dout);
  const float place = p;
  bool is_place = false;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    gradient[k] = gradient[k] * own.gate[k] + own.dmean[k];
    is_place |= own.place[k] == place;
  }
  if (is_place) {
    const float* dmaximum = dpooled + (gridDim.z + blockIdx.z) * dpooled_stride + c;
#pragma unroll
    for (int k = 0; k < width; ++k)
      if (own.place[k] == place) gradient[k] += dmaximum[k];
  }
  return gradient;
}

template <int width>
static __device__ __forceinline__ Stored<width, Element> load_if_there(const Element* x, int pixel, int c, int stride) {
  Stored<width, Element> stored = {};
  if (stride) stored = load_stored<width>(x + pixel * stride + c);
  return stored;
}

// ---- of the map -------------------------------------------------------------------------------------------------------
// The sum over a pixel's channels, which neighbouring lanes share.

template <int width>
static __device__ void backward_map(float* dmap, const Element* x, const Element* dout, const float* gate,
                                    const float* dpooled, const float* places, int pixels, int channels, int dmap_stride,
                                    int x_stride, int dout_stride, int gate_stride, int dpooled_stride,
                                    int places_stride) {
  const int start = blockIdx.z * pixels;
  for_each_pixel_together(pixels, [&](const int* p) {
    float sums[PIXELS_PER_THREAD] = {};
    for (int c = threadIdx.x * width; c < channels; c += blockDim.x * width) {
      StoredPair<width, Element> loaded[PIXELS_PER_THREAD];
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i)
        loaded[i] = {load_stored<width>(x + (start + p[i]) * x_stride + c),
                     load_if_there<width>(dout, start + p[i], c, dout_stride)};
      const Channels<width> own =
          load_channels<width>(gate, dpooled, places, c, pixels, gate_stride, dpooled_stride, places_stride);
#pragma unroll
      for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
        const Group<width> value = floats(loaded[i].a), gradient = refined_gradient(own, loaded[i].b, dpooled, c, dpooled_stride, p[i]);
#pragma unroll
        for (int k = 0; k < width; ++k) sums[i] += value[k] * gradient[k];
      }
    }
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const float sum = reduce_lanes(sums[i], [](float a, float b) { return a + b; });
      if (threadIdx.x == 0) dmap[(start + p[i]) * dmap_stride] = sum;
    }
  });
}

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(attention_backward_map, THREADS)(
    float* dmap,           // [n, pixels, 1], stride dmap_stride
    const Element* x,      // [n, pixels, channels], stride x_stride
    const Element* dout,   // [n, pixels, channels], stride dout_stride
    const float* gate,     // [n, channels], stride gate_stride
    const float* dpooled,  // [2 n, channels], stride dpooled_stride: dmean, dmaximum
    const float* places,   // [n, channels], stride places_stride
    int pixels, int channels, int dmap_stride, int x_stride, int dout_stride, int gate_stride, int dpooled_stride,
    int places_stride, int width) {
  if (is_wide<Element>(width))
    backward_map<WIDE<Element>>(dmap, x, dout, gate, dpooled, places, pixels, channels, dmap_stride, x_stride,
                                dout_stride, gate_stride, dpooled_stride, places_stride);
  else
    backward_map<1>(dmap, x, dout, gate, dpooled, places, pixels, channels, dmap_stride, x_stride, dout_stride,
                    gate_stride, dpooled_stride, places_stride);
}

// ---- of the tensor ----------------------------------------------------------------------------------------------------

// What a pixel has: of the thread's channels, and for all of them.
template <int width> struct Pixel {
  Stored<width, Element> dout, mask;
  float map, dmean, dmaximum, winner;
};

template <int width>
static __device__ void backward(Element* dx, const float* map, const Element* dout, const float* gate,
                                const float* dpixels, const float* places, const float* dchannels, const float* winners,
                                const Element* mask, int pixels, int channels, int stored, int dx_stride, int map_stride,
                                int dout_stride, int gate_stride, int dpixels_stride, int places_stride,
                                int dchannels_stride, int winners_stride, int mask_stride) {
  const int c = first_channel<width>(), start = blockIdx.z * pixels;
  if (c >= stored) return;
  const float share = 1.0f / channels;
  for_each_pixel_together(pixels, [&](const int* p) {
    Pixel<width> loaded[PIXELS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      const int q = start + p[i];
      loaded[i] = {load_if_there<width>(dout, q, c, dout_stride), load_if_there<width>(mask, q, c, mask_stride),
                   0.0f, 0.0f, 0.0f, -1.0f};
      if (map_stride) loaded[i].map = map[q * map_stride];
      if (dchannels_stride) {
        loaded[i].dmean = dchannels[q * dchannels_stride];
        loaded[i].dmaximum = dchannels[q * dchannels_stride + 1];
        loaded[i].winner = winners[q * winners_stride];
      }
    }
    const Channels<width> own =
        load_channels<width>(gate, dpixels, places, c, pixels, gate_stride, dpixels_stride, places_stride);
#pragma unroll
    for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
      Group<width> gradient = refined_gradient(own, loaded[i].dout, dpixels, c, dpixels_stride, p[i]);
      const Group<width> value = floats(loaded[i].mask);
      const float dmean = loaded[i].dmean * share;
      const int winner = static_cast<int>(loaded[i].winner) - c;
#pragma unroll
      for (int k = 0; k < width; ++k) {
        gradient[k] = gradient[k] * loaded[i].map + dmean;
        if (k == winner) gradient[k] += loaded[i].dmaximum;
        if (c + k >= channels || (mask_stride && !(value[k] > 0.0f))) gradient[k] = 0.0f;
      }
      store(dx + (start + p[i]) * dx_stride + c, gradient);
    }
  });
}

// Blocks for the pixels (x) of each sample (z).
KERNEL_WITH_THREADS(attention_backward, THREADS)(
    Element* dx,             // [n, pixels, stored], stride dx_stride; zero from channel `channels` on
    const float* map,        // [n, pixels, 1], stride map_stride
    const Element* dout,     // as dx, stride dout_stride
    const float* gate,       // [n, stored], stride gate_stride
    const float* dpixels,    // [2 n, stored], stride dpixels_stride: of means and maxima over pixels
    const float* places,     // [n, stored], stride places_stride
    const float* dchannels,  // [n, pixels, 2], stride dchannels_stride: of mean and maximum over channels
    const float* winners,    // [n, pixels, 1], stride winners_stride
    const Element* mask,     // as dx, stride mask_stride: dx is zero where it is not above 0
    int pixels, int channels,  // without padding
    int stored, int dx_stride, int map_stride, int dout_stride, int gate_stride, int dpixels_stride, int places_stride,
    int dchannels_stride, int winners_stride, int mask_stride, int width) {
  if (is_wide<Element>(width))
    backward<WIDE<Element>>(dx, map, dout, gate, dpixels, places, dchannels, winners, mask, pixels, channels, stored,
                            dx_stride, map_stride, dout_stride, gate_stride, dpixels_stride, places_stride,
                            dchannels_stride, winners_stride, mask_stride);
  else
    backward<1>(dx, map, dout, gate, dpixels, places, dchannels, winners, mask, pixels, channels, stored, dx_stride,
                map_stride, dout_stride, gate_stride, dpixels_stride, places_stride, dchannels_stride, winners_stride,
                mask_stride);
}
