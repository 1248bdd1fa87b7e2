// MovingMedian: the median of the last kSamples values. One thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace holdfast {

class MovingMedian {
 public:
  static constexpr size_t kSamples = 15;

  void Add(double v) {
    if (values_.size() < kSamples) {
      values_.push_back(v);
    } else {
      values_[next_] = v;
      next_ = (next_ + 1) % kSamples;
    }
  }
  double Get() const {  // 0 before the first
    if (values_.empty()) return 0;
    std::vector<double> v = values_;
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
  }

 private:
  std::vector<double> values_;
  size_t next_ = 0;
};

}  // namespace holdfast
