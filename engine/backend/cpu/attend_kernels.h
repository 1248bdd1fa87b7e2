// The kernels of attend_tile.h, written once over a vector type V that each instruction set
// supplies: the lanes of lanes_*.h (F, kWidth, Load, Store, Set, Add, Sub, Mul, Negate, Fma, Exp),
// and besides
//
//   kMaxRows       query rows whose accumulators, kCols vectors each, stay in registers
//   kPackRows      from so many query rows on, a tile of F16 is converted once for all of them
//   Load(p)        for uint16_t* too, with an exact conversion from F16
//   StoreFirst(p, x, n)   the first n lanes (n may exceed kWidth) and nothing else
//   Max(a, b)      a > b ? a : b
//   Keep(x, other, bits)  lane j is x where bit j of `bits` is set, else `other`
//   ReduceMax(x)   the greatest lane, when no lane is NaN
//   Fetch(p)       asks for the cache line of p
//   for INT8 K: PutQuery(c, q), 4 codes of a query into 8 bytes; Codes LoadCodes(p), kWidth tokens
//   x 4 dims; a vector of products is kSums of Sum, part p of which begins as NoSum(p, sum of the
//   query's codes) and goes on by Dot(p, sum, codes, q); F Total(sums), exact; kCodeRows, up to so
//   many rows the sums of kCols vectors stay in registers, else of one
//
// All work is one product, `c[r][:] += a[r][n] * b[n][:]` for n ascending, with a tile of c in
// registers: lanes of c are tokens when scoring (a = turned queries, b = K) and dims when mixing (a
// = probabilities, b = V), so each number of c is the one chain that NUMERICS.md asks for, and a
// number of b is loaded once for all query rows. Rows of `a` are 64 floats apart on purpose: then
// the rows' addresses differ by constants and need no registers.
//
// Lanes that a row does not see may be scored, since pages are read in whole vectors, but are
// replaced before anything depends on them; mixing runs over visible tokens alone.
#pragma once

#include <utility>

#include "engine/backend/cpu/attend_tile.h"
#include "engine/backend/cpu/elementwise.h"
#include "engine/backend/cpu/quantize_head.h"

namespace holdfast::attend {

constexpr int kHalf = kPageTokens;  // K is scored page by page, so a tile is two halves
static_assert(kAttendTile == 2 * kHalf);

enum class Sum { kFromZero, kGoOn };

struct ProductArgs {
  const float* a;      // [rows][64]
  const void* b;       // [count][b_stride]
  int64_t b_stride;    // elements
  int count;
  float* c;            // [rows][c_stride]
  int64_t c_stride;
  int64_t ahead;       // bytes from each line of b to the one to fetch
  Sum sum;
};

template <class V, class B, int R, int C>
void Product(const ProductArgs& args) {
  using F = typename V::F;
  constexpr int L = V::kWidth;
  const int64_t c_stride = args.c_stride, b_stride = args.b_stride, ahead = args.ahead;
  const float* a = args.a;
  const B* b = static_cast<const B*>(args.b);
  float* out = args.c;
  F acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) acc[r][c] = V::Set(0.0f);
  }
  if (args.sum == Sum::kGoOn) {
    const float* from = out;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r, from += c_stride) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::Load(from + c * L);
    }
  }
  for (int n = args.count; n > 0; --n) {
    F x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) x[c] = V::Load(b + c * L);
#pragma GCC unroll 2
    for (size_t at = 0; at < C * L * sizeof(B); at += 64) {
      V::Fetch(reinterpret_cast<const char*>(b) + ahead + at);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F y = V::Set(a[r * kAttendTile]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::Fma(y, x[c], acc[r][c]);
    }
    ++a;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r, out += c_stride) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) V::Store(out + c * L, acc[r][c]);
  }
}

using ProductFn = void (*)(const ProductArgs&);

template <class V, class B, int C>
struct Products {
  template <int... R>
  static ProductFn Pick(int rows, std::integer_sequence<int, R...>) {
    static constexpr ProductFn kFns[] = {Product<V, B, R + 1, C>...};
    return kFns[rows - 1];
  }
  static ProductFn ForRows(int rows) {
    return Pick(rows, std::make_integer_sequence<int, V::kMaxRows>());
  }
};

