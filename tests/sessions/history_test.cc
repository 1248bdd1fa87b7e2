#include "sessions/history.h"

#include <doctest/doctest.h>

#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

const ToolCall kCall{"call_1", "read_file", R"({"path": "a"})"};
const ToolCall kCallAgain{"call_1", "read_file", R"({"path":"a"})"};
const ToolCall kOther{"call_2", "read_file", R"({"path": "a"})"};

// Stored: every assistant's message was sampled; each item is ten tokens long.
std::vector<StoredItem> Stored(const std::vector<ChatMessage>& messages) {
  std::vector<StoredItem> out;
  for (const ChatMessage& m : messages) {
    const int64_t end = static_cast<int64_t>(out.size() + 1) * 10;
    out.push_back({IdentityOf(m), m.role == "assistant", end});
  }
  return out;
}

struct Case {
  const char* name;
  std::vector<ChatMessage> stored, sent;
  int matched, resume;
  const char* reason;  // "" = no miss
  const char* field;
};

const std::vector<Case> kCases = {
    {"nothing stored", {}, {User("a")}, 0, 0, "", ""},
    {"goes on", {User("a"), Assistant("b")}, {User("a"), Assistant("b"), User("c")}, 2, 2, "", ""},
    {"trailing blanks of an answer", {User("a"), Assistant("b\n")},
     {User("a"), Assistant("b"), User("c")}, 2, 2, "", ""},
    {"trailing blanks of a user", {User("a\n")}, {User("a")}, 0, 0, "message_changed", "content"},
    {"answer rewritten", {User("a"), Assistant("b")}, {User("a"), Assistant("B"), User("c")}, 1, 0,
     "message_changed", "content"},
    {"role", {User("a")}, {System("a")}, 0, 0, "message_changed", "role"},
    {"arguments serialised anew", {User("a"), Assistant("", {kCall})},
     {User("a"), Assistant("", {kCallAgain}), ToolResult("call_1", "r")}, 2, 2, "", ""},
    {"calls count, not their text", {User("a"), Assistant("let me see", {kCall})},
     {User("a"), Assistant("", {kCall})}, 2, 2, "", ""},
    {"another call", {User("a"), Assistant("", {kCall})}, {User("a"), Assistant("", {kOther})}, 1,
     0, "message_changed", "tool_calls"},
    {"calls dropped", {User("a"), Assistant("", {kCall})}, {User("a"), Assistant("")}, 1, 0,
     "message_changed", "tool_calls"},
    {"result of another call", {ToolResult("call_1", "r")}, {ToolResult("call_2", "r")}, 0, 0,
     "message_changed", "tool_call_id"},
    {"result changed", {User("a"), Assistant("", {kCall}), ToolResult("call_1", "r")},
     {User("a"), Assistant("", {kCall}), ToolResult("call_1", "s")}, 2, 2, "message_changed",
     "content"},
    {"shorter", {User("a"), Assistant("b"), User("c"), Assistant("d")},
     {User("a"), Assistant("b"), User("c")}, 3, 2, "history_shorter", ""},
};

TEST_CASE("messages are matched by role, call ids, then content") {
  for (const Case& c : kCases) {
    CAPTURE(c.name);
    std::vector<ItemIdentity> sent;
    for (const ChatMessage& m : c.sent) sent.push_back(IdentityOf(m));
    const HistoryMatch m = MatchHistory(Stored(c.stored), sent);
    CHECK(m.matched == c.matched);
    CHECK(m.resume == c.resume);
    CHECK((m.miss ? m.miss->reason : "") == c.reason);
    CHECK((m.miss ? m.miss->field : "") == c.field);
    if (m.miss) {
      CHECK(m.miss->message == c.matched);
      CHECK(m.miss->at_token == 10 * c.matched);
    }
  }
}

TEST_CASE("a lineage is named alike where its messages match") {
  const Digest root = LineageRoot(Digest{});
  auto name = [&](const ChatMessage& m) { return LineageNext(root, IdentityOf(m)); };
  CHECK(name(Assistant("x", {kCall})) == name(Assistant("", {kCallAgain})));
  CHECK(name(Assistant("x ")) == name(Assistant("x")));
  CHECK(name(Assistant("", {kCall})) != name(Assistant("", {kOther})));
  CHECK(name(User("x")) != name(System("x")));
  CHECK(LineageRoot(Digest{}) != LineageRoot(Digest{{1}}));
}

TEST_CASE("the first difference is found") {
  CHECK(FirstDifference("abc", "abc") == -1);
  CHECK(FirstDifference("abc", "abd") == 2);
  CHECK(FirstDifference("abc", "ab") == 2);
  CHECK(FirstDifference("", "x") == 0);
}

}  // namespace
}  // namespace holdfast
