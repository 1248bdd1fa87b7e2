#include "engine/kv/memory_page_store.h"

#include <doctest/doctest.h>

#include <vector>

#include "tests/engine/kv/page_store_contract.h"

namespace holdfast {
namespace {

TEST_CASE("the page store in memory keeps the contract") {
  PageStoreContract contract([] { return MakeMemoryPageStore(0); });
  contract.RunAll();
}

TEST_CASE("the page store in memory refuses what is over its bound") {
  auto store = MakeMemoryPageStore(100);
  const PageRecordSample small(1, {60}), large(2, {60});
  CHECK(store->Put(small.header, small.views()).ok());
  CHECK(store->Put(large.header, large.views()).code() == Code::kExhausted);
  CHECK(store->Delete(small.header.key).ok());
  CHECK(store->Put(large.header, large.views()).ok());
}

}  // namespace
}  // namespace holdfast
