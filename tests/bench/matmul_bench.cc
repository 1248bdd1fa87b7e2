// matmul_bench [--level portable|avx2|avx512|neon] [--threads N] [--type NAME] [--inputs N]
// How fast a matrix of each weight type is read (1 row and 8 rows, a matrix beyond the caches) and
// multiplied (many rows), beside Q8_0: its runs and the type's alternate, medians of nine. Ratios
// hold on a machine that others use too; absolute figures need an idle one.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/base/moving_median.h"

namespace holdfast {
namespace {

constexpr int64_t kTallElements = 64 << 20, kOutputs = 2048, kFewRows = 8, kManyRows = 384;
constexpr int kRuns = 9;

// Random weights of one type. Each byte is 0x20..0x2f: no f16, exponent or fp32 made of them is
// denormal or infinite, and no kernel's time depends on codes.
class Product {
 public:
  Product(Backend& backend, WeightType type, int64_t outputs, int64_t inputs, int64_t rows)
      : backend_(backend), rows_(rows), x_(rows * inputs), y_(rows * outputs) {
    const BlockShape block = WeightBlock(type);
    std::vector<std::byte> bytes(outputs * inputs / block.elements * block.bytes);
    uint32_t state = 1;
    for (std::byte& b : bytes) {
      state = state * 1664525u + 1013904223u;
      b = static_cast<std::byte>(0x20 | state >> 28);
    }
    auto packed = backend.Pack({type, outputs, inputs, bytes.data()});
    if (!packed.ok()) std::fprintf(stderr, "%s\n", packed.status().message().c_str()), std::exit(1);
    weight_ = std::move(packed).value();
    for (size_t i = 0; i < x_.size(); ++i) x_[i] = static_cast<float>(i * 7 % 255) - 127.0f;
    std::vector<uint8_t> failed(rows);
    if (NeedsQuantized(type)) backend.Quantize({rows, inputs, x_.data(), &xq_, failed.data()});
    Seconds();  // warm
  }

  double Seconds() {
    const auto begin = std::chrono::steady_clock::now();
    backend_.MatMul({.w = weight_.get(), .rows = rows_, .x = x_.data(), .xq = &xq_,
                     .y = y_.data(), .y_stride = weight_->outputs()});
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  double bytes() const { return static_cast<double>(weight_->bytes()); }
  double operations() const {
    return 2.0 * static_cast<double>(rows_ * weight_->outputs() * weight_->inputs());
  }

 private:
  Backend& backend_;
  int64_t rows_;
  std::vector<float> x_, y_;
  QuantizedRows xq_;
  std::unique_ptr<Weight> weight_;
};

// Median seconds of both, run by turns.
std::pair<double, double> Alternate(Product& a, Product& b) {
  std::vector<double> a_seconds, b_seconds;
  for (int i = 0; i < kRuns; ++i) {
    a_seconds.push_back(a.Seconds());
    b_seconds.push_back(b.Seconds());
  }
  return {Median(a_seconds), Median(b_seconds)};
}

int Run(int argc, char** argv) {
  CpuOptions options;
  std::string_view only;
  int64_t inputs = 4096;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--level") options.level = argv[i + 1];
    if (name == "--threads") options.threads = std::atoi(argv[i + 1]);
    if (name == "--type") only = argv[i + 1];
    if (name == "--inputs") inputs = std::atoi(argv[i + 1]);
  }
  auto backend = MakeCpuBackend(options);
  if (!backend.ok()) {
    std::fprintf(stderr, "matmul_bench: %s\n", backend.status().message().c_str());
    return 2;
  }
  const int64_t tall = kTallElements / inputs;
  std::printf("%s, %lld inputs; 1 and %lld rows: %lld outputs; many: %lld rows, %lld outputs\n",
              std::string((*backend)->name()).c_str(), static_cast<long long>(inputs),
              static_cast<long long>(kFewRows), static_cast<long long>(tall),
              static_cast<long long>(kManyRows), static_cast<long long>(kOutputs));
  std::printf("%-8s %9s  %13s %12s  %13s %12s  %13s %12s\n", "type", "bytes/32", "1 row GB/s",
              "rate", "8 rows GB/s", "rate", "many Gop/s", "speed");
  for (WeightType type : AllWeightTypes()) {
    if (!only.empty() && only != WeightTypeName(type)) continue;
    double bytes = 0;
    std::printf("%-8s", std::string(WeightTypeName(type)).c_str());
    for (const int64_t rows : {int64_t{1}, kFewRows, kManyRows}) {
      const int64_t outputs = rows < kManyRows ? tall : kOutputs;
      Product product(**backend, type, outputs, inputs, rows);
      Product q8(**backend, WeightType::kQ8_0, outputs, inputs, rows);
      const auto [one, one_q8] = Alternate(product, q8);
      const auto amount = [&](const Product& p) {
        return rows < kManyRows ? p.bytes() : p.operations();
      };
      if (bytes == 0) {
        bytes = product.bytes() * 32 / static_cast<double>(outputs * inputs);
        std::printf(" %9.1f", bytes);
      }
      std::printf("  %13.1f %7.2f Q8_0", amount(product) / one * 1e-9,
                  amount(product) / one / (amount(q8) / one_q8));
      std::fflush(stdout);
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Run(argc, argv); }
