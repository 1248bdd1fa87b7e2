// The numerics digest: what this backend really computes on this machine, hashed. A model's pages
// carry it (DESIGN: identity of numerics), so KV of a build or a processor that computes otherwise
// is never taken for one's own.
//
// Inputs come from a generator of integers, scaled by powers of two: the same on every machine. The
// sizes cross what implementations may treat differently: one row, few, many; outputs and inputs
// that are no multiple of a vector; parts of K; splits and tiles; runs that are misaligned, shifted
// and windowed. Costs a fraction of a second of portable code; call it once at start.
#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

#include "engine/backend/backend.h"
#include "engine/backend/half.h"

namespace holdfast {
namespace {

class Inputs {
 public:
  explicit Inputs(uint64_t seed) : state_(seed) {}

  uint32_t Next() {  // PCG's multiplier; the high half of a 64-bit step
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int Below(int n) { return static_cast<int>(Next() % static_cast<uint32_t>(n)); }
  float Float() { return static_cast<float>(Below(1 << 16) - (1 << 15)) * 0x1.0p-14f; }  // -2..2
  std::vector<float> Floats(int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = Float();
    return x;
  }

 private:
  uint64_t state_;
};

// Results of one operation, in call order, as one digest.
class Recorder {
 public:
  Recorder(std::string op, NumericsDigest* out)
      : op_(std::move(op)), hasher_("numerics-op-1"), out_(out) {
    hasher_.Text(op_);
  }
  ~Recorder() { out_->ops.push_back({op_, hasher_.Finish()}); }

  void Add(std::span<float> values) {
    for (float& value : values) {
      if (std::isnan(value)) value = std::bit_cast<float>(0x7fc00000);
    }
    hasher_.Values(std::span<const float>(values));
  }
  template <typename T>
  void AddIntegers(const std::vector<T>& values) {
    hasher_.Values(std::span<const T>(values));
  }

