// Attention in float32 on the host, and 16-bit numbers to feed both sides with.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "rainfusion_layer.h"

namespace conformance {

// Raw 16-bit numbers and what they stand for.
struct Numbers {
  std::vector<uint16_t> bits;
  std::vector<float> values;
};

inline float to_float(uint16_t bits, DataType type) {
  if (type == DataType::kBF16) return __bfloat162float(__ushort_as_bfloat16(bits));
  return __half2float(__ushort_as_half(bits));
}

inline uint16_t to_bits(float value, DataType type) {
  if (type == DataType::kBF16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __half_as_ushort(__float2half_rn(value));
}

inline std::vector<float> to_floats(const std::vector<uint16_t>& bits, DataType type) {
  std::vector<float> values;
  values.reserve(bits.size());
  for (uint16_t x : bits) values.push_back(to_float(x, type));
  return values;
}

inline Numbers random_numbers(size_t count, DataType type, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Numbers numbers;
  for (size_t i = 0; i < count; ++i) numbers.bits.push_back(to_bits(normal(generator), type));
  numbers.values = to_floats(numbers.bits, type);
  return numbers;
}

// Keys of the later half of the tokens `gain` times as large, and with them the spread of scores.
inline Numbers with_late_gain(Numbers keys, const Size& size, DataType type, float gain) {
  for (size_t i = 0; i < keys.values.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / size.head_size % size.tokens();
    if (2 * token >= size.tokens()) keys.bits[i] = to_bits(gain * keys.values[i], type);
  }
  keys.values = to_floats(keys.bits, type);
  return keys;
}

// [B, N, S, D] softmax(q k^T / sqrt(D) + bias) v over `keys` keys and values of each head, with
// bias(batch, head, query, key) in float32; -infinity leaves a key out.
template <typename Bias>
std::vector<float> biased_attention(const Size& size, int64_t keys, const std::vector<float>& q,
                                    const std::vector<float>& k, const std::vector<float>& v,
                                    const Bias& bias) {
  const int64_t tokens = size.tokens();
  const int64_t head_size = size.head_size;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_size));
  std::vector<float> out(q.size(), 0.0F);
  std::vector<float> scores(static_cast<size_t>(keys));
  for (int64_t row = 0; row < size.batch * size.heads * tokens; ++row) {
    const int64_t head = row / tokens;
    const int64_t base = head * keys * head_size;
    float largest = -INFINITY;
    for (int64_t j = 0; j < keys; ++j) {
      float score = bias(head / size.heads, head % size.heads, row % tokens, j);
      if (score > -INFINITY) {
        float product = 0.0F;
        for (int64_t d = 0; d < head_size; ++d) {
          product += q[row * head_size + d] * k[base + j * head_size + d];
        }
        score += product * scale;
      }
      scores[j] = score;
      largest = std::max(largest, score);
    }
    if (largest == -INFINITY) continue;
    float sum = 0.0F;
    for (int64_t j = 0; j < keys; ++j) {
      const float weight = std::exp(scores[j] - largest);
      if (weight == 0.0F) continue;
      sum += weight;
      for (int64_t d = 0; d < head_size; ++d) {
        out[row * head_size + d] += weight * v[base + j * head_size + d];
      }
    }
    for (int64_t d = 0; d < head_size; ++d) out[row * head_size + d] /= sum;
  }
  return out;
}

// The same over the pairs for which keep(batch, head, query, key).
template <typename Keep>
std::vector<float> attention(const Size& size, const std::vector<float>& q,
                             const std::vector<float>& k, const std::vector<float>& v,
                             const Keep& keep) {
  return biased_attention(size, size.tokens(), q, k, v,
                          [&](int64_t batch, int64_t head, int64_t query, int64_t key) {
                            return keep(batch, head, query, key) ? 0.0F : -INFINITY;
                          });
}

// |a - b| / |b| over the rows that are below kv_len; infinite if anything in `a` is not finite.
inline double relative_error(const Size& size, const std::vector<float>& a,
                             const std::vector<float>& b, const std::vector<int32_t>& kv_len) {
  double difference = 0.0;
  double norm = 0.0;
  const int64_t row_size = size.head_size;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    const int64_t row = static_cast<int64_t>(i) / row_size;
    const int64_t batch = row / size.tokens() / size.heads;
    if (!kv_len.empty() && row % size.tokens() >= kv_len[batch]) continue;
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace conformance
