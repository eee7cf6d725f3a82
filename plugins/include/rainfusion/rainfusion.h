/*
 * RainFusion attention: C interface to the CUDA kernels.
 *
 * The one border between device code and everything that calls it (the TensorRT plugin, the torch
 * operator, tests). Nothing here knows TensorRT or torch; no call allocates memory, synchronises
 * with the host or reads a device value on the host, so every launch may be captured in a CUDA
 * graph. All pointers in RainfusionTensors and RainfusionPlan are device pointers.
 *
 * Terms (token classes, kinds of heads, ARM) are defined in docs/rainfusion.md.
 */
#ifndef RAINFUSION_RAINFUSION_H_
#define RAINFUSION_RAINFUSION_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RAINFUSION_API __declspec(dllexport)
#else
#define RAINFUSION_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Bumped whenever a struct or a signature below changes. */
#define RAINFUSION_ABI_VERSION 6

/* How a workspace must be aligned, in bytes. */
#define RAINFUSION_WORKSPACE_ALIGNMENT 256

/* Raised whenever some problem needs more workspace than before. What was sized under another
 * number, as a TensorRT engine is when it is built, must be refused. */
#define RAINFUSION_WORKSPACE_LAYOUT 4

/* Same layout as cudaStream_t, so that callers need no CUDA header. */
typedef struct CUstream_st* RainfusionStream;

typedef enum {
  RAINFUSION_SUCCESS = 0,
  RAINFUSION_INVALID_ARGUMENT = 1, /* shapes, attributes or pointers that do not fit together */
  RAINFUSION_UNSUPPORTED = 2,      /* a head size, dtype or GPU without a kernel */
  RAINFUSION_WORKSPACE_TOO_SMALL = 3,
  RAINFUSION_CUDA_ERROR = 4,
  RAINFUSION_COMMUNICATION_ERROR = 5 /* NCCL, or another GPU of the run: see parallel.h */
} RainfusionStatus;

typedef enum { RAINFUSION_FLOAT16 = 0, RAINFUSION_BFLOAT16 = 1 } RainfusionDtype;

/* Where the text tokens stand relative to the video tokens. */
typedef enum {
  RAINFUSION_TEXT_NONE = 0,
  RAINFUSION_TEXT_FIRST = 1,
  RAINFUSION_TEXT_LAST = 2
} RainfusionText;

typedef enum {
  RAINFUSION_METHOD_RAINFUSION = 0,
  RAINFUSION_METHOD_TWO_WAY = 1,
  RAINFUSION_METHOD_PLUS = 2,
  RAINFUSION_METHOD_RAINFUSION2 = 3,
  RAINFUSION_METHOD_PIECEWISE = 4
} RainfusionMethod;

/* Of the products q k and p v. 8BIT rounds q and k to integers, p and v to e4m3: on GPUs of compute
 * capability 8.9 and newer, for head sizes 64 and 128 and methods without textural heads. Elsewhere
 * it is RAINFUSION_UNSUPPORTED, never 16 bits. */
typedef enum { RAINFUSION_PRECISION_16BIT = 0, RAINFUSION_PRECISION_8BIT = 1 } RainfusionPrecision;

/* Values of RainfusionPlan::kind. BLOCKS is what every head of method rainfusion2 reports, WINDOWS
 * what every head of method piecewise does. */
typedef enum {
  RAINFUSION_KIND_DENSE = 0,
  RAINFUSION_KIND_SPATIAL = 1,
  RAINFUSION_KIND_TEMPORAL = 2,
  RAINFUSION_KIND_TEXTURAL = 3,
  RAINFUSION_KIND_BLOCKS = 4,
  RAINFUSION_KIND_WINDOWS = 5
} RainfusionKind;

/* Latent frames [begin, end); {0, 0} is none. */
typedef struct {
  int32_t begin;
  int32_t end;
} RainfusionFrames;

/* How many ranges of exact frames a problem may have. */
#define RAINFUSION_EXACT_RANGES 4

/* What the host knows before a launch: shapes and attributes. */
typedef struct {
  int32_t batch;
  int32_t heads;
  int32_t tokens; /* S = grid_t * grid_h * grid_w + text tokens */
  int32_t head_size;
  int32_t grid_t;
  int32_t grid_h;
  int32_t grid_w;
  int32_t sink_frames; /* first frames that every token attends to and that attend to all */
  float alpha;
  float softmax_scale; /* 0 = 1 / sqrt(head_size) */
  RainfusionText text;
  RainfusionMethod method;
  RainfusionDtype dtype;
  int32_t block_q; /* tokens in a query block, a multiple of 32 and at least 64; 0 = the default */
  int32_t block_k; /* tokens in a key block; 0 = the default of head size and precision */
  RainfusionPrecision precision;
  int32_t last_sink_frames; /* last frames that are as those of sink_frames */
  /* Frames anywhere in the clip that keep every block or window which holds one of them exact, for
   * methods without textural heads: ascending, disjoint, none behind the first {0, 0}. */
  RainfusionFrames exact_frames[RAINFUSION_EXACT_RANGES];
} RainfusionProblem;

/* Elements between neighbours; the head dimension itself is always contiguous. */
typedef struct {
  int64_t batch;
  int64_t head;
  int64_t token;
} RainfusionStrides;

typedef struct {
  const void* q; /* [batch, heads, tokens, head_size] through q_strides, 16-byte aligned rows */
  const void* k;
  const void* v;
  void* out;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  RainfusionStrides v_strides;
  RainfusionStrides out_strides;
  const float* sparsity; /* [1]; <= 0 or NaN = dense, values of 1 and more act as the largest
                            float below 1 */
  const int32_t* kv_len; /* [batch] or NULL; clamped to [0, tokens] */
  float* lse;            /* [batch, heads, tokens] natural log-sum-exp of the scaled scores, or
                            NULL; rows that attend to nothing get -infinity */
} RainfusionTensors;

