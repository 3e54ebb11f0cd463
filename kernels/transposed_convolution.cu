// Transposed convolution whose stride is its kernel: each pixel of x becomes a patch of pixels of out, one for each
// tap. One matrix product, whose rows are the pixels of x, whose columns are (tap, output channel), and whose inner
// dimension is the input channels. Its gradients are the convolution's kernels.

#include "transposed_convolution.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------
// Grid: pixels of x in tiles; (tap, output channel) in tiles. `aligned`: input channels come by 8, output channels by
// 4, all at multiples of 16 bytes; otherwise each tap's output channels are rounded up to quads.

#ifdef ELEMENT_f32

KERNEL_WITH_THREADS(transposed_convolution_forward_128x64, TILE_THREADS)(
    float* __restrict__ out,           // [kernel * pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [taps * outputs, inputs]
    const float* __restrict__ bias,    // [biases]: of each output, or of each tap's
    TRANSPOSED_SIZES) {
  transposed_convolution<Tile128x64, true>(TRANSPOSED_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_64x32, TILE_THREADS)(
    float* __restrict__ out,
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    TRANSPOSED_SIZES) {
  transposed_convolution<Tile64x32, true>(TRANSPOSED_ARGUMENTS);
}

#endif  // ELEMENT_f32

// Whatever is not aligned, and images of few channels, which are stored in full.
KERNEL_WITH_THREADS(transposed_convolution_forward_any, TILE_THREADS)(
    Element* __restrict__ out,
    const Element* __restrict__ x,
    const Element* __restrict__ weight,
    const float* __restrict__ bias,
    TRANSPOSED_SIZES) {
  transposed_convolution<Tile64x32, false>(TRANSPOSED_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_any_from_full, TILE_THREADS)(
    Element* __restrict__ out,
    const float* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    TRANSPOSED_SIZES) {
  transposed_convolution<Tile64x32, false>(TRANSPOSED_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_any_to_full, TILE_THREADS)(
    float* __restrict__ out,
    const Element* __restrict__ x,
    const float* __restrict__ weight,
    const float* __restrict__ bias,
    TRANSPOSED_SIZES) {
  transposed_convolution<Tile64x32, false>(TRANSPOSED_ARGUMENTS);
}
