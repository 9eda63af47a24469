// What stands before and behind a product in int8, a row at a time; called by int8_rows.py.
// Widths are multiples of 16. A row that holds what is no number gets a peak that is none either, and so a result.

#include "vectors.h"

namespace {

constexpr float kPeak = 127;
constexpr float kZero = 128;
constexpr float kTiny = 1e-30f;
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <typename T>
void quantize_rows(const T* x, uint8_t* rounded, float* peaks, int64_t num_rows, int64_t width) {
  for (int64_t row = 0; row < num_rows; ++row, x += width, rounded += width) {
    Floats largest = {}, damage = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats values = load(x + i);
      const Floats sizes = values < 0 ? -values : values;
      largest = sizes > largest ? sizes : largest;
      damage += values * 0;
    }
    const float peak = largest_of(largest);
    peaks[row] = (peak < kTiny ? kTiny : peak) + sum_of(damage);
    const float scale = kPeak / peaks[row];
    for (int64_t i = 0; i < width; i += kLanes) {  // cut off after half is added: numbers that are never below 1
      const Ints whole = __builtin_convertvector(load(x + i) * scale + (kZero + 0.5f), Ints);
      const Bytes bytes = __builtin_convertvector(whole, Bytes);
      std::memcpy(rounded + i, &bytes, sizeof(bytes));
    }
  }
}

}  // namespace

// Writes rounded [row][width], 128 for zero, and each row's largest size, which stands for 127.
extern "C" void quantize_float(const float* x, uint8_t* rounded, float* peaks, int64_t num_rows, int64_t width) {
  quantize_rows(x, rounded, peaks, num_rows, width);
}

extern "C" void quantize_bf16(const uint16_t* x, uint8_t* rounded, float* peaks, int64_t num_rows, int64_t width) {
  quantize_rows(x, rounded, peaks, num_rows, width);
}

// Multiplies x [row][width] by peak / 127, adds the bias where there is one, and applies GELU where asked, in place.
extern "C" void rescale(float* x, const float* peaks, const float* bias, int64_t num_rows, int64_t width,
                        int64_t with_gelu) {
  for (int64_t row = 0; row < num_rows; ++row, x += width) {
    const float scale = peaks[row] / kPeak;
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats values = load(x + i) * scale + (bias ? load(bias + i) : Floats{});
      store(with_gelu ? gelu(values) : values, x + i);
    }
  }
}
