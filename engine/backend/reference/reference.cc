// Weights, products and the row-wise operations. Attention is in attend.cc.
#include "engine/backend/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/backend/exact_math.h"
#include "engine/backend/half.h"
#include "engine/backend/reference/blocks.h"

namespace holdfast {
namespace reference {
namespace {

constexpr int64_t kFloatPart = 512;      // NUMERICS.md section 2
constexpr int64_t kGroupsPerPart = 32;   // 1024 elements, section 4

bool IsFinite(float x) { return (std::bit_cast<uint32_t>(x) & 0x7fffffff) < 0x7f800000; }

class RawWeight : public Weight {
 public:
  explicit RawWeight(const WeightSource& s) : Weight(s) {
    const BlockShape shape = WeightBlock(s.type);
    row_bytes_ = static_cast<size_t>(s.inputs / shape.elements) * shape.bytes;
    data_.assign(s.data, s.data + row_bytes_ * s.outputs);
  }
  size_t bytes() const override { return data_.size(); }
  const std::byte* Row(int64_t o) const { return data_.data() + row_bytes_ * o; }

 private:
  size_t row_bytes_;
  std::vector<std::byte> data_;
};

float FloatElement(WeightType type, const std::byte* row, int64_t i) {
  if (type == WeightType::kF32) {
    float value;
    std::memcpy(&value, row + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, row + 2 * i, 2);
  return type == WeightType::kBF16 ? Bf16ToFloat(half) : HalfToFloat(half);
}

bool HasMin(WeightType type) {
  return type == WeightType::kQ4_1 || type == WeightType::kQ5_1 || type == WeightType::kQ4_K ||
         type == WeightType::kQ5_K;
}

float DotFloat(WeightType type, const std::byte* w, const float* x, int64_t n) {
  float y = 0;
  for (int64_t begin = 0; begin < n; begin += kFloatPart) {
    float acc = 0;
    for (int64_t i = begin; i < std::min(begin + kFloatPart, n); ++i) {
      acc = std::fma(FloatElement(type, w, i), x[i], acc);
    }
    y = begin == 0 ? acc : y + acc;
  }
  return y;
}

float AddGroup(const WeightGroup& w, WeightType type, const QuantizedRows& x, int64_t row,
               int64_t group, float acc) {
  const int64_t at = row * (x.cols / kQuantGroup) + group;
  const int8_t* q = x.q.data() + at * kQuantGroup;
  int32_t low = 0, high = 0;
  for (int i = 0; i < 16; ++i) low += w.w[i] * q[i];
  for (int i = 16; i < 32; ++i) high += w.w[i] * q[i];
  const int32_t s = w.sc[0] * low + w.sc[1] * high;
  acc = std::fma(static_cast<float>(s), w.d * x.scale[at], acc);
  if (HasMin(type)) {
    const float sum = static_cast<float>(x.sum_lo[at] + x.sum_hi[at]);
    acc = std::fma(-w.min, x.scale[at] * sum, acc);
  }
  return acc;
}

float DotQuantized(WeightType type, const std::byte* w, const QuantizedRows& x, int64_t row) {
  const int64_t groups = x.cols / kQuantGroup;
  float y = 0;
  for (int64_t begin = 0; begin < groups; begin += kGroupsPerPart) {
    float acc = 0;
    for (int64_t g = begin; g < std::min(begin + kGroupsPerPart, groups); ++g) {
      acc = AddGroup(ReadWeightGroup(type, w, g), type, x, row, g, acc);
    }
    y = begin == 0 ? acc : y + acc;
  }
  return y;
}

float EmbedElement(WeightType type, const WeightGroup& g, int i) {
  const float w = static_cast<float>(g.w[i]);
  if (HasMin(type)) return std::fma(w, g.d, -g.min);
  return type == WeightType::kQ6_K ? w * (g.d * static_cast<float>(g.sc[i / 16])) : w * g.d;
}

// False when the group holds a number that is not finite.
bool QuantizeGroup(const float* x, int n, int8_t* q, float* scale, int32_t* lo, int32_t* hi) {
  uint32_t amax_bits = 0;
  for (int i = 0; i < n; ++i) {
    amax_bits = std::max(amax_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  }
  std::fill(q, q + kQuantGroup, int8_t{0});
  *scale = 0;
  *lo = *hi = 0;
  if (amax_bits >= 0x7f800000) return false;
  const float amax = std::bit_cast<float>(amax_bits);
  if (amax < 0x1.0p-100f) return true;
  *scale = amax / 127.0f;
  const float id = 127.0f / amax;
  for (int i = 0; i < n; ++i) {
    // 1.5 * 2^23 rounds |x * id| <= 127.1 to an integer, half to even.
    const float rounded = (x[i] * id + exp_f::kMagic) - exp_f::kMagic;
    q[i] = static_cast<int8_t>(std::clamp(static_cast<int>(rounded), -127, 127));
    (i < 16 ? *lo : *hi) += q[i];
  }
  return true;
}

}  // namespace

Status CheckSource(const WeightSource& s) {
  const BlockShape shape = WeightBlock(s.type);
  if (shape.elements == 0) {
    return Status::Invalid("weight type " + std::to_string(static_cast<uint32_t>(s.type)) +
                           " is not supported");
  }
  const std::string what = std::string(WeightTypeName(s.type)) + " matrix of " +
                           std::to_string(s.outputs) + " x " + std::to_string(s.inputs);
  if (s.outputs <= 0 || s.inputs <= 0 || s.data == nullptr) {
    return Status::Invalid(what + " is empty");
  }
  if (s.inputs % shape.elements != 0) {
    return Status::Invalid(what + ": rows must be a multiple of " +
                           std::to_string(shape.elements) + " long");
  }
  return {};
}

Result<std::unique_ptr<Weight>> Pack(const WeightSource& source) {
  HOLDFAST_RETURN_IF_ERROR(CheckSource(source));
  return std::unique_ptr<Weight>(std::make_unique<RawWeight>(source));
}

void Embed(const Weight& table, std::span<const TokenId> ids, float* out) {
  const auto& raw = static_cast<const RawWeight&>(table);
  const WeightType type = raw.type();
  for (TokenId id : ids) {
    const std::byte* row = raw.Row(id);
    for (int64_t i = 0; i < raw.inputs(); ++i) {
      *out++ = NeedsQuantized(type)
                   ? EmbedElement(type, ReadWeightGroup(type, row, i / 32), i % 32)
                   : FloatElement(type, row, i);
    }
  }
}

void RmsNorm(const RmsNormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.cols;
    float* y = args.y + r * args.cols;
    float chain[64] = {};
    for (int64_t i = 0; i < args.cols; ++i) chain[i % 64] = std::fma(x[i], x[i], chain[i % 64]);
    for (int w = 32; w > 0; w /= 2) {
      for (int j = 0; j < w; ++j) chain[j] = chain[j] + chain[j + w];
    }
    const float mean = chain[0] / static_cast<float>(args.cols);
    const float scale = 1.0f / std::sqrt(mean + args.eps);
    for (int64_t i = 0; i < args.cols; ++i) y[i] = (x[i] * scale) * args.w[i];
  }
  if (args.quantize.out != nullptr) Quantize({args.rows, args.cols, args.y, args.quantize});
}

void Quantize(const QuantizeArgs& args) {
  QuantizedRows& out = *args.to.out;
  out.Resize(args.rows, args.cols);
  const int64_t groups = out.cols / kQuantGroup;
  for (int64_t r = 0; r < args.rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = r * groups + g;
      const int n = static_cast<int>(std::min<int64_t>(kQuantGroup, args.cols - g * kQuantGroup));
      if (!QuantizeGroup(args.x + r * args.cols + g * kQuantGroup, n,
                         out.q.data() + at * kQuantGroup, &out.scale[at], &out.sum_lo[at],
                         &out.sum_hi[at])) {
        args.to.row_failed[r] = 1;
      }
    }
  }
}

void MatMul(const MatMulArgs& args) {
  const auto& raw = static_cast<const RawWeight&>(*args.w);
  const WeightType type = raw.type();
  for (int64_t r = 0; r < args.rows; ++r) {
    for (int64_t o = 0; o < raw.outputs(); ++o) {
      float y = NeedsQuantized(type)
                    ? DotQuantized(type, raw.Row(o), *args.xq, r)
                    : DotFloat(type, raw.Row(o), args.x + r * raw.inputs(), raw.inputs());
      if (args.bias != nullptr) y = y + args.bias[o];
      args.y[r * args.y_stride + o] = y;
    }
  }
}

void Glu(const GluArgs& args) {
  for (int64_t i = 0; i < args.rows * args.cols; ++i) {
    const float g = args.gate[i];
    const float t = args.activation == Activation::kSilu
                        ? -g
                        : g * std::fma(g * g, gelu_f::kB, gelu_f::kA);
    args.h[i] = (g / (1.0f + ExpF(t))) * args.up[i];
  }
  if (args.quantize.out != nullptr) Quantize({args.rows, args.cols, args.h, args.quantize});
}

void Scale(int64_t count, float factor, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] * factor;
}

void SoftCap(int64_t count, float cap, float* x) {
  for (int64_t i = 0; i < count; ++i) {
    const float t = x[i] / cap;
    x[i] = (1.0f - 2.0f / (1.0f + ExpF(t + t))) * cap;
  }
}

void Add(int64_t count, const float* x, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = y[i] + x[i];
}

void CheckFinite(int64_t rows, int64_t cols, const float* x, uint8_t* row_failed) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) {
      if (!IsFinite(x[r * cols + i])) row_failed[r] = 1;
    }
  }
}

}  // namespace reference

namespace {

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  Result<std::unique_ptr<Weight>> Pack(const WeightSource& s) override {
    return reference::Pack(s);
  }
  void Embed(const Weight& table, std::span<const TokenId> ids, float* out) override {
    reference::Embed(table, ids, out);
  }
  void RmsNorm(const RmsNormArgs& args) override { reference::RmsNorm(args); }
  void Quantize(const QuantizeArgs& args) override { reference::Quantize(args); }
  void MatMul(const MatMulArgs& args) override { reference::MatMul(args); }
  void Glu(const GluArgs& args) override { reference::Glu(args); }
  void Add(int64_t count, const float* x, float* y) override { reference::Add(count, x, y); }
  void Scale(int64_t count, float factor, float* x) override {
    reference::Scale(count, factor, x);
  }
  void SoftCap(int64_t count, float cap, float* x) override {
    reference::SoftCap(count, cap, x);
  }
  void StoreKv(const StoreKvArgs& args) override { reference::StoreKv(args); }
  void Attend(const AttendArgs& args) override { reference::Attend(args); }
  void CheckFinite(int64_t rows, int64_t cols, const float* x, uint8_t* row_failed) override {
    reference::CheckFinite(rows, cols, x, row_failed);
  }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace holdfast
