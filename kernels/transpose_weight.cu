// The weights of a 3x3 convolution, transposed for its input gradient.

#include "common.cuh"

constexpr int TRANSPOSE_THREADS = 128;
constexpr int TRANSPOSED = 64;  // rows and columns that a block transposes

// ---- forward ----------------------------------------------------------------------------------------------------------

// Grid: inputs, outputs, taps.
KERNEL_WITH_THREADS(transpose_weight_forward, TRANSPOSE_THREADS)(
    Element* __restrict__ out,           // [taps, outputs, inputs], taps counted from the last
    const Element* __restrict__ weight,  // [taps, inputs, outputs]
    int inputs, int outputs) {
  constexpr int size = TRANSPOSED, width = Vector16<Element>::size, pieces = size / width, lines = TRANSPOSE_THREADS / pieces;
  __shared__ Element tile[size][size + 4 / sizeof(Element)];
  const int first_input = blockIdx.x * size, first_output = blockIdx.y * size;
  const int tap = blockIdx.z, taps = gridDim.z, line = threadIdx.x / pieces, piece = threadIdx.x % pieces * width;
#pragma unroll
  for (int i = 0; i < size; i += lines) {
    const int input = first_input + line + i, output = first_output + piece;
    if (input >= inputs || output >= outputs) continue;
    const Vector16<Element> values = load16(weight + (tap * inputs + input) * outputs + output);
#pragma unroll
    for (int k = 0; k < width; ++k) tile[line + i][piece + k] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < size; i += lines) {
    const int output = first_output + line + i, input = first_input + piece;
    if (input >= inputs || output >= outputs) continue;
    Vector16<Element> values;
#pragma unroll
    for (int k = 0; k < width; ++k) values[k] = tile[piece + k][line + i];
    store16(out + ((taps - 1 - tap) * outputs + output) * inputs + input, values);
  }
}
