// The seed of a turn (DESIGN law 8): of the request's own seed where it names one, so that the same
// request gives the same answer anywhere; else of the session's, the branch's ordinal, the index of
// the first token generated, and how many turns began there before.
#pragma once

#include <cstdint>

#include "engine/base/hash.h"

namespace holdfast {

inline uint64_t SeedOf(const Digest& d) {
  uint64_t v;
  std::memcpy(&v, d.bytes.data(), sizeof(v));
  return v;
}

inline uint64_t RequestSeed(uint64_t seed, int64_t index) {
  return SeedOf(Hasher("turn-seed-request-1").U64(seed).U64(index).Finish());
}

inline uint64_t SessionSeed(uint64_t seed, int64_t ordinal, int64_t index, int64_t attempt) {
  return SeedOf(
      Hasher("turn-seed-session-1").U64(seed).U64(ordinal).U64(index).U64(attempt).Finish());
}

}  // namespace holdfast
