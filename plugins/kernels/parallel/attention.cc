#include "parallel/attention.h"

#include <algorithm>
#include <memory>
#include <string>

#include "boundary.h"
#include "common/element.h"
#include "common/params.h"
#include "parallel/communicator.h"
#include "parallel/copies.h"
#include "parallel/exchange.h"
#include "validate.h"
#include "workspace.h"

namespace rainfusion::parallel {
namespace {

// Where the buffers of an exchange lie in the workspace; attention's own part is behind them.
//
// q, k and v over all tokens lie one behind the other. Attention has read them when its result is
// sent, so what arrives lies over them.
struct Buffers {
  int64_t whole;      // bytes of q, of k, of v and of the output over all tokens
  int64_t output;     // begins there
  int64_t attention;  // begins there

  // For tensors over all tokens and over those of this GPU.
  Buffers(int64_t whole_bytes, int64_t arrived_bytes)
      : whole(round_up(whole_bytes)),
        output(std::max(3 * whole, round_up(arrived_bytes))),
        attention(output + whole) {}

  static int64_t round_up(int64_t bytes) {
    return ceil_div(bytes, RAINFUSION_WORKSPACE_ALIGNMENT) * RAINFUSION_WORKSPACE_ALIGNMENT;
  }
};

Buffers buffers_of(const Exchange& exchange) {
  return {exchange.whole_bytes(), exchange.arrived_bytes()};
}

// [tokens, batch, heads, head_size]
RainfusionStrides token_outermost(const RainfusionProblem& p) {
  const int64_t clip = int64_t{p.heads} * p.head_size;
  return {clip, p.head_size, clip * p.batch};
}

// A call of the C interface as a result.
Result result_of(RainfusionStatus status) {
  return status == RAINFUSION_SUCCESS ? Result{} : Result{status, last_error()};
}

Result check_tensors(const RainfusionTensors& tensors) {
  for (const void* const tensor :
       {tensors.q, tensors.k, tensors.v, static_cast<const void*>(tensors.out)}) {
    if (tensor == nullptr) return invalid("q, k, v or out is a null pointer");
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) {
      return invalid("q, k, v or out is not aligned to 16 bytes; copy it to aligned memory");
    }
  }
  return {};
}

Result check_workspace(void* workspace, size_t bytes, size_t needed) {
  if (bytes < needed) {
    return {RAINFUSION_WORKSPACE_TOO_SMALL, "the workspace has " + std::to_string(bytes) +
                                                " bytes, " + std::to_string(needed) +
                                                " are needed on this many GPUs"};
  }
  if (reinterpret_cast<uintptr_t>(workspace) % RAINFUSION_WORKSPACE_ALIGNMENT != 0) {
    return invalid("the workspace is not aligned to " +
                   std::to_string(RAINFUSION_WORKSPACE_ALIGNMENT) + " bytes");
  }
  return {};
}

// Brings q, k or v from the tokens of this GPU to its heads. `out` is written last of all, so that
// it can hold what is sent; the next tensor waits for it in the order of the stream.
Result to_heads(const Exchange& exchange, Communicator& communicator, const void* tensor,
                void* sent, void* whole, cudaStream_t stream) {
  const cudaError_t error = launch_pack(exchange, tensor, sent, whole, stream);
  if (error != cudaSuccess) return cuda_result(error, "launching the copy before an exchange");
  return communicator.transfer(exchange.transfers(RAINFUSION_TOKENS_TO_HEADS), sent, whole, stream);
}

Result exchange_and_attend(const Exchange& exchange, const RainfusionProblem& mine,
                           Communicator& communicator, const RainfusionTensors& tensors,
                           char* workspace, size_t workspace_bytes, cudaStream_t stream) {
  const Buffers buffers = buffers_of(exchange);
  char* const q = workspace;
  char* const k = q + buffers.whole;
  char* const v = k + buffers.whole;
  char* const output = workspace + buffers.output;
  Result result = to_heads(exchange, communicator, tensors.q, tensors.out, q, stream);
  if (result.ok()) result = to_heads(exchange, communicator, tensors.k, tensors.out, k, stream);
  if (result.ok()) result = to_heads(exchange, communicator, tensors.v, tensors.out, v, stream);
  if (!result.ok()) return result;

  RainfusionTensors own = tensors;
  own.q = q;
  own.k = k;
  own.v = v;
  own.out = output;
  own.lse = nullptr;
  own.q_strides = own.k_strides = own.v_strides = own.out_strides = token_outermost(mine);
  result = result_of(rainfusion_attention(&mine, &own, nullptr, workspace + buffers.attention,
                                          workspace_bytes - static_cast<size_t>(buffers.attention),
                                          stream));
  if (!result.ok()) return result;

  char* const arrived = workspace;
  result = communicator.transfer(exchange.transfers(RAINFUSION_HEADS_TO_TOKENS), output, arrived,
                                 stream);
  if (!result.ok()) return result;
  return cuda_result(launch_unpack(exchange, output, arrived, tensors.out, stream),
                     "launching the copy behind an exchange");
}

// The largest clip that P GPUs can have where none has more tokens than `largest`.
RainfusionProblem largest_of(const RainfusionProblem& largest, int32_t parts) {
  const int64_t frame = int64_t{largest.grid_h} * largest.grid_w;
  const int64_t all = int64_t{parts} * largest.tokens;
  const int64_t video =
      frame > all ? all : std::min<int64_t>(all, frame * largest.grid_t);  // without overflow
  const int64_t text = largest.text != RAINFUSION_TEXT_NONE ? largest.tokens - video / parts : 0;
  // No valid problem has more key blocks; a last one may be cut short by text.
  const int64_t most = int64_t{kMaxKeyBlocks - 1} * block_shape(largest).k;
  RainfusionProblem own = largest;
  own.heads = Parts{largest.heads, parts}.size(0);
  own.tokens = static_cast<int32_t>(std::min(most, video + text));
  return own;
}

}  // namespace

