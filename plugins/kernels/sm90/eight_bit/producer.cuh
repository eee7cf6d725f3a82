// The producer warp of the 8-bit kernel: takes query blocks from the queue and brings their tiles,
// each of which is one run of memory.
#pragma once

#include "common/queue.cuh"
#include "eight_bit/work.cuh"
#include "sm90/eight_bit/shared.cuh"

namespace rainfusion::sm90 {

// `bytes` of memory, whole chunks of 16, to shared memory; they arrive at `full`.
__device__ __forceinline__ void copy_run(const void* from, void* to, uint32_t bytes,
                                         tma::Barrier& full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&full))
      : "memory");
}

template <typename Shape>
class EightBitProducer {
 public:
  using Storage = EightBitShared<Shape>;
  using QueryWork = eight_bit::QueryWork;
  static constexpr int kKeys = Shape::kKeys;

  __device__ EightBitProducer(const EightBitParams& params, Storage& shared)
      : params_(params), p_(params.attention), shared_(shared) {}

  __device__ void run() {
    by_windows_ = p_.kind[0] == RAINFUSION_KIND_WINDOWS;  // all heads are, or none
    const int items = QueryWork::items(p_, by_windows_);
    int upcoming = leads() ? take_item(p_.next_item) : 0;
    for (;;) {
      const int item = __shfl_sync(0xffffffffu, upcoming, 0);
      if (item >= items) break;
      if (leads()) upcoming = take_item(p_.next_item);
      if (by_windows_) {
        bring(QueryWork::of_window(p_, item));
      } else {
        bring(QueryWork::of_block(p_, item));
      }
    }
    if (leads()) publish({Work::kEnd}, 0);
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  // A query block, its keys, and pseudo-keys of those windows that its mask leaves out.
  __device__ void bring(const QueryWork& q) {
    Work work = q.work;
    const eight_bit::KeyBlocks& keys = q.keys;
    const int lane = threadIdx.x % 32;
    int own = 0;
    for (int word = lane; word < keys.words(); word += 32) own += __popc(keys.word(word));
    work.tiles = __reduce_add_sync(0xffffffffu, own) + eight_bit::blocks_of(q.windows, kKeys);
    if (leads()) publish(work, q.block);
    const int first_tile = head_of(work) * params_.k_tiles;  // below 65536 * 2 * kMaxKeyBlocks
    if (keys.begin_with_own()) load(first_tile + keys.own);
    for (int first = 0; first < keys.words(); first += 32) {
      const uint32_t bits_of_lane = keys.word_without_own(first + lane);
      uint32_t words = __ballot_sync(0xffffffffu, bits_of_lane != 0);
      for (; words != 0; words &= words - 1) {
        const int word = __ffs(words) - 1;
        uint32_t bits = __shfl_sync(0xffffffffu, bits_of_lane, word);
        for (; bits != 0; bits &= bits - 1) {
          load(first_tile + (first + word) * 32 + __ffs(bits) - 1);
        }
      }
    }
    for (int window = 0; window < q.windows; window += kKeys) {
      hand_over_biases(keys.mask, window, work);
      load(first_tile + p_.k_windows.blocks + window / kKeys);
    }
  }

  __device__ __forceinline__ int head_of(const Work& work) const {
    return work.batch * p_.heads + work.head;
  }

  // Hands the consumers their next work, and its query tile.
  __device__ void publish(const Work& work, int block) {
    tma::barrier_wait(shared_.q_empty, q_phase_ ^ 1);
    q_phase_ ^= 1;
    shared_.work = work;
    if (work.tiles <= 0) {
      tma::barrier_arrive(shared_.q_full);
      return;
    }
    constexpr int kFactorBytes = sizeof(shared_.q_factor);
    const int64_t tile = static_cast<int64_t>(head_of(work)) * params_.q_tiles + block;
    tma::barrier_arrive_expect(shared_.q_full, Shape::kQueryBytes + kFactorBytes);
    copy_run(params_.tiles.q + tile * Shape::kQueryBytes, shared_.q, Shape::kQueryBytes,
             shared_.q_full);
    copy_run(params_.tiles.q_factor + tile * Shape::kQueries, shared_.q_factor, kFactorBytes,
             shared_.q_full);
  }

  // By the warp: the next tile.
  __device__ __forceinline__ void load(int tile) {
    constexpr int64_t kBytes = Shape::kKeyBytes;
    if (leads()) {
      const int stage = place_.stage;
      eight_bit::KeyTile& k_tile = shared_.k_tile[stage];
      tma::barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
      tma::barrier_arrive_expect(shared_.k_full[stage], kBytes + sizeof(k_tile));
      copy_run(params_.tiles.k + tile * kBytes, shared_.k[stage], kBytes, shared_.k_full[stage]);
      copy_run(params_.tiles.k_tile + tile, &k_tile, sizeof(k_tile), shared_.k_full[stage]);
      tma::barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
      tma::barrier_arrive_expect(shared_.v_full[stage], kBytes);
      copy_run(params_.tiles.v + tile * kBytes, shared_.v[stage], kBytes, shared_.v_full[stage]);
    }
    __syncwarp();
    place_.advance();
  }

  // By the warp: biases of the next tile, pseudo-keys of windows from `first` on.
  __device__ void hand_over_biases(const uint32_t* mask, int first, const Work& work) {
    float bias[kKeys / 32];
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      const int window = first + i * 32 + static_cast<int>(threadIdx.x % 32);
      bias[i] = eight_bit::pseudo_bias(p_, mask, work.batch, window);
    }
    tma::barrier_wait(shared_.bias_empty[bias_place_.stage], bias_place_.phase ^ 1);
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      shared_.bias[bias_place_.stage][i * 32 + threadIdx.x % 32] = bias[i];
    }
    tma::barrier_arrive(shared_.bias_full[bias_place_.stage]);
    bias_place_.advance();
  }

  const EightBitParams& params_;
  const AttentionParams& p_;
  Storage& shared_;
  tma::RingPlace<Shape::kStages> place_;
  tma::RingPlace<Storage::kBiasRing> bias_place_;
  uint32_t q_phase_ = 0;
  bool by_windows_ = false;
};

}  // namespace rainfusion::sm90
