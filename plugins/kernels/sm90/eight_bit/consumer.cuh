// A consumer warpgroup of the 8-bit kernel: 64 rows of every query block that the producer brings,
// in the turns of sm90/consumer.cuh.
#pragma once

#include "eight_bit/output.cuh"
#include "eight_bit/scores.cuh"
#include "eight_bit/softmax.cuh"
#include "sm90/eight_bit/scores.cuh"
#include "sm90/eight_bit/shared.cuh"

namespace rainfusion::sm90 {

template <typename Shape>
class EightBitConsumer {
 public:
  using Element = typename Shape::Element;
  static constexpr int kHeadSize = Shape::kHeadSize;
  static constexpr int kKeys = Shape::kKeys;
  using Storage = EightBitShared<Shape>;
  using Integers = int32_t[kKeys / 2];  // of a thread
  using Scores = float[kKeys / 2];
  using Output = float[kHeadSize / 2];
  using Probabilities = uint32_t[Shape::kSteps][4];

  // What a key tile says of itself.
  struct Tile {
    float factor;
    int keys;
  };

  __device__ EightBitConsumer(const EightBitParams& params, Storage& shared, int group)
      : params_(params), p_(params.attention), shared_(shared), group_(group) {}

  __device__ void run() {
    if (group_ == Shape::kConsumers - 1) give_turn();  // the first turn is warpgroup 0's
    for (uint32_t phase = 0;; phase ^= 1) {
      tma::barrier_wait(shared_.q_full, phase);
      const Work work = read_work();
      if (work.tiles == Work::kEnd) break;
      if (group_ * kGroupRows >= eight_bit::rows_of(work)) {
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
      eight_bit::write_output<Element>(params_, work, warp_row(), o, rows);
    }
  }

 private:
  __device__ void attend(const Work& work, Output& o, RowStatistics& rows) {
    Integers bits;
    Scores s;
    Probabilities p;
    float factor[kRows];
    float scale[kRows];

    eight_bit::begin_scores(bits);
    Tile tile = wait_keys();
    start_scores(bits);
    find_scale(tile, scale);
    wgmma_wait<0>();
    pin_registers(bits);
    eight_bit::scores_as_floats(bits, s);
    mask(s, tile, scale);
    release_keys();
    if (work.tiles == 1) release(shared_.q_empty);
    eight_bit::integer_softmax_from_maxima(s, rows, scale,
                                           factor);  // the accumulators are still zero
    release_bias(tile);
    eight_bit::pack_e4m3(s, p);

    for (int i = 1; i < work.tiles; ++i) {
      // Here no scores are in registers.
      if (i % eight_bit::kPromotedTiles == 0) promote(o, rows, i > eight_bit::kPromotedTiles);
      eight_bit::begin_scores(bits);
      tile = wait_keys();
      take_turn();
      start_scores(bits);
      wait_values();
      start_output(o, p);
      give_turn();
      find_scale(tile, scale);
      wgmma_wait<1>();
      pin_registers(bits);
      eight_bit::scores_as_floats(bits, s);
      mask(s, tile, scale);
      const bool moved = eight_bit::integer_softmax_tile(s, rows, scale, factor,
                                                         [&] { compute_scores(s, tile, scale); });
      release_bias(tile);
      release_keys();  // not before: the scores may have been computed again
      if (i + 1 == work.tiles) release(shared_.q_empty);
      wgmma_wait<0>();
      pin_registers(o);
      pin_registers(s);
      release_values();
      if (moved) rescale(o, factor);
      eight_bit::pack_e4m3(s, p);
    }

    wait_values();
    start_output(o, p);
    wgmma_wait<0>();
    pin_registers(o);
    release_values();
    if (work.tiles > eight_bit::kPromotedTiles) add_promoted(o, rows);
  }

  // A short block has no rows for this warpgroup: its tiles and its turns pass it by.
  __device__ void stand_by(const Work& work) {
    release(shared_.q_empty);
#pragma unroll 1
    for (int i = 0; i < work.tiles; ++i) {
      release_bias(wait_keys());
      release_keys();
      if (i > 0) {
        take_turn();
        give_turn();
      }
      wait_values();
      release_values();
    }
  }

  // s += q k^T of the stage at k_, running on return.
  __device__ __forceinline__ void start_scores(Integers& s) {
    const uint32_t q = shared_address(shared_.q) + group_ * kGroupRows * kHeadSize;
    start_integer_scores<kHeadSize>(s, q, shared_address(shared_.k[k_.stage]));
  }

  // What the scores of a tile are multiplied by. Factors of queries are read anew for each: there
  // is no register to keep them in.
  __device__ __forceinline__ void find_scale(const Tile& tile, float (&scale)[kRows]) const {
    const float* own = shared_.q_factor + warp_row() + threadIdx.x % 32 / 4;
#pragma unroll
    for (int r = 0; r < kRows; ++r) scale[r] = own[r * 8] * tile.factor;
  }

  // The same, masked, by one warp for its own rows.
  __device__ __forceinline__ void compute_scores(Scores& s, const Tile& tile,
                                                 const float (&scale)[kRows]) {
    Integers bits;
    eight_bit::compute_warp_integer_scores<kHeadSize, 1>(
        bits, shared_address(shared_.q), shared_address(shared_.k[k_.stage]), warp_row());
    tma::fence_async_proxy();  // the copy engine writes over what was read here
    eight_bit::scores_as_floats(bits, s);
    mask(s, tile, scale);
  }

  // Scores of what is no key become -infinity; pseudo-keys get their biases, in units of scores.
  __device__ __forceinline__ void mask(Scores& s, const Tile& tile, const float (&scale)[kRows]) {
    if (tile.keys == kKeys) return;
    if (tile.keys == eight_bit::kPseudoKeys) {
      tma::barrier_wait(shared_.bias_full[bias_.stage], bias_.phase);
      eight_bit::add_pseudo_biases(s, shared_.bias[bias_.stage], scale);
    } else {
      eight_bit::mask_short_tile(s, tile.keys);
    }
  }

  // o += p v of the stage at v_, running on return.
  __device__ __forceinline__ void start_output(Output& o, const Probabilities& p) {
    constexpr int kStepBytes = kHeadSize * eight_bit::kStepKeys;
    const uint64_t v = descriptor<eight_bit::kStepKeys>(shared_address(shared_.v[v_.stage]));
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Shape::kSteps; ++step) {
      multiply_e4m3_values(o, p[step], advance(v, step * kStepBytes));
    }
    wgmma_commit();
    pin_registers(o);
  }

