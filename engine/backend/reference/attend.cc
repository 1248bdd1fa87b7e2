// Rotation, KV store and attention as NUMERICS.md sections 5 to 7 define them, one row at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/backend/exact_math.h"
#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"

namespace holdfast {
namespace reference {
namespace {

constexpr int64_t kSplit = 256;  // indices with a softmax state of their own
constexpr int64_t kTile = 64;    // indices that share one maximum

bool IsFinite(float x) { return (std::bit_cast<uint32_t>(x) & 0x7fffffff) < 0x7f800000; }
float Max(float a, float b) { return a > b ? a : b; }

// Dims from rope.dim() on (models that turn a part of the head) stay as they are.
std::vector<float> Turn(const RopeTable& rope, int64_t position, const float* x, int dim) {
  std::vector<float> y(x, x + dim);
  const int half = rope.dim() / 2;
  const float* cos = rope.Row(position);
  const float* sin = cos + half;
  for (int i = 0; i < half; ++i) {
    const int j = i + half;
    y[i] = std::fma(-x[j], sin[i], x[i] * cos[i]);
    y[j] = std::fma(x[i], sin[i], x[j] * cos[i]);
  }
  return y;
}

// Writes element `index` of an array of `type`; false when the stored number is not finite.
bool Put(KvType type, std::byte* array, int64_t index, float value) {
  if (type == KvType::kF32) {
    std::memcpy(array + 4 * index, &value, 4);
    return IsFinite(value);
  }
  const uint16_t half = FloatToHalf(value);
  std::memcpy(array + 2 * index, &half, 2);
  return (half & 0x7fff) < 0x7c00;
}

// Numbers that section 7 mixes with each other: the largest power of two that divides k_dim.
int MixBlock(int dim) { return dim & -dim; }

void Mix(std::vector<float>* x) {
  const int dim = static_cast<int>(x->size()), block = MixBlock(dim);
  for (int step = 1; step < block; step *= 2) {
    const std::vector<float> before = *x;
    for (int n = 0; n < dim / 2; ++n) {
      const int at = 2 * n / block * block + n % (block / 2);  // the pair's first number
      (*x)[2 * n] = before[at] + before[at + block / 2];
      (*x)[2 * n + 1] = before[at] - before[at + block / 2];
    }
  }
}

// Section 3's rule over one group of any size, with codes up to `most`; returns the scale, NaN when
// a number is not finite.
float QuantizeHead(const std::vector<float>& x, float most, std::vector<int>* codes) {
  codes->assign(x.size(), 0);
  uint32_t bits = 0;
  for (float value : x) bits = std::max(bits, std::bit_cast<uint32_t>(value) & 0x7fffffff);
  if (bits >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
  const float amax = std::bit_cast<float>(bits);
  if (amax < 0x1.0p-100f) return 0.0f;
  const float id = most / amax;
  for (size_t d = 0; d < x.size(); ++d) {
    (*codes)[d] = static_cast<int>(std::clamp(std::nearbyint(x[d] * id), -most, most));
  }
  return amax / most;
}

float Get(KvType type, const std::byte* array, int64_t index) {
  if (type == KvType::kF32) {
    float value;
    std::memcpy(&value, array + 4 * index, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, array + 2 * index, 2);
  return HalfToFloat(half);
}

// Softmax over one split, and the sum that it weighs.
struct State {
  explicit State(int v_dim) : o(v_dim, 0.0f) {}
  float m = -std::numeric_limits<float>::infinity();
  float l[64] = {};
  std::vector<float> o;
};

// One query row and head over one sequence.
struct Row {
  const AttendArgs& args;
  const AttendSequence& sequence;
  int64_t position;
  int kv_head;
  const float* q;
  int64_t first_visible = 0;             // by the window
  std::vector<float> score = {};         // [position + 1], of visible indices
  std::vector<const std::byte*> v = {};  // [position + 1], V of the index's page and head
  std::vector<int> slot = {};            // [position + 1]
};

float ScoreCodes(const LayerGroup& group, const std::byte* k, int slot,
                 const std::vector<int>& codes, float dq) {
  int32_t sum = 0;
  for (int d = 0; d < group.k_dim; ++d) {
    sum += codes[d] * static_cast<int8_t>(k[group.KOffset(d, slot)]);
  }
  const float dk = Get(KvType::kF32, k + group.KScaleOffset(slot), 0);
  return static_cast<float>(sum) * (dq * dk);
}

void ScoreAll(Row& row) {
  const LayerGroup& group = *row.args.group;
  const size_t k_at = group.HeadOffset(row.args.layer, row.kv_head);
  int64_t i = 0;
  for (const KvRun& run : row.sequence.runs) {
    if (i > row.position) break;
    std::vector<float> q = Turn(*row.args.rope, row.position - run.shift, row.q, group.k_dim);
    for (float& value : q) value = value * row.args.scale;
    std::vector<int> codes;
    float dq = 0;
    if (group.k_type == KvType::kI8) {
      Mix(&q);
      dq = QuantizeHead(q, 8128.0f, &codes) / static_cast<float>(MixBlock(group.k_dim));
    }
    for (int n = 0; n < run.count && i <= row.position; ++n, ++i) {
      row.slot[i] = run.first + n;
      row.v[i] = run.page + k_at + group.KBytes();
      if (i < row.first_visible) continue;
      if (group.k_type == KvType::kI8) {
        row.score[i] = ScoreCodes(group, run.page + k_at, row.slot[i], codes, dq);
        continue;
      }
      float s = 0;
      for (int d = 0; d < group.k_dim; ++d) {
        const float k = Get(group.k_type, run.page + k_at, int64_t{d} * kPageTokens + row.slot[i]);
        s = std::fma(q[d], k, s);
      }
      row.score[i] = s;
    }
  }
}

// Takes in the visible indices of [begin, end), which lie in one tile and are not empty.
void AddTile(const Row& row, int64_t begin, int64_t end, State& state) {
  const LayerGroup& group = *row.args.group;
  float m = state.m;
  for (int64_t i = begin; i < end; ++i) m = Max(m, row.score[i]);
  const float alpha = ExpF(state.m - m);
  for (float& o : state.o) o = o * alpha;
  float p[kTile] = {};
  for (int64_t i = begin; i < end; ++i) p[i % kTile] = ExpF(row.score[i] - m);
  for (int j = 0; j < kTile; ++j) state.l[j] = std::fma(state.l[j], alpha, p[j]);
  for (int64_t i = begin; i < end; ++i) {
    for (int d = 0; d < group.v_dim; ++d) {
      const float v = Get(group.v_type, row.v[i], int64_t{row.slot[i]} * group.v_dim + d);
      state.o[d] = std::fma(p[i % kTile], v, state.o[d]);
    }
  }
  state.m = m;
}

State Merge(const State& a, const State& b) {
  State out(static_cast<int>(a.o.size()));
  out.m = Max(a.m, b.m);
  const float wa = ExpF(a.m - out.m), wb = ExpF(b.m - out.m);
  for (int j = 0; j < 64; ++j) out.l[j] = std::fma(a.l[j], wa, b.l[j] * wb);
  for (size_t d = 0; d < out.o.size(); ++d) out.o[d] = std::fma(a.o[d], wa, b.o[d] * wb);
  return out;
}

void AttendRow(Row& row, float* out) {
  const int v_dim = row.args.group->v_dim;
  const int64_t end = row.position + 1;
  ScoreAll(row);
  State total(v_dim);
  bool first = true;
  for (int64_t split = row.first_visible / kSplit * kSplit; split < end; split += kSplit) {
    State state(v_dim);
    for (int64_t tile = split; tile < std::min(split + kSplit, end); tile += kTile) {
      const int64_t from = std::max(tile, row.first_visible), to = std::min(tile + kTile, end);
      if (from < to) AddTile(row, from, to, state);
    }
    total = first ? state : Merge(total, state);
    first = false;
  }
  for (int w = 32; w > 0; w /= 2) {
    for (int j = 0; j < w; ++j) total.l[j] = total.l[j] + total.l[j + w];
  }
  const float inv = 1.0f / total.l[0];
  for (int d = 0; d < v_dim; ++d) out[d] = total.o[d] * inv;
}

}  // namespace

namespace {

bool PutCodes(const LayerGroup& group, std::byte* k_out, int slot, std::vector<float> k) {
  std::vector<int> codes;
  Mix(&k);
  const float scale = QuantizeHead(k, 127.0f, &codes);
  for (int d = 0; d < group.k_dim; ++d) {
    k_out[group.KOffset(d, slot)] = static_cast<std::byte>(static_cast<int8_t>(codes[d]));
  }
  return Put(KvType::kF32, k_out + group.KScaleOffset(slot), 0, scale);
}

}  // namespace

void StoreKv(const StoreKvArgs& args) {
  const LayerGroup& group = *args.group;
  for (int64_t r = 0; r < args.rows; ++r) {
    const int slot = args.slot[r];
    bool finite = true;
    for (int h = 0; h < group.heads; ++h) {
      std::byte* k_out = args.page[r] + group.HeadOffset(args.layer, h);
      std::byte* v_out = k_out + group.KBytes();
      const std::vector<float> k =
          Turn(*args.rope, args.position[r], args.k + (r * group.heads + h) * group.k_dim,
               group.k_dim);
      const float* v = args.v + (r * group.heads + h) * group.v_dim;
      if (group.k_type == KvType::kI8) {
        finite &= PutCodes(group, k_out, slot, k);
      }
      for (int d = 0; d < group.k_dim && group.k_type != KvType::kI8; ++d) {
        finite &= Put(group.k_type, k_out, int64_t{d} * kPageTokens + slot, k[d]);
      }
      for (int d = 0; d < group.v_dim; ++d) {
        finite &= Put(group.v_type, v_out, int64_t{slot} * group.v_dim + d, v[d]);
      }
    }
    if (!finite) args.row_failed[r] = 1;
  }
}

void Attend(const AttendArgs& args) {
  const LayerGroup& group = *args.group;
  const int per_kv_head = args.q_heads / group.heads;
  for (const AttendSequence& sequence : args.sequences) {
    for (size_t n = 0; n < sequence.row.size(); ++n) {
      const int64_t position = sequence.position[n];
      for (int h = 0; h < args.q_heads; ++h) {
        const int64_t at = int64_t{sequence.row[n]} * args.q_heads + h;
        Row row{args, sequence, position, h / per_kv_head, args.q + at * group.k_dim};
        if (group.window > 0) row.first_visible = std::max<int64_t>(0, position + 1 - group.window);
        row.score.resize(position + 1);
        row.v.resize(position + 1);
        row.slot.resize(position + 1);
        AttendRow(row, args.out + at * group.v_dim);
      }
    }
  }
}

}  // namespace reference
}  // namespace holdfast
