// The operations that a forward pass is made of, and who computes them.
//
// The unit of every operation is the row: what is computed for one row depends on that row (and on
// the KV that it sees) alone, never on which other rows are in the call, on threads, or on how the
// work was cut. NUMERICS.md defines each result to the bit; `reference/` codes the definition and
// every other implementation equals it by memcmp.
//
// Threads: a Backend has one caller at a time (the model thread) and joins its own worker threads
// before each call returns. Weights are immutable after Pack and may be shared by backends of the
// same kind. All float arrays are fp32, row-major, rows `cols` apart, in memory of the caller.
//
// Non-finite values: Quantize, StoreKv and CheckFinite look at each row that they read; a row with
// a value that is not finite gets row_failed[row] = 1 (never cleared here) and unspecified output
// for that row alone. Callers end that row's sequence with a typed error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/base/types.h"
#include "engine/kv/layout.h"

namespace holdfast {

// Bumped whenever a definition in NUMERICS.md changes; part of every model fingerprint.
inline constexpr int kNumericsVersion = 1;

// Storage types of weights, with GGUF's numbers.
enum class WeightType : uint32_t {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4_K = 12,
  kQ5_K = 13, kQ6_K = 14, kIQ4_NL = 20, kIQ4_XS = 23, kBF16 = 30, kMXFP4 = 39,
};
std::span<const WeightType> AllWeightTypes();  // in the order of their numbers
std::string_view WeightTypeName(WeightType type);
// Elements per block along a row, and bytes per block, as GGUF stores them. {0, 0} when unknown.
struct BlockShape {
  int elements = 0;
  int bytes = 0;
};
BlockShape WeightBlock(WeightType type);
// True when MatMul with this type reads quantised rows of activations (all but F32, F16, BF16).
constexpr bool NeedsQuantized(WeightType t) {
  return t != WeightType::kF32 && t != WeightType::kF16 && t != WeightType::kBF16;
}

// A matrix as the model file holds it: `outputs` rows of `inputs` elements, blocks along the row.
struct WeightSource {
  WeightType type = WeightType::kF32;
  int64_t outputs = 0;  // rows of the file's matrix = numbers in an output row
  int64_t inputs = 0;   // a multiple of the type's block (any for F32, F16 and BF16)
  const std::byte* data = nullptr;  // borrowed during Pack only
};

// A matrix in a backend's own order. Immutable, freed by its destructor.
class Weight {
 public:
  virtual ~Weight() = default;
  WeightType type() const { return type_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  virtual size_t bytes() const = 0;  // memory that it holds

 protected:
  explicit Weight(const WeightSource& s) : type_(s.type), outputs_(s.outputs), inputs_(s.inputs) {}

 private:
  WeightType type_;
  int64_t outputs_, inputs_;
};

// Rows of activations as signed 8-bit integers in groups of kQuantGroup (NUMERICS.md section 3).
// `cols` is padded up to a multiple of 32; padding is zero. Buffers are the caller's, sized by
// Resize, and reused from step to step.
inline constexpr int kQuantGroup = 32;
struct QuantizedRows {
  int64_t rows = 0, cols = 0;      // cols as padded
  std::vector<int8_t> q;           // [rows][cols], in -127..127
  std::vector<float> scale;        // [rows][cols / 32]: x ~ q * scale
  std::vector<int32_t> sum_lo;     // [rows][cols / 32]: sum of q over elements 0..15 of the group
  std::vector<int32_t> sum_hi;     // [rows][cols / 32]: the same over elements 16..31
  void Resize(int64_t n_rows, int64_t n_cols);
};

// Where rows go quantised. An operation that makes rows and is given one quantises each while it is
// in the cache: the same bits as Quantize afterwards.
struct QuantizeTarget {
  QuantizedRows* out = nullptr;   // resized by the call; null: not wanted
  uint8_t* row_failed = nullptr;  // [rows]
};

struct QuantizeArgs {
  int64_t rows = 0, cols = 0;
  const float* x = nullptr;
  QuantizeTarget to;
};

// y[r][:] = x[r][:] * (1 / sqrt(mean(x[r]^2) + eps)) * w[:]
struct RmsNormArgs {
  int64_t rows = 0, cols = 0;
  const float* x = nullptr;
  const float* w = nullptr;  // [cols]
  float eps = 0;
  float* y = nullptr;  // may be x
  QuantizeTarget quantize = {};
};

// y[r][o] = sum_i w[o][i] * x[r][i] (+ bias[o]), each output its own chain (NUMERICS.md section 2).
struct MatMulArgs {
  const Weight* w = nullptr;
  int64_t rows = 0;
  const float* x = nullptr;             // [rows][inputs], read when !NeedsQuantized(w->type())
  const QuantizedRows* xq = nullptr;    // read otherwise
  const float* bias = nullptr;          // [outputs] or null
  float* y = nullptr;                   // [rows][y_stride]
  int64_t y_stride = 0;                 // >= outputs
};

enum class Activation : uint8_t { kSilu, kGelu };  // gelu as its tanh form has it

// h[r][i] = activation(gate[r][i]) * up[r][i]
struct GluArgs {
  Activation activation = Activation::kSilu;
  int64_t rows = 0, cols = 0;
  const float* gate = nullptr;
  const float* up = nullptr;
  float* h = nullptr;  // may be gate
  QuantizeTarget quantize = {};
};

// cos and sin of position * frequency, computed in fp64 by our own code and stored as fp32
// (NUMERICS.md section 6). Row p holds dim/2 cosines, then dim/2 sines. Grown by Reserve, which
// the model thread calls before a step; entries never change once written.
class RopeTable {
 public:
  // freq_scale[i] (dim/2 entries, or empty for ones) multiplies the i-th frequency base^(-2i/dim).
  RopeTable(int dim, double base, std::vector<double> freq_scale);
  void Reserve(int64_t positions);
  int dim() const { return dim_; }
  int64_t positions() const { return positions_; }
  const float* Row(int64_t position) const {  // 0 <= position < positions()
    return data_.data() + position * dim_;
  }