// Columns 0..columns-1 (a multiple of 16) of the product, for up to V::kMaxRows rows.
template <class V, class B>
void ProductColumns(ProductArgs args, int rows, int columns) {
  constexpr int kWide = V::kCols * V::kWidth;
  const ProductFn wide = Products<V, B, V::kCols>::ForRows(rows);
  const B* b = static_cast<const B*>(args.b);
  float* c = args.c;
  int at = 0;
  for (; at + kWide <= columns; at += kWide) {
    args.b = b + at;
    args.c = c + at;
    wide(args);
  }
  if (at == columns) return;
  const ProductFn narrow = Products<V, B, 1>::ForRows(rows);
  for (; at < columns; at += V::kWidth) {
    args.b = b + at;
    args.c = c + at;
    narrow(args);
  }
}

template <class V>
void MultiplyInto(const ProductArgs& args, KvType type, int rows, int columns) {
  if (type == KvType::kF32) {
    ProductColumns<V, float>(args, rows, columns);
  } else {
    ProductColumns<V, uint16_t>(args, rows, columns);
  }
}

// Turned queries (NUMERICS.md section 6), times scale.

template <class V>
void TurnRow(const AttendBlock& block, const float* angle, const float* q, float* out,
             int64_t chunk_stride) {
  using F = typename V::F;
  constexpr int L = V::kWidth;
  const int half = block.rope_dim / 2;
  const float* sine = angle + half;
  const auto put = [&](int d) { return out + (d >> 6) * chunk_stride + (d & 63); };
  int i = 0;
  if (half % L == 0) {
    const F scale = V::Set(block.scale);
    for (; i < half; i += L) {
      const F x = V::Load(q + i), y = V::Load(q + half + i);
      const F cos = V::Load(angle + i), sin = V::Load(sine + i);
      V::Store(put(i), V::Mul(V::Fma(V::Negate(y), sin, V::Mul(x, cos)), scale));
      V::Store(put(half + i), V::Mul(V::Fma(x, sin, V::Mul(y, cos)), scale));
    }
  }
  for (; i < half; ++i) {
    const float x = q[i], y = q[half + i];
    *put(i) = __builtin_fmaf(-y, sine[i], x * angle[i]) * block.scale;
    *put(half + i) = __builtin_fmaf(x, sine[i], y * angle[i]) * block.scale;
  }
  for (int d = 2 * half; d < block.k_dim; ++d) *put(d) = q[d] * block.scale;
}

// Floats from row to row of turned queries. Beside INT8 K a row is its codes, then a QueryScale.
static inline int64_t RowFloats(const AttendBlock& block) {
  return block.k_type == KvType::kI8 ? block.k_dim / 2 + 4 : kAttendTile;
}

struct QueryScale {
  float scale;
  int32_t sum;  // of the codes
};

// `angle` null: zeros.
template <class V>
void TurnCodes(const AttendBlock& block, const float* angle, const float* q, float* out) {
  float turned[kMaxHeadDim] = {};
  if (angle != nullptr) TurnRow<V>(block, angle, q, turned, kAttendTile);
  MixHead(block.k_dim, turned);
  int16_t codes[kMaxHeadDim];
  QueryScale end = {};
  QuantizeHead(block.k_dim, turned, kQueryCodes, codes, &end.scale);
  end.scale = end.scale / static_cast<float>(MixBlock(block.k_dim));
  for (int d = 0; d < block.k_dim; ++d) end.sum += codes[d];
  for (int d = 0; d < block.k_dim; d += 4) V::PutQuery(codes + d, out + d / 2);
  __builtin_memcpy(out + block.k_dim / 2, &end, sizeof(end));
}

// Rows [from, to) for a run with `shift`, as [chunk][to - from][64]. A row that the table does not
// reach sees nothing of the run; it gets zeros, so that its scores, which nobody reads, cost no
// more.
template <class V>
void TurnRows(const AttendBlock& block, int shift, int from, int to, float* out) {
  const int64_t chunk_stride = int64_t{to - from} * kAttendTile;
  for (int x = from; x < to; ++x, out += RowFloats(block)) {
    const int n = x / block.group;
    const int64_t at = int64_t{block.position[n]} - shift;
    const float* q = block.q + block.row[n] * block.q_stride + (x % block.group) * block.k_dim;
    const bool reached = at >= 0 && at < block.table_rows;
    if (block.k_type == KvType::kI8) {
      TurnCodes<V>(block, reached ? block.table + at * block.rope_dim : nullptr, q, out);
      continue;
    }
    if (reached) {
      TurnRow<V>(block, block.table + at * block.rope_dim, q, out, chunk_stride);
      continue;
    }
    for (int d = 0; d < block.k_dim; ++d) out[(d >> 6) * chunk_stride + (d & 63)] = 0.0f;
  }
}

