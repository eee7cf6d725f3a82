// One forward kernel of FlashAttention-3, from its own sources, behind a C function.
//
// flash_attention.py compiles this file once for each kernel that is measured: dense attention
// without a mask, for one head size, element and cluster size, which are macros.

#include "flash_fwd_launch_template.h"
#include "tensor.h"

// q, k, v and out are tensors[0..3]; descales are of q, k and v, [batch, heads], or null in 16
// bits; lse is [batch, heads, queries]. Returns a CUDA error.
extern "C" int peer_forward(const PeerTensor* tensors, float* const* descales, float* lse,
                            int batch, int heads, int queries, int keys, float scale,
                            int multiprocessors, void* stream) {
  constexpr int kHeadSize = PEER_HEAD_SIZE;
  const PeerTensor &q = tensors[0], &k = tensors[1], &v = tensors[2], &out = tensors[3];
  Flash_fwd_params params = {};
  params.q_ptr = q.data;
  params.k_ptr = k.data;
  params.v_ptr = v.data;
  params.o_ptr = out.data;
  params.q_batch_stride = q.batch_stride;
  params.k_batch_stride = k.batch_stride;
  params.v_batch_stride = v.batch_stride;
  params.o_batch_stride = out.batch_stride;
  params.q_head_stride = q.head_stride;
  params.k_head_stride = k.head_stride;
  params.v_head_stride = v.head_stride;
  params.o_head_stride = out.head_stride;
  params.q_row_stride = q.row_stride;
  params.k_row_stride = k.row_stride;
  params.v_row_stride = v.row_stride;
  params.o_row_stride = out.row_stride;
  params.v_dim_stride = 1;
  params.q_descale_ptr = descales[0];
  params.k_descale_ptr = descales[1];
  params.v_descale_ptr = descales[2];
  params.q_descale_batch_stride = heads;
  params.k_descale_batch_stride = heads;
  params.v_descale_batch_stride = heads;
  params.q_descale_head_stride = 1;
  params.k_descale_head_stride = 1;
  params.v_descale_head_stride = 1;
  params.softmax_lse_ptr = lse;
  params.b = batch;
  params.h = params.h_k = heads;
  params.seqlen_q = queries;
  params.seqlen_k = keys;
  params.d = params.dv = kHeadSize;
  params.scale_softmax = scale;
  params.window_size_left = keys - 1;  // no window, as its own interface says it
  params.window_size_right = queries - 1;
  params.num_splits = 1;
  params.arch = 90;
  params.num_sm = multiprocessors;
  run_flash_fwd</*Arch=*/90, kHeadSize, /*kHeadDimV=*/kHeadSize, PEER_CLUSTER, PEER_ELEMENT,
                /*ElementOut=*/cutlass::bfloat16_t, /*Is_causal=*/false, /*Is_local=*/false,
                /*Has_softcap=*/false, /*Varlen=*/false, /*PagedKVNonTMA=*/false,
                /*AppendKV=*/false, /*HasQv=*/false, /*PackGQA=*/false, /*Split=*/false,
                /*V_colmajor=*/false>(params, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}