 private:
  int dim_;
  int64_t positions_ = 0;
  std::vector<double> freq_;
  std::vector<float> data_;
};

// Turns K by its position's rotation (half-split pairs (i, i + dim/2)), rounds K and V to the KV
// dtype and writes them into slot `slot[r]` of the page at `page[r]`.
struct StoreKvArgs {
  const LayerGroup* group = nullptr;
  int layer = 0;  // 0-based inside the group
  const RopeTable* rope = nullptr;
  int64_t rows = 0;
  const float* k = nullptr;  // [rows][heads * k_dim], not yet turned
  const float* v = nullptr;  // [rows][heads * v_dim]
  const int32_t* position = nullptr;        // [rows]
  std::byte* const* page = nullptr;         // [rows] payload of the group's page
  const int32_t* slot = nullptr;            // [rows] 0..kPageTokens-1
  uint8_t* row_failed = nullptr;            // [rows]
};

// A slice of a page as a timeline uses it (DESIGN: run): sequence indices continue from the run
// before. K in the page was turned for positions (index - shift), so a query at position p reads it
// turned by p - shift.
struct KvRun {
  const std::byte* page = nullptr;  // payload of the group's page
  int32_t first = 0;                // slot of the run's first token in the page
  int32_t count = 0;                // tokens; first + count <= kPageTokens
  int32_t shift = 0;                // 0 = at home
};

// Query rows of one sequence. The runs cover indices 0 .. length-1 without gaps; the row at
// position p sees exactly the indices i with i <= p and, where the group has a window W, i > p - W.
struct AttendSequence {
  std::span<const KvRun> runs;
  std::span<const int32_t> row;       // indices into q and out
  std::span<const int32_t> position;  // same length; any order, each < the runs' total count
};

// out[row][head] = softmax(q . K * scale) V in three phases (NUMERICS.md section 5). q is not yet
// turned. Query head h reads KV head h / (q_heads / group->heads).
struct AttendArgs {
  const LayerGroup* group = nullptr;
  int layer = 0;  // 0-based inside the group
  const RopeTable* rope = nullptr;
  int q_heads = 0;
  float scale = 0;              // 1 / sqrt(k_dim) as a rule
  const float* q = nullptr;     // [*][q_heads * k_dim]
  float* out = nullptr;         // [*][q_heads * v_dim]
  std::span<const AttendSequence> sequences;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "reference" or a CpuLevel's (cpu/levels.h)
  // Calls fn(0) .. fn(tasks - 1), at once on several threads where the backend has them.
  virtual void ForEach(int64_t tasks, const std::function<void(int64_t task)>& fn) {
    for (int64_t task = 0; task < tasks; ++task) fn(task);
  }

  // Copies `source` into this backend's order. kInvalid for a shape or type that it can't take.
  virtual Result<std::unique_ptr<Weight>> Pack(const WeightSource& source) = 0;

  // out[r][:] = row ids[r] of `table`, as fp32 exactly as its type defines. ids are in range.
  virtual void Embed(const Weight& table, std::span<const TokenId> ids, float* out) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Quantize(const QuantizeArgs& args) = 0;
  virtual void MatMul(const MatMulArgs& args) = 0;
  // MatMul of each, over as many rows; no product reads what another writes. A backend may compute
  // them side by side.
  virtual void MatMuls(std::span<const MatMulArgs> products) {
    for (const MatMulArgs& args : products) MatMul(args);
  }
  virtual void Glu(const GluArgs& args) = 0;
  virtual void Add(int64_t count, const float* x, float* y) = 0;  // y[i] = y[i] + x[i]
  virtual void Scale(int64_t count, float factor, float* x) = 0;  // x[i] = x[i] * factor
  // x[i] = cap * tanh(x[i] / cap), cap > 0: a smooth limit to -cap .. cap
  virtual void SoftCap(int64_t count, float cap, float* x) = 0;
  virtual void StoreKv(const StoreKvArgs& args) = 0;
  virtual void Attend(const AttendArgs& args) = 0;
  virtual void CheckFinite(int64_t rows, int64_t cols, const float* x, uint8_t* row_failed) = 0;
};

struct CpuOptions {
  int threads = 0;  // 0 = one per core that this process may use
  // "reference", "portable", "avx2" and "avx512" on x86-64, "neon" on aarch64. Empty: the
  // environment variable HOLDFAST_CPU, and where that is not set the best level that this processor
  // has. kInvalid when it lacks the level or there is none of that name.
  std::string level = {};
};
Result<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

// What this backend's operations give for fixed inputs, each over all dispatch thresholds and on
// its worker threads. Equal on every backend of class `exact`.
struct NumericsDigest {
  struct Entry {
    std::string op;  // "matmul/Q4_K", "attend/f16", ...
    Digest digest;
  };
  std::vector<Entry> ops;
  Digest all;  // over every entry, in order
};
NumericsDigest ComputeNumericsDigest(Backend& backend);

}  // namespace holdfast
