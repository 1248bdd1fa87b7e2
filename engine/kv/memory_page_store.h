// Pages in a map: the PageStore of tests and of `--store memory`. Nothing outlives the process.
#pragma once

#include <memory>

#include "engine/kv/page_store.h"

namespace holdfast {

// `bytes_max` bounds the payloads; a Put beyond it is kExhausted. 0: no bound.
std::unique_ptr<PageStore> MakeMemoryPageStore(size_t bytes_max);

}  // namespace holdfast
