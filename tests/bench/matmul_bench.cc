// matmul_bench [--level portable|avx2|avx512] [--threads N] [--type NAME]
// How fast a matrix of each weight type is read (one row, a matrix beyond the caches) and
// multiplied (many rows), beside Q8_0: its runs and the type's alternate, medians of nine. Ratios hold
// on a machine that others use too; absolute figures need an idle one.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backend/backend.h"

namespace holdfast {
namespace {

constexpr int64_t kInputs = 4096, kTallOutputs = 16384, kOutputs = 2048, kManyRows = 384;
constexpr int kRuns = 9;

double Median(std::vector<double> x) {
  std::ranges::nth_element(x, x.begin() + x.size() / 2);
  return x[x.size() / 2];
}

// Random weights of one type. Each byte is 0x20..0x2f: no f16, exponent or fp32 made of them is
// denormal or infinite, and no kernel's time depends on codes.
class Product {
 public:
  Product(Backend& backend, WeightType type, int64_t outputs, int64_t rows)
      : backend_(backend), rows_(rows), x_(rows * kInputs), y_(rows * outputs) {
    const BlockShape block = WeightBlock(type);
    std::vector<std::byte> bytes(outputs * kInputs / block.elements * block.bytes);
    uint32_t state = 1;
    for (std::byte& b : bytes) {
      state = state * 1664525u + 1013904223u;
      b = static_cast<std::byte>(0x20 | state >> 28);
    }
    auto packed = backend.Pack({type, outputs, kInputs, bytes.data()});
    if (!packed.ok()) std::fprintf(stderr, "%s\n", packed.status().message().c_str()), std::exit(1);
    weight_ = std::move(packed).value();
    for (size_t i = 0; i < x_.size(); ++i) x_[i] = static_cast<float>(i * 7 % 255) - 127.0f;
    std::vector<uint8_t> failed(rows);
    if (NeedsQuantized(type)) backend.Quantize({rows, kInputs, x_.data(), &xq_, failed.data()});
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
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--level") options.level = argv[i + 1];
    if (name == "--threads") options.threads = std::atoi(argv[i + 1]);
    if (name == "--type") only = argv[i + 1];
  }
  auto backend = MakeCpuBackend(options);
  if (!backend.ok()) {
    std::fprintf(stderr, "matmul_bench: %s\n", backend.status().message().c_str());
    return 2;
  }
  std::printf("%s, %lld inputs; one row: %lld outputs; many: %lld rows, %lld outputs\n",
              std::string((*backend)->name()).c_str(), static_cast<long long>(kInputs),
              static_cast<long long>(kTallOutputs), static_cast<long long>(kManyRows),
              static_cast<long long>(kOutputs));
  std::printf("%-8s %11s %9s %12s   %10s %12s\n", "type", "bytes/32", "GB/s", "bytes' rate",
              "Gop/s", "speed");
  Product tall_q8(**backend, WeightType::kQ8_0, kTallOutputs, 1);
  Product many_q8(**backend, WeightType::kQ8_0, kOutputs, kManyRows);
  for (WeightType type : AllWeightTypes()) {
    if (!only.empty() && only != WeightTypeName(type)) continue;
    Product tall(**backend, type, kTallOutputs, 1);
    const auto [one, one_q8] = Alternate(tall, tall_q8);
    Product many(**backend, type, kOutputs, kManyRows);
    const auto [all, all_q8] = Alternate(many, many_q8);
    std::printf("%-8s %11.1f %9.1f %8.2f Q8_0 %11.0f %7.2f Q8_0\n",
                std::string(WeightTypeName(type)).c_str(),
                tall.bytes() * 32 / (kTallOutputs * kInputs), tall.bytes() / one * 1e-9,
                tall.bytes() / one / (tall_q8.bytes() / one_q8), many.operations() / all * 1e-9,
                all_q8 / all);
  }
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Run(argc, argv); }
