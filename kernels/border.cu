// The gradient of what is added to pixels at the border of an image: the sums of each kind of them.

#include "border.cuh"
#include "pixels.cuh"

// The pixels of a kind in images of h x w.
struct KindPixels {
  int first_row, first_column, rows, columns, h, w;

  __device__ __forceinline__ KindPixels(int kind, int h, int w) : h(h), w(w) {
    const int place = kind < 4 ? kind : kind + 1, row = place / 3, column = place % 3;
    first_row = row == 0 ? 0 : row == 1 ? 1 : h - 1;
    first_column = column == 0 ? 0 : column == 1 ? 1 : w - 1;
    rows = row == 1 ? h - 2 : 1;
    columns = column == 1 ? w - 2 : 1;
  }

  __device__ __forceinline__ int pixel(int index) const {
    const int row = index / columns, image = row / rows;
    return (image * h + first_row + row - image * rows) * w + first_column + index - row * columns;
  }
};

template <int width>
static __device__ void sum(float* dborder, const Element* dout, int images, int h, int w, int channels, int dout_stride) {
  constexpr int at_once = 16;  // a kind's pixels are few, and one block's
  const int c = first_channel<width>();
  const KindPixels pixels(blockIdx.x, h, w);
  Group<width> sums = {};
  if (c < channels)
    for_each_step<at_once>(
        threadIdx.y, images * pixels.rows * pixels.columns, blockDim.y,
        [&](int index) { return load_stored<width>(dout + pixels.pixel(index) * dout_stride + c); },
        [&](int, const Stored<width, Element>& stored) {
          const Group<width> group = floats(stored);
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
    float* dborder,       // [BORDER_KINDS, channels]
    const Element* dout,  // [images, h, w, channels], stride dout_stride
    int images, int h, int w, int channels, int dout_stride, int width) {
  if (is_wide<Element>(width)) sum<WIDE<Element>>(dborder, dout, images, h, w, channels, dout_stride);
  else sum<1>(dborder, dout, images, h, w, channels, dout_stride);
}
