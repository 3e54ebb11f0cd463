// Adam over all parameters at once. (Kingma and Ba, 2015, algorithm 1.)

#include "pixels.cuh"

// ---- update -----------------------------------------------------------------------------------------------------------

template <int width>
static __device__ void update(float* parameters, float* first, float* second, const float* gradients, const float* rate,
                              int groups, float beta1, float beta2, float epsilon) {
  const float step = rate[0], correction = rate[1];
  for_each_pixel(groups, [&](int group) {
    const int i = group * width;
    const Group<width> gradient = load<width>(gradients + i);
    Group<width> parameter = load<width>(parameters + i), m = load<width>(first + i), v = load<width>(second + i);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      m[k] = beta1 * m[k] + (1.0f - beta1) * gradient[k];
      v[k] = beta2 * v[k] + (1.0f - beta2) * gradient[k] * gradient[k];
      parameter[k] -= step * m[k] / (sqrtf(v[k]) * correction + epsilon);
    }
    store(parameters + i, parameter);
    store(first + i, m);
    store(second + i, v);
  });
}

KERNEL_WITH_THREADS(adam_update_f32, THREADS)(
    float* parameters,       // [groups, width]
    float* first,            // [groups, width]: the first moments
    float* second,           // [groups, width]
    const float* gradients,  // [groups, width]
    const float* rate,       // [2]: the corrected learning rate, the second moments' correction
    int groups, int width,
    float beta1, float beta2, float epsilon) {
  if (width == 4) update<4>(parameters, first, second, gradients, rate, groups, beta1, beta2, epsilon);
  else update<1>(parameters, first, second, gradients, rate, groups, beta1, beta2, epsilon);
}
