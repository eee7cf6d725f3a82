// A consumer warpgroup: 64 rows of every query block that the producer brings.
//
// The product p v of a tile runs while the softmax of the next one is computed. The warpgroups take
// turns at issuing products, so that the softmax of one hides behind the products of the others.
#pragma once

#include "common/params.h"
#include "sm90/kernel_shape.cuh"
#include "sm90/scores.cuh"
#include "sm90/softmax.cuh"
#include "tma/shared.cuh"

namespace rainfusion::sm90 {

template <typename Shape>
class Consumer {
 public:
  using Element = typename Shape::Element;
  static constexpr int kHeadSize = Shape::kHeadSize;
  static constexpr int kKeys = Shape::kKeys;
  static constexpr int kStepKeys = ElementTraits<Element>::kPerStep;
  using Storage = tma::Shared<Shape>;
  using Queries = tma::QueryTile<Shape>;
  using Keys = tma::KeyTile<Shape>;
  using Scores = float[kKeys / 2];  // of a thread
  using Output = float[kHeadSize / 2];
  using Probabilities = uint32_t[kKeys / kStepKeys][4];

  __device__ Consumer(const AttentionParams& p, Storage& shared, int group)
      : p_(p), shared_(shared), group_(group), scale_log2_(p.softmax_scale * kLog2E) {}

  __device__ void run() {
    if (group_ == Shape::kConsumers - 1) give_turn();  // the first turn is warpgroup 0's
    for (uint32_t phase = 0;; phase ^= 1) {
      tma::barrier_wait(shared_.q_full, phase);
      const Work work = read_work();
      if (work.tiles == Work::kEnd) break;
      if (group_ * kGroupRows >= rows_of(work)) {
        stand_by(work);
        continue;
      }
      Output o = {};
      RowStatistics rows;
      if (work.tiles > 0) {
        attend(work, o, rows);
      } else {
        release(shared_.q_empty);
      }
      write(work, o, rows);
    }
  }

 private:
  __device__ void attend(const Work& work, Output& o, RowStatistics& rows) {
    Scores s;
    Probabilities p;
    float factor[kRows];
    int valid = wait_keys();
    start_scores(s);
    wgmma_wait<0>();
    pin_registers(s);
    if constexpr (Shape::kWindows) mask(s, valid);
    release_keys();
    if (work.tiles == 1) release(shared_.q_empty);
    if constexpr (!Shape::kWindows) mask(s, valid);
    softmax_from_maxima(s, rows, scale_log2_, factor);  // the accumulators are still zero
    pack_probabilities(s, p);

    for (int tile = 1; tile < work.tiles; ++tile) {
      const int next_valid = wait_keys();
      take_turn();
      start_scores(s);
      wait_values(valid);
      start_output(o, p);
      give_turn();
      wgmma_wait<1>();
      pin_registers(s);
      valid = next_valid;
      mask(s, valid);
      const bool moved =
          softmax_tile(s, rows, scale_log2_, factor, [&] { compute_scores(s, valid); });
      release_keys();  // not before: the scores may have been computed again
      if (tile + 1 == work.tiles) release(shared_.q_empty);
      wgmma_wait<0>();
      pin_registers(o);
      pin_registers(s);
      release_values();
      if (moved) rescale(o, factor);
      pack_probabilities(s, p);
    }

    wait_values(valid);
    start_output(o, p);
    wgmma_wait<0>();
    pin_registers(o);
    release_values();
  }

  // A short block has no rows for this warpgroup: its tiles and its turns pass it by.
  __device__ void stand_by(const Work& work) {
    release(shared_.q_empty);
    for (int tile = 0; tile < work.tiles; ++tile) {
      release_bias(wait_keys());
      release_keys();
      if (tile > 0) {
        take_turn();
        give_turn();
      }
      tma::barrier_wait(shared_.v_full[v_.stage], v_.phase);
      release_values();
    }
  }

  // s = q k^T of the stage at k_, running on return.
  __device__ __forceinline__ void start_scores(Scores& s) {
    const uint32_t q = shared_address(shared_.q) + group_ * kGroupRows * Queries::kRowBytes;
    sm90::start_scores<Element, Queries, Keys>(s, q, shared_address(shared_.k[k_.stage]));
  }

  // The same, masked, by one warp for its own rows.
  __device__ __forceinline__ void compute_scores(Scores& s, int valid) {
    compute_warp_scores<Element, Queries, Keys>(s, shared_address(shared_.q),
                                                shared_address(shared_.k[k_.stage]), warp_row());
    tma::fence_async_proxy();  // the copy engine writes over what was read here
    mask(s, valid);
  }

