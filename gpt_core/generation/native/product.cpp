// Rows times weights, with what stands behind the product; called by native_product.py. Compiled with INT8 for CPUs with
// AVX-512 VNNI, else for those with AVX-512 BF16.
//
// Weights come in panels of 32 outputs, [panel][input / kStep][32][kStep], so that one instruction adds up kStep inputs
// of 16 outputs. A panel stays in the cache while it meets all rows, and the next one is fetched meanwhile. A sum runs
// over the inputs in their order, however many rows there are.

#include "vectors.h"

namespace {

#ifdef INT8
typedef uint8_t Input;  // 128 for zero
typedef int8_t Weight;
typedef Ints Sums;
typedef float Output;
constexpr float kPeak = 127;
#define ADD_PRODUCTS "vpdpbusd"
#ifndef __AVX512VNNI__
#error "this CPU has no AVX-512 VNNI"
#endif
#else
typedef uint16_t Input;
typedef uint16_t Weight;
typedef Floats Sums;
typedef uint16_t Output;
#define ADD_PRODUCTS "vdpbf16ps"
#ifndef __AVX512BF16__
#error "this CPU has no AVX-512 BF16"
#endif
#endif

constexpr int kStep = 4 / sizeof(Weight);
constexpr int kPanel = 2 * kLanes;
constexpr int kMostRows = 8;  // at once; of 8, 11 and 13 the fastest on Zen 4
typedef int32_t Inputs __attribute__((may_alias, aligned(1)));  // kStep of them

struct Product {
  const Input* x;  // [row][width]
  const Weight* panels;
  const float* bias;  // [output], or none
  Output* y;          // [row][outputs]
  int64_t num_rows, width, outputs, with_gelu;
  // In int8 alone:
  const float* peaks;    // [row], what 127 stands for
  const float* scales;   // [output]
  const int32_t* zeros;  // [output], 128 times the sum of an output's weights
};

// Writes 16 outputs of a row. Never inlined: compilers would fuse multiplications with additions, or not, for each
// number of rows in another way.
__attribute__((noinline)) void finish(const Product& all, Sums sums, int64_t row, int64_t output) {
#ifdef INT8
  Ints zeros;
  std::memcpy(&zeros, all.zeros + output, sizeof(zeros));
  Floats y = __builtin_convertvector(sums - zeros, Floats) * load(all.scales + output) * (all.peaks[row] / kPeak);
#else
  Floats y = sums;
#endif
  y += all.bias ? load(all.bias + output) : Floats{};
  store(all.with_gelu ? gelu(y) : y, all.y + row * all.outputs + output);
}

template <int kRows>
void multiply_rows(const Product& all, int64_t row, int64_t panel, const Weight* next, int64_t next_step) {
  const Weight* weights = all.panels + panel * kPanel * all.width;
  const Input* x = all.x + row * all.width;
  Sums sums[kRows][2] = {};
  for (int64_t i = 0; i < all.width; i += kStep, weights += kStep * kPanel, next += next_step) {
    __builtin_prefetch(next, 0, 2);
    Sums low, high;
    std::memcpy(&low, weights, sizeof(low));
    std::memcpy(&high, weights + kStep * kLanes, sizeof(high));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      // In one piece: compilers would load the inputs of all rows ahead, for which there are no registers.
      Sums inputs;
      asm("vpbroadcastd %5, %2\n\t" ADD_PRODUCTS " %3, %2, %0\n\t" ADD_PRODUCTS " %4, %2, %1"
          : "+v"(sums[r][0]), "+v"(sums[r][1]), "=&v"(inputs)
          : "v"(low), "v"(high), "m"(*(const Inputs*)(x + r * all.width + i)));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    for (int half = 0; half < 2; ++half) finish(all, sums[r][half], row + r, panel * kPanel + half * kLanes);
}

template <int kRows>
void multiply_any(int64_t count, const Product& all, int64_t row, int64_t panel, const Weight* next, int64_t step) {
  if (count == kRows) return multiply_rows<kRows>(all, row, panel, next, step);
  if constexpr (kRows > 1) multiply_any<kRows - 1>(count, all, row, panel, next, step);
}

}  // namespace

// Computes the outputs of some panels for all rows.
extern "C" void multiply(const Product* all, int64_t first_panel, int64_t stop_panel) {
  if (all->num_rows == 0) return;
  const int64_t num_groups = (all->num_rows + kMostRows - 1) / kMostRows;
  const int64_t next_step = (kStep * kPanel + num_groups - 1) / num_groups;
  for (int64_t panel = first_panel; panel < stop_panel; ++panel) {
    const Weight* next = all->panels + (panel + 1) * kPanel * all->width;
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t row = all->num_rows * group / num_groups, stop = all->num_rows * (group + 1) / num_groups;
      multiply_any<kMostRows>(stop - row, *all, row, panel, next + group * all->width / kStep * next_step, next_step);
    }
  }
}
