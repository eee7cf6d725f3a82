// A consumer warpgroup: half of the query rows of every query block that the producer brings.
//
// The product p v of a tile runs while the softmax of the next one is computed. The two warpgroups
// take turns at issuing products, so that one's softmax hides behind the other's.
#pragma once

#include "../query_block.cuh"
#include "params.h"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace rainfusion::sm90 {

template <typename Element, typename Shape>
class Consumer {
 public:
  static constexpr int kHeadSize = Shape::kHeadSize;
  using Storage = Shared<Shape>;
  using Queries = QueryTile<Shape>;
  using Keys = KeyTile<Shape>;
  static constexpr int kKeys = Keys::kRows;
  // Beside another team, turns would only hold warpgroups back.
  static constexpr bool kTurns = Shape::kTeams == 1;
  static constexpr int kGroupRows = kQueries / kConsumers;
  using Scores = float[kKeys / 2];  // of a thread
  using Probabilities = uint32_t[kKeys / 16][4];

  // `group`, 0 or 1, is the warpgroup's place in the team.
  __device__ Consumer(const AttentionParams& p, Storage& shared, int team, int group)
      : p_(p),
        shared_(shared),
        group_(group),
        barriers_(team * kTeamBarriers),
        scale_log2_(p.softmax_scale * kLog2E) {}

  __device__ void run() {
    if (kTurns && group_ == 1) give_turn();  // the first turn is warpgroup 0's
    for (uint32_t phase = 0;; phase ^= 1) {
      barrier_wait(shared_.q_full, phase);
      const Work work = shared_.work;
      if (work.item < 0) break;
      float o[kHeadSize / 2] = {};
      RowStatistics rows;
      if (work.tiles > 0) {
        attend(work, o, rows);
      } else {
        release(shared_.q_empty);
      }
      write(QueryBlock(p_, work.item), o, rows);
    }
  }

 private:
  __device__ void attend(const Work& work, float (&o)[kHeadSize / 2], RowStatistics& rows) {
    Scores s;
    Probabilities p;
    float factor[kRows];
    wait_full(shared_.k_full, k_, work);
    int valid = shared_.valid[k_.stage];
    start_scores(s);
    wgmma_wait<0>();
    pin_registers(s);
    release(shared_.k_empty[k_.stage]);
    k_.advance();
    if (work.tiles == 1) release(shared_.q_empty);
    if (valid < kKeys) mask_scores(s, valid);
    softmax_tile(s, rows, scale_log2_, factor);  // the accumulators are still zero
    pack_probabilities(s, p);

    for (int tile = 1; tile < work.tiles; ++tile) {
      wait_full(shared_.k_full, k_, work);
      const int next_valid = shared_.valid[k_.stage];
      take_turn();
      start_scores(s);
      wait_values(work, valid);
      start_output(o, p);
      give_turn();
      wgmma_wait<1>();
      pin_registers(s);
      release(shared_.k_empty[k_.stage]);
      k_.advance();
      if (tile + 1 == work.tiles) release(shared_.q_empty);
      valid = next_valid;
      if (valid < kKeys) mask_scores(s, valid);
      const bool moved = softmax_tile(s, rows, scale_log2_, factor);
      wgmma_wait<0>();
      pin_registers(o);
      pin_registers(s);
      release(shared_.v_empty[v_.stage]);
      v_.advance();
      if (moved) rescale(o, factor);
      pack_probabilities(s, p);
    }

    wait_values(work, valid);
    start_output(o, p);
    wgmma_wait<0>();
    pin_registers(o);
    release(shared_.v_empty[v_.stage]);
    v_.advance();
  }

  // s = q k^T of the stage at k_, running on return.
  __device__ __forceinline__ void start_scores(Scores& s) {
    constexpr int kSteps = Keys::kColumnElements / 16;
    const uint64_t q = descriptor<Queries::kRowBytes>(shared_address(shared_.q) +
                                                      group_ * kGroupRows * Queries::kRowBytes);
    const uint64_t k = descriptor<Keys::kRowBytes>(shared_address(shared_.k[k_.stage]));
    pin_registers(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadSize / 16; ++step) {
      const int column = step / kSteps;
      const uint32_t offset = step % kSteps * 32;
      multiply_keys<Element>(s, advance(q, column * Queries::kColumnBytes + offset),
                             advance(k, column * Keys::kColumnBytes + offset), step > 0);
    }
    wgmma_commit();
    pin_registers(s);
  }

