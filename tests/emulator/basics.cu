// Kernels that test the emulator: what works.
#include "common.cuh"

KERNEL(vector_add)(float* out, const float* a, const float* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] + b[i];
}
