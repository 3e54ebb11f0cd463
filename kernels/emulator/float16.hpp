// Conversions between fp32 and the two 16-bit floating-point formats, to nearest, ties to even, as the GPU does them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace emulator {

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bfloat16_to_float(uint32_t bits) { return bits_to_float(bits << 16); }

inline uint16_t float_to_bfloat16(float value) {
  uint32_t bits = float_to_bits(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;  // the GPU's one NaN
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

#ifdef __F16C__

inline float half_to_float(uint32_t bits) { return _cvtsh_ss(static_cast<uint16_t>(bits)); }
inline uint16_t float_to_half(float value) { return value != value ? 0x7FFF : _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

#else

inline float half_to_float(uint32_t bits) {
  uint32_t sign = (bits & 0x8000) << 16, rest = bits & 0x7FFF;
  if (rest >= 0x7C00) return bits_to_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  // 2^112 moves the exponent from bias 15 to bias 127, subnormals included, without rounding
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {
  uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return 0x7FFF;
  if (bits >= 0x477FF000) return sign | 0x7C00;  // 65520 and more round to infinity
  // below 2^-14 an addition of 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa
  if (bits < 0x38800000) return sign | (float_to_bits(bits_to_float(bits) + 0.5f) - 0x3F000000);
  return sign | (bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13;
}

#endif

}  // namespace emulator
