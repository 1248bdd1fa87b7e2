#include <cassert>

#include "engine/backend/backend.h"
#include "engine/backend/exact_math.h"

namespace holdfast {

RopeTable::RopeTable(int dim, double base, std::vector<double> freq_scale) : dim_(dim) {
  assert(dim > 0 && dim % 2 == 0);
  assert(freq_scale.empty() || static_cast<int>(freq_scale.size()) == dim / 2);
  const double log_base = Log(base);
  for (int i = 0; i < dim / 2; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(dim);
    const double freq = Exp(-(exponent * log_base));
    freq_.push_back(freq_scale.empty() ? freq : freq * freq_scale[i]);
  }
}

void RopeTable::Reserve(int64_t positions) {
  if (positions <= positions_) return;
  data_.resize(static_cast<size_t>(positions) * dim_);
  const int half = dim_ / 2;
  for (int64_t p = positions_; p < positions; ++p) {
    float* row = data_.data() + p * dim_;
    for (int i = 0; i < half; ++i) {
      const SinCosResult turn = SinCos(static_cast<double>(p) * freq_[i]);
      row[i] = static_cast<float>(turn.cos);
      row[half + i] = static_cast<float>(turn.sin);
    }
  }
  positions_ = positions;
}

}  // namespace holdfast
