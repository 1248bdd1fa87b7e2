// Attention of single query rows (decoding) over paged KV on a CUDA device, with the bits of
// NUMERICS.md section 5. Plain C++: includable without the CUDA headers.
#pragma once

#include <cstdint>

#include "engine/backend/backend.h"

struct CUstream_st;

namespace holdfast {
namespace cuda {

inline constexpr int kMaxGroup = 8;      // query heads per KV head
inline constexpr int kMaxAttendDim = 256;  // of K and V; multiples of 64

// One sequence with one query row.
struct DecodeSequence {
  const KvRun* runs = nullptr;  // device memory; `page` of each is device memory too
  int run_count = 0;
  int position = 0;             // of the row; the runs cover 0 .. position at least
  int row = 0;                  // of q and out
  int first_split = 0;          // where its splits begin in `states` (sum over those before)
};

// A split of 256 indices of one sequence, and where its first index lies.
struct DecodeSplit {
  int sequence = 0;
  int split = 0;    // of the sequence: indices 256 * split on; has a visible index
  int run = 0;      // run that holds the split's first index
  int offset = 0;   // tokens into that run
};

struct DecodeAttendArgs {
  int layer = 0, heads = 0, q_heads = 0, k_dim = 0, v_dim = 0, window = 0;
  size_t layer_bytes = 0, head_bytes = 0;    // of LayerGroup: LayerBytes(), HeadBytes(); KV is f16
  float scale = 0;
  const float* rope = nullptr;               // table rows [*][rope_dim]: cosines, then sines
  int rope_dim = 0;
  const float* q = nullptr;                  // [*][q_heads][k_dim], not turned
  float* out = nullptr;                      // [*][q_heads][v_dim]
  const DecodeSequence* sequences = nullptr;
  int sequence_count = 0;
  const DecodeSplit* splits = nullptr;       // of all sequences, in order; ascending inside each
  int split_count = 0;
  float* states = nullptr;                   // [split_count][q_heads][1 + 64 + v_dim] scratch
};

// Queues both kernels on `stream`. kInvalid for shapes that they can't take; kUnavailable with the
// driver's words when a launch fails. All pointers are device memory and stay valid until they ran.
Status LaunchDecodeAttend(const DecodeAttendArgs& args, CUstream_st* stream);

}  // namespace cuda
}  // namespace holdfast