  // Scores of what is no key become -infinity, and the bias of the tile is added.
  __device__ __forceinline__ void mask(Scores& s, int valid) {
    if constexpr (Shape::kWindows) {
      if (valid == kKeys) return;
      const int keys = valid & tma::kTileKeys;
      if (valid & tma::kTileBias) {
        tma::barrier_wait(shared_.bias_full[bias_.stage], bias_.phase);
        if (valid & tma::kTileNan) {
          replace_biased(s, shared_.bias[bias_.stage]);
        } else {
          add_biases(s, shared_.bias[bias_.stage]);
        }
      } else if (keys == kKeys - 8) {  // what windows usually leave free of a tile
#pragma unroll
        for (int i = kKeys / 2 - 4; i < kKeys / 2; ++i) s[i] = -INFINITY;
      } else {
        mask_scores(s, keys);
      }
    } else {
      if (valid < kKeys) mask_scores(s, valid);
    }
  }

  // o += p v of the stage at v_, running on return.
  __device__ __forceinline__ void start_output(Output& o, const Probabilities& p) {
    const uint64_t v =
        descriptor<Keys::kRowBytes>(shared_address(shared_.v[v_.stage]), Keys::kColumnBytes);
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / kStepKeys; ++step) {
      multiply_values<Element>(o, p[step], advance(v, step * kStepKeys * Keys::kRowBytes));
    }
    wgmma_commit();
    pin_registers(o);
  }

  static __device__ __forceinline__ void rescale(Output& o, const float (&factor)[kRows]) {
#pragma unroll
    for (int i = 0; i < kHeadSize / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  __device__ __forceinline__ void pack_probabilities(const Scores& s, Probabilities& p) {
#pragma unroll
    for (int step = 0; step < kKeys / kStepKeys; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[step][i] = pack<Element>(s[step * 8 + i * 2], s[step * 8 + i * 2 + 1]);
      }
    }
  }

  // Waits for the values at v_. What is no key has probability 0, which must not meet a NaN.
  __device__ __forceinline__ void wait_values(int valid) {
    tma::barrier_wait(shared_.v_full[v_.stage], v_.phase);
    if constexpr (Shape::kWindows) {
      if (valid == kKeys) return;  // one jump for all that is rare
      if ((valid & (tma::kTileBias | tma::kTileClean)) == tma::kTileClean) return;
      release_bias(valid);  // the softmax of the tile is done
      if (valid & tma::kTileRows) clear_values();
      if (valid & (tma::kTileRows | tma::kTileClean)) return;
    }
    if (valid < kKeys) {
      char* tile = shared_.v[v_.stage];
      for (int i = threadIdx.x % kGroupThreads; i < (kKeys - valid) * Keys::kChunks;
           i += kGroupThreads) {
        const int row = valid + i / Keys::kChunks;
        *reinterpret_cast<uint4*>(tile + Keys::offset(row, i % Keys::kChunks)) = uint4{};
      }
      tma::fence_async_proxy();
      tma::named_barrier_sync(kGroupBarrier + group_, kGroupThreads);
    }
  }

  // Clears the values of what the stage at v_ says is no key: a row a warp at a time, in loops that
  // take few registers from the one around them.
  __device__ __forceinline__ void clear_values() {
    constexpr int kWarps = kGroupThreads / 32;
    int lane;  // read here, as in compute_warp_scores
    asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
#pragma unroll 1
    for (int word = 0; word < Storage::kRowWords; ++word) {
      const int keep = read(shared_.rows[v_.stage][word]);
#pragma unroll 1
      for (int bit = threadIdx.x / 32 % kWarps; bit < 32; bit += kWarps) {
        const int row = word * 32 + bit;
        if (row < kKeys && (keep >> bit & 1) == 0 && lane < Keys::kChunks) {
          *reinterpret_cast<uint4*>(shared_.v[v_.stage] + Keys::offset(row, lane)) = uint4{};
        }
      }
    }
    tma::fence_async_proxy();
    tma::named_barrier_sync(kGroupBarrier + group_, kGroupThreads);
  }

  // What the producer says is read by the lane that gives its place back, for the whole warp.
  static __device__ __forceinline__ int read(const int& shared) {
    return __shfl_sync(0xffffffffu, tma::load_in_first_lane(shared), 0);
  }

  __device__ __forceinline__ Work read_work() const {
    const Work& work = shared_.work;
    if constexpr (Shape::kWindows) {  // one register less: the head of all batch elements
      const int head = read(work.batch) * p_.heads + read(work.head);
      return {read(work.tiles), 0, head, read(work.begin), read(work.rows)};
    }
    return {read(work.tiles), read(work.batch), read(work.head), read(work.begin), read(work.rows)};
  }

  // Waits for the keys at k_. Returns how many are valid.
  __device__ __forceinline__ int wait_keys() const {
    tma::barrier_wait(shared_.k_full[k_.stage], k_.phase);
    return read(shared_.valid[k_.stage]);
  }

  __device__ __forceinline__ void release_keys() {
    release(shared_.k_empty[k_.stage]);
    k_.advance();
  }

  // Gives back the bias of a tile that has one.
  __device__ __forceinline__ void release_bias(int valid) {
    if constexpr (Shape::kWindows) {
      if (valid & tma::kTileBias) {
        tma::barrier_arrive(shared_.bias_empty[bias_.stage]);
        bias_.advance();
      }
    }
  }

  __device__ __forceinline__ void release_values() {
    release(shared_.v_empty[v_.stage]);
    v_.advance();
  }

  // First of the warp's 16 rows in the block.
  __device__ __forceinline__ int warp_row() const {
    return group_ * kGroupRows + threadIdx.x % kGroupThreads / 32 * 16;
  }

  // One arrival a warp, all of whose lanes and products have read what is given back.
  __device__ __forceinline__ void release(tma::Barrier& empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) tma::barrier_arrive(empty);
  }

