// The producer warpgroup: takes query blocks from a queue and brings their tiles to shared memory.
//
// Dense rows and rows with a block mask go through the copy engine (TMA), issued by one thread.
// Textural rows lie where the table of rows says: all of a team's producer threads copy them.
#pragma once

#include "../mma.cuh"
#include "../query_block.cuh"
#include "params.h"
#include "shared.cuh"

namespace rainfusion::sm90 {

// Keys of a query block: a run [0, count) of tokens or of places in the table, or a mask's blocks.
struct KeyList {
  int count;             // of a run, or of tiles in the mask
  int limit;             // kv_len
  const uint32_t* mask;  // nullptr for a run
  bool gathered;

  __device__ KeyList(const AttentionParams& p, const QueryBlock& q)
      : count(0),
        limit(key_count(p.kv_len, q.batch, p.cut.tokens)),
        mask(nullptr),
        gathered(false) {
    // Query blocks that begin past kv_len attend to nothing: their output is not specified.
    if (p.cut.begin(q.block) >= limit) limit = 0;
    const int batch_head = q.batch * p.heads + q.head;
    const int kind = p.kind[batch_head];
    if (q.sink || kind == RAINFUSION_KIND_DENSE || limit == 0) {
      count = limit;
    } else if (kind == RAINFUSION_KIND_TEXTURAL) {
      count = p.textural_count[q.batch];
      gathered = true;
    } else {
      const int64_t row = static_cast<int64_t>(p.mask_index[batch_head]) * p.cut.blocks + q.block;
      mask = p.masks + row * p.mask_words;
    }
  }
};

// Word `lane` of the 32 mask words from `first` on, without blocks that begin at or past `blocks`.
__device__ __forceinline__ uint32_t mask_word(const uint32_t* mask, int first, int blocks) {
  const int word = first + threadIdx.x % 32;
  const int rest = blocks - word * 32;
  if (rest <= 0) return 0;
  return rest >= 32 ? mask[word] : mask[word] & ((1u << rest) - 1);
}

__device__ __forceinline__ void load_tile(const CUtensorMap& map, void* tile, Barrier& barrier,
                                          int token, const QueryBlock& q) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];\n" ::"r"(shared_address(tile)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(0), "r"(token), "r"(0), "r"(q.head),
      "r"(q.batch)
      : "memory");
}

template <typename Shape>
class Producer {
 public:
  using Storage = Shared<Shape>;
  using Layout = KeyTile<Shape>;
  static constexpr int kKeys = Layout::kRows;
  static constexpr int kRing = Storage::kRing;
  static constexpr int kThreadsPerRow = Layout::kRowChunks;
  static constexpr int kThreads = kProducerThreads<Shape>;
  static constexpr int kRowsPerPass = kThreads / kThreadsPerRow;
  static constexpr int kPasses = kKeys / kRowsPerPass;

  __device__ Producer(const Params& params, Storage& shared, int team)
      : params_(params), p_(params.attention), shared_(shared), team_(team) {}

  __device__ void run() {
    int upcoming = leads() ? atomicAdd(p_.next_item, 1) : 0;
    for (int turn = 0;; turn ^= 1) {
      if (leads()) {
        shared_.turns[turn] = {upcoming, place_};
        upcoming = atomicAdd(p_.next_item, 1);
      }
      named_barrier_sync(kProducerBarrier + team_ * kTeamBarriers, kThreads);
      const int item = shared_.turns[turn].item;
      place_ = shared_.turns[turn].place;  // the leader may have loaded tiles alone
      if (item >= params_.items) break;
      produce(item);
      __syncwarp();
    }
    if (leads()) publish({-1, 0, false}, QueryBlock(p_, 0));
  }

 private:
  __device__ __forceinline__ bool leads() const { return thread() == 0; }
  static __device__ __forceinline__ int thread() { return threadIdx.x % kThreads; }

  __device__ void produce(int item) {
    const QueryBlock q(p_, item);
    const KeyList keys(p_, q);
    if (Shape::kGathers && keys.gathered) {
      const int tiles = static_cast<int>(ceil_div(keys.count, kKeys));
      if (leads()) publish({item, tiles, true}, q);
      gather(q, keys.count);
    } else if (thread() < 32) {
      if (keys.mask == nullptr) {
        walk_run(item, q, keys);
      } else {
        walk_mask(item, q, keys);
      }
    }
  }

  // Hands the consumers their next work, and its query tile.
  __device__ void publish(Work work, const QueryBlock& q) {
    barrier_wait(shared_.q_empty, q_phase_ ^ 1);
    q_phase_ ^= 1;
    shared_.work = work;
    if (work.tiles > 0) {
      barrier_arrive_expect(shared_.q_full, QueryTile<Shape>::kBytes);
      load_tile(params_.q, shared_.q, shared_.q_full, p_.cut.begin(q.block), q);
    } else {
      barrier_arrive(shared_.q_full);
    }
  }

  __device__ void walk_run(int item, const QueryBlock& q, const KeyList& keys) {
    const int tiles = static_cast<int>(ceil_div(keys.count, kKeys));
    if (leads()) {
      publish({item, tiles, false}, q);
      for (int i = 0; i < tiles; ++i) load(q, i * kKeys, keys.count);
    }
  }

