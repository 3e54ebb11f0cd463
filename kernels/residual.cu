// A residual block's sum (equation 1), where no convolution's kernel computes it in passing, and what gradients need of it.
// A thread takes eight channels of a pixel, whose bits are a byte.

#include "border.cuh"
#include "pixels.cuh"

using Eight = Group<CHANNELS_PER_BYTE>;

template <bool is_aligned> static __device__ Eight load_eight(const Element* address, int count) {
  if constexpr (is_aligned) {
    return load<CHANNELS_PER_BYTE>(address);
  } else {
    Eight group = {};
    for (int k = 0; k < count; ++k) group[k] = to_float(address[k]);
    return group;
  }
}

template <bool is_aligned> static __device__ void store_eight(Element* address, const Eight& group, int count) {
  if constexpr (is_aligned) {
    store(address, group);
  } else {
    for (int k = 0; k < count; ++k) address[k] = from_float<Element>(group[k]);
  }
}

// What is added to the 3x3 convolution at the border of images of h x w, if anything: [BORDER_KINDS, channels].
struct Border {
  const float* rows;
  int has_rows, h, w;
};

template <bool is_aligned>
static __device__ void add(Element* out, Bits* positive, const Element* main, const Element* shortcut, const Border& border,
                           int pixels, int channels, int out_stride, int main_stride, int shortcut_stride, int groups) {
  const int c = first_channel<CHANNELS_PER_BYTE>(), count = min(CHANNELS_PER_BYTE, channels - c);
  if (count <= 0) return;
  for_each_pixel(pixels, [&](int p) {
    Eight sum = load_eight<is_aligned>(main + p * main_stride + c, count);
    const Eight added = load_eight<is_aligned>(shortcut + p * shortcut_stride + c, count);
    const int row = p / border.w, x = p - row * border.w;
    const int kind = border.has_rows ? border_kind(row % border.h, x, border.h, border.w) : -1;
    if (kind >= 0) {
#pragma unroll
      for (int k = 0; k < CHANNELS_PER_BYTE; ++k)
        if (k < count) sum[k] += border.rows[kind * channels + c + k];
    }
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_BYTE; ++k) sum[k] = sum[k] < 0.0f ? 0.0f : sum[k];  // NaN stays
    if (groups) positive[p * groups + c / CHANNELS_PER_BYTE] = positive_bits(sum);
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_BYTE; ++k) {
      const float total = sum[k] + added[k];
      sum[k] = total < 0.0f ? 0.0f : total;
    }
    store_eight<is_aligned>(out + p * out_stride + c, sum, count);
  });
}

// max(max(main, 0) + shortcut, 0), and where main is above zero.
KERNEL_WITH_THREADS(residual_forward, THREADS)(
    Element* out,             // [images, h, w, channels], stride out_stride; may be main
    Bits* positive,           // [pixels, groups]; not written where groups is 0
    const Element* main,      // [pixels, channels], stride main_stride
    const Element* shortcut,  // [pixels, channels], stride shortcut_stride
    const float* border,      // [BORDER_KINDS, channels], added to main; not read where has_border is 0
    int pixels, int channels, int out_stride, int main_stride, int shortcut_stride, int groups, int h, int w,
    int has_border, int is_aligned) {
  const Border own = {border, has_border, h, w};
  if (is_aligned)
    add<true>(out, positive, main, shortcut, own, pixels, channels, out_stride, main_stride, shortcut_stride, groups);
  else add<false>(out, positive, main, shortcut, own, pixels, channels, out_stride, main_stride, shortcut_stride, groups);
}

template <bool is_aligned>
static __device__ void mask(Element* dmain, const Element* dout, const Bits* positive, int pixels, int channels,
                            int dmain_stride, int dout_stride, int groups) {
  const int c = first_channel<CHANNELS_PER_BYTE>(), count = min(CHANNELS_PER_BYTE, channels - c);
  if (count <= 0) return;
  for_each_pixel(pixels, [&](int p) {
    Eight gradient = load_eight<is_aligned>(dout + p * dout_stride + c, count);
    keep_positive<CHANNELS_PER_BYTE>(gradient, positive[p * groups + c / CHANNELS_PER_BYTE]);
    store_eight<is_aligned>(dmain + p * dmain_stride + c, gradient, count);
  });
}

// dout where `positive` has a bit.
KERNEL_WITH_THREADS(residual_backward, THREADS)(
    Element* dmain,        // [pixels, channels], stride dmain_stride
    const Element* dout,   // [pixels, channels], stride dout_stride
    const Bits* positive,  // [pixels, groups]
    int pixels, int channels, int dmain_stride, int dout_stride, int groups, int is_aligned) {
  if (is_aligned) mask<true>(dmain, dout, positive, pixels, channels, dmain_stride, dout_stride, groups);
  else mask<false>(dmain, dout, positive, pixels, channels, dmain_stride, dout_stride, groups);
}
