// Attention of one new position a row over the keys that its own sequence has cached. Compiled with ELEMENT (float, or
// uint16_t for bf16) and HEAD_WIDTH, a multiple of 16, by native_attention.py.
//
// A row reads its own sequence alone, always in the same order, so its bits depend on nothing else. Scores, weights and
// sums are in fp32.

#include <vector>

#include "vectors.h"

namespace {

constexpr int kVectors = HEAD_WIDTH / kLanes;

// Begins to read a position of a head into the second-level cache, which has room for more reads under way than the
// first: memory would otherwise hand it over only once it is waited for.
void fetch(const ELEMENT* from) {
  for (int byte = 0; byte < HEAD_WIDTH * int(sizeof(ELEMENT)); byte += 64) __builtin_prefetch((const char*)from + byte, 0, 2);
}

// Returns the weights' sum; they are not divided by it. There is room for whole vectors of them.
float weigh(const ELEMENT* query, const ELEMENT* keys, int64_t count, float* weights, const ELEMENT* next) {
  Floats scaled[kVectors];
  const float scale = 1.0f / __builtin_sqrtf(HEAD_WIDTH);
  for (int i = 0; i < kVectors; ++i) scaled[i] = load(query + i * kLanes) * scale;
  for (int64_t j = 0; j < count; ++j) {
    fetch(next + j * HEAD_WIDTH);
    Floats products = {};
    for (int i = 0; i < kVectors; ++i) products += scaled[i] * load(keys + j * HEAD_WIDTH + i * kLanes);
    weights[j] = sum_of(products);
  }
  for (int64_t j = count; j % kLanes; ++j) weights[j] = -__builtin_inff();
  Floats peaks = load(weights);
  for (int64_t j = kLanes; j < count; j += kLanes) peaks = load(weights + j) > peaks ? load(weights + j) : peaks;
  const float peak = largest_of(peaks);
  Floats total = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const Floats weight = exponential(load(weights + j) - peak);
    store(weight, weights + j);
    total += weight;
  }
  return sum_of(total);
}

void mix(const float* weights, float total, const ELEMENT* values, int64_t count, ELEMENT* mixed, const ELEMENT* next) {
  Floats sums[kVectors] = {};
  for (int64_t j = 0; j < count; ++j) {
    fetch(next + j * HEAD_WIDTH);
    for (int i = 0; i < kVectors; ++i) sums[i] += weights[j] * load(values + j * HEAD_WIDTH + i * kLanes);
  }
  for (int i = 0; i < kVectors; ++i) store(sums[i] / total, mixed + i * kLanes);
}

}  // namespace

// Stores the new keys and values of the rows [row][3: query, key, value][head][HEAD_WIDTH] at the rows' positions of
// keys and values [row][head][capacity][HEAD_WIDTH], and writes mixed [row][head][HEAD_WIDTH]. A row attends to its last
// `band` positions, the new one among them.
extern "C" void attend(const ELEMENT* rows, ELEMENT* keys, ELEMENT* values, ELEMENT* mixed, const int64_t* positions,
                       int64_t num_rows, int64_t num_heads, int64_t capacity, int64_t band) {
  std::vector<float> weights(capacity + kLanes);
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t position = positions[row];
    const int64_t first = position < band ? 0 : position - band + 1;
    const int64_t count = position - first + 1;
    for (int64_t head = 0; head < num_heads; ++head) {
      const int64_t index = row * num_heads + head;
      const ELEMENT* query = rows + (3 * row * num_heads + head) * HEAD_WIDTH;
      ELEMENT* own_keys = keys + index * capacity * HEAD_WIDTH;
      ELEMENT* own_values = values + index * capacity * HEAD_WIDTH;
      std::memcpy(own_keys + position * HEAD_WIDTH, query + num_heads * HEAD_WIDTH, HEAD_WIDTH * sizeof(ELEMENT));
      std::memcpy(own_values + position * HEAD_WIDTH, query + 2 * num_heads * HEAD_WIDTH, HEAD_WIDTH * sizeof(ELEMENT));
      const ELEMENT* seen_keys = own_keys + first * HEAD_WIDTH;
      const ELEMENT* seen_values = own_values + first * HEAD_WIDTH;
      const float total = weigh(query, seen_keys, count, weights.data(), seen_values);
      mix(weights.data(), total, seen_values, count, mixed + index * HEAD_WIDTH, seen_keys + capacity * HEAD_WIDTH);
    }
  }
}
