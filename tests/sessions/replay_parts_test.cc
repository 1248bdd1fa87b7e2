// The pure parts of replay: what has changed between two bases, how two answers differ.
#include <doctest/doctest.h>

#include "sessions/basis.h"
#include "sessions/token_diff.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

Digest D(uint8_t first) {
  Digest d;
  d.bytes[0] = first;
  return d;
}

Basis SomeBasis() {
  Basis b;
  b.weights = D(1);
  b.fp = D(2);
  b.numerics = D(3);
  b.operations = "attend/f16 aa\nmatmul/Q4_K bb\nnorm cc\n";
  b.chat_template = D(4);
  b.tokenizer = D(5);
  b.kv = "f16";
  return b;
}

using Names = std::vector<std::string>;

TEST_CASE("what differs between two bases is named") {
  const Basis a = SomeBasis();
  const auto changed = [&](auto change) {
    Basis b = a;
    change(b);
    CHECK((b.digest() == a.digest()) == false);
    return ChangesBetween(a, b);
  };
  CHECK(ChangesBetween(a, a).empty());
  CHECK(changed([](Basis& b) { b.weights = D(9), b.fp = D(9); }) == Names{"weights"});
  CHECK(changed([](Basis& b) { b.numerics = D(9), b.fp = D(9); }) == Names{"numerics"});
  // Another operation is there, but none that this model uses.
  CHECK(changed([](Basis& b) { b.numerics = D(9); }).empty());
  CHECK(changed([](Basis& b) { b.kv = "i8", b.fp = D(9); }) == Names{"kv_type"});
  CHECK(changed([](Basis& b) { b.tokenizer = D(9), b.fp = D(9); }) == Names{"tokenizer"});
  CHECK(changed([](Basis& b) { b.chat_template = D(9); }) == Names{"template"});
  CHECK(changed([](Basis& b) { b.fp = D(9); }) == Names{"model"});
  CHECK(changed([](Basis& b) { b.weights = b.fp = b.chat_template = D(9); }) ==
        Names{"weights", "template"});
}

TEST_CASE("operations that changed are named") {
  const Basis a = SomeBasis();
  Basis b = a;
  CHECK(ChangedOperations(a, b).empty());
  b.operations = "attend/f16 aa\nmatmul/Q4_K bd\nrope dd\n";
  CHECK(ChangedOperations(a, b) == "matmul/Q4_K, norm, rope");
}

std::vector<TokenId> T(std::initializer_list<TokenId> tokens) { return tokens; }

TEST_CASE("a diff covers both lists and keeps what is common") {
  using K = DiffHunk::Kind;
  CHECK(DiffTokens({}, {}).empty());
  CHECK(DiffTokens(T({1, 2}), T({1, 2})) == std::vector<DiffHunk>{{K::kEqual, 0, 2, 0, 2}});
  CHECK(DiffTokens(T({1}), {}) == std::vector<DiffHunk>{{K::kChanged, 0, 1, 0, 0}});
  CHECK(DiffTokens({}, T({1})) == std::vector<DiffHunk>{{K::kChanged, 0, 0, 0, 1}});
  CHECK(DiffTokens(T({1, 2, 3, 4, 5}), T({1, 9, 3, 8, 8, 5})) ==
        std::vector<DiffHunk>{{K::kEqual, 0, 1, 0, 1},
                              {K::kChanged, 1, 1, 1, 1},
                              {K::kEqual, 2, 1, 2, 1},
                              {K::kChanged, 3, 1, 3, 2},
                              {K::kEqual, 4, 1, 5, 1}});
  CHECK(DiffTokens(T({1, 1, 1}), T({1, 1, 1, 1})) ==
        std::vector<DiffHunk>{{K::kEqual, 0, 3, 0, 3}, {K::kChanged, 3, 0, 3, 1}});
}

TEST_CASE("a diff of what is too long for a table is one change between the common ends") {
  using K = DiffHunk::Kind;
  std::vector<TokenId> a(5000, 1), b(5000, 2);
  a.front() = b.front() = a.back() = b.back() = 7;
  a[2500] = b[2500] = 3;
  CHECK(DiffTokens(a, b) == std::vector<DiffHunk>{{K::kEqual, 0, 1, 0, 1},
                                                  {K::kChanged, 1, 4998, 1, 4998},
                                                  {K::kEqual, 4999, 1, 4999, 1}});
}

TEST_CASE("a recording has the turns of its branch, with what they were asked with") {
  SessionBench b;
  std::vector<ChatMessage> m = {System("be brief"), User("one")};
  TurnRequest ask = Ask("chat", m);
  ask.tools_json = R"([{"type":"function","function":{"name":"f"}}])";
  ask.sampling_json = R"({"temperature":0.5})";
  b.Say(ask, "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  ask.messages = m;
  b.Say(ask, "dos");
  b.Restart();
  const auto r = b.keeper().Recorded("ann", "chat", "");
  REQUIRE_MESSAGE(r.ok(), r.status().ToString());
  CHECK(r->branch == "main");
  CHECK(r->tokens == *b.keeper().Tokens("ann", "chat", ""));
  REQUIRE(r->turns.size() == 2);
  CHECK(r->items.size() == 5);
  CHECK(r->turns[0].begin == 0);
  CHECK(r->turns[0].items == 2);
  CHECK(r->turns[1].begin == r->turns[0].end);
  CHECK(r->turns[1].items == 1);
  CHECK(r->turns[1].first_item == 3);
  CHECK(r->turns[1].end == static_cast<int64_t>(r->tokens.size()));
  for (const RecordedTurn& t : r->turns) {
    CHECK(t.tools == ask.tools_json);
    CHECK(t.sampling == ask.sampling_json);
    CHECK(t.seed == t.turn_seed);
    CHECK(t.seed_follows);
    CHECK(t.basis);
    const auto answer = std::span(r->tokens).subspan(t.output, t.end - t.output);
    CHECK(b.Decode(answer).ends_with("os<|im_end|>") == (&t == &r->turns[1]));
    for (int64_t i = t.begin; i < t.end; ++i) {
      CHECK((r->origins[i] == TokenOrigin::kSampled) == (i >= t.output));
      CHECK((r->digests[i] != 0) == (i >= t.output));
    }
    CHECK(r->TurnOf(t.output) == &t);
  }
  CHECK(r->TurnOf(r->turns[1].end) == nullptr);
  CHECK(r->ItemOf(0) == 0);
  CHECK(r->ItemOf(r->items[2].first) == 2);
  CHECK(b.keeper().Recorded("bob", "chat", "").status().code() == Code::kNotFound);
  CHECK(b.keeper().Recorded("ann", "chat", "x").status().code() == Code::kNotFound);
}

}  // namespace
}  // namespace holdfast
