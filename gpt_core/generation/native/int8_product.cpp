// Rows in 8 bits times weights in 8 bits, with what stands behind the product; called by int8_product.py.
//
// Weights come in panels of 32 outputs, [panel][input / 4][32][4], so that one instruction of VNNI adds up four inputs
// of 16 outputs. A panel stays in the cache while it meets all rows, and the next one is fetched meanwhile. Sums are
// whole numbers: their bits depend neither on the order nor on how many rows there are.

#include <immintrin.h>

#include "vectors.h"

#ifndef __AVX512VNNI__
#error "this CPU has no AVX-512 VNNI"
#endif

namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int kMostRows = 8;  // at once; of 8, 11 and 13 the fastest on Zen 4
constexpr float kPeak = 127;
typedef int32_t Four __attribute__((may_alias, aligned(1)));

struct Product {
  const uint8_t* x;      // [row][width], 128 for zero
  const float* peaks;    // [row]
  const int8_t* panels;
  const int32_t* zeros;  // [output], 128 times the sum of an output's weights
  const float* scales;   // [output]
  const float* bias;     // [output], or none
  float* y;              // [row][outputs]
  int64_t num_rows, width, outputs, with_gelu;
};

template <int kRows>
void multiply_rows(const Product& all, int64_t row, int64_t panel, const int8_t* next, int64_t next_step) {
  const int8_t* weights = all.panels + panel * kPanel * all.width;
  const uint8_t* x = all.x + row * all.width;
  __m512i sums[kRows][2] = {};
  for (int64_t i = 0; i < all.width; i += 4, weights += 4 * kPanel, next += next_step) {
    __builtin_prefetch(next);
    const __m512i low = _mm512_loadu_si512(weights), high = _mm512_loadu_si512(weights + 4 * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      // In one piece: compilers would load the inputs of all rows ahead, for which there are no registers.
      __m512i inputs;
      asm("vpbroadcastd %5, %2\n\tvpdpbusd %3, %2, %0\n\tvpdpbusd %4, %2, %1"
          : "+v"(sums[r][0]), "+v"(sums[r][1]), "=&v"(inputs)
          : "v"(low), "v"(high), "m"(*reinterpret_cast<const Four*>(x + r * all.width + i)));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const float scale = all.peaks[row + r] / kPeak;
    for (int half = 0; half < 2; ++half) {
      const int64_t output = panel * kPanel + half * kLanes;
      Ints zeros;
      std::memcpy(&zeros, all.zeros + output, sizeof(zeros));
      const Floats sum = __builtin_convertvector((Ints)sums[r][half] - zeros, Floats) * load(all.scales + output);
      const Floats y = sum * scale + (all.bias ? load(all.bias + output) : Floats{});
      store(all.with_gelu ? gelu(y) : y, all.y + (row + r) * all.outputs + output);
    }
  }
}

template <int kRows>
void multiply_any(int64_t count, const Product& all, int64_t row, int64_t panel, const int8_t* next, int64_t step) {
  if (count == kRows) return multiply_rows<kRows>(all, row, panel, next, step);
  if constexpr (kRows > 1) multiply_any<kRows - 1>(count, all, row, panel, next, step);
}

}  // namespace

// Computes the outputs of some panels for all rows.
extern "C" void multiply(const Product* all, int64_t first_panel, int64_t stop_panel) {
  const int64_t num_groups = (all->num_rows + kMostRows - 1) / kMostRows;
  const int64_t next_step = (4 * kPanel + num_groups - 1) / num_groups;
  for (int64_t panel = first_panel; panel < stop_panel; ++panel) {
    const int8_t* next = all->panels + (panel + 1) * kPanel * all->width;
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t row = all->num_rows * group / num_groups, stop = all->num_rows * (group + 1) / num_groups;
      multiply_any<kMostRows>(stop - row, *all, row, panel, next + group * all->width / 4 * next_step, next_step);
    }
  }
}