  static __device__ __forceinline__ void rescale(Output& o, const float (&factor)[kRows]) {
#pragma unroll
    for (int i = 0; i < kHeadSize / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  // Place of a thread's sums o[4 n] to o[4 n + 3] in shared memory; and of their references.
  __device__ __forceinline__ uint32_t sums_address(int n) const {
    return shared_address(&shared_.sums[n][group_ * kGroupThreads + threadIdx.x % kGroupThreads]);
  }
  __device__ __forceinline__ float2& references() {
    return shared_.references[group_ * kGroupThreads + threadIdx.x % kGroupThreads];
  }

  // The sums of the last tiles join those in shared memory, in float32, and begin anew.
  __device__ __forceinline__ void promote(Output& o, const RowStatistics& rows, bool again) {
    if (again) add_promoted(o, rows);
#pragma unroll
    for (int n = 0; n < kHeadSize / 8; ++n) {
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(sums_address(n)),
                   "f"(o[n * 4]), "f"(o[n * 4 + 1]), "f"(o[n * 4 + 2]), "f"(o[n * 4 + 3])
                   : "memory");
    }
#pragma unroll
    for (float& sum : o) sum = 0.f;
    references() = make_float2(rows.reference[0], rows.reference[1]);
  }

  __device__ __forceinline__ void add_promoted(Output& o, const RowStatistics& rows) {
    const float2 then = references();
    const float factor[kRows] = {exp2_fast(then.x - rows.reference[0]),
                                 exp2_fast(then.y - rows.reference[1])};
#pragma unroll
    for (int n = 0; n < kHeadSize / 8; ++n) {  // one after the other: they come into few registers
      asm volatile(
          "{\n"
          ".reg .f32 a, b, c, d;\n"
          "ld.shared.v4.f32 {a, b, c, d}, [%4];\n"
          "fma.rn.f32 %0, a, %5, %0;\n"
          "fma.rn.f32 %1, b, %5, %1;\n"
          "fma.rn.f32 %2, c, %6, %2;\n"
          "fma.rn.f32 %3, d, %6, %3;\n"
          "}\n"
          : "+f"(o[n * 4]), "+f"(o[n * 4 + 1]), "+f"(o[n * 4 + 2]), "+f"(o[n * 4 + 3])
          : "r"(sums_address(n)), "f"(factor[0]), "f"(factor[1])
          : "memory");
    }
  }

  // What the producer says is read by the lane that gives its place back, for the whole warp.
  static __device__ __forceinline__ int read(const int& shared) {
    return __shfl_sync(0xffffffffu, tma::load_in_first_lane(shared), 0);
  }

  __device__ __forceinline__ Work read_work() const {
    const Work& work = shared_.work;
    const int head = read(work.batch) * p_.heads + read(work.head);  // of all batch elements
    return {read(work.tiles), 0, head, read(work.begin), read(work.rows)};
  }

  // Waits for the keys at k_, and reads what their tile says.
  __device__ __forceinline__ Tile wait_keys() const {
    tma::barrier_wait(shared_.k_full[k_.stage], k_.phase);
    Tile tile;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
                 : "=f"(tile.factor), "=r"(tile.keys)
                 : "r"(shared_address(&shared_.k_tile[k_.stage]))
                 : "memory");
    return tile;
  }

  __device__ __forceinline__ void release_keys() {
    release(shared_.k_empty[k_.stage]);
    k_.advance();
  }

  // Rows behind the last key are zeros: nothing has to be cleared.
  __device__ __forceinline__ void wait_values() const {
    tma::barrier_wait(shared_.v_full[v_.stage], v_.phase);
  }

  __device__ __forceinline__ void release_values() {
    release(shared_.v_empty[v_.stage]);
    v_.advance();
  }

  // Gives back the biases of a tile that has them.
  __device__ __forceinline__ void release_bias(const Tile& tile) {
    if (tile.keys == eight_bit::kPseudoKeys) {
      release(shared_.bias_empty[bias_.stage]);
      bias_.advance();
    }
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

  const EightBitParams& params_;
  const AttentionParams& p_;
  Storage& shared_;
  int group_;
  tma::RingPlace<Shape::kStages> k_;
  tma::RingPlace<Shape::kStages> v_;
  tma::RingPlace<Storage::kBiasRing> bias_;
};

}  // namespace rainfusion::sm90
