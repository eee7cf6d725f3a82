// The producer warp: takes query blocks from a queue and brings their tiles to shared memory, each
// a copy of the copy engine (TMA) that one lane issues.
#pragma once

#include "common/key_list.cuh"
#include "common/queue.cuh"
#include "tma/copy.cuh"
#include "tma/shared.cuh"
#include "tma/tensor_map.h"

namespace rainfusion::tma {

// Word `lane` of the 32 mask words from `first` on, without bits from the `blocks`-th on.
__device__ __forceinline__ uint32_t mask_word(const uint32_t* mask, int first, int blocks) {
  const int word = first + threadIdx.x % 32;
  const int rest = blocks - word * 32;
  if (rest <= 0) return 0;
  return rest >= 32 ? mask[word] : mask[word] & ((1u << rest) - 1);
}

template <typename Shape>
class Producer {
 public:
  using Storage = Shared<Shape>;
  static constexpr int kKeys = Shape::kKeys;

  __device__ Producer(const Params& params, Storage& shared)
      : params_(params), p_(params.attention), shared_(shared) {}

  __device__ void run() {
    int upcoming = leads() ? take_item(p_.next_item) : 0;
    for (;;) {
      const int item = __shfl_sync(0xffffffffu, upcoming, 0);
      if (item >= params_.items) break;
      if (leads()) upcoming = take_item(p_.next_item);
      const QueryBlock q(p_, item);
      const int begin = p_.q_cut.begin(q.block);
      const KeyList keys(p_, q.batch, q.head, q.block, begin, q.sink);
      const Work work{0, q.batch, q.head, begin, p_.q_cut.end(q.block) - begin};
      if (keys.mask != nullptr) {
        walk_mask(work, keys);
      } else if (leads()) {
        walk_runs(work, keys);
      }
      __syncwarp();
    }
    if (leads()) publish({Work::kEnd});
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  // Hands the consumers their next work, and its query tile.
  __device__ void publish(const Work& work) {
    barrier_wait(shared_.q_empty, q_phase_ ^ 1);
    q_phase_ ^= 1;
    shared_.work = work;
    if (work.tiles > 0) {
      barrier_arrive_expect(shared_.q_full, QueryTile<Shape>::kBytes);
      copy_tile(params_.q, shared_.q, shared_.q_full, work.begin, work);
    } else {
      barrier_arrive(shared_.q_full);
    }
  }

  __device__ void walk_runs(Work work, const KeyList& keys) {
    for (int i = 0; i < KeyList::kRuns; ++i) {
      const KeyRun run = keys.run(i);
      work.tiles += (run.stop - run.start + kKeys - 1) / kKeys;
    }
    publish(work);
    for (int i = 0; i < KeyList::kRuns; ++i) {
      const KeyRun run = keys.run(i);
      const CUtensorMap& k = run.gathered ? params_.gathered_k : params_.k;
      const CUtensorMap& v = run.gathered ? params_.gathered_v : params_.v;
      for (int start = run.start; start < run.stop; start += kKeys) {
        load(k, v, start, run.stop, work);
      }
    }
  }

  __device__ void walk_mask(Work work, const KeyList& keys) {
    const int blocks = p_.k_cut.blocks_below(keys.limit);
    for (int first = 0; first * 32 < blocks; first += 32) {
      work.tiles += __reduce_add_sync(0xffffffffu, __popc(mask_word(keys.mask, first, blocks)));
    }
    if (leads()) publish(work);
    for (int first = 0; first * 32 < blocks; first += 32) {
      const uint32_t own = mask_word(keys.mask, first, blocks);
      uint32_t words = __ballot_sync(0xffffffffu, own != 0);
      for (; words != 0; words &= words - 1) {
        const int word = __ffs(words) - 1;
        uint32_t bits = __shfl_sync(0xffffffffu, own, word);
        if (leads()) {
          for (; bits != 0; bits &= bits - 1) {
            const int block = (first + word) * 32 + __ffs(bits) - 1;
            const int stop = min(p_.k_cut.end(block), keys.limit);
            load(params_.k, params_.v, p_.k_cut.begin(block), stop, work);
          }
        }
        __syncwarp();
      }
    }
  }

  // Rows [start, stop), at most a tile of them.
  __device__ __forceinline__ void load(const CUtensorMap& k, const CUtensorMap& v, int start,
                                       int stop, const Work& work) {
    const int stage = place_.stage;
    barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
    shared_.valid[stage] = min(stop - start, kKeys);
    barrier_arrive_expect(shared_.k_full[stage], KeyTile<Shape>::kBytes);
    copy_tile(k, shared_.k[stage], shared_.k_full[stage], start, work);
    barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
    barrier_arrive_expect(shared_.v_full[stage], KeyTile<Shape>::kBytes);
    copy_tile(v, shared_.v[stage], shared_.v_full[stage], start, work);
    place_.advance();
  }

  static __device__ __forceinline__ void copy_tile(const CUtensorMap& map, void* tile,
                                                   Barrier& full, int row, const Work& work) {
    copy_box_of_map(map, tile, full, 0, row, 0, work.head, work.batch);
  }

  const Params& params_;
  const AttentionParams& p_;
  Storage& shared_;
  RingPlace<Shape::kStages> place_;
  uint32_t q_phase_ = 0;
};

}  // namespace rainfusion::tma