template <class V>
const float* Turned(AttendBlock& block, int shift) {
  int slot = 0;
  while (slot < block.turned_used && block.turned_shift[slot] != shift) ++slot;
  if (slot == block.turned_used) {
    slot = block.turned_next;
    if (block.turned_used < kTurnedSlots) ++block.turned_used;
    block.turned_shift[slot] = shift;
    TurnRows<V>(block, shift, 0, block.rows(), block.turned[slot]);
  }
  if (slot == block.turned_next) block.turned_next = (slot + 1) % kTurnedSlots;
  return block.turned[slot];
}

// A tile as the kernels read it.

struct HalfView {
  const void* k = nullptr;  // [k_dim][32]; null when no token lies in this half, or TileView::apart
  KvType type = KvType::kF32;
  int64_t ahead = 0;
  int first = 0, last = 0;        // pieces with lanes in this half: [first, last)
  bool one_shift = true;
  const float* turned = nullptr;  // where one_shift: the block's queries for it
};

struct VStretch {
  const void* v;  // [count][v_dim]
  int64_t ahead;
  int lane, end;
};

struct TileView {
  const KvTile* tile = nullptr;
  const KvTile* next = nullptr;
  HalfView half[2];
  bool apart = false;  // K lies across the halves and is scored piece by piece
  KvType v_type = KvType::kF32;
  int stretches = 0;
  VStretch stretch[kAttendTile];
};

// Bytes from a piece's page to that of the next tile's piece of the same number, if it has one.
static inline int64_t AheadOf(const KvTile& tile, const KvTile* next, int piece) {
  if (next == nullptr || piece >= next->pieces) return 0;
  return next->piece[piece].k - tile.piece[piece].k;
}

template <class V, class B>
void CopyToFloat(const B* from, float* to, int count) {
  for (int i = 0; i < count; i += V::kWidth) V::Store(to + i, V::Load(from + i));
}

// Gathers the lanes of one half from its pieces, as fp32. Whole vectors are copied: what is read
// beyond a piece lies in the next dim's row, or in V behind the last one, and what is written
// beyond it is overwritten by the next piece or the next dim's row (or lies in the 16 floats of
// slack).
template <class V, class B>
void PackKHalf(const AttendBlock& block, const KvTile& tile, const KvTile* next, int h,
               const HalfView& view, float* out) {
  for (int p = view.first; p < view.last; ++p) {
    const int64_t ahead = AheadOf(tile, next, p);
    const std::byte* line = tile.piece[p].k + ahead;
    const int bytes = block.k_dim * kPageTokens * static_cast<int>(sizeof(B));
    for (int at = 0; ahead != 0 && at < bytes; at += 64) V::Fetch(line + at);
  }
  for (int d = 0; d < block.k_dim; ++d, out += kHalf) {
    for (int p = view.first; p < view.last; ++p) {
      const KvPiece& piece = tile.piece[p];
      const int cut = piece.lane < h * kHalf ? h * kHalf - piece.lane : 0;
      const int to = piece.lane + cut - h * kHalf;
      const int left = piece.count - cut < kHalf - to ? piece.count - cut : kHalf - to;
      const B* from = reinterpret_cast<const B*>(piece.k) + d * kPageTokens + piece.slot + cut;
      CopyToFloat<V>(from, out + to, left);
    }
  }
}

// Few rows read K where it lies; for many it is gathered and converted once.
template <class V>
bool Gathers(const AttendBlock& block) {
  return block.rows() >= V::kPackRows;
}

