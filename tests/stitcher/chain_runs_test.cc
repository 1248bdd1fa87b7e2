// What a prompt shares with chains that were computed before.
#include "stitcher/chain_runs.h"

#include <doctest/doctest.h>

#include <random>

#include "tests/stitcher/segment_fixture.h"

namespace holdfast {
namespace {

using Tokens = std::vector<TokenId>;

std::mt19937_64 rng{3};

Tokens Some(int64_t n) { return RandomTokens(rng, n, 5000); }

Tokens Join(std::initializer_list<Tokens> parts) {
  Tokens out;
  for (const Tokens& p : parts) out.insert(out.end(), p.begin(), p.end());
  return out;
}

// The chain of these tokens, with all whole pages there.
ExactChain ChainOf(const Tokens& tokens) {
  ExactChain chain{RootKey(Digest{}, TenantScope("a"), Digest{}), tokens, {}};
  PageKey key = chain.root;
  for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    key = NextKey(key, std::span(tokens).subspan(at, kPageTokens), Digest{});
    chain.keys.push_back(key);
  }
  return chain;
}

// A run must be what its chain holds, under the chain's keys, with its whole left chain.
void CheckRun(const FoundRun& run, const Tokens& prompt, const ExactChain& chain) {
  const Variant& v = *run.variant;
  const int64_t home = v.position - v.first;
  CHECK(v.kind == VariantKind::kInContext);
  CHECK(home % kPageTokens == 0);
  CHECK(v.sink == Tokens(chain.tokens.begin(), chain.tokens.begin() + home));
  CHECK(run.offset == 0);
  CHECK(v.count == run.end - run.begin);
  CHECK(std::equal(v.body().begin(), v.body().end(), prompt.begin() + run.begin));
  CHECK(std::equal(v.body().begin(), v.body().end(), chain.tokens.begin() + v.position));
  const std::vector<PageKey> keys = v.PageKeys();
  for (size_t i = 0; i < keys.size(); ++i) {
    CHECK(keys[i] == chain.keys[static_cast<size_t>(home / kPageTokens) + i]);
  }
}

TEST_CASE("what follows an edit is one run, to the end of the last whole page") {
  const Tokens head = Some(70), gone = Some(90), rest = Some(500), more = Some(20);
  const ExactChain chain = ChainOf(Join({head, gone, rest}));
  const std::vector<ExactChain> chains = {chain};
  for (const Tokens& instead : {Tokens{}, Some(33), Some(90)}) {
    const Tokens prompt = Join({head, instead, rest, more});
    const ChainRuns found = FindInChains(chains, prompt);
    CHECK(found.shared >= 70);
    REQUIRE(found.runs.size() == 1);
    const int64_t at = 70 + static_cast<int64_t>(instead.size());
    CHECK(found.runs[0].begin == at);
    CHECK(found.runs[0].end == at + 640 - 160);  // 660 tokens are 20 whole pages
    CHECK(found.runs[0].shift() == at - 160);
    CheckRun(found.runs[0], prompt, chain);
  }
}

TEST_CASE("several edits, moved parts, several chains") {
  const Tokens a = Some(100), b = Some(120), c = Some(140), d = Some(160), other = Some(256);
  const std::vector<ExactChain> chains = {ChainOf(Join({a, b, c, d})), ChainOf(other)};
  const Tokens prompt = Join({a, d, Some(10), c, Some(30), other, b});
  const ChainRuns found = FindInChains(chains, prompt);
  CHECK(found.shared == 100);
  REQUIRE(found.runs.size() == 4);
  CHECK(found.runs[0].end - found.runs[0].begin == 512 - 360);  // d to its last whole page
  CHECK(found.runs[1].end - found.runs[1].begin == 140);
  CHECK(found.runs[2].end - found.runs[2].begin == 256);
  CHECK(found.runs[3].end - found.runs[3].begin == 120);
  for (int i : {0, 1, 3}) CheckRun(found.runs[i], prompt, chains[0]);
  CheckRun(found.runs[2], prompt, chains[1]);
}

TEST_CASE("what only goes on has no runs, nor has what is too short") {
  const Tokens a = Some(300), b = Some(80);
  const std::vector<ExactChain> chains = {ChainOf(Join({a, b}))};
  CHECK(FindInChains(chains, Join({a, b, Some(50)})).runs.empty());
  CHECK(FindInChains(chains, Join({a, b, Some(50)})).shared >= 352);
  CHECK(FindInChains(chains, Join({Some(40), Tokens(a.begin() + 5, a.begin() + 68)})).runs.empty());
  CHECK(FindInChains({}, a).runs.empty());
}

}  // namespace
}  // namespace holdfast
