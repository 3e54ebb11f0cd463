// Adam over all parameters at once. (Kingma and Ba, 2015, algorithm 1.) The gradients are those of a scaled loss, and if
// one of them is not finite nothing is updated. Where tensor cores read the parameters as 16-bit elements, these copies are
// kept as well.

#include "pixels.cuh"

// ---- finite gradients -------------------------------------------------------------------------------------------------

constexpr int CHECK_BLOCKS = 1024;

constexpr int ADAM_WIDTH = 4;  // elements of a group; those that are left over are done one by one

template <int width> static __device__ bool all_finite(const float* gradients, int groups) {
  bool finite = true;
  for_each_pixel(
      groups, [&](int group) { return load<width>(gradients + group * width); },
      [&](int, const Group<width>& values) {
#pragma unroll
        for (int k = 0; k < width; ++k) finite &= fabsf(values[k]) <= 3.402823466e38f;
      });
  return finite;
}

// Grid: CHECK_BLOCKS blocks of THREADS threads along y.
KERNEL_WITH_THREADS(adam_check, THREADS)(
    float* finite,           // [CHECK_BLOCKS]: 1 or 0
    const float* gradients,  // [count]
    int count) {
  __shared__ int failures[THREADS];
  const int groups = count / ADAM_WIDTH, rest = groups * ADAM_WIDTH;
  failures[threadIdx.y] = !all_finite<ADAM_WIDTH>(gradients, groups) || !all_finite<1>(gradients + rest, count - rest);
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < half) failures[threadIdx.y] |= failures[threadIdx.y + half];
  }
  if (threadIdx.y == 0) finite[blockIdx.x] = failures[0] ? 0.0f : 1.0f;
}

// One block of CHECK_BLOCKS threads.
KERNEL_WITH_THREADS(adam_merge_checks, CHECK_BLOCKS)(
    float* finite,        // [1]
    const float* checks)  // [CHECK_BLOCKS]
{
  const float failures = block_sum(1.0f - checks[threadIdx.x]);
  if (threadIdx.x == 0) *finite = failures > 0.0f ? 0.0f : 1.0f;
}

// ---- update -----------------------------------------------------------------------------------------------------------

constexpr int UPDATES_PER_THREAD = 2;  // at once

template <int width> struct Updated {
  Group<width> parameter, first, second, gradient;
};

template <int width> struct alignas(width * sizeof(Element)) Copied {
  Element values[width];
};

template <int width>
static __device__ void update(float* parameters, float* first, float* second, Element* copies, const float* gradients,
                              const float* rate, float scale, int groups, int has_copies, float beta1, float beta2,
                              float epsilon) {
  const float step = rate[0], correction = rate[1];
  for_each_step<UPDATES_PER_THREAD>(
      blockIdx.x * blockDim.y + threadIdx.y, groups, gridDim.x * blockDim.y,
      [&](int group) {
        const int i = group * width;
        return Updated<width>{load<width>(parameters + i), load<width>(first + i), load<width>(second + i),
                              load<width>(gradients + i)};
      },
      [&](int group, Updated<width> here) {
        Group<width>&parameter = here.parameter, &m = here.first, &v = here.second;
#pragma unroll
        for (int k = 0; k < width; ++k) {
          const float gradient = here.gradient[k] * scale;
          m[k] = beta1 * m[k] + (1.0f - beta1) * gradient;
          v[k] = beta2 * v[k] + (1.0f - beta2) * gradient * gradient;
          parameter[k] -= step * m[k] / (sqrtf(v[k]) * correction + epsilon);
        }
        store(parameters + group * width, parameter);
        if (has_copies) {
          Copied<width> copied;
#pragma unroll
          for (int k = 0; k < width; ++k) copied.values[k] = from_float<Element>(parameter[k]);
          *reinterpret_cast<Copied<width>*>(copies + group * width) = copied;
        }
        store(first + group * width, m);
        store(second + group * width, v);
      });
}

KERNEL_WITH_THREADS(adam_update, THREADS)(
    float* parameters,        // [count]
    float* first,             // [count]: the first moments
    float* second,            // [count]
    Element* copies,          // [count]: the parameters, rounded; not written where has_copies is 0
    const float* gradients,   // [count]
    const float* rate,        // [2]: the corrected learning rate, the second moments' correction
    const float* loss_scale,  // [1]
    const float* finite,      // [1]
    int count, int has_copies,
    float beta1, float beta2, float epsilon) {
  if (*finite == 0.0f) return;
  const float scale = 1.0f / *loss_scale;
  const int groups = count / ADAM_WIDTH, rest = groups * ADAM_WIDTH;
  update<ADAM_WIDTH>(parameters, first, second, copies, gradients, rate, scale, groups, has_copies, beta1, beta2, epsilon);
  update<1>(parameters + rest, first + rest, second + rest, copies + rest, gradients + rest, rate, scale, count - rest,
            has_copies, beta1, beta2, epsilon);
}
