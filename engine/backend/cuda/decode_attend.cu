// Attention of one query row per sequence over pages that lie anywhere, used at any shift.
//
// The law (NUMERICS.md section 5) and what it leaves to a GPU:
//   (a) a score is one chain over dims: lane = token. K lies [dim][32 tokens], so a warp reads the
//       same dim of 32 tokens in 64 bytes without a gap, and 8 query heads use them from L1.
//   (b) the 64 lane sums of a tile of 64 indices are 64 threads; the maximum may be taken in any
//       order (only the sign of a zero or the presence of a NaN could differ, and neither reaches a
//       result: exp(+-0) = 1, and a NaN makes the row NaN).
//   (c) a number of the output is one chain over tokens: lane = dim. V lies [token][dim].
// Splits of 256 indices have states of their own, whoever computes them; so they are the grid, and
// a second kernel merges them left to right. That is flash-decoding with the cut fixed by the law.
//
// First kernel. Grid: x = split (of all sequences), y = KV head. Threads: 64 per query head of the
// group (64 to 512). Thread (h, j) owns index j of the tile in (a) and (b), dims j, j + 64, ... in
// (c). Per tile:
//   - thread 0 lists the pieces of runs that make up the tile (a page may straddle tiles, so there
//     can be up to 64, as a rule 2);
//   - for each piece whose shift differs from the piece before, all threads turn the query by it
//     into shared memory (once per split as a rule: shift 0 throughout);
//   - scores, maximum over two warps, probabilities into shared memory, then the mixing loop.
// Indices that the row must not see take part in no operation: their threads skip the chain and
// give p = +0 to the lane sum, and the mixing loop runs over visible lanes alone.
//
// Second kernel. Grid: x = sequence, y = query head; 64 threads: lane sums, and dims by 64.
//
// For 4096 tokens and 2 KV heads the first grid is 32 blocks per sequence: one sequence leaves most
// of a large GPU idle. Cutting below 256 is not allowed; more warps per tile (dims of a score
// cannot be shared, but tiles of a split can be scored ahead of their turn) is the next step when
// it matters.
//
// Rejected: a block per sequence that walks all splits (16 times fewer blocks at 4096 tokens);
// warp-wide dot products with a shuffle tree per score (another order of additions, and forbidden).
#include <cuda_runtime.h>

#include "engine/backend/cuda/decode_attend.h"
#include "engine/backend/cuda/exact.cuh"
#include "engine/backend/cuda/launch.cuh"