 private:
  std::string op_;
  Hasher hasher_;
  NumericsDigest* out_;
};

// Offsets of a block's f16 numbers; the rest of a block may hold any bits.
std::vector<int> HalvesOf(WeightType type) {
  switch (type) {
    case WeightType::kF16:
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kIQ4_XS: return {0};
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K: return {0, 2};
    case WeightType::kQ6_K: return {208};
    case WeightType::kF32:
    case WeightType::kBF16:
    case WeightType::kMXFP4: break;
  }
  return {};
}

std::vector<std::byte> MakeMatrix(Inputs& in, WeightType type, int64_t outputs, int64_t inputs) {
  const BlockShape shape = WeightBlock(type);
  const int64_t blocks = outputs * (inputs / shape.elements);
  std::vector<std::byte> bytes(static_cast<size_t>(blocks) * shape.bytes);
  for (std::byte& b : bytes) b = static_cast<std::byte>(in.Next() >> 24);
  for (int64_t i = 0; i < blocks; ++i) {
    std::byte* block = bytes.data() + i * shape.bytes;
    for (int at : HalvesOf(type)) {
      const uint16_t half = FloatToHalf(in.Float() * 0x1.0p-6f);
      std::memcpy(block + at, &half, 2);
    }
    if (type == WeightType::kF32) {
      const float value = in.Float();
      std::memcpy(block, &value, 4);
    }
    if (type == WeightType::kBF16) {
      const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(in.Float()) >> 16);
      std::memcpy(block, &bits, 2);
    }
    if (type == WeightType::kMXFP4 && in.Below(8) > 0) {  // otherwise any exponent at all
      block[0] = static_cast<std::byte>(110 + in.Below(16));
    }
  }
  return bytes;
}

void DigestMatMul(Backend& backend, const Weight& w, Inputs& in, std::span<const int> row_counts,
                  Recorder& record) {
  const int64_t inputs = w.inputs(), outputs = w.outputs();
  const std::vector<float> x = in.Floats(row_counts.back() * inputs), bias = in.Floats(outputs);
  for (int rows : row_counts) {
    QuantizedRows xq;
    std::vector<uint8_t> failed(rows);
    if (NeedsQuantized(w.type())) backend.Quantize({rows, inputs, x.data(), &xq, failed.data()});
    std::vector<float> y(rows * outputs);
    backend.MatMul({.w = &w, .rows = rows, .x = x.data(), .xq = &xq,
                    .bias = rows % 2 == 0 ? nullptr : bias.data(), .y = y.data(),
                    .y_stride = outputs});
    record.Add(y);
  }
}

struct Shape {
  int64_t outputs, inputs;
  std::span<const int> row_counts;
};

void DigestWeights(Backend& backend, WeightType type, NumericsDigest* out) {
  constexpr int kRowCounts[] = {1, 2, 3, 5, 8, 13, 16, 33}, kManyRows[] = {389};
  const bool quantized = NeedsQuantized(type);
  const Shape shapes[] = {{quantized ? 83 : 45, quantized ? 1280 : 523, kRowCounts},
                          {17, quantized ? 256 : 70, kManyRows}};
  const std::string name(WeightTypeName(type));
  Recorder matmul("matmul/" + name, out), embed("embed/" + name, out);
  for (const Shape& shape : shapes) {
    Inputs in(static_cast<uint64_t>(type) + 1);
    const std::vector<std::byte> bytes = MakeMatrix(in, type, shape.outputs, shape.inputs);
    const auto weight = backend.Pack({type, shape.outputs, shape.inputs, bytes.data()});
    assert(weight.ok());
    DigestMatMul(backend, **weight, in, shape.row_counts, matmul);
    const TokenId ids[] = {0, 1, 15, static_cast<TokenId>(shape.outputs - 1)};
    std::vector<float> rows(std::size(ids) * shape.inputs);
    backend.Embed(**weight, ids, rows.data());
    embed.Add(rows);
  }
}

constexpr int kMostRows = 33;
constexpr int64_t kCols[] = {1, 31, 64, 100, 257, 1536};

void DigestQuantize(Backend& backend, NumericsDigest* out) {
  Inputs in(100);
  Recorder record("quantize", out);
  for (int64_t cols : kCols) {
    std::vector<float> x = in.Floats(kMostRows * cols);
    for (int64_t i = 0; i < cols; ++i) x[i] = x[i] * (i % 64 < 32 ? 0x1.0p-120f : 0x1.0p90f);
    QuantizedRows xq;
    std::vector<uint8_t> failed(kMostRows);
    backend.Quantize({kMostRows, cols, x.data(), &xq, failed.data()});
    record.AddIntegers(xq.q);
    record.Add(xq.scale);
    record.AddIntegers(xq.sum_lo);
    record.AddIntegers(xq.sum_hi);
    x[cols / 2] = HUGE_VALF;
    backend.Quantize({kMostRows, cols, x.data(), &xq, failed.data()});
    record.AddIntegers(failed);
  }
}

// fn(cols, gate, up, h) over five rows; gates up to `reach` * 2 take exp to both of its ends.
template <typename F>
void DigestGated(Inputs& in, float reach, Recorder& record, const F& fn) {
  for (int64_t cols : kCols) {
    std::vector<float> gate = in.Floats(5 * cols), h(5 * cols);
    const std::vector<float> up = in.Floats(5 * cols);
    for (float& g : gate) g = g * reach;
    fn(cols, gate.data(), up.data(), h.data());
    record.Add(h);
  }
}

void DigestElementwise(Backend& backend, NumericsDigest* out) {
  Inputs in(101);
  {
    Recorder record("rms_norm", out);
    for (int64_t cols : kCols) {
      const std::vector<float> x = in.Floats(5 * cols), w = in.Floats(cols);
      std::vector<float> y(x.size());
      backend.RmsNorm({5, cols, x.data(), w.data(), 1e-6f, y.data()});
      record.Add(y);
    }
  }
  {
    Recorder record("swiglu", out);
    DigestGated(in, 50.0f, record, [&](int64_t cols, const float* gate, const float* up, float* h) {
      backend.Glu({Activation::kSilu, 5, cols, gate, up, h});
    });
  }
  {
    Recorder record("add", out);
    std::vector<float> y = in.Floats(40007);
    for (float& value : y) value = value * 0x1.0p-9f;
    backend.Add(static_cast<int64_t>(y.size()), in.Floats(40007).data(), y.data());
    record.Add(y);
  }
  Recorder record("check_finite", out);
  std::vector<float> x = in.Floats(4 * 37);
  x[36] = NAN;
  x[2 * 37 + 1] = -HUGE_VALF;
  std::vector<uint8_t> failed(4);
  backend.CheckFinite(4, 37, x.data(), failed.data());
  record.AddIntegers(failed);
}

// Operations that only some models use, under names of which a model takes those that it needs.
void DigestVariants(Backend& backend, NumericsDigest* out) {
  Inputs in(104);
  {
    Recorder record("geglu", out);
    DigestGated(in, 8.0f, record, [&](int64_t cols, const float* gate, const float* up, float* h) {
      backend.Glu({Activation::kGelu, 5, cols, gate, up, h});
    });
  }
  {
    Recorder record("scale", out);
    std::vector<float> x = in.Floats(40007);
    backend.Scale(static_cast<int64_t>(x.size()), 0x1.94c584p+4f, x.data());
    record.Add(x);
  }
  Recorder record("soft_cap", out);
  for (float cap : {30.0f, 0.01f}) {
    std::vector<float> x = in.Floats(40007);
    for (float& value : x) value = value * 50.0f;
    backend.SoftCap(static_cast<int64_t>(x.size()), cap, x.data());
    record.Add(x);
  }
}

LayerGroup MakeGroup(KvType type, int window) {
  LayerGroup group;
  group.layers = 2;
  group.heads = 2;
  group.k_dim = 64;
  group.v_dim = 32;
  group.k_type = type;
  group.v_type = VTypeBeside(type);
  group.window = window;
  return group;
}

// Two layers, rows over several pages; one row overflows f16.
void DigestStore(Backend& backend, KvType type, NumericsDigest* out) {
  Inputs in(102);
  Recorder record(std::string("store_kv/") + KvTypeName(type), out);
  const LayerGroup group = MakeGroup(type, 0);
  RopeTable rope(group.k_dim, 500000.0, {});
  rope.Reserve(4096);
  const int rows = 45;
  std::vector<std::vector<float>> pages(2, std::vector<float>(group.PayloadBytes() / 4));
  std::vector<float> k = in.Floats(rows * group.heads * group.k_dim);
  const std::vector<float> v = in.Floats(rows * group.heads * group.v_dim);
  std::vector<int32_t> position, slot;
  std::vector<std::byte*> page;
  for (int r = 0; r < rows; ++r) {
    position.push_back(in.Below(4096));
    page.push_back(reinterpret_cast<std::byte*>(pages[r / kPageTokens].data()));
    slot.push_back(r % kPageTokens);
  }
  std::vector<uint8_t> failed(rows);
  for (int layer = 0; layer < group.layers; ++layer) {
    backend.StoreKv({.group = &group, .layer = layer, .rope = &rope, .rows = rows, .k = k.data(),
                     .v = v.data(), .position = position.data(), .page = page.data(),
                     .slot = slot.data(), .row_failed = failed.data()});
  }
  // Payloads hold finite numbers only; compared as they are, f16 too.
  for (const std::vector<float>& payload : pages) record.AddIntegers(payload);
  k[(rows - 1) * group.heads * group.k_dim] = HUGE_VALF;
  backend.StoreKv({.group = &group, .layer = 0, .rope = &rope, .rows = rows, .k = k.data(),
                   .v = v.data(), .position = position.data(), .page = page.data(),
                   .slot = slot.data(), .row_failed = failed.data()});
  record.AddIntegers(failed);
}

// A sequence of runs over random pages; what no run covers, and what no query sees, is NaN.
struct KvInput {
  std::vector<std::vector<float>> pages;
  std::vector<KvRun> runs;

