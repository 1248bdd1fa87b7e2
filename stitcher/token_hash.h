// Hashes of any stretch of a token list, each in constant time: a polynomial over mixed tokens
// modulo 2^64. Equal tokens have equal hashes; whether equal hashes mean equal tokens is for the
// caller to check.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/types.h"

namespace holdfast {

class TokenHashes {
 public:
  explicit TokenHashes(std::span<const TokenId> tokens);

  int64_t size() const { return static_cast<int64_t>(prefix_.size()) - 1; }
  // Of tokens [begin, begin + count), which are there.
  uint64_t Of(int64_t begin, int64_t count) const {
    return Mix(prefix_[begin + count] - prefix_[begin] * Power(static_cast<uint64_t>(count)));
  }

 private:
  static constexpr uint64_t kBase = 0x9e3779b97f4a7c15;  // odd
  static constexpr uint64_t Mix(uint64_t x) {            // SplitMix64's finaliser
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  static constexpr std::array<uint64_t, 63> Powers() {
    std::array<uint64_t, 63> out{};
    uint64_t p = kBase;
    for (uint64_t& o : out) {
      o = p;
      p *= p;
    }
    return out;
  }
  // kBase to the power of n; one step for a power of two.
  static uint64_t Power(uint64_t n) {
    static constexpr std::array<uint64_t, 63> kPowers = Powers();  // entry i: of 2^i
    uint64_t out = 1;
    for (; n != 0; n &= n - 1) out *= kPowers[std::countr_zero(n)];
    return out;
  }

  std::vector<uint64_t> prefix_;  // of the first 0, 1, 2, ... tokens
};

// Hashes of the last 1, 2, 4, ... of the first `end` tokens, as far as they go.
std::vector<uint64_t> SuffixHashes(const TokenHashes& tokens, int64_t end);

}  // namespace holdfast
