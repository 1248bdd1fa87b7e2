// What attend.cc (plans tasks, walks runs) and the instruction sets' attend_*.cc (compute tiles)
// say to each other. Plain structs only: the sources of other instruction sets include this header,
// and must not emit shared inline code.
//
// Words: a *query row* is one query head of one position; the rows of a block are numbered position
// by position, `group` heads each. A *tile* is 64 consecutive indices of the sequence, at a
// multiple of 64; its *lanes* 0..63 are those indices. A *piece* is a stretch of a tile that lies
// in one page.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kv/layout.h"

namespace holdfast {

inline constexpr int kAttendTile = 64;    // indices that share one maximum
inline constexpr int kAttendSplit = 256;  // indices with a softmax state of their own
inline constexpr int kTurnedSlots = 4;    // shifts whose turned queries a block keeps
inline constexpr int kMaxBlockRows = 16;  // no kernel takes more query rows at once

struct KvPiece {
  const std::byte* k = nullptr;  // K of the layer and head in this page (layout.h)
  const std::byte* v = nullptr;  // V likewise: [kPageTokens][v_dim]
  int slot = 0;                  // first token in the page
  int lane = 0;                  // its lane in the tile
  int count = 0;
  int shift = 0;
};

// Pieces in ascending order, without gaps from lane 0. Lanes behind the last piece lie past the
// sequence's end and are visible to nobody.
struct KvTile {
  int64_t begin = 0;  // index of lane 0
  int pieces = 0;
  KvPiece piece[kAttendTile];
};

// A query row's scores of a page that a tile's edge cuts: the next tile begins with the rest of it.
struct alignas(64) CutScores {
  float score[kPageTokens];
  const std::byte* k;  // the page's; null: none
  int shift;
  float pad[kAttendTile - kPageTokens - 3];  // rows are kAttendTile floats apart, as all scores are
};
static_assert(sizeof(CutScores) == kAttendTile * sizeof(float));

// Softmax states of a block's query rows, over one split or over several merged.
struct SoftmaxStates {
  float* m = nullptr;       // [rows]
  float* l = nullptr;       // [rows][64]
  float* o = nullptr;       // [rows][v_dim]
  uint8_t* seen = nullptr;  // [rows] 0: no visible index yet, the rest is at its start value
};

// Query rows that go through the tiles together: some positions of one sequence, one KV head.
struct AttendBlock {
  int k_dim = 0, v_dim = 0;
  KvType k_type = KvType::kF16, v_type = KvType::kF16;
  int group = 0;      // query heads of this KV head
  int positions = 0;  // rows() = positions * group
  const int32_t* position = nullptr;  // [positions]
  const int32_t* row = nullptr;       // [positions] index into q and out
  int window = 0;                     // 0 = none
  const float* q = nullptr;           // of the block's first head in row 0, not yet turned
  int64_t q_stride = 0;               // floats from row to row
  float* out = nullptr;               // likewise
  int64_t out_stride = 0;
  float scale = 0;
  const float* table = nullptr;  // rotation: row p holds rope_dim / 2 cosines, then as many sines
  int rope_dim = 0;              // dims from here on are not turned
  int64_t table_rows = 0;

  // Scratch of the thread. `turned` are queries turned for a shift, times scale: [chunk of 64 dims]
  // [rows][64]; beside INT8 K codes, see RowFloats. Slots below `turned_used` are filled;
  // `turned_next` is the one to give up next: never the last one asked for, since a tile's halves
  // may have a shift each.
  float* turned[kTurnedSlots] = {};
  int turned_shift[kTurnedSlots] = {};
  int turned_used = 0, turned_next = 0;
  float* seam = nullptr;  // turned queries of up to kMaxBlockRows rows, where shifts meet
  float* k32 = nullptr;   // K of a tile as fp32: [2][k_dim][32] and 16 floats more
  float* v32 = nullptr;   // V of a tile as fp32: [64][v_dim]
  CutScores* cut = nullptr;  // [rows] none when the block begins

  int rows() const { return positions * group; }
};

// Floats that `rows` turned queries take.
inline constexpr int64_t TurnedFloats(int64_t rows, int k_dim) {
  return rows * ((k_dim + 63) / 64 * 64);
}

struct AttendKernels {
  // Sets all rows' states to their start values.
  void (*start)(const AttendBlock& block, const SoftmaxStates& states);
  // Takes in one tile, for the rows that see any of it. `next` (may be null) is the tile that the
  // thread will read after this one, to be fetched ahead.
  void (*tile)(AttendBlock& block, const KvTile& tile, const KvTile* next,
               const SoftmaxStates& states);
  // into = merge(into, from), row by row.
  void (*merge)(const AttendBlock& block, const SoftmaxStates& into, const SoftmaxStates& from);
  // Writes the block's part of `out`. Destroys states.l.
  void (*finish)(const AttendBlock& block, const SoftmaxStates& states);
};

const AttendKernels& AttendPortable();
const AttendKernels& AttendAvx2();
const AttendKernels& AttendAvx512();
const AttendKernels& AttendNeon();

}  // namespace holdfast
