// Golden values were made by an independent program (Python's hashlib over length-prefixed fields). A
// change here orphans every page that was ever written.

#include "engine/kv/key.h"

#include <doctest/doctest.h>

#include <numeric>
#include <set>
#include <vector>

#include "engine/kv/layout.h"

namespace holdfast {
namespace {

Digest Filled(uint8_t byte) {
  Digest d;
  d.bytes.fill(byte);
  return d;
}

std::vector<TokenId> Page(TokenId first) {
  std::vector<TokenId> tokens(kPageTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST_CASE("keys have the golden values") {
  const PageKey root = RootKey(Filled(1), TenantScope("acme"), Digest{});
  CHECK(root.Hex() == "1bf8fc8d3830648c2377a16bebd8ef8a93cd0741691608653210cb4a263a7cc7");
  const PageKey next = NextKey(root, Page(0), Digest{});
  CHECK(next.Hex() == "3dc9e64a523c1974ca3302c71652f8253d292611860fce6dd489a139ff410f88");
  const std::vector<TokenId> tail = {7, 8, 9};
  CHECK(TailKey(next, tail, Filled(2)).Hex() == "1a66fc1b8c50ce01d1409e90326694bfc9b2158cd7ca953368c8ed27c9d32d3e");
  CHECK(TaintAfter(Digest{}, next, 3, 5, -35).Hex() == "cb0876912f6ca2298c3630adc344aca620c136ba1b5e4af2313b3bb98f61bcbc");
}

TEST_CASE("every input of a key changes it") {
  const Digest zero{};
  std::set<PageKey> keys;
  const PageKey root = RootKey(Filled(1), TenantScope("acme"), zero);
  keys.insert(root);
  keys.insert(RootKey(Filled(2), TenantScope("acme"), zero));
  keys.insert(RootKey(Filled(1), TenantScope("acmf"), zero));
  keys.insert(RootKey(Filled(1), TenantScope(""), zero));
  keys.insert(RootKey(Filled(1), TenantScope("acme"), Filled(1)));
  keys.insert(NextKey(root, Page(0), zero));
  keys.insert(NextKey(root, Page(1), zero));
  keys.insert(NextKey(root, Page(0), Filled(1)));
  keys.insert(NextKey(Filled(9), Page(0), zero));
  const auto page = Page(0);
  keys.insert(TailKey(root, std::span(page).first(31), zero));
  keys.insert(TailKey(root, std::span(page).first(30), zero));
  for (int i = 0; i < 4; ++i) keys.insert(TaintAfter(zero, root, i == 0, 5 + (i == 1), i == 2 ? -1 : 1));
  keys.insert(TaintAfter(Filled(1), root, 0, 5, 1));
  CHECK(keys.size() == 16);
}

}  // namespace
}  // namespace holdfast
