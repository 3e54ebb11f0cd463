// Convolution and transposed convolution of f32 on tensor cores, from sm_80 on: what convolution_tile.cu and
// transposed_convolution.cu compute, with the factors of the products rounded to tf32, whose fraction has 10 bits. Sums
// are in fp32, and so is all that is stored.

#include "correlation.cuh"
#include "tensor_tile.cuh"
#include "transposed_convolution.cuh"
#include "window.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_forward_128x64_tf32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<TensorTile128x64, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_128x32_tf32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<TensorTile128x32, false>>(FORWARD_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_forward_64x32_tf32, TILE_THREADS)(FORWARD_PARAMETERS) {
  correlate<AlignedOperands<TensorTile64x32, false>>(FORWARD_ARGUMENTS);
}

// ---- input gradient ---------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_backward_input_128x64_tf32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<TensorTile128x64, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_128x32_tf32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<TensorTile128x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_input_64x32_tf32, TILE_THREADS)(BACKWARD_INPUT_PARAMETERS) {
  correlate<AlignedOperands<TensorTile64x32, true>>(BACKWARD_INPUT_ARGUMENTS);
}

// ---- weight gradient --------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(convolution_backward_weight_128x64_tf32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<TensorTile128x64, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_128x32_tf32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<TensorTile128x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

KERNEL_WITH_THREADS(convolution_backward_weight_64x32_tf32, TILE_THREADS)(BACKWARD_WEIGHT_PARAMETERS) {
  correlate_weights<TensorTile64x32, true>(BACKWARD_WEIGHT_ARGUMENTS);
}

// ---- transposed convolution -------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(transposed_convolution_forward_128x64_tf32, TILE_THREADS)(
    float* __restrict__ out,           // [kernel * pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [taps * outputs, inputs]
    const float* __restrict__ bias,    // [biases]: of each output, or of each tap's
    TRANSPOSED_SIZES) {
  transposed_convolution<TensorTile128x64, true>(TRANSPOSED_ARGUMENTS);
}

KERNEL_WITH_THREADS(transposed_convolution_forward_64x32_tf32, TILE_THREADS)(
    float* __restrict__ out,           // [kernel * pixels, outputs], stride out_stride
    const float* __restrict__ x,       // [pixels, inputs], stride x_stride
    const float* __restrict__ weight,  // [taps * outputs, inputs]
    const float* __restrict__ bias,    // [biases]: of each output, or of each tap's
    TRANSPOSED_SIZES) {
  transposed_convolution<TensorTile64x32, true>(TRANSPOSED_ARGUMENTS);
}
