#include "engine/store/checksum.h"

#include <xxhash.h>

#include <cassert>
#include <memory>

namespace holdfast {

uint64_t Checksum64(std::span<const std::span<const std::byte>> parts, uint64_t seed) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  assert(state != nullptr && "out of memory");
  XXH3_64bits_reset_withSeed(state.get(), seed);
  for (const auto& p : parts) XXH3_64bits_update(state.get(), p.data(), p.size());
  return XXH3_64bits_digest(state.get());
}

}  // namespace holdfast
