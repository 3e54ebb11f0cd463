// The copy of the parameters that tensor cores read.

#include "pixels.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

KERNEL_WITH_THREADS(round_parameters, THREADS)(
    Element* out,    // [groups, WIDE<Element>]
    const float* x,  // [groups, WIDE<Element>]
    int groups) {
  constexpr int width = WIDE<Element>;
  for_each_pixel(
      groups, [&](int group) { return load<width>(x + group * width); },
      [&](int group, const Group<width>& values) { store(out + group * width, values); });
}
