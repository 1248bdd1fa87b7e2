// Bundles that are not what they should be.
#pragma once

#include <cstring>
#include <random>

#include "tests/api/bundle_bench.h"

namespace holdfast {

// Damages and forges bundles, by seed.
class Forger {
 public:
  // Of a whole bundle and another whose sections may be swapped in; signed with `key` or not.
  Forger(std::vector<RawSection> a, std::vector<RawSection> b, std::string key, uint64_t seed)
      : whole_(std::move(a)), other_(std::move(b)), key_(std::move(key)), random_(seed) {}

  // A bit, an end or more bytes than there were, of which no checksum knows; `n` says which.
  Bytes Damaged(const Bytes& good, int n) {
    Bytes bad = good;
    switch (n % 3) {
      case 0: Flip(&bad); break;
      case 1: bad.resize(Pick(bad.size())); break;
      case 2: bad.insert(bad.end(), 1 + Pick(99), std::byte(n)); break;
    }
    return bad;
  }

  // As only somebody makes it who means it: lengths and checksums are right.
  Bytes Next() {
    std::vector<RawSection> s = whole_;
    const size_t i = Pick(s.size()), j = Pick(s.size());
    switch (Pick(7)) {
      case 0: Flip(&s[i].payload); break;
      case 1: std::swap(s[i], s[j]); break;
      case 2: s.erase(s.begin() + i); break;
      case 3: s.insert(s.begin() + j, s[i]); break;
      case 4: Overwrite(&s[i].payload); break;
      case 5: s[i].payload.resize(Pick(s[i].payload.size() + 9)); break;
      case 6: s[i] = other_[Pick(other_.size())]; break;
    }
    return Framed(s, Pick(2) == 0 ? "" : key_);
  }
  size_t Pick(size_t n) { return n == 0 ? 0 : random_() % n; }
  void Flip(Bytes* bytes) {
    if (!bytes->empty()) (*bytes)[Pick(bytes->size())] ^= std::byte(1 << Pick(8));
  }

 private:
  // A number that decoders trip over, somewhere.
  void Overwrite(Bytes* bytes) {
    static constexpr int64_t kValues[] = {0,  1,  -1, 2, INT64_MAX, INT64_MIN, 1 << 20, 0xffffffff,
                                          31, 32, 33};
    const int64_t v = kValues[Pick(std::size(kValues))];
    if (bytes->size() >= sizeof(v)) {
      std::memcpy(bytes->data() + Pick(bytes->size() - sizeof(v) + 1), &v, sizeof(v));
    }
  }

  const std::vector<RawSection> whole_, other_;
  const std::string key_;
  std::mt19937_64 random_;
};

}  // namespace holdfast
