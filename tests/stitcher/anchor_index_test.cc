// AnchorIndex against a search that looks at every place of every segment.
#include "stitcher/anchor_index.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/stitcher/segment_fixture.h"

namespace holdfast {
namespace {

using Tokens = std::vector<TokenId>;

Tokens Join(std::initializer_list<Tokens> parts) {
  Tokens out;
  for (const Tokens& p : parts) out.insert(out.end(), p.begin(), p.end());
  return out;
}

// Every index of [begin, end) that a run of kMinSegmentTokens or more that is in some body covers.
std::set<int64_t> Coverable(const Tokens& prompt, int64_t begin, int64_t end,
                            const std::vector<Tokens>& bodies) {
  std::set<int64_t> out;
  for (const Tokens& body : bodies) {
    const auto size = static_cast<int64_t>(body.size());
    for (int64_t home = begin - size + 1; home < end; ++home) {
      int64_t run = 0;
      for (int64_t i = std::max(begin, home); i <= std::min(end, home + size); ++i) {
        if (i < std::min(end, home + size) && prompt[i] == body[i - home]) {
          ++run;
          continue;
        }
        for (int64_t j = i - run; run >= kMinSegmentTokens && j < i; ++j) out.insert(j);
        run = 0;
      }
    }
  }
  return out;
}

// Checks that they are ascending, disjoint, inside, long enough and true; gives what they cover.
std::set<int64_t> Covered(const std::vector<FoundRun>& runs, const Tokens& prompt, int64_t begin,
                          int64_t end) {
  std::set<int64_t> out;
  int64_t at = begin;
  for (const FoundRun& r : runs) {
    REQUIRE(r.begin >= at);
    REQUIRE(r.end <= end);
    REQUIRE(r.end - r.begin >= kMinSegmentTokens);
    const auto body = r.variant->body();
    REQUIRE(r.offset >= 0);
    REQUIRE(r.offset + r.end - r.begin <= r.variant->count);
    for (int64_t i = r.begin; i < r.end; ++i) {
      REQUIRE(prompt[i] == body[r.offset + i - r.begin]);
      out.insert(i);
    }
    at = r.end;
  }
  return out;
}

TEST_CASE("every shared run of 64 tokens or more is found, wherever it stands") {
  const uint64_t seed = std::random_device{}();
  std::mt19937_64 rng(seed);
  CAPTURE(seed);
  for (int trial = 0; trial < 60; ++trial) {
    AnchorIndex index;
    std::vector<Tokens> bodies;
    const TokenId vocabulary = trial % 3 == 0 ? 12 : 50000;
    for (int s = 0; s < 6; ++s) {
      bodies.push_back(RandomTokens(rng, 64 + rng() % 500, vocabulary));
      if (s > 0 && rng() % 2 == 0) {  // a part of another one
        const Tokens& other = bodies[rng() % s];
        const size_t at = rng() % other.size();
        bodies.back().insert(bodies.back().begin() + rng() % bodies.back().size(),
                             other.begin() + at, other.end());
      }
      index.Add(Named(VariantAfter(RandomTokens(rng, rng() % 100, 9), bodies.back()), s, s + 1));
    }
    Tokens prompt;
    for (int part = 0; part < 12; ++part) {
      const Tokens& body = bodies[rng() % bodies.size()];
      const size_t from = rng() % body.size(), count = rng() % 300;
      prompt.insert(prompt.end(), body.begin() + from,
                    body.begin() + std::min(body.size(), from + count));
      prompt = Join({prompt, RandomTokens(rng, rng() % 60, vocabulary)});
    }
    const auto size = static_cast<int64_t>(prompt.size());
    const int64_t begin = static_cast<int64_t>(rng() % 100);
    const int64_t end = size - static_cast<int64_t>(rng() % 50);
    if (end - begin < kMinSegmentTokens) continue;
    const auto found = Covered(index.Find(prompt, begin, end), prompt, begin, end);
    const auto wanted = Coverable(prompt, begin, end, bodies);
    CHECK(std::includes(wanted.begin(), wanted.end(), found.begin(), found.end()));
    for (const int64_t i : found) prompt[i] = -1;  // what is left holds no run any more
    CHECK(Coverable(prompt, begin, end, bodies).empty());
  }
}

TEST_CASE("one run alone is found to its last token") {
  std::mt19937_64 rng(7);
  const Tokens body = RandomTokens(rng, 300, 50000);
  AnchorIndex index;
  index.Add(Named(VariantAfter(RandomTokens(rng, 37, 50000), body), 1, 1));
  for (int64_t length : {64, 65, 100, 236}) {
    for (int64_t before = 0; before < 70; before += 3) {
      const Tokens piece(body.begin() + 17, body.begin() + 17 + length);
      const Tokens prompt = Join({Tokens(static_cast<size_t>(before), 60000), piece, {60001}});
      const auto runs = index.Find(prompt, 0, static_cast<int64_t>(prompt.size()));
      REQUIRE(runs.size() == 1);
      CHECK(runs[0].begin == before);
      CHECK(runs[0].end == before + length);
      CHECK(runs[0].offset == 17);
      CHECK(runs[0].shift() == before - (37 + 17));
    }
  }
  const Tokens short_piece(body.begin(), body.begin() + 63);
  CHECK(index.Find(Join({short_piece, {60001}}), 0, 64).empty());
}

TEST_CASE("of several variants the context decides, then the length, then the age") {
  std::mt19937_64 rng(3);
  const Tokens body = RandomTokens(rng, 200, 50000);
  const Tokens left = RandomTokens(rng, 500, 50000), other = RandomTokens(rng, 500, 50000);
  const Tokens half_left = Join({Tokens(other.begin(), other.begin() + 300),
                                 Tokens(left.begin() + 300, left.end())});
  AnchorIndex index;
  const Tokens part(body.begin(), body.begin() + 150);
  index.Add(Named(VariantAfter(other, body), 1, 1));
  index.Add(Named(VariantAfter(other, body), 2, 1));
  index.Add(Named(VariantAfter(half_left, body), 3, 1));
  index.Add(Named(VariantAfter(left, part), 4, 1));
  const auto first_of = [&](const Tokens& before) {
    const Tokens prompt = Join({before, body});
    const auto runs = index.Find(prompt, static_cast<int64_t>(before.size()),
                                 static_cast<int64_t>(prompt.size()));
    REQUIRE_FALSE(runs.empty());
    return runs;
  };
  SUBCASE("the longest context goes first, though it covers less; a short rest is left") {
    const auto runs = first_of(left);
    CHECK(runs[0].variant->row == 4);
    CHECK(runs[0].shared_left == 256);  // of 500: a power of two beyond the covering pages
    CHECK(runs[0].end == 500 + 150);
    CHECK(runs.size() == 1);
  }
  SUBCASE("a context in common with none: the longest, the newest of those") {
    const auto runs = first_of({7, 7, 7});
    CHECK(runs[0].variant->row == 3);
    CHECK(runs[0].shared_left == 0);
    CHECK(runs[0].end == 3 + 200);
  }
  SUBCASE("what was removed is found no more") {
    index.Remove(*Named({}, 4, 1));
    CHECK(first_of(left)[0].variant->row == 3);
    index.Remove(*Named({}, 3, 1));
    index.Remove(*Named({}, 1, 1));
    CHECK(first_of(left)[0].variant->row == 2);
    index.Remove(*Named({}, 2, 1));
    const Tokens prompt = Join({left, body});
    CHECK(index.Find(prompt, 0, static_cast<int64_t>(prompt.size())).empty());
    CHECK(index.bytes() < 4096);
  }
  SUBCASE("the context inside the segment counts where the search begins in it") {
    const Tokens prompt = Join({left, body});
    const auto runs = index.Find(prompt, 520, static_cast<int64_t>(prompt.size()));
    REQUIRE(runs.size() == 1);
    CHECK(runs[0].variant->row == 4);
    CHECK(runs[0].offset == 20);
    CHECK(runs[0].shared_left >= 256 + 20);
  }
}

TEST_CASE("a shorter variant serves as far as it goes, another one the rest") {
  std::mt19937_64 rng(5);
  const Tokens body = RandomTokens(rng, 400, 50000), left = RandomTokens(rng, 64, 50000);
  AnchorIndex index;
  index.Add(Named(VariantAfter(left, Tokens(body.begin(), body.begin() + 200)), 1, 1));
  index.Add(Named(VariantAfter({}, body), 2, 1));
  const Tokens prompt = Join({left, body});
  const auto runs = index.Find(prompt, 0, static_cast<int64_t>(prompt.size()));
  REQUIRE(runs.size() == 2);
  CHECK(runs[0].variant->row == 1);
  CHECK(runs[0].end == 64 + 200);
  CHECK(runs[1].variant->row == 2);
  CHECK(runs[1].begin == 64 + 200);
  CHECK(runs[1].end == 64 + 400);
}

TEST_CASE("repetitive text costs bounded work and memory") {
  AnchorIndex index;
  const Tokens blanks(4000, 5);
  for (int i = 0; i < 40; ++i) index.Add(Named(VariantAfter({}, blanks), i, static_cast<uint8_t>(i)));
  CHECK(index.bytes() < 40 * 4096 * sizeof(TokenId) + (64u << 10));
  const Tokens prompt = Join({Tokens(20, 6), Tokens(6000, 5), Tokens(20, 6)});
  const auto size = static_cast<int64_t>(prompt.size());
  const auto runs = index.Find(prompt, 0, size);
  CHECK(Covered(runs, prompt, 0, size).size() >= 4000);
  for (int i = 0; i < 40; ++i) index.Remove(*Named({}, i, static_cast<uint8_t>(i)));
  CHECK(index.Find(prompt, 0, size).empty());
}

TEST_CASE("stretches hash alike wherever they stand") {
  std::mt19937_64 rng(11);
  const Tokens a = RandomTokens(rng, 200, 1000);
  const Tokens b = Join({RandomTokens(rng, 33, 1000), a});
  const TokenHashes ha(a), hb(b);
  std::set<uint64_t> seen;
  for (int64_t begin = 0; begin < 200; ++begin) {
    for (int64_t count = 1; begin + count <= 200; count += 7) {
      CHECK(ha.Of(begin, count) == hb.Of(33 + begin, count));
      if (begin > 0 && count > 4) CHECK(seen.insert(ha.Of(begin, count)).second);
    }
  }
  CHECK(SuffixHashes(ha, 200).size() == 8);
  CHECK(SuffixHashes(ha, 0).empty());
  CHECK(SuffixHashes(ha, 130)[7] == ha.Of(2, 128));
}

}  // namespace
}  // namespace holdfast
