// The gradient of what is added to pixels at the border of an image: the sums of each kind of them, of what has a bit.

#include "border.cuh"
#include "pixels.cuh"

// The pixels of a kind in images of h x w: of each image one, or a part of a row or of a column.
struct KindPixels {
  int first, step, count, image_pixels;

  __device__ __forceinline__ KindPixels(int kind, int h, int w) : image_pixels(h * w) {
    const int place = border_place(kind), row = place / 3, column = place % 3;
    first = (row == 0 ? 0 : row == 1 ? 1 : h - 1) * w + (column == 0 ? 0 : column == 1 ? 1 : w - 1);
    step = row == 1 ? w : 1;
    count = row == 1 ? h - 2 : column == 1 ? w - 2 : 1;
  }

  __device__ __forceinline__ int pixel(int index) const {
    const int image = index / count;
    return image * image_pixels + first + (index - image * count) * step;
  }
};

template <int width>
static __device__ void sum(float* dborder, const Element* dout, const Bits* positive, int images, int h, int w, int channels,
                           int dout_stride, int groups) {
  constexpr int at_once = 16;  // a kind's pixels are few, and one block's
  const int c = first_channel<width>();
  const KindPixels pixels(blockIdx.x, h, w);
  struct Loaded {
    Stored<width, Element> dout;
    unsigned bits;
  };
  Group<width> sums = {};
  if (c < channels)
    for_each_step<at_once>(
        threadIdx.y, images * pixels.count, blockDim.y,
        [&](int index) {
          const int p = pixels.pixel(index);
          return Loaded{load_stored<width>(dout + p * dout_stride + c),
                        static_cast<unsigned>(positive[p * groups + c / CHANNELS_PER_BYTE] >> c % CHANNELS_PER_BYTE)};
        },
        [&](int, const Loaded& loaded) {
          Group<width> group = floats(loaded.dout);
          keep_positive<width>(group, loaded.bits);
#pragma unroll
          for (int k = 0; k < width; ++k) sums[k] += group[k];
        });
  sums = reduce_rows(sums, [](Group<width> a, const Group<width>& b) {
#pragma unroll
    for (int k = 0; k < width; ++k) a[k] += b[k];
    return a;
  });
  if (threadIdx.y == 0 && c < channels) store(dborder + blockIdx.x * channels + c, sums);
}

// Grid: kinds; channels.
KERNEL_WITH_THREADS(border_backward, THREADS)(
    float* dborder,        // [BORDER_KINDS, channels]
    const Element* dout,   // [images, h, w, channels], stride dout_stride
    const Bits* positive,  // [images, h, w, groups]
    int images, int h, int w, int channels, int dout_stride, int groups, int width) {
  if (is_wide<Element>(width))
    sum<WIDE<Element>>(dborder, dout, positive, images, h, w, channels, dout_stride, groups);
  else sum<1>(dborder, dout, positive, images, h, w, channels, dout_stride, groups);
}