  // A turn's barrier is for the warpgroup that waits for it and the one that gives it.
  __device__ __forceinline__ void take_turn() {
    tma::named_barrier_sync(kTurnBarrier + group_, 2 * kGroupThreads);
  }

  __device__ __forceinline__ void give_turn() {
    const int next = group_ + 1 < Shape::kConsumers ? group_ + 1 : 0;
    tma::named_barrier_arrive(kTurnBarrier + next, 2 * kGroupThreads);
  }

  // Accumulators to out and lse, straight from registers.
  __device__ __forceinline__ void write(const Work& work, const Output& o,
                                        const RowStatistics& rows) {
    const int lane = threadIdx.x % 32;
    const int first_row = warp_row() + lane / 4;
    const RainfusionStrides& strides = p_.out_strides;
    constexpr int kBytes = ElementTraits<Element>::kBytes;
    static_assert(kBytes == 2, "two columns are packed into 32 bits");
    const int batch = Shape::kWindows ? work.head / p_.heads : work.batch;
    const int head_ = Shape::kWindows ? work.head % p_.heads : work.head;
    char* out =
        static_cast<char*>(p_.out) + kBytes * (batch * strides.batch + head_ * strides.head);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = quad_sum(rows.sum[r]);
      const float inverse = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
      uint2 columns[kHeadSize / 16];
#pragma unroll
      for (int n = 0; n < kHeadSize / 8; n += 2) {
        columns[n / 2] = four_columns(
            pack<Element>(o[n * 4 + r * 2] * inverse, o[n * 4 + r * 2 + 1] * inverse),
            pack<Element>(o[n * 4 + r * 2 + 4] * inverse, o[n * 4 + r * 2 + 5] * inverse));
      }
      const int64_t token = token_of(work, first_row + r * 8);
      if (token < 0) continue;
      auto* out_row = reinterpret_cast<uint2*>(out + kBytes * token * strides.token) +
                      lane % 2 * 2 + lane % 4 / 2;
#pragma unroll
      for (int n = 0; n < kHeadSize / 16; ++n) out_row[n * 4] = columns[n];
      if (p_.lse != nullptr && lane % 4 == 0) {
        const int64_t head = static_cast<int64_t>(batch) * p_.heads + head_;
        p_.lse[head * p_.q_cut.tokens + token] =
            sum > 0.f ? rows.reference[r] / kLog2E + logf(sum) : -INFINITY;
      }
    }
  }

  // Rows that may hold a token.
  __device__ __forceinline__ int rows_of(const Work& work) const {
    if constexpr (Shape::kWindows) {
      if (WindowRows::is_window(work.rows)) return p_.q_windows.box.volume();
    }
    return work.rows;
  }

  // The token in a row of the block, -1 if there is none.
  __device__ __forceinline__ int token_of(const Work& work, int row) const {
    if (row >= rows_of(work)) return -1;
    if constexpr (Shape::kWindows) {
      if (WindowRows::is_window(work.rows)) {
        const WindowCut& cut = p_.q_windows;
        const Extents at = cut.place(row);
        if (!WindowRows::hold(work.rows, at)) return -1;
        return work.begin + (at.t * cut.grid.h + at.h) * cut.grid.w + at.w;
      }
    }
    return work.begin + row;
  }

  // Lanes hold two columns of each of two neighbouring chunks of eight. Two lanes exchange theirs,
  // so that the even one has four columns of the first chunk and the odd one of the second.
  static __device__ __forceinline__ uint2 four_columns(uint32_t first, uint32_t second) {
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    return odd ? uint2{received, second} : uint2{first, received};
  }

  const AttentionParams& p_;
  Storage& shared_;
  int group_;
  float scale_log2_;
  tma::RingPlace<Shape::kStages> k_;
  tma::RingPlace<Shape::kStages> v_;
  tma::RingPlace<Shape::kStages> bias_;  // of a kernel by windows
};

}  // namespace rainfusion::sm90
