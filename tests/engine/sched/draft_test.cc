// What is guessed, and how much of it is worth a row.

#include "engine/sched/draft.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace holdfast {
namespace {

std::vector<TokenId> Letters(const std::string& text) { return {text.begin(), text.end()}; }

std::string Guess(const std::string& text, int64_t count) {
  const std::vector<TokenId> tokens = Letters(text);
  DraftIndex index;
  index.Follow(tokens);
  const DraftIndex::Match match = index.Find(tokens);
  if (match.length == 0) return "";
  const std::vector<TokenId> draft = DraftFrom(tokens, match, count);
  return {draft.begin(), draft.end()};
}

TEST_CASE("a draft is what followed the longest, then the most recent, occurrence") {
  struct Case {
    const char *text, *draft;
  };
  for (const auto& [text, draft] : std::vector<Case>{
           {"", ""},
           {"a", ""},
           {"aa", ""},
           {"abc", ""},
           {"abxxb", ""},               // one token is no match
           {"ab1234..ab", "1234"},
           {"ab1 ab2 ab", "2 ab"},      // the most recent
           {"cab1 ab2 cab", "1 ab"},    // the longest
           {"abab", "abab"},            // on into itself
           {"aaa", "aaaa"},
           {"xyzxyz", "xyzx"},
       }) {
    CAPTURE(text);
    CHECK(Guess(text, 4) == draft);
  }
}

TEST_CASE("an index that grew token by token finds what a new one finds") {
  std::vector<TokenId> tokens;
  DraftIndex grown;
  uint32_t state = 1;
  for (int i = 0; i < 3000; ++i) {
    state = state * 1664525 + 1013904223;
    tokens.push_back(static_cast<TokenId>(state >> 28));
    if (state >> 20 & 1) continue;  // several at once too
    grown.Follow(tokens);
    DraftIndex fresh;
    fresh.Follow(tokens);
    const auto a = grown.Find(tokens), b = fresh.Find(tokens);
    REQUIRE(a.next == b.next);
    REQUIRE(a.length == b.length);
    for (int64_t k = 1; k <= a.length; ++k) {
      REQUIRE(tokens[a.next - k] == tokens[tokens.size() - k]);
    }
  }
}

TEST_CASE("acceptance follows what happened, by length of match") {
  Acceptance acceptance;
  const double begin = acceptance.Rate(2);
  CHECK(begin < acceptance.Rate(5));
  CHECK(acceptance.Rate(5) < acceptance.Rate(20));
  acceptance.Learn(2, 0, true);
  CHECK(acceptance.Rate(3) < begin);
  CHECK(acceptance.Rate(20) == doctest::Approx(0.8));
  acceptance.Learn(3, 30, false);
  CHECK(acceptance.Rate(2) > 0.9);
  for (int i = 0; i < 30; ++i) acceptance.Learn(9, 0, true);
  CHECK(acceptance.Rate(32) < 0.1);
}

TEST_CASE("drafts are as long as they pay") {
  PassCost bandwidth, arithmetic;  // further rows cost little, or all
  for (int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
    bandwidth.Measured(rows, 10 + 0.5 * static_cast<double>(rows));
    arithmetic.Measured(rows, 10.0 * static_cast<double>(rows));
  }
  const PassSoFar alone{.rows = 1, .tokens = 1}, crowd{.rows = 32, .tokens = 32};
  CHECK(DraftLength(alone, 1, 16, bandwidth) == 16);
  CHECK(DraftLength(alone, 1, 5, bandwidth) == 5);
  CHECK(DraftLength(alone, 0.5, 16, bandwidth) > 1);
  CHECK(DraftLength(alone, 0.5, 16, bandwidth) < 6);
  CHECK(DraftLength(alone, 0.02, 16, bandwidth) == 0);
  CHECK(DraftLength(alone, 0.95, 16, arithmetic) == 0);
  CHECK(DraftLength(crowd, 0.9, 16, bandwidth) >= 1);
  CHECK(DraftLength(crowd, 0.3, 16, bandwidth) == 0);
  CHECK(DraftGain(0.5, 3) == doctest::Approx(0.875));
  CHECK(DraftGain(1, 16) == doctest::Approx(16));
}

}  // namespace
}  // namespace holdfast
