// Sums and products of numbers that come from a file: u64, or an overflow that sticks.
#pragma once

#include <cstdint>

namespace holdfast {

// Checked(a) * b + c <= d reads as it would with plain integers; once a step has overflowed, ok()
// is false for good and every comparison with AtMost is false.
class Checked {
 public:
  constexpr Checked(uint64_t value) : value_(value) {}  // NOLINT: implicit by design

  constexpr Checked operator+(Checked other) const {
    Checked r(0);
    r.ok_ = !__builtin_add_overflow(value_, other.value_, &r.value_) && ok_ && other.ok_;
    return r;
  }
  constexpr Checked operator*(Checked other) const {
    Checked r(0);
    r.ok_ = !__builtin_mul_overflow(value_, other.value_, &r.value_) && ok_ && other.ok_;
    return r;
  }
  constexpr bool ok() const { return ok_; }
  constexpr bool AtMost(uint64_t limit) const { return ok_ && value_ <= limit; }
  constexpr uint64_t value() const { return value_; }  // meaningful when ok()

 private:
  uint64_t value_;
  bool ok_ = true;
};

}  // namespace holdfast
