// Medians: of given values, and (MovingMedian) of the last kSamples. One thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace holdfast {

// 0 of nothing; of an even number, the mean of the two in the middle.
inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

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
  std::vector<double> Values() const {  // oldest first
    std::vector<double> v = values_;
    std::rotate(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(next_), v.end());
    return v;
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