template <class V>
void ViewHalf(AttendBlock& block, const KvTile& tile, const KvTile* next, int h, TileView& out) {
  HalfView& view = out.half[h];
  const int begin = h * kHalf, end = begin + kHalf;
  while (view.first < tile.pieces &&
         tile.piece[view.first].lane + tile.piece[view.first].count <= begin) {
    ++view.first;
  }
  view.last = view.first;
  while (view.last < tile.pieces && tile.piece[view.last].lane < end) {
    view.one_shift &= tile.piece[view.last].shift == tile.piece[view.first].shift;
    ++view.last;
  }
  if (view.last == view.first) return;
  const KvPiece& piece = tile.piece[view.first];
  const bool in_place = view.last - view.first == 1 && piece.lane == begin && piece.slot == 0;
  const bool gathers = block.k_type != KvType::kI8 && Gathers<V>(block);
  if (!in_place && !gathers) {
    out.apart = true;
    return;
  }
  if (view.one_shift) view.turned = Turned<V>(block, piece.shift);
  if (in_place && (block.k_type == KvType::kF32 || !gathers)) {
    view.k = piece.k;
    view.type = block.k_type;
    view.ahead = AheadOf(tile, next, view.first);
    return;
  }
  float* gathered = block.k32 + h * block.k_dim * kHalf;
  view.k = gathered;
  if (block.k_type == KvType::kF32) {
    PackKHalf<V, float>(block, tile, next, h, view, gathered);
  } else {
    PackKHalf<V, uint16_t>(block, tile, next, h, view, gathered);
  }
}

template <class V>
void ViewV(const AttendBlock& block, const KvTile& tile, const KvTile* next, TileView& view) {
  const bool convert = block.v_type == KvType::kF16 && Gathers<V>(block);
  const int64_t row_bytes = block.v_dim * static_cast<int64_t>(KvTypeBytes(block.v_type));
  view.v_type = convert ? KvType::kF32 : block.v_type;
  view.stretches = convert ? 1 : tile.pieces;
  for (int p = 0; p < tile.pieces; ++p) {
    const KvPiece& piece = tile.piece[p];
    const std::byte* v = piece.v + piece.slot * row_bytes;
    if (convert) {
      CopyToFloat<V>(reinterpret_cast<const uint16_t*>(v), block.v32 + piece.lane * block.v_dim,
                     piece.count * block.v_dim);
    } else {
      view.stretch[p] = {v, AheadOf(tile, next, p), piece.lane, piece.lane + piece.count};
    }
  }
  if (!convert) return;
  const KvPiece& last = tile.piece[tile.pieces - 1];
  view.stretch[0] = {block.v32, 0, 0, last.lane + last.count};
}

// Up to V::kMaxRows query rows of a block, and what they see of the tile.
struct RowSpan {
  int from = 0, rows = 0;
  int active = 0;  // rows that see any of the tile
  int begin = 0, end = kAttendTile;         // lanes that every row sees, if all are active
  int first = kAttendTile, last = 0;        // lanes that some row sees
  int lo[kMaxBlockRows], hi[kMaxBlockRows]; // lanes that a row sees: [lo, hi); none: lo = hi = 0
};

static inline RowSpan MakeRowSpan(const AttendBlock& block, const KvTile& tile, int from,
                                  int rows) {
  RowSpan span;
  span.from = from;
  span.rows = rows;
  int n = from / block.group, head = from % block.group;
  for (int r = 0; r < rows; ++r) {
    const int64_t p = block.position[n];
    int64_t lo = (block.window > 0 ? p + 1 - block.window : 0) - tile.begin;
    int64_t hi = p + 1 - tile.begin;
    lo = lo < 0 ? 0 : lo;
    hi = hi > kAttendTile ? kAttendTile : hi;
    const bool sees = lo < hi;
    span.lo[r] = sees ? static_cast<int>(lo) : 0;
    span.hi[r] = sees ? static_cast<int>(hi) : 0;
    if (sees) {
      ++span.active;
      if (span.lo[r] > span.begin) span.begin = span.lo[r];
      if (span.hi[r] < span.end) span.end = span.hi[r];
      if (span.lo[r] < span.first) span.first = span.lo[r];
      if (span.hi[r] > span.last) span.last = span.hi[r];
    }
    if (++head == block.group) head = 0, ++n;
  }
  return span;
}

// (a) Scores: s[r][lane].

// A page, and up to V::kMaxRows turned queries, whose chunks of 64 dims lie `chunk_stride` apart.
struct ScoreArgs {
  const void* k;
  KvType type;
  int64_t ahead;
  const float* turned;
  int64_t chunk_stride;
};

// INT8 K: C vectors of tokens for R rows; `s` is where the first of them goes.
template <class V, int R, int C>
void CodeProduct(const AttendBlock& block, const ScoreArgs& args, float* s) {
  constexpr int L = V::kWidth;
  const std::byte* k = static_cast<const std::byte*>(args.k);
  const int64_t stride = RowFloats(block), dims = block.k_dim / 4;
  const float* scale = reinterpret_cast<const float*>(k + block.k_dim * kHalf);
  constexpr int S = V::kSums;
  typename V::Sum acc[R][C * S];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    QueryScale end;
    __builtin_memcpy(&end, args.turned + r * stride + 2 * dims, sizeof(end));
#pragma GCC unroll 8
    for (int n = 0; n < C * S; ++n) acc[r][n] = V::NoSum(n % S, end.sum);
  }
  const float* q = args.turned;
  for (int64_t n = 0; n < dims; ++n, q += 2, k += 4 * kHalf) {
    typename V::Codes x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) x[c] = V::LoadCodes(k + c * 4 * L);
