// Attention of one new position a row over the keys that its own sequence has cached; compiled by native_attention.py,
// which sets ELEMENT (float, or uint16_t for bf16) and HEAD_WIDTH, a multiple of 16.
//
// A row reads its own sequence alone, always in the same order, so its bits depend on nothing else. Scores, weights and
// sums are in fp32.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kLanes = 16;
constexpr int kVectors = HEAD_WIDTH / kLanes;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

Floats load(const uint16_t* from) {  // bf16 is the upper half of fp32
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

void store(Floats values, float* to) { std::memcpy(to, &values, sizeof(values)); }

void store(Floats values, uint16_t* to) {  // to the nearest, ties to even; what is no number stays none
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(values == values ? rounded : Words{} + 0x7fc0, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// Begins to read a position of a head, which memory would otherwise hand over only once it is waited for.
void fetch(const ELEMENT* from) {
  for (int byte = 0; byte < HEAD_WIDTH * int(sizeof(ELEMENT)); byte += 64) __builtin_prefetch((const char*)from + byte);
}

float sum_of(Floats values) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int lane = 0; lane < step; ++lane) values[lane] += values[lane + step];
  return values[0];
}

float largest_of(Floats values) {
  float largest = values[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = values[lane] > largest ? values[lane] : largest;
  return largest;
}

// e to the x for x <= 0, zero where bf16 and fp32 have next to nothing left: two to a whole number times the Taylor
// series of the rest, which is at most half of ln 2.
Floats exponential(Floats x) {
  const Floats least = Floats{} - 87.0f;
  const Ints whole = __builtin_convertvector((x < least ? least : x) * 1.44269504f - 0.5f, Ints);
  const Floats count = __builtin_convertvector(whole, Floats);
  const Floats rest = x - count * 0.693359375f + count * 2.12194440e-4f;  // ln 2 in two parts
  Floats series = Floats{} + 1.0f / 5040;
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = series * rest + term;
  return x < least ? Floats{} : series * (Floats)((whole + 127) << 23);
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
      const float total = weigh(query, own_keys + first * HEAD_WIDTH, count, weights.data(), own_values + first * HEAD_WIDTH);
      mix(weights.data(), total, own_values + first * HEAD_WIDTH, count, mixed + index * HEAD_WIDTH, own_keys + (capacity + first) * HEAD_WIDTH);
    }
  }
}