namespace holdfast {
namespace cuda {
namespace {

constexpr int kTile = 64;
constexpr int kSplit = 256;
constexpr int kDimsPerThread = kMaxAttendDim / kTile;

struct Piece {
  const std::byte* k;  // of this layer and head
  int slot, lane, count, shift;
};

// Walks the runs of a sequence. Only thread 0 uses it.
struct Cursor {
  const KvRun* runs;
  int run, offset;
};

struct Shared {
  Piece piece[kTile];
  int pieces;
  Cursor cursor;
  float q[kMaxGroup][kMaxAttendDim];  // turned and scaled
  float p[kMaxGroup][kTile];
  float half_max[kMaxGroup][2];
};

__device__ void ListPieces(const DecodeAttendArgs& args, int lanes, Shared& shared) {
  const size_t head = args.layer_bytes * args.layer + args.head_bytes * blockIdx.y;
  int lane = 0, n = 0;
  Cursor& at = shared.cursor;
  while (lane < lanes) {
    const KvRun run = at.runs[at.run];
    int count = run.count - at.offset;
    count = count < lanes - lane ? count : lanes - lane;
    if (count > 0) {
      shared.piece[n++] = {run.page + head, run.first + at.offset, lane, count, run.shift};
    }
    lane += count;
    at.offset += count;
    if (at.offset == run.count) at = {at.runs, at.run + 1, 0};
  }
  shared.pieces = n;
}

// The query of every head of the group, turned by table row `position` and scaled.
__device__ void TurnQuery(const DecodeAttendArgs& args, const float* q, int position,
                          Shared& shared) {
  const int group = blockDim.x / kTile, half = args.rope_dim / 2;
  const float* cos = args.rope + static_cast<int64_t>(position) * args.rope_dim;
  const float* sin = cos + half;
  for (int n = threadIdx.x; n < group * args.k_dim; n += blockDim.x) {
    const int h = n / args.k_dim, d = n % args.k_dim;
    const float* x = q + h * args.k_dim;
    float y = x[d];
    if (d < half) {
      y = __fmaf_rn(-x[d + half], sin[d], __fmul_rn(x[d], cos[d]));
    } else if (d < args.rope_dim) {
      y = __fmaf_rn(x[d - half], sin[d - half], __fmul_rn(x[d], cos[d - half]));
    }
    shared.q[h][d] = __fmul_rn(y, args.scale);
  }
}

__device__ float Score(const DecodeAttendArgs& args, const Piece& piece, int lane, const float* q) {
  const uint16_t* k =
      reinterpret_cast<const uint16_t*>(piece.k) + piece.slot + (lane - piece.lane);
  float s = 0.0f;
#pragma unroll 8
  for (int d = 0; d < args.k_dim; ++d) s = __fmaf_rn(q[d], Half(__ldg(k + d * kPageTokens)), s);
  return s;
}

// Score of this thread's index, 0 where it is not in [lo, hi). Ends with a barrier passed.
__device__ float ScoreTile(const DecodeAttendArgs& args, const float* q, int position, int lo,
                           int hi, int& turned_by, Shared& shared) {
  const int h = threadIdx.x / kTile, j = threadIdx.x % kTile;
  float s = 0.0f;
  for (int n = 0; n < shared.pieces; ++n) {
    const Piece piece = shared.piece[n];
    if (piece.lane + piece.count <= lo) continue;  // the same for all threads
    if (piece.shift != turned_by) {
      __syncthreads();  // everybody is done with the old query
      TurnQuery(args, q, position - piece.shift, shared);
      turned_by = piece.shift;
      __syncthreads();
    }
    const bool mine = j >= piece.lane && j < piece.lane + piece.count;
    if (mine && j >= lo && j < hi) s = Score(args, piece, j, shared.q[h]);
  }
  return s;
}

// max(m, scores of the visible lanes of head h).
__device__ float TileMax(float m, float s, bool visible, Shared& shared) {
  const int h = threadIdx.x / kTile, j = threadIdx.x % kTile;
  float most = visible ? s : -INFINITY;
  for (int w = 16; w > 0; w /= 2) most = Larger(most, __shfl_xor_sync(0xffffffff, most, w));
  if (j % 32 == 0) shared.half_max[h][j / 32] = most;
  __syncthreads();
  return Larger(m, Larger(shared.half_max[h][0], shared.half_max[h][1]));
}

// o[i] is dim j + 64 i. Visible lanes only, in order.
__device__ void MixTile(const DecodeAttendArgs& args, int lo, int hi, const Shared& shared,
                        float (&o)[kDimsPerThread]) {
  const int h = threadIdx.x / kTile, j = threadIdx.x % kTile;
  const size_t k_bytes = static_cast<size_t>(args.k_dim) * kPageTokens * sizeof(uint16_t);
  for (int n = 0; n < shared.pieces; ++n) {
    const Piece& piece = shared.piece[n];
    const int from = piece.lane > lo ? piece.lane : lo;
    const int end = piece.lane + piece.count, to = end < hi ? end : hi;
    const uint16_t* v = reinterpret_cast<const uint16_t*>(piece.k + k_bytes) +
                        static_cast<int64_t>(piece.slot - piece.lane) * args.v_dim + j;
    for (int lane = from; lane < to; ++lane) {
      const float p = shared.p[h][lane];
#pragma unroll
      for (int i = 0; i < kDimsPerThread; ++i) {
        if (j + kTile * i < args.v_dim) {
          o[i] = __fmaf_rn(p, Half(__ldg(v + lane * args.v_dim + kTile * i)), o[i]);
        }
      }
    }
  }
}

__device__ float* StateOf(const DecodeAttendArgs& args, int64_t split, int head) {
  return args.states + (split * args.q_heads + head) * (1 + kTile + args.v_dim);
}

__global__ void SplitKernel(const DecodeAttendArgs args) {
  __shared__ Shared shared;
  const DecodeSplit split = args.splits[blockIdx.x];
  const DecodeSequence sequence = args.sequences[split.sequence];
  const int group = blockDim.x / kTile, h = threadIdx.x / kTile, j = threadIdx.x % kTile;
  const int head = blockIdx.y * group + h;
  const int end = sequence.position + 1;
  const int begin = args.window > 0 && end > args.window ? end - args.window : 0;
  const float* q =
      args.q +
      (static_cast<int64_t>(sequence.row) * args.q_heads + blockIdx.y * group) * args.k_dim;
  if (threadIdx.x == 0) shared.cursor = {sequence.runs, split.run, split.offset};

  float m = -INFINITY, l = 0.0f, o[kDimsPerThread] = {};
  int turned_by = INT32_MIN;
  for (int tile = split.split * kSplit; tile < (split.split + 1) * kSplit && tile < end;
       tile += kTile) {
    const int hi = end - tile < kTile ? end - tile : kTile;
    const int lo = begin > tile ? begin - tile : 0;
    __syncthreads();  // the tile before is done with
    if (threadIdx.x == 0) ListPieces(args, hi, shared);
    __syncthreads();
    if (lo >= hi) continue;  // no visible index; the cursor has moved on all the same
    const float s = ScoreTile(args, q, sequence.position, lo, hi, turned_by, shared);
    const bool visible = j >= lo && j < hi;
    const float most = TileMax(m, s, visible, shared);
    const float alpha = Exp(__fsub_rn(m, most));
    const float p = visible ? Exp(__fsub_rn(s, most)) : 0.0f;
    l = __fmaf_rn(l, alpha, p);
    shared.p[h][j] = p;
    for (float& value : o) value = __fmul_rn(value, alpha);
    m = most;
    __syncthreads();
    MixTile(args, lo, hi, shared, o);
  }
  float* state = StateOf(args, blockIdx.x, head);
  if (j == 0) state[0] = m;
  state[1 + j] = l;
#pragma unroll
  for (int i = 0; i < kDimsPerThread; ++i) {
    if (j + kTile * i < args.v_dim) state[1 + kTile + j + kTile * i] = o[i];
  }
}

__global__ void __launch_bounds__(kTile) MergeKernel(const DecodeAttendArgs args) {
  __shared__ float sums[kTile];
  const DecodeSequence sequence = args.sequences[blockIdx.x];
  const int head = blockIdx.y, j = threadIdx.x;
  const int after = static_cast<int>(blockIdx.x) + 1;
  const int next =
      after < args.sequence_count ? args.sequences[after].first_split : args.split_count;
  float m = 0.0f, l = 0.0f, o[kDimsPerThread] = {};
  for (int split = sequence.first_split; split < next; ++split) {
    const float* state = StateOf(args, split, head);
    const bool first = split == sequence.first_split;
    const float most = first ? state[0] : Larger(m, state[0]);
    const float a = Exp(__fsub_rn(m, most)), b = Exp(__fsub_rn(state[0], most));
    l = first ? state[1 + j] : __fmaf_rn(l, a, __fmul_rn(state[1 + j], b));
#pragma unroll
    for (int i = 0; i < kDimsPerThread; ++i) {
      if (j + kTile * i >= args.v_dim) break;
      const float value = state[1 + kTile + j + kTile * i];
      o[i] = first ? value : __fmaf_rn(o[i], a, __fmul_rn(value, b));
    }
    m = most;
  }
  sums[j] = l;
  for (int w = kTile / 2; w > 0; w /= 2) {
    __syncthreads();
    if (j < w) sums[j] = __fadd_rn(sums[j], sums[j + w]);
  }
  __syncthreads();
  const float inv = __fdiv_rn(1.0f, sums[0]);
  float* out = args.out + (static_cast<int64_t>(sequence.row) * args.q_heads + head) * args.v_dim;
#pragma unroll
  for (int i = 0; i < kDimsPerThread; ++i) {
    if (j + kTile * i < args.v_dim) out[j + kTile * i] = __fmul_rn(o[i], inv);
  }
}

}  // namespace

Status LaunchDecodeAttend(const DecodeAttendArgs& args, CUstream_st* stream) {
  const bool dims = args.k_dim > 0 && args.k_dim <= kMaxAttendDim && args.v_dim > 0 &&
                    args.v_dim <= kMaxAttendDim && args.v_dim % kTile == 0 &&
                    args.rope_dim <= args.k_dim;
  const bool heads = args.heads > 0 && args.q_heads % args.heads == 0 &&
                     args.q_heads / args.heads <= kMaxGroup;
  if (!dims || !heads || args.sequence_count <= 0 || args.split_count < args.sequence_count) {
    return Status::Invalid("cuda decode attention: k_dim " + std::to_string(args.k_dim) +
                           ", v_dim " + std::to_string(args.v_dim) + ", " +
                           std::to_string(args.q_heads) + " heads over " +
                           std::to_string(args.heads) + ", " + std::to_string(args.split_count) +
                           " splits of " + std::to_string(args.sequence_count) + " sequences");
  }
  HOLDFAST_RETURN_IF_ERROR(Launch("decode attention", SplitKernel,
                                  dim3(args.split_count, args.heads),
                                  args.q_heads / args.heads * kTile, 0, stream, args));
  return Launch("decode attention merge", MergeKernel, dim3(args.sequence_count, args.q_heads),
                kTile, 0, stream, args);
}

}  // namespace cuda
}  // namespace holdfast