#pragma GCC unroll 2
    for (int at = 0; at < C * 4 * L; at += 64) V::Fetch(k + args.ahead + at);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < C * S; ++i) {
        acc[r][i] = V::Dot(i % S, acc[r][i], x[i / S], q + r * stride);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    QueryScale end;
    __builtin_memcpy(&end, args.turned + r * stride + 2 * dims, sizeof(end));
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const typename V::F d = V::Mul(V::Set(end.scale), V::Load(scale + c * L));
      V::Store(s + r * kAttendTile + c * L, V::Mul(V::Total(acc[r] + c * S), d));
    }
  }
}

using CodeProductFn = void (*)(const AttendBlock&, const ScoreArgs&, float*);

template <class V, int C, int... R>
CodeProductFn CodeProductFor(int rows, std::integer_sequence<int, R...>) {
  static constexpr CodeProductFn kFns[] = {CodeProduct<V, R + 1, C>...};
  return kFns[rows - 1];
}

// What is 4 bytes per token: codes of 4 dims, and a scale. So one step over columns serves both.
template <class V>
void ScoreCodes(const AttendBlock& block, ScoreArgs args, int rows, float* s) {
  constexpr int kWide = V::kCols * V::kWidth;
  int left = kHalf;
  const auto step = [&](CodeProductFn fn, int columns) {
    fn(block, args, s);
    args.k = static_cast<const std::byte*>(args.k) + columns * 4;
    left -= columns;
    s += columns;
  };
  if (rows <= V::kCodeRows) {
    const std::make_integer_sequence<int, V::kCodeRows> most;
    const CodeProductFn wide = CodeProductFor<V, V::kCols>(rows, most);
    while (left >= kWide) step(wide, kWide);
  }
  const std::make_integer_sequence<int, V::kMaxRows> most;
  const CodeProductFn narrow = CodeProductFor<V, 1>(rows, most);
  while (left > 0) step(narrow, V::kWidth);
}

template <class V>
void ScoreColumns(const AttendBlock& block, const ScoreArgs& args, int rows, float* s) {
  if (args.type == KvType::kI8) {
    ScoreCodes<V>(block, args, rows, s);
    return;
  }
  const int64_t row_bytes = kHalf * static_cast<int64_t>(KvTypeBytes(args.type));
  const float* turned = args.turned;
  for (int d = 0; d < block.k_dim; d += kAttendTile) {
    const int count = block.k_dim - d < kAttendTile ? block.k_dim - d : kAttendTile;
    MultiplyInto<V>({turned, static_cast<const std::byte*>(args.k) + d * row_bytes, kHalf, count, s,
                     kAttendTile, args.ahead, d == 0 ? Sum::kFromZero : Sum::kGoOn},
                    args.type, rows, kHalf);
    turned += args.chunk_stride;
  }
}

// A half gathered from runs of several shifts is scored once for each; a run's lanes are its own.
template <class V>
void ScoreSeam(const AttendBlock& block, const TileView& view, int h, const RowSpan& span,
               float* s) {
  const HalfView& half = view.half[h];
  alignas(64) float part[V::kMaxRows * kAttendTile];
  for (int p = half.first; p < half.last; ++p) {
    const KvPiece& piece = view.tile->piece[p];
    if (p == half.first || piece.shift != view.tile->piece[p - 1].shift) {
      TurnRows<V>(block, piece.shift, span.from, span.from + span.rows, block.seam);
      ScoreColumns<V>(block, {half.k, half.type, half.ahead, block.seam,
                              int64_t{span.rows} * kAttendTile},
                      span.rows, part);
    }
    const int begin = piece.lane - h * kHalf;
    const int end = begin + piece.count < kHalf ? begin + piece.count : kHalf;
    for (int r = 0; r < span.rows; ++r) {
      for (int j = begin < 0 ? 0 : begin; j < end; ++j) {
        s[r * kAttendTile + j] = part[r * kAttendTile + j];
      }
    }
  }
}

