// CUDA's built-in vector types, with CUDA's sizes and alignments (CUDA C++ Programming Guide, "Built-in Vector Types").
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATED_VECTOR_TYPES(scalar, prefix)                                                     \
  struct alignas(2 * sizeof(scalar)) prefix##2 { scalar x, y; };                                  \
  struct prefix##3 { scalar x, y, z; };                                                           \
  struct alignas(4 * sizeof(scalar) < 16 ? 4 * sizeof(scalar) : 16) prefix##4 { scalar x, y, z, w; }; \
  inline prefix##2 make_##prefix##2(scalar x, scalar y) { return {x, y}; }                        \
  inline prefix##3 make_##prefix##3(scalar x, scalar y, scalar z) { return {x, y, z}; }           \
  inline prefix##4 make_##prefix##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATED_VECTOR_TYPES(signed char, char)
EMULATED_VECTOR_TYPES(unsigned char, uchar)
EMULATED_VECTOR_TYPES(short, short)
EMULATED_VECTOR_TYPES(unsigned short, ushort)
EMULATED_VECTOR_TYPES(int, int)
EMULATED_VECTOR_TYPES(unsigned, uint)
EMULATED_VECTOR_TYPES(float, float)
EMULATED_VECTOR_TYPES(double, double)
#undef EMULATED_VECTOR_TYPES