Result shared_workspace_size(const RainfusionProblem* local, const RainfusionShare* share,
                             size_t* bytes) {
  Exchange exchange{};
  RainfusionProblem mine{};
  Result result = exchange_of(local, share, &exchange, &mine);
  if (!result.ok()) return result;
  if (bytes == nullptr) return invalid("bytes is a null pointer");
  size_t attention = 0;
  result = result_of(rainfusion_workspace_size(&mine, &attention));
  const int64_t buffers = share->parts > 1 ? buffers_of(exchange).attention : 0;
  *bytes = attention + static_cast<size_t>(buffers);
  return result;
}

// With more GPUs a GPU has fewer heads. The tokens of `largest` are those of one GPU, so the clip
// may be the longer the more GPUs there are, up to the largest grid. Of all numbers with as many
// heads a GPU the largest has the longest clip.
Result shared_workspace_bound(const RainfusionProblem* largest, size_t* bytes) {
  if (largest == nullptr || bytes == nullptr) return invalid("largest or bytes is a null pointer");
  Result result = validate_grid_extents(*largest);
  if (!result.ok()) return result;
  if (largest->heads < 1 || largest->tokens < 1 || largest->batch < 1) {
    return invalid("batch, heads and tokens must be at least 1");
  }
  const int64_t row = int64_t{element_bytes(largest->dtype)} * largest->head_size * largest->batch;
  *bytes = 0;
  for (int32_t parts = 1; parts <= largest->heads; ++parts) {
    const int32_t heads = Parts{largest->heads, parts}.size(0);
    const bool more = parts < largest->heads && parts > 1;
    if (more && Parts{largest->heads, parts + 1}.size(0) == heads) continue;
    const RainfusionProblem own = largest_of(*largest, parts);
    size_t attention = 0;
    result = bound_workspace(own, &attention);
    if (!result.ok()) return result;
    const Buffers buffers(row * own.heads * own.tokens, row * largest->heads * largest->tokens);
    const int64_t exchange = parts > 1 ? buffers.attention : 0;
    *bytes = std::max(*bytes, attention + static_cast<size_t>(exchange));
  }
  return {};
}

Result shared_attention(const RainfusionProblem* local, const RainfusionTensors* tensors,
                        void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (tensors == nullptr) return invalid("tensors is a null pointer");
  std::shared_ptr<Communicator> communicator;
  Result result = current_communicator(&communicator);
  if (!result.ok()) return result;
  const RainfusionShare share =
      communicator != nullptr ? communicator->share() : RainfusionShare{1, 0};
  Exchange exchange{};
  RainfusionProblem mine{};
  result = exchange_of(local, &share, &exchange, &mine);
  if (!result.ok()) return result;
  if (communicator == nullptr) {
    return result_of(
        rainfusion_attention(local, tensors, nullptr, workspace, workspace_bytes, stream));
  }
  size_t needed = 0;
  result = shared_workspace_size(local, &share, &needed);
  if (result.ok()) result = check_workspace(workspace, workspace_bytes, needed);
  if (result.ok()) result = check_tensors(*tensors);
  if (!result.ok()) return result;
  return exchange_and_attend(exchange, mine, *communicator, *tensors, static_cast<char*>(workspace),
                             workspace_bytes, stream);
}

}  // namespace rainfusion::parallel