// Scores page by page where the tokens lie: a page that the tile holds to its end straight into its
// lanes (what that leaves beyond the piece, the next piece replaces), one that the tile's edge cuts
// once for both tiles. So a run at any offset costs as many products as one that begins a page.
template <class V>
void ScoreApart(AttendBlock& block, const TileView& view, const RowSpan& span, float* s) {
  CutScores* cut = block.cut + span.from;
  for (int p = 0; p < view.tile->pieces; ++p) {
    const KvPiece& piece = view.tile->piece[p];
    if (piece.lane >= span.last || piece.lane + piece.count <= span.first) continue;
    const bool whole = piece.slot == 0 && piece.lane + kHalf <= kAttendTile;
    if (whole || cut->k != piece.k || cut->shift != piece.shift) {
      const float* turned = Turned<V>(block, piece.shift) + span.from * RowFloats(block);
      ScoreColumns<V>(block, {piece.k, block.k_type, AheadOf(*view.tile, view.next, p), turned,
                              int64_t{block.rows()} * kAttendTile},
                      span.rows, whole ? s + piece.lane : cut->score);
    }
    if (whole) continue;
    cut->k = piece.k;
    cut->shift = piece.shift;
    for (int r = 0; r < span.rows; ++r) {
      const float* from = cut[r].score + piece.slot;
      for (int j = 0; j < piece.count; j += V::kWidth) {
        V::StoreFirst(s + r * kAttendTile + piece.lane + j, V::Load(from + j), piece.count - j);
      }
    }
  }
}

template <class V>
void Score(AttendBlock& block, const TileView& view, const RowSpan& span, float* s) {
  if (view.apart) {
    ScoreApart<V>(block, view, span, s);
    return;
  }
  for (int h = 0; h < 2; ++h) {
    const HalfView& half = view.half[h];
    if (span.first >= (h + 1) * kHalf || span.last <= h * kHalf) continue;
    if (half.one_shift) {
      ScoreColumns<V>(block, {half.k, half.type, half.ahead,
                              half.turned + span.from * RowFloats(block),
                              int64_t{block.rows()} * kAttendTile},
                      span.rows, s + h * kHalf);
    } else {
      ScoreSeam<V>(block, view, h, span, s + h * kHalf);
    }
  }
}

// (b) Softmax over the tile: s becomes p.

static inline uint64_t LaneBits(int lo, int hi) {  // 0 <= lo < hi <= 64
  return ~uint64_t{0} >> (kAttendTile - hi) & ~uint64_t{0} << lo;
}

static inline float MaxOf(float a, float b) { return a > b ? a : b; }

// Which lanes a row sees: the usual case, all 64, needs no selecting.
enum class Sees { kAll, kSome };

template <class V, Sees kSees>
typename V::F KeepSeen(typename V::F x, float other, uint64_t bits) {
  if constexpr (kSees == Sees::kAll) return x;
  return V::Keep(x, V::Set(other), bits);
}

// max(m, the scores that are seen). The order of comparisons matters for NaN alone, and then not to
// the result: a NaN score makes its own weight, and so the row's sums and its output, NaN.
template <class V, Sees kSees>
float RowMax(float m, const float* s, uint64_t bits) {
  using F = typename V::F;
  constexpr int L = V::kWidth;
  constexpr float kLowest = -__builtin_inff();
  F most = V::Set(kLowest);
#pragma GCC unroll 4
  for (int j = 0; j < kAttendTile; j += L) {
    most = V::Max(most, KeepSeen<V, kSees>(V::Load(s + j), kLowest, bits >> j));
  }
  return MaxOf(m, V::ReduceMax(most));
}

template <class V, Sees kSees>
void RowProbabilities(float m, float alpha, uint64_t bits, float* s, float* l) {
  using F = typename V::F;
  constexpr int L = V::kWidth;
  const F most = V::Set(m), a = V::Set(alpha);
#pragma GCC unroll 4
  for (int j = 0; j < kAttendTile; j += L) {
    const F p = KeepSeen<V, kSees>(V::Exp(V::Sub(V::Load(s + j), most)), 0.0f, bits >> j);
    V::Store(s + j, p);
    V::Store(l + j, V::Fma(V::Load(l + j), a, p));
  }
}

template <class V>
void ScaleRow(float alpha, int count, float* o) {
  for (int d = 0; d < count; d += V::kWidth) {
    V::Store(o + d, V::Mul(V::Load(o + d), V::Set(alpha)));
  }
}

