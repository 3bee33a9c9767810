// Half precision by the compiler's own type, which rounds to the nearest even as the device does.
#pragma once

#include <cstring>

struct __half {
  unsigned short bits;
};

inline float __half2float(__half v) {
  _Float16 half;
  std::memcpy(&half, &v, sizeof(half));
  return static_cast<float>(half);
}
inline __half __float2half_rn(float v) {
  const _Float16 half = static_cast<_Float16>(v);
  __half rounded;
  std::memcpy(&rounded, &half, sizeof(half));
  return rounded;
}
