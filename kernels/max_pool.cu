// Max pooling over windows of any size, stride and padding, along depth, height and width. Padding never wins.

#include "pixels.cuh"

// A window's movement along an axis.
struct Axis {
  int size, out_size, kernel, stride, padding;
};

// The pixels of one sample's windows; index 0 is depth, 1 height, 2 width.
struct Pooling {
  Axis axes[3];

  __device__ __forceinline__ int pixel(int n, int z, int y, int x) const {
    return ((n * axes[0].size + z) * axes[1].size + y) * axes[2].size + x;
  }
};

// A pixel's sample and coordinates.
struct Place {
  int n, at[3];
};

static __device__ __forceinline__ Place place_of(int p, int depth, int height, int width) {
  const unsigned x = static_cast<unsigned>(p) / width, y = x / height, z = y / depth;
  return {static_cast<int>(z), {static_cast<int>(y - z * depth), static_cast<int>(x - y * height),
                                p - static_cast<int>(x) * width}};
}

// Calls body(q) for the pixels of a window, in order. Not unrolled: many threads with few registers hide the loads' time.
template <class Body>
static __device__ __forceinline__ void for_each_in_window(const Pooling& pooling, const Place& window, Body body) {
  int first[3], last[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const Axis& a = pooling.axes[axis];
    const int start = window.at[axis] * a.stride - a.padding;
    first[axis] = max(start, 0);
    last[axis] = min(start + a.kernel, a.size);
  }
#pragma unroll 1
  for (int z = first[0]; z < last[0]; ++z)
#pragma unroll 1
    for (int y = first[1]; y < last[1]; ++y)
#pragma unroll 1
      for (int x = first[2]; x < last[2]; ++x) body(pooling.pixel(window.n, z, y, x));
}

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void pool(Element* out, const Element* x, int pixels, int channels, int out_stride, int x_stride,
                            const Pooling& pooling) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(pixels, [&](int p) {
    const Place window =
        place_of(p, pooling.axes[0].out_size, pooling.axes[1].out_size, pooling.axes[2].out_size);
    Group<width> maximum;
    bool first = true;
    for_each_in_window(pooling, window, [&](int q) {
      const Group<width> group = load<width>(x + q * x_stride + c);
#pragma unroll
      for (int k = 0; k < width; ++k)
        if (first || group[k] > maximum[k]) maximum[k] = group[k];
      first = false;
    });
    store(out + p * out_stride + c, maximum);
  });
}

KERNEL_WITH_THREADS(max_pool_forward, THREADS)(
    Element* out,      // [n, out_d, out_h, out_w, channels], stride out_stride: `pixels` in all
    const Element* x,  // [n, d, h, w, channels], stride x_stride
    int pixels, int channels, int out_stride, int x_stride, int width,
    int d, int h, int w, int out_d, int out_h, int out_w,
    int kernel_d, int kernel_h, int kernel_w, int stride_d, int stride_h, int stride_w,
    int padding_d, int padding_h, int padding_w) {
  const Pooling pooling = {{{d, out_d, kernel_d, stride_d, padding_d},
                            {h, out_h, kernel_h, stride_h, padding_h},
                            {w, out_w, kernel_w, stride_w, padding_w}}};
  if (is_wide<Element>(width)) pool<WIDE<Element>>(out, x, pixels, channels, out_stride, x_stride, pooling);
  else pool<1>(out, x, pixels, channels, out_stride, x_stride, pooling);
}

// ---- backward ---------------------------------------------------------------------------------------------------------
// Each input pixel looks at the windows it is in, in order, and takes the gradient of those whose first maximum it is.

template <int width>
static __device__ void pool_backward(Element* dx, const Element* dout, const Element* x, int pixels, int channels,
                                     int dx_stride, int dout_stride, int x_stride, const Pooling& pooling) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(pixels, [&](int p) {
    const Place place = place_of(p, pooling.axes[0].size, pooling.axes[1].size, pooling.axes[2].size);
    int first[3], last[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const Axis& a = pooling.axes[axis];
      const int end = place.at[axis] + a.padding;  // the first window that starts beyond is end / stride + 1
      first[axis] = end < a.kernel ? 0 : (end - a.kernel) / a.stride + 1;
      last[axis] = min(end / a.stride + 1, a.out_size);
    }
    const Group<width> own = load<width>(x + p * x_stride + c);
    Group<width> gradient = {};
#pragma unroll 1
    for (int z = first[0]; z < last[0]; ++z)
#pragma unroll 1
      for (int y = first[1]; y < last[1]; ++y)
#pragma unroll 1
        for (int v = first[2]; v < last[2]; ++v) {
          const int window =
              ((place.n * pooling.axes[0].out_size + z) * pooling.axes[1].out_size + y) * pooling.axes[2].out_size + v;
          Group<width> given = load<width>(dout + window * dout_stride + c);
          for_each_in_window(pooling, {place.n, {z, y, v}}, [&](int q) {
            const Group<width> other = load<width>(x + q * x_stride + c);
#pragma unroll
            for (int k = 0; k < width; ++k)
              if (q < p ? other[k] >= own[k] : other[k] > own[k]) given[k] = 0.0f;
          });
#pragma unroll
          for (int k = 0; k < width; ++k) gradient[k] += given[k];
        }
    store(dx + p * dx_stride + c, gradient);
  });
}

