// Batch normalisation and the maximum of each window of 2x2 pixels of its result, or that alone: an encoder level's end in one
// pass, its gradient in two. A thread takes a window's pixels at once. Depth counts as images; height and width are even.

#include "batch_norm.cuh"

// The pixels of a window, counted row by row, of images of w columns.
struct Corner {
  int first, width;

  __device__ __forceinline__ Corner(int p, int w) : width(w) {
    const unsigned row = static_cast<unsigned>(p) / (w / 2);  // of all images
    first = static_cast<int>(2 * row) * w + 2 * (p - static_cast<int>(row) * (w / 2));
  }

  __device__ __forceinline__ int pixel(int i) const { return first + i / 2 * width + i % 2; }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

// Without `out` its stride is 0.
template <int width, class Statistics>
static __device__ void normalise(Element* out, Element* pooled, const Element* x, const Statistics& statistics,
                                 int windows, int channels, int out_stride, int pooled_stride, int x_stride, int w) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  const Normalisation<width> norm = statistics.template at<width>(c);
  for_each_pixel(windows, [&](int p) {
    const Corner corner(p, w);
    Stored<width, Element> loaded[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) loaded[i] = load_stored<width>(x + corner.pixel(i) * x_stride + c);
    Group<width> maximum;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Group<width> group = norm(floats(loaded[i]));
      if (out_stride) store(out + corner.pixel(i) * out_stride + c, group);
#pragma unroll
      for (int k = 0; k < width; ++k)
        if (i == 0 || group[k] > maximum[k]) maximum[k] = group[k];
    }
    store(pooled + p * pooled_stride + c, maximum);
  });
}

KERNEL_WITH_THREADS(batch_norm_forward_pooled, THREADS)(
    Element* out,          // [images, h, w, channels], stride out_stride; not written where that is 0
    Element* pooled,       // [images, h / 2, w / 2, channels], stride pooled_stride: `windows` in all
    const Element* x,      // [images, h, w, channels], stride x_stride
    const float* gamma,    // [channels]
    const float* beta,     // [channels]
    const float* mean,     // [channels]
    const float* inverse,  // [channels]
    int windows, int channels, int out_stride, int pooled_stride, int x_stride, int width, int w) {
  const ByBatch statistics = {gamma, beta, mean, inverse};
  if (is_wide<Element>(width))
    normalise<WIDE<Element>>(out, pooled, x, statistics, windows, channels, out_stride, pooled_stride, x_stride, w);
  else normalise<1>(out, pooled, x, statistics, windows, channels, out_stride, pooled_stride, x_stride, w);
}

KERNEL_WITH_THREADS(batch_norm_inference_pooled, THREADS)(
    Element* out,           // [images, h, w, channels], stride out_stride
    Element* pooled,        // [images, h / 2, w / 2, channels], stride pooled_stride: `windows` in all
    const Element* x,       // [images, h, w, channels], stride x_stride
    const float* gamma,     // [channels]
    const float* beta,      // [channels]
    const float* mean,      // [channels]: the running ones
    const float* variance,  // [channels]
    int windows, int channels, int out_stride, int pooled_stride, int x_stride, int width, int w,
    float epsilon) {
  const ByRunning statistics = {gamma, beta, mean, variance, epsilon};
  if (is_wide<Element>(width))
    normalise<WIDE<Element>>(out, pooled, x, statistics, windows, channels, out_stride, pooled_stride, x_stride, w);
  else normalise<1>(out, pooled, x, statistics, windows, channels, out_stride, pooled_stride, x_stride, w);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// A pixel's gradient is dout, if there is one, and that of the window's maximum, if the pixel is its first. Which is, x says:
// times gamma it is in the order of the results. Where dout is `added`, it is no gradient of the results, but a part of dx.

template <int width> struct LoadedWindow {
  Stored<width, Element> x[4], dout[4], dpooled;
};

// A window's pixels, the gradient of its maximum, and which pixel that is the first of.
template <int width> struct Window {
  Group<width> x[4], dpooled;
  int first[width];

  __device__ __forceinline__ float of_maximum(int i, int k) const { return first[k] == i ? dpooled[k] : 0.0f; }

  // Of all pixels, with what dout gives them.
  __device__ __forceinline__ void gradients(Group<width> (&all)[4], const LoadedWindow<width>& loaded) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      all[i] = floats(loaded.dout[i]);
#pragma unroll
      for (int k = 0; k < width; ++k) all[i][k] += of_maximum(i, k);
    }
  }
};

// The tensors that a gradient reads. Without dout its stride is 0.
struct Given {
  const Element *dpooled, *dout, *x;
  int dpooled_stride, dout_stride, x_stride, w;

  template <int width> __device__ __forceinline__ LoadedWindow<width> load(int p, int c) const {
    const Corner corner(p, w);
    LoadedWindow<width> loaded = {};
    loaded.dpooled = load_stored<width>(dpooled + p * dpooled_stride + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      loaded.x[i] = load_stored<width>(x + corner.pixel(i) * x_stride + c);
      if (dout_stride) loaded.dout[i] = load_stored<width>(dout + corner.pixel(i) * dout_stride + c);
    }
    return loaded;
  }
};

template <int width>
static __device__ __forceinline__ Window<width> window_of(const LoadedWindow<width>& loaded, const Group<width>& gamma) {
  Window<width> window;
  window.dpooled = floats(loaded.dpooled);
  Group<width> maximum;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    window.x[i] = floats(loaded.x[i]);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const float value = gamma[k] * window.x[i][k];
      if (i > 0 && !(value > maximum[k])) continue;
      maximum[k] = value;
      window.first[k] = i;
    }
  }
  return window;
}

