// The producer warp of the 8-bit kernel: takes query blocks from the queue and brings their tiles,
// each of which is one run of memory.
#pragma once

#include "common/key_list.cuh"
#include "common/queue.cuh"
#include "sm90/eight_bit/shared.cuh"
#include "tma/producer.cuh"
#include "tma/window_producer.cuh"

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

// The key blocks of a head that a query block may attend to: [0, leading), [first, last) and
// [last, end) of its cut; those of a mask among them, where there is one.
struct KeyBlocks {
  const uint32_t* mask;
  int leading;
  int first;
  int last;
  int end;

  // Word `word` of them, a bit a block.
  __device__ __forceinline__ uint32_t word(int word) const {
    const uint32_t allowed = below(leading, word) | (below(last, word) & ~below(first, word)) |
                             (below(end, word) & ~below(last, word));
    return allowed == 0 || mask == nullptr ? allowed : allowed & mask[word];
  }
  __device__ __forceinline__ int words() const { return (end + 31) / 32; }

 private:
  static __device__ __forceinline__ uint32_t below(int block, int word) {
    const int bits = block - word * 32;
    return bits >= 32 ? ~0u : bits <= 0 ? 0 : (1u << bits) - 1;
  }
};

template <typename Shape>
class EightBitProducer {
 public:
  using Storage = EightBitShared<Shape>;
  using Work = tma::Work;
  static constexpr int kKeys = Shape::kKeys;

  __device__ EightBitProducer(const EightBitParams& params, Storage& shared)
      : params_(params), p_(params.attention), shared_(shared) {}

  __device__ void run() {
    by_windows_ = p_.kind[0] == RAINFUSION_KIND_WINDOWS;  // all heads are, or none
    const int items = p_.batch * p_.heads * (by_windows_ ? p_.q_windows.blocks : p_.q_cut.blocks);
    int upcoming = leads() ? take_item(p_.next_item) : 0;
    for (;;) {
      const int item = __shfl_sync(0xffffffffu, upcoming, 0);
      if (item >= items) break;
      if (leads()) upcoming = take_item(p_.next_item);
      if (by_windows_) {
        attend_window(item);
      } else {
        attend_block(item);
      }
    }
    if (leads()) publish({Work::kEnd}, 0);
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  __device__ void attend_block(int item) {
    const tma::QueryBlock q(p_, item);
    const int begin = p_.q_cut.begin(q.block);
    const KeyList keys(p_, q.batch, q.head, q.block, begin, q.sink);
    const int blocks = p_.k_cut.blocks_below(keys.limit);
    bring({0, q.batch, q.head, begin, p_.q_cut.end(q.block) - begin}, q.block,
          {keys.mask, 0, 0, blocks, blocks}, 0);
  }

  __device__ void attend_window(int item) {
    const tma::WindowItem q(p_, item, false);
    const WindowCut& cut = p_.q_windows;
    const WindowCut& keys = p_.k_windows;
    const int limit = key_count(p_.kv_len, q.batch, cut.tokens);
    Work work{0, q.batch, q.head, 0, 0};
    const uint32_t* mask = nullptr;
    int stop = limit;
    if (q.window) {
      const Extents origin = cut.origin(q.block - cut.leading_sinks);
      work.begin = cut.token(origin.t, origin.h, origin.w);
      work.rows = tma::WindowRows::pack(cut.clipped(origin));
      const int64_t head = static_cast<int64_t>(q.batch) * p_.heads + q.head;
      mask = p_.masks + (head * cut.blocks + q.block) * p_.mask_words;
    } else {
      work.begin = cut.run_begin(q.block);
      work.rows = cut.run_end(q.block) - work.begin;
      if (work.begin >= limit) stop = 0;
    }
    const int last = keys.leading_sinks + keys.windows();
    const int leading = blocks_of(min(keys.free_begin, stop), keys.size);
    const int trailing = blocks_of(stop - keys.free_end, keys.size);
    const bool video = stop > keys.free_begin;
    bring(work, q.block,
          {mask, leading, keys.leading_sinks, video ? last : keys.leading_sinks,
           trailing > 0 ? last + trailing
           : video      ? last
                        : keys.leading_sinks},
          mask != nullptr && stop > 0 ? keys.windows() : 0);
  }

  static __device__ __forceinline__ int blocks_of(int tokens, int size) {
    return tokens > 0 ? (tokens + size - 1) / size : 0;
  }

  // A query block, its keys, and pseudo-keys of those of `windows` windows that its mask leaves
  // out.
  __device__ void bring(Work work, int block, const KeyBlocks& keys, int windows) {
    const int lane = threadIdx.x % 32;
    int own = 0;
    for (int word = lane; word < keys.words(); word += 32) own += __popc(keys.word(word));
    work.tiles = __reduce_add_sync(0xffffffffu, own) + blocks_of(windows, kKeys);
    if (leads()) publish(work, block);
    const int first_tile = head_of(work) * params_.k_tiles;  // below 65536 * 2 * kMaxKeyBlocks
    for (int first = 0; first < keys.words(); first += 32) {
      const uint32_t bits_of_lane = keys.word(first + lane);
      uint32_t words = __ballot_sync(0xffffffffu, bits_of_lane != 0);
      for (; words != 0; words &= words - 1) {
        const int word = __ffs(words) - 1;
        uint32_t bits = __shfl_sync(0xffffffffu, bits_of_lane, word);
        for (; bits != 0; bits &= bits - 1) {
          load(first_tile + (first + word) * 32 + __ffs(bits) - 1);
        }
      }
    }
    for (int window = 0; window < windows; window += kKeys) {
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
    const int windows = p_.k_windows.windows();
    const float* biases = p_.pseudo_bias + static_cast<int64_t>(work.batch) * windows;
    const float to_base_2 = p_.softmax_scale * kLog2E;
    float bias[kKeys / 32];
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      const int window = first + i * 32 + static_cast<int>(threadIdx.x % 32);
      const int bit = p_.k_windows.leading_sinks + window;
      const bool left = window < windows && (mask[bit / 32] >> bit % 32 & 1) == 0;
      bias[i] = left ? biases[window] * to_base_2 : -INFINITY;
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
