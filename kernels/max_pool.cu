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
