/*
 * RainFusion attention on several GPUs: C interface beside rainfusion.h.
 *
 * P GPUs share one sequence. Each has all heads of a part of the video's tokens, and the whole
 * text. Around attention NCCL exchanges them for all tokens of a part of the heads: heads choose
 * what they attend to one by one, so that what is computed is what one GPU computes. Tokens and
 * heads need no common divisor with P: of n things, GPU r has (n + P - 1 - r) / P in a row, so that
 * the first GPUs have one more.
 *
 * A communicator belongs to a device and to the process. It is made when a run begins and is never
 * part of an engine. Without one a GPU is alone, P = 1, and nothing is exchanged. What is enqueued
 * neither allocates nor waits, and may be captured in a CUDA graph once it has run outside of one,
 * as NCCL connects its GPUs then.
 */
#ifndef RAINFUSION_PARALLEL_H_
#define RAINFUSION_PARALLEL_H_

#include "rainfusion/rainfusion.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of what tells one communicator from another. */
#define RAINFUSION_COMMUNICATOR_ID_BYTES 128

/* Which one this GPU is, of how many. */
typedef struct {
  int32_t parts; /* P */
  int32_t rank;
} RainfusionShare;

/* ---- communicators ---- */

/* A new id, for one process to hand to all others. `nccl` is a path of libnccl.so.2 or NULL; a
 * libnccl that the process has already goes before it, and then what the linker finds. */
RAINFUSION_API RainfusionStatus rainfusion_communicator_id(const char* nccl, uint8_t* id);

/* Makes the communicator of a device of this process. Returns when all P processes have called it,
 * however long that takes; a second one for the same device is an error. */
RAINFUSION_API RainfusionStatus rainfusion_open_communicator(const char* nccl, int32_t device,
                                                             const uint8_t* id,
                                                             const RainfusionShare* share);

/* RAINFUSION_COMMUNICATION_ERROR once NCCL has noticed that a communicator is broken. */
RAINFUSION_API RainfusionStatus rainfusion_check_communicator(int32_t device);

/* Ends a communicator, after all graphs that were captured with it. `abort` ends exchanges that
 * wait for another GPU too, from any thread; what they should have brought is unspecified. An error
 * if a call of NCCL in another thread does not come back within 5 seconds. */
RAINFUSION_API RainfusionStatus rainfusion_close_communicator(int32_t device, int32_t abort);

/* That of the current device: 1 and 0 without a communicator. */
RAINFUSION_API RainfusionStatus rainfusion_current_share(RainfusionShare* share);

/* ---- attention ---- */

/* Checks a shared problem: `local` has the tokens of this GPU and the heads and the grid of all.
 * Where it is valid, `mine` (or NULL) is what this GPU attends to: its heads, all tokens. */
RAINFUSION_API RainfusionStatus rainfusion_shared_problem(const RainfusionProblem* local,
                                                          const RainfusionShare* share,
                                                          RainfusionProblem* mine, char* message,
                                                          size_t capacity);

/* Workspace in bytes of rainfusion_shared_attention. */
RAINFUSION_API RainfusionStatus rainfusion_shared_workspace_size(const RainfusionProblem* local,
                                                                 const RainfusionShare* share,
                                                                 size_t* bytes);

/* Workspace in bytes that is enough for every valid shared problem, on any GPU of any number of
 * them, whose sizes are each at most those of `largest`; its tokens are those of one GPU. */
RAINFUSION_API RainfusionStatus rainfusion_shared_workspace_bound(const RainfusionProblem* largest,
                                                                  size_t* bytes);

/* Exchange, attention, exchange. The tensors are contiguous [batch, heads, tokens, head_size] of
 * the tokens of this GPU and 16-byte aligned; `out` also serves as a buffer. kv_len counts all
 * tokens. All GPUs of the communicator of the current device must call it. */
RAINFUSION_API RainfusionStatus rainfusion_shared_attention(const RainfusionProblem* local,
                                                            const RainfusionTensors* tensors,
                                                            void* workspace, size_t workspace_bytes,
                                                            RainfusionStream stream);

/* ---- tokens before the first and behind the last block ---- */

/* A tensor [outer, tokens, row_bytes] in bytes, with the tokens of the whole video. */
typedef struct {
  int64_t outer;
  int64_t tokens;
  int64_t row_bytes;
} RainfusionRows;

/* Copies this GPU's part [outer, part_tokens, row_bytes] out of the whole. */
RAINFUSION_API RainfusionStatus rainfusion_split_tokens(const RainfusionRows* rows,
                                                        int64_t part_tokens, const void* whole,
                                                        void* part, RainfusionStream stream);

/* Puts the parts of all GPUs together, on each of them. */
RAINFUSION_API RainfusionStatus rainfusion_gather_tokens(const RainfusionRows* rows,
                                                         int64_t part_tokens, const void* part,
                                                         void* whole, RainfusionStream stream);

/* ---- the exchange on the host: the arithmetic that the kernels run, for tests ---- */

typedef enum {
  RAINFUSION_TOKENS_TO_HEADS = 0, /* before attention: `sent` to `whole`, for each of q, k, v */
  RAINFUSION_HEADS_TO_TOKENS = 1  /* behind it: `whole` to `arrived` */
} RainfusionDirection;

/* Buffers of one tensor: `tensor` and `sent` are of the size of the local tensor. */
typedef struct {
  int64_t whole;
  int64_t arrived;
} RainfusionExchangeBytes;

/* What goes to another GPU and what comes from it, in bytes of the two buffers. */
typedef struct {
  int32_t peer;
  int32_t reserved;
  int64_t sent_begin;
  int64_t sent_bytes;
  int64_t received_begin;
  int64_t received_bytes;
} RainfusionTransfer;

RAINFUSION_API RainfusionStatus rainfusion_exchange_bytes(const RainfusionProblem* local,
                                                          const RainfusionShare* share,
                                                          RainfusionExchangeBytes* bytes);

/* At most 2 * (P - 1) transfers, in the order in which NCCL gets them; the n-th that a GPU sends to
 * another one is the n-th that this one receives from it. */
RAINFUSION_API RainfusionStatus rainfusion_transfers(const RainfusionProblem* local,
                                                     const RainfusionShare* share,
                                                     RainfusionDirection direction,
                                                     RainfusionTransfer* transfers, int32_t* count);

/* Host pointers: a local tensor into what is sent and the own part of `whole`. */
RAINFUSION_API RainfusionStatus rainfusion_pack_host(const RainfusionProblem* local,
                                                     const RainfusionShare* share,
                                                     const void* tensor, void* sent, void* whole);

/* Host pointers: what arrived and the own heads of `whole` into a local tensor. */
RAINFUSION_API RainfusionStatus rainfusion_unpack_host(const RainfusionProblem* local,
                                                       const RainfusionShare* share,
                                                       const void* whole, const void* arrived,
                                                       void* tensor);

#ifdef __cplusplus
}
#endif

#endif /* RAINFUSION_PARALLEL_H_ */