// Without a bound on its threads, which would make the compiler spill registers.
KERNEL(max_pool_backward)(
    Element* dx,          // [n, d, h, w, channels], stride dx_stride: `pixels` in all
    const Element* dout,  // [n, out_d, out_h, out_w, channels], stride dout_stride
    const Element* x,     // [n, d, h, w, channels], stride x_stride
    int pixels, int channels, int dx_stride, int dout_stride, int x_stride, int width,
    int d, int h, int w, int out_d, int out_h, int out_w,
    int kernel_d, int kernel_h, int kernel_w, int stride_d, int stride_h, int stride_w,
    int padding_d, int padding_h, int padding_w) {
  const Pooling pooling = {{{d, out_d, kernel_d, stride_d, padding_d},
                            {h, out_h, kernel_h, stride_h, padding_h},
                            {w, out_w, kernel_w, stride_w, padding_w}}};
  if (is_wide<Element>(width)) pool_backward<WIDE<Element>>(dx, dout, x, pixels, channels, dx_stride, dout_stride, x_stride, pooling);
  else pool_backward<1>(dx, dout, x, pixels, channels, dx_stride, dout_stride, x_stride, pooling);
}

// ---- windows of 2x2, side by side ---------------------------------------------------------------------------------------
// What networks pool with: a thread loads a window's pixels at once, and knows without asking others which is its first
// maximum. Depth counts as images.

// The first pixel of a window, among rows of `columns` windows, in images of h x w pixels.
struct Corner {
  int image, y, x;

  __device__ __forceinline__ Corner(int p, int rows, int columns) {
    const unsigned row = static_cast<unsigned>(p) / columns;
    image = static_cast<int>(row / rows);
    y = static_cast<int>(row) - image * rows;
    x = p - static_cast<int>(row) * columns;
  }

  // The i-th pixel of the window.
  __device__ __forceinline__ int pixel(int i, int h, int w) const {
    return (image * h + 2 * y + i / 2) * w + 2 * x + i % 2;
  }
};

template <int width> struct StoredWindow {
  Stored<width, Element> pixels[4];
};

template <int width>
static __device__ __forceinline__ StoredWindow<width> load_window(const Element* x, const Corner& corner, int h, int w,
                                                                  int stride) {
  StoredWindow<width> window;
#pragma unroll
  for (int i = 0; i < 4; ++i) window.pixels[i] = load_stored<width>(x + corner.pixel(i, h, w) * stride);
  return window;
}

template <int width>
static __device__ __forceinline__ Group<width> maximum_of(const StoredWindow<width>& window) {
  Group<width> maximum = floats(window.pixels[0]);
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    const Group<width> group = floats(window.pixels[i]);
#pragma unroll
    for (int k = 0; k < width; ++k)
      if (group[k] > maximum[k]) maximum[k] = group[k];
  }
  return maximum;
}

template <int width>
static __device__ void halve(Element* out, const Element* x, int pixels, int channels, int out_stride, int x_stride,
                             int h, int w) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(pixels, [&](int p) {
    const StoredWindow<width> window = load_window<width>(x + c, Corner(p, h / 2, w / 2), h, w, x_stride);
    store(out + p * out_stride + c, maximum_of(window));
  });
}

KERNEL_WITH_THREADS(max_pool_forward_2x2, THREADS)(
    Element* out,      // [images, h / 2, w / 2, channels], stride out_stride: `pixels` in all
    const Element* x,  // [images, h, w, channels], stride x_stride
    int pixels, int channels, int out_stride, int x_stride, int width, int h, int w) {
  if (is_wide<Element>(width)) halve<WIDE<Element>>(out, x, pixels, channels, out_stride, x_stride, h, w);
  else halve<1>(out, x, pixels, channels, out_stride, x_stride, h, w);
}

template <int width>
static __device__ void halve_backward(Element* dx, const Element* dout, const Element* x, int windows, int channels,
                                      int dx_stride, int dout_stride, int x_stride, int h, int w) {
  const int c = first_channel<width>();
  if (c >= channels) return;
  for_each_pixel(windows, [&](int p) {
    const Corner corner(p, (h + 1) / 2, (w + 1) / 2);
    if (2 * corner.y + 1 >= h || 2 * corner.x + 1 >= w) {  // beyond the last whole window
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (2 * corner.y + i / 2 < h && 2 * corner.x + i % 2 < w)
          store(dx + corner.pixel(i, h, w) * dx_stride + c, Group<width>{});
      return;
    }
    const int q = (corner.image * (h / 2) + corner.y) * (w / 2) + corner.x;
    const Stored<width, Element> given = load_stored<width>(dout + q * dout_stride + c);
    const StoredWindow<width> window = load_window<width>(x + c, corner, h, w, x_stride);
    const Group<width> maximum = maximum_of(window);
    Group<width> rest = floats(given);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Group<width> group = floats(window.pixels[i]);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const bool first = group[k] == maximum[k];
        group[k] = first ? rest[k] : 0.0f;
        if (first) rest[k] = 0.0f;
      }
      store(dx + corner.pixel(i, h, w) * dx_stride + c, group);
    }
  });
}

KERNEL_WITH_THREADS(max_pool_backward_2x2, THREADS)(
    Element* dx,          // [images, h, w, channels], stride dx_stride
    const Element* dout,  // [images, h / 2, w / 2, channels], stride dout_stride
    const Element* x,     // [images, h, w, channels], stride x_stride
    int windows,          // those that cover the images, in part or whole
    int channels, int dx_stride, int dout_stride, int x_stride, int width, int h, int w) {
  if (is_wide<Element>(width))
    halve_backward<WIDE<Element>>(dx, dout, x, windows, channels, dx_stride, dout_stride, x_stride, h, w);
  else halve_backward<1>(dx, dout, x, windows, channels, dx_stride, dout_stride, x_stride, h, w);
}