  __device__ void walk_mask(int item, const QueryBlock& q, const KeyList& keys) {
    const int blocks = p_.cut.blocks_below(keys.limit);
    int tiles = 0;
    for (int first = 0; first * 32 < blocks; first += 32) {
      tiles += __reduce_add_sync(0xffffffffu, __popc(mask_word(keys.mask, first, blocks)));
    }
    tiles *= kBlock / kKeys;
    if (leads()) publish({item, tiles, false}, q);
    for (int first = 0; first * 32 < blocks; first += 32) {
      const uint32_t own = mask_word(keys.mask, first, blocks);
      uint32_t words = __ballot_sync(0xffffffffu, own != 0);
      for (; words != 0; words &= words - 1) {
        const int word = __ffs(words) - 1;
        uint32_t bits = __shfl_sync(0xffffffffu, own, word);
        if (leads()) {
          for (; bits != 0; bits &= bits - 1) {
            const int block = (first + word) * 32 + __ffs(bits) - 1;
            const int stop = min(p_.cut.end(block), keys.limit);
#pragma unroll
            for (int part = 0; part < kBlock; part += kKeys) {
              load(q, p_.cut.begin(block) + part, stop);
            }
          }
        }
        __syncwarp();
      }
    }
  }

  // Tokens [start, stop), at most a tile, through the copy engine. The second half of a short block
  // may hold none.
  __device__ __forceinline__ void load(const QueryBlock& q, int start, int stop) {
    const int stage = place_.stage;
    barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
    shared_.valid[stage] = max(0, min(stop - start, kKeys));
    load_announced(params_.k, shared_.k[stage], shared_.k_full[stage], start, q);
    barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
    load_announced(params_.v, shared_.v[stage], shared_.v_full[stage], start, q);
    place_.advance();
  }

  __device__ __forceinline__ void load_announced(const CUtensorMap& map, void* tile, Barrier& full,
                                                 int token, const QueryBlock& q) {
    barrier_arrive_expect(full, Layout::kBytes);
    load_tile(map, tile, full, token, q);
    if constexpr (Shape::kGathers) {
      barrier_arrive(full, Storage::kFullArrivals - 1);  // for the threads that have nothing to do
    }
  }

  // Rows [0, count) of the table, through all threads. Row numbers are read a tile ahead.
  __device__ __forceinline__ void gather(const QueryBlock& q, int count) {
    const char* keys = head_rows(p_.k, p_.k_strides, q);
    const char* values = head_rows(p_.v, p_.v_strides, q);
    const uint32_t place = Layout::offset(first_row(), first_chunk());
    const auto k_stride = static_cast<uint32_t>(2 * p_.k_strides.token);
    const auto v_stride = static_cast<uint32_t>(2 * p_.v_strides.token);
    int32_t tokens[kPasses];
    read_row_numbers(tokens, 0, count);
    for (int start = 0; start < count; start += kKeys, place_.advance()) {
      const int stage = place_.stage;
      const int valid = min(count - start, kKeys);
      barrier_wait(shared_.k_empty[stage], place_.phase ^ 1);
      if (leads()) {
        shared_.valid[stage] = valid;
        barrier_arrive(shared_.k_full[stage]);
      }
      copy_rows(keys, k_stride, tokens, shared_address(shared_.k[stage]) + place, valid);
      barrier_arrive_after_copies(shared_.k_full[stage]);
      barrier_wait(shared_.v_empty[stage], place_.phase ^ 1);
      if (leads()) barrier_arrive(shared_.v_full[stage]);
      copy_rows(values, v_stride, tokens, shared_address(shared_.v[stage]) + place, valid);
      barrier_arrive_after_copies(shared_.v_full[stage]);
      read_row_numbers(tokens, start + kKeys, count);
    }
  }

  // The first of a head's rows, at this thread's first chunk.
  __device__ __forceinline__ const char* head_rows(const void* tensor,
                                                   const RainfusionStrides& strides,
                                                   const QueryBlock& q) const {
    return static_cast<const char*>(tensor) +
           2 * (q.batch * strides.batch + q.head * strides.head) + first_chunk() * 16;
  }

  __device__ __forceinline__ void read_row_numbers(int32_t (&tokens)[kPasses], int start,
                                                   int count) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int place = start + first_row() + pass * kRowsPerPass;
      tokens[pass] = place < count ? __ldg(p_.textural_rows + place) : 0;
    }
  }

  // `tile` is the place of this thread's first chunk.
  __device__ __forceinline__ void copy_rows(const char* base, uint32_t stride_bytes,
                                            const int32_t (&tokens)[kPasses], uint32_t tile,
                                            int valid) const {
    static_assert(kRowsPerPass % 8 == 0 && kThreadsPerRow == Layout::kRowChunks,
                  "the swizzle is the same in every pass");
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const char* global = base + static_cast<uint64_t>(tokens[pass]) * stride_bytes;
      const bool copied = first_row() + pass * kRowsPerPass < valid;
#pragma unroll
      for (int column = 0; column < Layout::kColumns; ++column) {
        copy_async_16(
            tile + pass * kRowsPerPass * Layout::kRowBytes + column * Layout::kColumnBytes,
            global + column * Layout::kRowBytes, copied);
      }
    }
  }

  static __device__ __forceinline__ int first_chunk() { return thread() % kThreadsPerRow; }
  static __device__ __forceinline__ int first_row() { return thread() / kThreadsPerRow; }

  const Params& params_;
  const AttentionParams& p_;
  Storage& shared_;
  int team_;
  RingPlace<kRing> place_;
  uint32_t q_phase_ = 0;
};

}  // namespace rainfusion::sm90
