// 8-bit attention of all heads in one launch, by mma.sync and cp.async (compute capability 8.9 and
// newer), on the tiles that Hopper's kernel takes.
//
// A CTA holds a query tile. Keys and values come a tile ahead; a warp goes on with its own 16 rows
// from the scores to the output, in registers.

#include "common/variants.h"
#include "eight_bit/output.cuh"
#include "eight_bit/scores.cuh"
#include "eight_bit/softmax.cuh"
#include "sm89/key_walk.cuh"
#include "sm89/launch.h"
#include "sm89/values.cuh"

namespace rainfusion::sm89 {
namespace {

using eight_bit::QueryWork;

// A warp's 16 query rows.
template <typename Shape>
class WarpRows {
 public:
  static constexpr int kHeadSize = Shape::kHeadSize;
  static constexpr int kKeys = Shape::kKeys;
  using Scores = float[kKeys / 2];  // of a thread

  __device__ __forceinline__ explicit WarpRows(const Shared<Shape>& shared) : shared_(shared) {}

  // First of them in the block.
  static __device__ __forceinline__ int first() {
    return static_cast<int>(threadIdx.x) / 32 * Shape::kWarpRows;
  }

  // Attends to the tile of a stage.
  __device__ __forceinline__ void attend(int stage, bool first_tile) {
    Scores s;
    multiply_queries<kHeadSize / kStepBytes>(s, stage);
    const eight_bit::KeyTile tile = shared_.k_tile[stage];
    const float* own = shared_.q_factor + first() + threadIdx.x % 32 / 4;
    const float scale[kRows] = {own[0] * tile.factor, own[8] * tile.factor};
    mask(s, stage, tile.keys, scale);
    float factor[kRows] = {1.f, 1.f};  // of what was added up before
    uint32_t p[Shape::kSteps][4];      // packed where it is computed: scores would not fit twice
    if (first_tile) {
      eight_bit::integer_softmax_from_maxima(s, rows_, scale, factor);
      eight_bit::pack_e4m3(s, p);
    } else {
      eight_bit::integer_softmax_tile(s, rows_, scale, factor, [&] {
        multiply_queries<1>(s, stage);
        mask(s, stage, tile.keys, scale);
      });
      eight_bit::pack_e4m3(s, p);
    }
    multiply_values(o_, p, shared_address(shared_.v[stage]), factor);
  }

  __device__ __forceinline__ void write(const EightBitParams& params, Work work) const {
    work.head += work.batch * params.attention.heads;
    eight_bit::write_output<typename Shape::Element>(params, work, first(), o_, rows_);
  }

 private:
  template <int kUnrolled>
  __device__ __forceinline__ void multiply_queries(Scores& s, int stage) const {
    int32_t bits[kKeys / 2];
    eight_bit::compute_warp_integer_scores<kHeadSize, kUnrolled>(
        bits, shared_address(shared_.q), shared_address(shared_.k[stage]), first());
    eight_bit::scores_as_floats(bits, s);
  }

  // Scores of what is no key become -infinity; pseudo-keys get their biases.
  __device__ __forceinline__ void mask(Scores& s, int stage, int keys,
                                       const float (&scale)[kRows]) const {
    if (keys == kKeys) return;
    if (keys == eight_bit::kPseudoKeys) {
      eight_bit::add_pseudo_biases(s, shared_.bias[stage], scale);
    } else {
      eight_bit::mask_short_tile(s, keys);
    }
  }

  const Shared<Shape>& shared_;
  float o_[kHeadSize / 2] = {};
  RowStatistics rows_;
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    eight_bit_attention_kernel(const __grid_constant__ EightBitParams params) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<Shared<Shape>*>(memory);
  const AttentionParams& p = params.attention;
  const bool by_windows = p.kind[0] == RAINFUSION_KIND_WINDOWS;  // all heads are, or none
  const int item = blockIdx.x;
  if (item >= QueryWork::items(p, by_windows)) return;
  const QueryWork q = by_windows ? QueryWork::of_window(p, item) : QueryWork::of_block(p, item);
  KeyWalk<Shape>::prepare(q, shared);
  const int64_t q_tile =
      static_cast<int64_t>(q.work.batch * p.heads + q.work.head) * params.q_tiles + q.block;
  copy_run<Shape::kQueryBytes, Shape::kThreads>(shared.q,
                                                params.tiles.q + q_tile * Shape::kQueryBytes);
  copy_run<sizeof(shared.q_factor), Shape::kThreads>(
      shared.q_factor, params.tiles.q_factor + q_tile * eight_bit::kQueries);
  KeyWalk<Shape> keys(params, shared);
  bool more = keys.copy_next(0);
  copy_async_commit();

  const bool has_rows = WarpRows<Shape>::first() < eight_bit::rows_of(q.work);
  WarpRows<Shape> rows(shared);
  int stage = 0;
  for (bool first_tile = true; more; first_tile = false) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is here; the last one is used up
    more = keys.copy_next(stage ^ 1);
    copy_async_commit();
    if (has_rows) rows.attend(stage, first_tile);
    stage ^= 1;
  }
  copy_async_wait<0>();  // without keys the query tile is still on its way
  if (has_rows) rows.write(params, shared.query.work);
}

// What a CTA may have where a multiprocessor has 100 KB, as those of 8.9 and 12.x.
constexpr int kSharedBytes = 99 * 1024;

template <typename Shape>
cudaError_t launch_shape(const EightBitParams& params, int32_t items, cudaStream_t stream) {
  static_assert(sizeof(Shared<Shape>) <= kSharedBytes, "fits every multiprocessor");
  const auto kernel = eight_bit_attention_kernel<Shape>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<Shape>));
  if (error != cudaSuccess) return error;
  kernel<<<items, Shape::kThreads, sizeof(Shared<Shape>), stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_eight_bit_attention(const Geometry& geometry, const EightBitParams& params,
                                       cudaStream_t stream) {
  const int32_t items = geometry.batch_heads() * params.q_tiles;  // at most
  return with_variant(geometry.dtype, geometry.head_size, [&](auto element, auto head_size) {
    if constexpr (eight_bit::has_head_size(head_size())) {
      return launch_shape<Shape<typename decltype(element)::Type, head_size()>>(params, items,
                                                                                stream);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

}  // namespace rainfusion::sm89