/* What ARM decided, for callers that ask. Every member may be NULL. */
typedef struct {
  int32_t* kind;          /* [batch, heads] RainfusionKind */
  float* recall_temporal; /* [batch, heads]; NaN where ARM did not run */
  float* recall_spatial;  /* [batch, heads]; NaN where ARM did not run */
  float* density;         /* [batch, heads] computed pairs / (tokens * kv_len), blocks whole;
                             pseudo-keys of piecewise count as pairs */
  float* work;            /* [batch, heads] the same in whole tiles of the problem's blocks,
                             rows and columns counted that are no token */
  uint8_t* block_mask;    /* [batch, heads, q_blocks, k_blocks] 1 = computed. Textural heads: 1
                             everywhere (their cut is per key token, see density). Blocks of
                             piecewise are runs of sinks and windows. */
} RainfusionPlan;

/* ABI version of the loaded library, to be compared with RAINFUSION_ABI_VERSION. */
RAINFUSION_API int32_t rainfusion_abi_version(void);

/* RAINFUSION_WORKSPACE_LAYOUT of the loaded library. */
RAINFUSION_API int32_t rainfusion_workspace_layout(void);

/* Version and build, for example "0.1.0+3f2a9c1d sm_80 sm_90 compute_90": what is machine code (sm)
 * and what PTX (compute). Static storage. */
RAINFUSION_API const char* rainfusion_build_info(void);

/* Name of a method as the ONNX attribute spells it, NULL for what is no method: a caller that
 * counts from 0 finds them all. Static storage. */
RAINFUSION_API const char* rainfusion_method_name(RainfusionMethod method);

/* Checks shapes and attributes on the host. On failure writes a sentence that names the value and
 * the remedy into message (NUL-terminated, cut to capacity); message may be NULL. */
RAINFUSION_API RainfusionStatus rainfusion_check(const RainfusionProblem* problem, char* message,
                                                 size_t capacity);

/* Checks the head size alone, for callers who know the other sizes later. */
RAINFUSION_API RainfusionStatus rainfusion_check_head_size(int32_t head_size, char* message,
                                                           size_t capacity);

/* RAINFUSION_SUCCESS if this library holds kernels that the given compute capability runs: machine
 * code of its major version that is no newer, or PTX that is no newer. No GPU is asked. */
RAINFUSION_API RainfusionStatus rainfusion_check_device(int32_t major, int32_t minor, char* message,
                                                        size_t capacity);

/* RAINFUSION_SUCCESS if there are kernels of that precision for a compute capability; of 8 bits, if
 * this library holds them. No GPU is asked. */
RAINFUSION_API RainfusionStatus rainfusion_check_precision(RainfusionPrecision precision,
                                                           int32_t major, int32_t minor,
                                                           char* message, size_t capacity);

/* Query and key blocks (text blocks plus video blocks; for piecewise runs of sinks plus windows) of
 * a valid problem. */
RAINFUSION_API RainfusionStatus rainfusion_block_counts(const RainfusionProblem* problem,
                                                        int32_t* q_blocks, int32_t* k_blocks);

/* Workspace in bytes that rainfusion_attention and rainfusion_classify need, for any sparsity. */
RAINFUSION_API RainfusionStatus rainfusion_workspace_size(const RainfusionProblem* problem,
                                                          size_t* bytes);

/* Workspace in bytes that is enough for every valid problem with these attributes and this head
 * size whose batch, heads, tokens and grid extents are each at most these. The largest sizes need
 * not make a clip together, as those of an optimisation profile do not. */
RAINFUSION_API RainfusionStatus rainfusion_workspace_bound(const RainfusionProblem* largest,
                                                           size_t* bytes);

/* Host evaluation of the block rule, the same code the kernels run: writes 1 where block pair
 * (i, j) is kept for a dense, spatial or temporal head whose band is that of `sparsity`.
 * mask is a host pointer, [q_blocks, k_blocks]. */
RAINFUSION_API RainfusionStatus rainfusion_block_mask_host(const RainfusionProblem* problem,
                                                           RainfusionKind kind, float sparsity,
                                                           uint8_t* mask);

/* ARM and plan only. k is read, v and out are not. The workspace must be aligned to
 * RAINFUSION_WORKSPACE_ALIGNMENT; whether it is large enough is checked before the GPU is asked for
 * anything. */
RAINFUSION_API RainfusionStatus rainfusion_classify(const RainfusionProblem* problem,
                                                    const RainfusionTensors* tensors,
                                                    const RainfusionPlan* plan, void* workspace,
                                                    size_t workspace_bytes,
                                                    RainfusionStream stream);

/* ARM, plan and attention. plan may be NULL. The workspace as for rainfusion_classify. */
RAINFUSION_API RainfusionStatus rainfusion_attention(const RainfusionProblem* problem,
                                                     const RainfusionTensors* tensors,
                                                     const RainfusionPlan* plan, void* workspace,
                                                     size_t workspace_bytes,
                                                     RainfusionStream stream);

/* A short fixed sentence for a status; rainfusion_last_error says more of CUDA's and NCCL's. */
RAINFUSION_API const char* rainfusion_status_string(RainfusionStatus status);

/* What the last failing call of this thread had to say, or "". */
RAINFUSION_API const char* rainfusion_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* RAINFUSION_RAINFUSION_H_ */
