// 8-bit attention: what is rounded to what, and how the rounded tiles lie in the workspace.
//
// A tile is one run of memory, in the order in which the tensor cores read it from shared memory,
// so that the copy engine moves it without a map. docs/rainfusion.md gives the rules in prose.
#pragma once

#include <cstdint>

#include "common/geometry.h"

namespace rainfusion::eight_bit {

constexpr int kHeadSizes[] = {64, 128};  // powers of two: rows are rotated
RAINFUSION_HOST_DEVICE constexpr bool has_head_size(int head_size) {
  return head_size == kHeadSizes[0] || head_size == kHeadSizes[1];
}

// Rows of a tile. Blocks of a problem are at most as large.
constexpr int kQueries = 192;
RAINFUSION_HOST_DEVICE constexpr int keys_of(int head_size) { return head_size <= 64 ? 128 : 96; }
RAINFUSION_HOST_DEVICE constexpr BlockShape block_shape(int head_size) {
  return BlockShape{kQueries, keys_of(head_size)};
}

constexpr float kLargestInteger = 127.f;
constexpr float kLargestE4m3 = 448.f;
constexpr float kSmallestAmplitude = 1e-12f;  // of what is divided by it
constexpr int kCentreStride = 8;              // every eighth key counts for the centre of keys
constexpr int kStatisticsTokens = 1024;       // of a partial sum

// Of every kErrorRows keys of a tile, each value but the first's gets kErrorShare of what rounding
// took from the one before.
constexpr int kErrorRows = 4;
constexpr float kErrorShare = 0.25f;

// What the statistics of a head are, in rows of head_size numbers.
enum Partial { kKeySum, kValueSum, kValueMin, kValueMax, kPartials };
enum Centre { kKeyCentre, kValueCentre, kValueScale, kOutputCentre, kCentres };

// Of a tile of keys. Rows behind the last key are zeros, as their values are.
struct alignas(16) KeyTile {
  float factor;  // of its integers
  int32_t keys;  // how many it has, first ones; kPseudoKeys of a tile whose columns have biases
  int32_t unused[2];
};
constexpr int32_t kPseudoKeys = 1 << 16;

// Byte offset of a row's 16-byte chunk in a tile of queries or keys: rows of head_size bytes,
// swizzled as the tensor cores know it for rows of 64 and of 128 bytes.
RAINFUSION_HOST_DEVICE constexpr int row_offset(int head_size, int row, int chunk) {
  const int key = head_size == 128 ? row & 7 : row >> 1 & 3;
  return row * head_size + ((chunk ^ key) << 4);
}

// The row and the chunk that a lane names to ldmatrix, of a 16 x 32 operand A of mma.sync (queries)
// and of two 32 x 8 operands B side by side (keys, or channels of values), whose rows begin at
// `first`.
RAINFUSION_HOST_DEVICE constexpr int lane_row_a(int first, int lane) { return first + lane % 16; }
RAINFUSION_HOST_DEVICE constexpr int lane_chunk_a(int lane) { return lane / 16; }
RAINFUSION_HOST_DEVICE constexpr int lane_row_b(int first, int lane) {
  return first + lane / 16 * 8 + lane % 8;
}
RAINFUSION_HOST_DEVICE constexpr int lane_chunk_b(int lane) { return lane / 8 % 2; }

// Values lie transposed, in steps of 32 keys that one instruction takes: head_size rows of 32
// bytes.
constexpr int kStepKeys = 32;

// Where in a step the value of its key `column` stands. A thread of the tensor cores holds columns
// 2t and 2t + 1 of every 8 scores, and gives four neighbouring places of every 16 to the next
// product: so places take the columns in the order in which threads have them, and probabilities
// go from one product to the next without leaving their thread.
RAINFUSION_HOST_DEVICE constexpr int place_in_step(int column) {
  const int group = column / 8;  // of scores
  const int thread = column % 8 / 2;
  return group / 2 * 16 + thread * 4 + group % 2 * 2 + column % 2;
}

// Which of a thread's 16 scores of a step stands in a byte of a register of the next product's
// operand.
RAINFUSION_HOST_DEVICE constexpr int packed_score(int reg, int byte) {
  return reg / 2 * 8 + reg % 2 * 2 + byte / 2 * 4 + byte % 2;
}

// Byte offset of a 16-byte chunk of a step's row in a tile of values, swizzled as for rows of 32
// bytes.
RAINFUSION_HOST_DEVICE constexpr int value_row_offset(int head_size, int step, int channel,
                                                      int chunk) {
  return (step * head_size + channel) * kStepKeys + ((chunk ^ (channel >> 2 & 1)) << 4);
}

// Byte offset of the value of a key and channel.
RAINFUSION_HOST_DEVICE constexpr int value_offset(int head_size, int channel, int key) {
  const int place = place_in_step(key % kStepKeys);
  return value_row_offset(head_size, key / kStepKeys, channel, place / 16) + place % 16;
}

// Integers of scores become floats by their bits: added to those of 1.5 * 2^23 they are its
// mantissa's last ones. A score of 128 products of at most 127 * 127 is below 2^22.
constexpr int32_t kScoreOriginBits = 0x4b400000;
constexpr float kScoreOrigin = 12582912.f;

// Exponentials stand for probabilities as e4m3, from 2^-9 to 448. The largest of a row's first tile
// is 2^kPeak; a thread's sum of a row's in any later one is at most kLargestSum, so that none of
// them is too large, or the row's reference moves until its largest is a power of two again and the
// largest such sum at most kUsualSum.
constexpr float kPeak = 8.f;
constexpr float kLargestSum = kLargestE4m3;
constexpr float kUsualSum = 64.f;

// Tiles of keys after which the sums of the tensor cores, which keep some 13 bits, go to float32.
constexpr int kPromotedTiles = 16;

}  // namespace rainfusion::eight_bit