  // o += p v of the stage at v_, running on return.
  __device__ __forceinline__ void start_output(float (&o)[kHeadSize / 2], const Probabilities& p) {
    const uint64_t v =
        descriptor<Keys::kRowBytes>(shared_address(shared_.v[v_.stage]), Keys::kColumnBytes);
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      multiply_values<Element>(o, p[step], advance(v, step * 16 * Keys::kRowBytes));
    }
    wgmma_commit();
    pin_registers(o);
  }

  static __device__ __forceinline__ void rescale(float (&o)[kHeadSize / 2],
                                                 const float (&factor)[kRows]) {
#pragma unroll
    for (int i = 0; i < kHeadSize / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  __device__ __forceinline__ void pack_probabilities(const Scores& s, Probabilities& p) {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[step][i] = pack<Element>(s[step * 8 + i * 2], s[step * 8 + i * 2 + 1]);
      }
    }
  }

  __device__ __forceinline__ void wait_full(Barrier (&full)[Storage::kRing],
                                            const RingPlace<Storage::kRing>& place,
                                            const Work& work) {
    barrier_wait(full[place.stage], place.phase);
    // Threads wrote it, tensor cores read it.
    if (Shape::kGathers && work.gathered) fence_async_proxy();
  }

  // Waits for the values at v_. What is no key has probability 0, which must not meet a NaN.
  __device__ __forceinline__ void wait_values(const Work& work, int valid) {
    wait_full(shared_.v_full, v_, work);
    if (valid < kKeys) {
      char* tile = shared_.v[v_.stage];
      for (int i = threadIdx.x % kGroupThreads; i < (kKeys - valid) * Keys::kChunks;
           i += kGroupThreads) {
        const int row = valid + i / Keys::kChunks;
        *reinterpret_cast<uint4*>(tile + Keys::offset(row, i % Keys::kChunks)) = uint4{};
      }
      fence_async_proxy();
      named_barrier_sync(barriers_ + kGroupBarrier + group_, kGroupThreads);
    }
  }

  // One arrival a warp, all of whose lanes and products have read what is given back.
  __device__ __forceinline__ void release(Barrier& empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
  }

  __device__ __forceinline__ void take_turn() {
    if (!kTurns) return;
    named_barrier_sync(barriers_ + kTurnBarrier + group_, kConsumers * kGroupThreads);
  }

  __device__ __forceinline__ void give_turn() {
    if (!kTurns) return;
    named_barrier_arrive(barriers_ + kTurnBarrier + (group_ ^ 1), kConsumers * kGroupThreads);
  }

  // Accumulators to out and lse. Every warp stages its own 16 rows.
  __device__ __forceinline__ void write(const QueryBlock& q, const float (&o)[kHeadSize / 2],
                                        const RowStatistics& rows) {
    const int lane = threadIdx.x % 32;
    const int warp_row = group_ * kGroupRows + threadIdx.x % kGroupThreads / 32 * 16;
    const int begin = p_.cut.begin(q.block);
    const int length = p_.cut.end(q.block) - begin;
    __syncwarp();  // the last block's rows have been read
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = warp_row + r * 8 + lane / 4;
      const float sum = quad_sum(rows.sum[r]);
      const float inverse = sum > 0.f ? 1.f / sum : 0.f;
      if (p_.lse != nullptr && lane % 4 == 0 && row < length) {
        const int64_t head = static_cast<int64_t>(q.batch) * p_.heads + q.head;
        p_.lse[head * p_.cut.tokens + begin + row] =
            sum > 0.f ? rows.maximum[r] * p_.softmax_scale + logf(sum) : -INFINITY;
      }
#pragma unroll
      for (int n = 0; n < kHeadSize / 8; ++n) {
        *reinterpret_cast<uint32_t*>(shared_.out + Queries::offset(row, n) + lane % 4 * 4) =
            pack<Element>(o[n * 4 + r * 2] * inverse, o[n * 4 + r * 2 + 1] * inverse);
      }
    }
    __syncwarp();
    const RainfusionStrides& strides = p_.out_strides;
    char* out = static_cast<char*>(p_.out) + 2 * (q.batch * strides.batch + q.head * strides.head);
#pragma unroll
    for (int i = lane; i < 16 * Queries::kChunks; i += 32) {
      const int row = warp_row + i / Queries::kChunks;
      const int chunk = i % Queries::kChunks;
      if (row < length) {
        const int64_t token = begin + row;
        *reinterpret_cast<uint4*>(out + 2 * token * strides.token + chunk * 16) =
            *reinterpret_cast<const uint4*>(shared_.out + Queries::offset(row, chunk));
      }
    }
  }

  const AttentionParams& p_;
  Storage& shared_;
  int group_;
  int barriers_;  // the team's first named barrier
  float scale_log2_;
  RingPlace<Storage::kRing> k_;
  RingPlace<Storage::kRing> v_;
};

}  // namespace rainfusion::sm90