template <int width>
static __device__ void chunk_sums(float* partial, const Given& given, const float* gamma, const float* mean, int windows,
                                  int channels, int chunk_windows) {
  const int c = first_channel<width>();
  const Chunk chunk = chunk_of(blockIdx.x, windows, chunk_windows);
  Sums<width> sums = {};
  if (c < channels) {
    const Group<width> center = load<width>(mean + c), gammas = load<width>(gamma + c);
    for (int p = chunk.start + static_cast<int>(threadIdx.y); p < chunk.end; p += blockDim.y) {
      const LoadedWindow<width> loaded = given.load<width>(p, c);
      const Window<width> window = window_of(loaded, gammas);
      Group<width> gradients[4];
      window.gradients(gradients, loaded);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int k = 0; k < width; ++k) {
          sums.first[k] += gradients[i][k];
          sums.second[k] += gradients[i][k] * (window.x[i][k] - center[k]);
        }
    }
  }
  store_sums(partial, sums, c, channels);
}

// A block for each chunk (x).
KERNEL_WITH_THREADS(batch_norm_backward_pooled_chunks, THREADS)(
    float* partial,          // [chunks, 2, channels]: dbeta, dgamma times the deviation
    const Element* dpooled,  // [images, h / 2, w / 2, channels], stride dpooled_stride: `windows` in all
    const Element* dout,     // [images, h, w, channels], stride dout_stride; not read where that is 0
    const Element* x,        // [images, h, w, channels], stride x_stride
    const float* gamma,      // [channels]
    const float* mean,       // [channels]
    int windows, int channels, int dpooled_stride, int dout_stride, int x_stride, int chunk_windows, int width, int w) {
  const Given given = {dpooled, dout, x, dpooled_stride, dout_stride, x_stride, w};
  if (is_wide<Element>(width)) chunk_sums<WIDE<Element>>(partial, given, gamma, mean, windows, channels, chunk_windows);
  else chunk_sums<1>(partial, given, gamma, mean, windows, channels, chunk_windows);
}

// dx is zero where x is, in the channels from `masked_start` up to `masked_end`.
template <int width, bool is_added>
static __device__ void differentiate(Element* dx, const Given& given, const float* gamma, const float* dgamma,
                                     const float* dbeta, const float* mean, const float* inverse, int windows,
                                     int channels, int dx_stride, int masked_start, int masked_end) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  const Slopes<width> dx_of = slopes<width>(gamma, dgamma, dbeta, mean, inverse, 4 * windows, c);
  const Group<width> gammas = load<width>(gamma + c);
  const bool masked = masked_start <= c && c < masked_end;  // slices start at whole groups
  for_each_pixel(windows, [&](int p) {
    const LoadedWindow<width> loaded = given.load<width>(p, c);
    const Window<width> window = window_of(loaded, gammas);
    Group<width> gradients[4];
    if constexpr (!is_added) window.gradients(gradients, loaded);
    const Corner corner(p, given.w);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Group<width> gradient;
#pragma unroll
      for (int k = 0; k < width; ++k) {
        if constexpr (is_added)
          gradient[k] = to_float(loaded.dout[i].values[k]) + dx_of(window.of_maximum(i, k), window.x[i][k], k);
        else gradient[k] = dx_of(gradients[i][k], window.x[i][k], k);
        if (masked && !(window.x[i][k] > 0.0f)) gradient[k] = 0.0f;
      }
      store(dx + corner.pixel(i) * dx_stride + c, gradient);
    }
  });
}

#define BACKWARD_PARAMETERS                                                                                       \
  Element* dx,                 /* [images, h, w, channels], stride dx_stride */                                   \
      const Element* dpooled,  /* [images, h / 2, w / 2, channels], stride dpooled_stride: `windows` in all */    \
      const Element* dout,     /* [images, h, w, channels], stride dout_stride; not read where that is 0 */       \
      const Element* x,        /* [images, h, w, channels], stride x_stride */                                    \
      const float* gamma,      /* [channels] */                                                                   \
      const float* dgamma,     /* [channels] */                                                                   \
      const float* dbeta,      /* [channels] */                                                                   \
      const float* mean,       /* [channels] */                                                                   \
      const float* inverse,    /* [channels] */                                                                   \
      int windows, int channels, int dx_stride, int dpooled_stride, int dout_stride, int x_stride, int width, int w, \
      int masked_start, int masked_end

#define DIFFERENTIATE(is_added)                                                                                  \
  const Given given = {dpooled, dout, x, dpooled_stride, dout_stride, x_stride, w};                              \
  if (is_wide<Element>(width))                                                                                   \
    differentiate<WIDE<Element>, is_added>(dx, given, gamma, dgamma, dbeta, mean, inverse, windows, channels,    \
                                           dx_stride, masked_start, masked_end);                                 \
  else                                                                                                           \
    differentiate<1, is_added>(dx, given, gamma, dgamma, dbeta, mean, inverse, windows, channels, dx_stride,     \
                               masked_start, masked_end)

KERNEL_WITH_THREADS(batch_norm_backward_pooled, THREADS)(BACKWARD_PARAMETERS) { DIFFERENTIATE(false); }

// `dout` is what is added to dx.
KERNEL_WITH_THREADS(batch_norm_backward_pooled_added, THREADS)(BACKWARD_PARAMETERS) { DIFFERENTIATE(true); }
