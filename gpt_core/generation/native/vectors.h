// Vectors of 16 numbers in fp32, loaded from and stored as fp32 or bf16, by the vector extensions that GCC and Clang share.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

inline Floats load(const uint16_t* from) {  // bf16 is the upper half of fp32
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(Floats values, float* to) { std::memcpy(to, &values, sizeof(values)); }

inline void store(Floats values, uint16_t* to) {  // to the nearest, ties to even; what is no number stays none
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(values == values ? rounded : Words{} + 0x7fc0, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

inline float sum_of(Floats values) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int lane = 0; lane < step; ++lane) values[lane] += values[lane + step];
  return values[0];
}

inline float largest_of(Floats values) {
  float largest = values[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = values[lane] > largest ? values[lane] : largest;
  return largest;
}

// e to the x for x <= 0, nothing below -87: two to a whole number times the Taylor series of the rest, which is at most
// half of ln 2.
inline Floats exponential(Floats x) {
  const Floats least = Floats{} - 87.0f;
  const Ints whole = __builtin_convertvector((x < least ? least : x) * 1.44269504f - 0.5f, Ints);
  const Floats count = __builtin_convertvector(whole, Floats);
  const Floats rest = x - count * 0.693359375f + count * 2.12194440e-4f;  // ln 2 in two parts
  Floats series = Floats{} + 1.0f / 5040;
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = series * rest + term;
  return x < least ? Floats{} : series * (Floats)((whole + 127) << 23);
}

// x times the logistic function of 2u: the tanh approximation of GELU.
inline Floats gelu(Floats x) {
  const Floats twice_u = x * (1.5957691216f + 0.0713548163f * x * x);
  const Floats small = exponential(twice_u < 0 ? twice_u : -twice_u);
  return x * (twice_u < 0 ? small : Floats{} + 1) / (1 + small);
}