template <class V>
void Softmax(const AttendBlock& block, const RowSpan& span, const SoftmaxStates& states, float* s) {
  alignas(64) float m[kMaxBlockRows], alpha[kMaxBlockRows] = {};
  for (int r = 0; r < span.rows; ++r) {
    const int lo = span.lo[r], hi = span.hi[r];
    if (lo == hi) continue;
    const float before = states.m[span.from + r];
    const float* row = s + r * kAttendTile;
    m[r] = hi - lo == kAttendTile ? RowMax<V, Sees::kAll>(before, row, 0)
                                  : RowMax<V, Sees::kSome>(before, row, LaneBits(lo, hi));
    alpha[r] = before - m[r];
    states.m[span.from + r] = m[r];
  }
  for (int r = 0; r < span.rows; r += V::kWidth) {
    V::Store(alpha + r, V::Exp(V::Load(alpha + r)));
  }
  for (int r = 0; r < span.rows; ++r) {
    const int lo = span.lo[r], hi = span.hi[r], x = span.from + r;
    if (lo == hi) continue;
    float* row = s + r * kAttendTile;
    float* l = states.l + int64_t{x} * kAttendTile;
    if (hi - lo == kAttendTile) {
      RowProbabilities<V, Sees::kAll>(m[r], alpha[r], 0, row, l);
    } else {
      RowProbabilities<V, Sees::kSome>(m[r], alpha[r], LaneBits(lo, hi), row, l);
    }
    // At the start o is +0 and stays so times +0.
    const float idle = states.seen[x] != 0 ? 1.0f : 0.0f;
    if (alpha[r] != idle) ScaleRow<V>(alpha[r], block.v_dim, states.o + int64_t{x} * block.v_dim);
    states.seen[x] = 1;
  }
}

// (c) Mixing: o += p V over lanes [begin, end), for rows [from, to) of the span.
template <class V>
void MixLanes(const AttendBlock& block, const TileView& view, const RowSpan& span, int from, int to,
              int begin, int end, const float* p, float* o) {
  const int64_t row_bytes = block.v_dim * static_cast<int64_t>(KvTypeBytes(view.v_type));
  for (int n = 0; n < view.stretches; ++n) {
    const VStretch& v = view.stretch[n];
    const int lo = v.lane > begin ? v.lane : begin, hi = v.end < end ? v.end : end;
    if (lo >= hi) continue;
    MultiplyInto<V>({p + from * kAttendTile + lo,
                     static_cast<const std::byte*>(v.v) + (lo - v.lane) * row_bytes, block.v_dim,
                     hi - lo, o + (span.from + from) * int64_t{block.v_dim}, block.v_dim, v.ahead,
                     Sum::kGoOn},
                    view.v_type, to - from, block.v_dim);
  }
}

// Rows that see the same lanes go together.
template <class V, class LanesOf>
void MixRagged(const AttendBlock& block, const TileView& view, const RowSpan& span, const float* p,
               float* o, const LanesOf& lanes_of) {
  for (int from = 0; from < span.rows;) {
    int to = from + 1;
    while (to < span.rows && span.lo[to] == span.lo[from] && span.hi[to] == span.hi[from]) ++to;
    const auto [begin, end] = lanes_of(from);
    if (begin < end) MixLanes<V>(block, view, span, from, to, begin, end, p, o);
    from = to;
  }
}

struct Lanes {
  int begin, end;
};

template <class V>
void Mix(const AttendBlock& block, const TileView& view, const RowSpan& span, const float* p,
         float* o) {
  if (span.active < span.rows || span.begin >= span.end) {
    MixRagged<V>(block, view, span, p, o, [&](int r) { return Lanes{span.lo[r], span.hi[r]}; });
    return;
  }
  if (span.first < span.begin) {
    MixRagged<V>(block, view, span, p, o, [&](int r) { return Lanes{span.lo[r], span.begin}; });
  }
  MixLanes<V>(block, view, span, 0, span.rows, span.begin, span.end, p, o);
  if (span.end < span.last) {
    MixRagged<V>(block, view, span, p, o, [&](int r) { return Lanes{span.end, span.hi[r]}; });
  }
}

