// Which key tiles a CTA of the portable 8-bit kernel takes, one after the other, and their copies.
#pragma once

#include "eight_bit/work.cuh"
#include "sm89/shared.cuh"

namespace rainfusion::sm89 {

// The same in all threads: the tile of the query block's own key block, those of the others whose
// bits are set, then those of pseudo-keys.
template <typename Shape>
class KeyWalk {
 public:
  __device__ __forceinline__ KeyWalk(const EightBitParams& params, Shared<Shape>& shared)
      : params_(params), shared_(shared) {}

  // By the CTA, whose threads pass the same work. Ends with a barrier.
  static __device__ __forceinline__ void prepare(const eight_bit::QueryWork& q,
                                                 Shared<Shape>& shared) {
    if (threadIdx.x == 0) {
      shared.query = q;
      shared.begin_with_own = q.keys.begin_with_own();
    }
    for (int word = threadIdx.x; word < q.keys.words(); word += Shape::kThreads) {
      shared.words[word] = q.keys.word_without_own(word);
    }
    __syncthreads();
  }

  // Starts the copy of the next tile to a stage that is used up; false where there is none.
  __device__ __forceinline__ bool copy_next(int stage) {
    const eight_bit::QueryWork& q = shared_.query;
    if (word_ == kOwn) {
      word_ = kBeforeWords;
      if (shared_.begin_with_own) {
        copy(q.keys.own, stage);
        return true;
      }
    }
    while (bits_ == 0 && word_ + 1 < q.keys.words()) bits_ = shared_.words[++word_];
    if (bits_ != 0) {
      copy(word_ * 32 + __ffs(bits_) - 1, stage);
      bits_ &= bits_ - 1;
      return true;
    }
    if (window_ >= q.windows) return false;
    copy(params_.attention.k_windows.blocks + window_ / Shape::kKeys, stage);
    const int column = threadIdx.x;
    if (column < Shape::kKeys) {
      shared_.bias[stage][column] =
          eight_bit::pseudo_bias(params_.attention, q.keys.mask, q.work.batch, window_ + column);
    }
    window_ += Shape::kKeys;
    return true;
  }

 private:
  __device__ __forceinline__ void copy(int tile_of_head, int stage) {
    constexpr int64_t kBytes = Shape::kKeyBytes;
    const EightBit& tiles = params_.tiles;
    const Work& work = shared_.query.work;
    const int head = work.batch * params_.attention.heads + work.head;
    const int tile = head * params_.k_tiles + tile_of_head;  // below 65536 * 2 * kMaxKeyBlocks
    copy_run<kBytes, Shape::kThreads>(shared_.k[stage], tiles.k + tile * kBytes);
    copy_run<kBytes, Shape::kThreads>(shared_.v[stage], tiles.v + tile * kBytes);
    copy_run<sizeof(eight_bit::KeyTile), Shape::kThreads>(&shared_.k_tile[stage],
                                                          tiles.k_tile + tile);
  }

  static constexpr int kBeforeWords = -1;
  static constexpr int kOwn = -2;

  const EightBitParams& params_;
  Shared<Shape>& shared_;
  uint32_t bits_ = 0;  // blocks of the present word still to come
  int word_ = kOwn;
  int window_ = 0;  // the next whose pseudo-key is to come
};

}  // namespace rainfusion::sm89