  KvInput(Inputs& in, const LayerGroup& group, int length) {
    for (int index = 0; index < length;) {
      const bool whole = runs.size() % 3 == 0;  // every third run is a full page at home
      KvRun run;
      run.first = whole ? 0 : in.Below(kPageTokens);
      run.count = std::min(whole ? kPageTokens : 1 + in.Below(kPageTokens - run.first),
                           length - index);
      run.shift = whole ? 0 : std::min(index, in.Below(200)) - in.Below(100);
      pages.emplace_back(group.PayloadBytes() / 4, NAN);
      auto* page = reinterpret_cast<std::byte*>(pages.back().data());
      run.page = page;
      for (int n = 0; n < run.count; ++n) Fill(in, group, page, run.first + n);
      runs.push_back(run);
      index += run.count;
    }
  }

  static void Fill(Inputs& in, const LayerGroup& group, std::byte* page, int slot) {
    const auto put = [&](std::byte* at, KvType type) {
      const float value = in.Float();
      const uint16_t half = FloatToHalf(value);
      const auto code = static_cast<int8_t>(value * 63.5f);
      const void* from = &value;
      if (type == KvType::kF16) from = &half;
      if (type == KvType::kI8) from = &code;
      std::memcpy(at, from, KvTypeBytes(type));
    };
    for (int i = 0; i < group.layers * group.heads; ++i) {
      std::byte* k = page + group.HeadBytes() * i;
      for (int d = 0; d < group.k_dim; ++d) put(k + group.KOffset(d, slot), group.k_type);
      if (group.k_type == KvType::kI8) put(k + group.KScaleOffset(slot), KvType::kF32);
      for (int d = 0; d < group.v_dim; ++d) {
        const int64_t at = int64_t{slot} * group.v_dim + d;
        put(k + group.KBytes() + at * KvTypeBytes(group.v_type), group.v_type);
      }
    }
  }
};

void DigestAttendCall(Backend& backend, Inputs& in, const LayerGroup& group, const RopeTable& rope,
                      const std::vector<int>& lengths, int rows, Recorder& record) {
  constexpr int kQueryHeads = 6;
  const int count = static_cast<int>(lengths.size());
  std::vector<KvInput> kv;
  std::vector<std::vector<int32_t>> row(count), position(count);
  for (int s = 0; s < count; ++s) {
    kv.emplace_back(in, group, lengths[s]);
    for (int r = 0; r < rows; ++r) {
      row[s].push_back(r * count + s);
      // The last ones, as a prefill has them, and some anywhere.
      const int p = r % 4 == 3 ? in.Below(lengths[s]) : lengths[s] - 1 - r;
      position[s].push_back(std::max(0, p));
    }
  }
  std::vector<AttendSequence> sequences;
  for (int s = 0; s < count; ++s) sequences.push_back({kv[s].runs, row[s], position[s]});
  const std::vector<float> q = in.Floats(int64_t{rows} * count * kQueryHeads * group.k_dim);
  std::vector<float> y(static_cast<size_t>(rows) * count * kQueryHeads * group.v_dim);
  backend.Attend({.group = &group, .layer = 1, .rope = &rope, .q_heads = kQueryHeads,
                  .scale = 0.25f, .q = q.data(), .out = y.data(), .sequences = sequences});
  record.Add(y);
}

void DigestAttend(Backend& backend, KvType type, NumericsDigest* out) {
  Inputs in(103);
  Recorder record(std::string("attend/") + KvTypeName(type), out);
  RopeTable rope(64, 10000.0, std::vector<double>(32, 0.5));
  rope.Reserve(1024);
  for (int window : {0, 70}) {
    const LayerGroup group = MakeGroup(type, window);
    DigestAttendCall(backend, in, group, rope, {700}, 1, record);
    DigestAttendCall(backend, in, group, rope, {1, 64, 300}, 2, record);
    DigestAttendCall(backend, in, group, rope, {290, 33}, 19, record);
  }
}

}  // namespace

NumericsDigest ComputeNumericsDigest(Backend& backend) {
  NumericsDigest out;
  for (WeightType type : AllWeightTypes()) DigestWeights(backend, type, &out);
  DigestQuantize(backend, &out);
  DigestElementwise(backend, &out);
  for (KvType type : {KvType::kF16, KvType::kF32, KvType::kI8}) {
    DigestStore(backend, type, &out);
    DigestAttend(backend, type, &out);
  }
  DigestVariants(backend, &out);
  Hasher all("numerics-1");
  all.U64(kNumericsVersion);
  for (const NumericsDigest::Entry& entry : out.ops) all.Text(entry.op).Add(entry.digest);
  out.all = all.Finish();
  return out;
}

}  // namespace holdfast