template <class V>
void Start(const AttendBlock& block, const SoftmaxStates& states) {
  const int64_t rows = block.rows();
  for (int64_t x = 0; x < rows; ++x) states.m[x] = -__builtin_inff();
  __builtin_memset(states.l, 0, rows * kAttendTile * sizeof(float));
  __builtin_memset(states.o, 0, rows * block.v_dim * sizeof(float));
  __builtin_memset(states.seen, 0, rows);
}

template <class V>
void Tile(AttendBlock& block, const KvTile& tile, const KvTile* next, const SoftmaxStates& states) {
  TileView view;
  view.tile = &tile;
  view.next = next;
  for (int h = 0; h < 2; ++h) ViewHalf<V>(block, tile, next, h, view);
  ViewV<V>(block, tile, next, view);
  const int rows = block.rows(), spans = (rows + V::kMaxRows - 1) / V::kMaxRows;
  alignas(64) float s[V::kMaxRows * kAttendTile];
  for (int i = 0; i < spans; ++i) {
    const int from = rows * i / spans, to = rows * (i + 1) / spans;
    const RowSpan span = MakeRowSpan(block, tile, from, to - from);
    if (span.active == 0) continue;
    Score<V>(block, view, span, s);
    Softmax<V>(block, span, states, s);
    Mix<V>(block, view, span, s, states.o);
  }
}

template <class V>
void MergeRow(float a, float b, int count, float* into, const float* from) {
  for (int j = 0; j < count; j += V::kWidth) {
    V::Store(into + j, V::Fma(V::Load(into + j), V::Set(a),
                              V::Mul(V::Load(from + j), V::Set(b))));
  }
}

template <class V>
void Merge(const AttendBlock& block, const SoftmaxStates& into, const SoftmaxStates& from) {
  const int rows = block.rows();
  for (int base = 0; base < rows; base += kMaxBlockRows) {
    const int n = rows - base < kMaxBlockRows ? rows - base : kMaxBlockRows;
    alignas(64) float a[kMaxBlockRows] = {}, b[kMaxBlockRows] = {};
    for (int x = base; x < base + n; ++x) {
      if (from.seen[x] == 0) continue;
      const float m = MaxOf(into.m[x], from.m[x]);
      a[x - base] = into.m[x] - m;
      b[x - base] = from.m[x] - m;
    }
    for (int r = 0; r < kMaxBlockRows; r += V::kWidth) {
      V::Store(a + r, V::Exp(V::Load(a + r)));
      V::Store(b + r, V::Exp(V::Load(b + r)));
    }
    for (int x = base; x < base + n; ++x) {
      if (from.seen[x] == 0) continue;
      float* l = into.l + int64_t{x} * kAttendTile;
      float* o = into.o + int64_t{x} * block.v_dim;
      const float* from_l = from.l + int64_t{x} * kAttendTile;
      const float* from_o = from.o + int64_t{x} * block.v_dim;
      if (into.seen[x] == 0) {
        __builtin_memcpy(l, from_l, kAttendTile * sizeof(float));
        __builtin_memcpy(o, from_o, block.v_dim * sizeof(float));
        into.m[x] = from.m[x];
        into.seen[x] = 1;
        continue;
      }
      MergeRow<V>(a[x - base], b[x - base], kAttendTile, l, from_l);
      MergeRow<V>(a[x - base], b[x - base], block.v_dim, o, from_o);
      into.m[x] = MaxOf(into.m[x], from.m[x]);
    }
  }
}

template <class V>
void Finish(const AttendBlock& block, const SoftmaxStates& states) {
  constexpr int L = V::kWidth;
  for (int x = 0; x < block.rows(); ++x) {
    float* l = states.l + int64_t{x} * kAttendTile;
    for (int w = kAttendTile / 2; w >= L; w /= 2) {
      for (int j = 0; j < w; j += L) V::Store(l + j, V::Add(V::Load(l + j), V::Load(l + j + w)));
    }
    for (int w = L / 2; w > 0; w /= 2) {
      for (int j = 0; j < w; ++j) l[j] = l[j] + l[j + w];
    }
    const typename V::F inv = V::Set(1.0f / l[0]);
    const float* o = states.o + int64_t{x} * block.v_dim;
    float* out = block.out + block.row[x / block.group] * block.out_stride +
                 (x % block.group) * block.v_dim;
    for (int d = 0; d < block.v_dim; d += L) V::Store(out + d, V::Mul(V::Load(o + d), inv));
  }
}

template <class V>
constexpr AttendKernels KernelsOf() {
  return {Start<V>, Tile<V>, Merge<V>, Finish<V>};
}

}  // namespace holdfast::attend
