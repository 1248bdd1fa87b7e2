#include "sessions/edits.h"
#include "sessions/history.h"

#include <doctest/doctest.h>

#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

const ToolCall kCall{"call_1", "read_file", R"({"path": "a"})"};
const ToolCall kCallAgain{"call_1", "read_file", R"({"path":"a"})"};
const ToolCall kOther{"call_2", "read_file", R"({"path": "b"})"};

const ToolCall kRenamed{"x", "read_file", R"({"path":"a"})"};
constexpr char kReminder[] = "<system-reminder>x</system-reminder>";

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
    {"ids of the client's own", {User("a"), Assistant("", {kCall}), ToolResult("call_1", "r")},
     {User("a"), Assistant("", {kRenamed}), ToolResult("x", "r")}, 3, 2, "", ""},
    {"an id that has come to mean a call", {User("a"), Assistant("", {kCall}), ToolResult("x", "r")},
     {User("a"), Assistant("", {kRenamed}), ToolResult("x", "r")}, 2, 2, "message_changed",
     "tool_call_id"},
    {"reminders dropped", {User(kReminder), User("a"), Assistant("b")},
     {User("a"), Assistant("b"), User("c")}, 3, 3, "", ""},
    {"and new ones", {User("a"), Assistant("b")},
     {User(kReminder), User("a"), User(kReminder), Assistant("b"), User("c")}, 2, 2, "", ""},
    {"not of the newest messages", {User("a"), Assistant("b")}, {User(kReminder), User("a")}, 0, 0,
     "message_changed", "content"},
    {"shorter", {User("a"), Assistant("b"), User("c"), Assistant("d")},
     {User("a"), Assistant("b"), User("c")}, 3, 2, "history_shorter", ""},
};

TEST_CASE("messages are matched by role, call ids, then content") {
  for (const Case& c : kCases) {
    CAPTURE(c.name);
    std::vector<ItemIdentity> sent;
    for (const ChatMessage& m : c.sent) sent.push_back(IdentityOf(m));
    const HistoryMatch m = MatchHistory(Stored(c.stored), sent, HistoryMode::kAsSampled);
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

struct Counts {
  const char *role, *text, *counts;
};

const Counts kCounts[] = {
    {"system", "x-anthropic-billing-header: cc_version=2.1.37.0d9; cch=fa690;\nBe brief.",
     "x-anthropic-billing-header: cc_version; cch;\nBe brief."},
    // Blocks that were joined, and a line without its last mark.
    {"system", "x-anthropic-billing-header: cch=fa690;You=me; are",
     "x-anthropic-billing-header: cch;You=me; are"},
    {"system", "Hi.\nx-anthropic-billing-header: cch=fa690\na=b;",
     "Hi.\nx-anthropic-billing-header: cch\na=b;"},
    {"system", "x-anthropic-billing-header:", "x-anthropic-billing-header:"},
    {"system", "x-anthropic-billing-header: cch=", "x-anthropic-billing-header: cch"},
    {"system", "the x-anthropic-billing-header: cch=1;", "the x-anthropic-billing-header: cch=1;"},
    {"user", "x-anthropic-billing-header: cch=1;", "x-anthropic-billing-header: cch=1;"},
    {"user", "<system-reminder>a</system-reminder>\n\nhi", "hi"},
    {"user", "hi\n\n<system-reminder>a</system-reminder>\n", "hi"},
    {"user", "a\n\n<system-reminder>x</system-reminder>\n\nb", "a\n\nb"},
    {"tool", "a<system-reminder>x</system-reminder><system-reminder>y</system-reminder>b", "ab"},
    {"tool", " \n<system-reminder>x</system-reminder>", ""},
    {"user", "a <system-reminder> b", "a <system-reminder> b"},
    {"user", "a </system-reminder> b ", "a </system-reminder> b "},
    {"system", "<system-reminder>x</system-reminder>", "<system-reminder>x</system-reminder>"},
    {"assistant", " \n<think>\na\n</think>\n\nb\n", "b"},
    {"assistant", "a\n</think>\n\nb", "b"},
    {"assistant", "<think>a</think>b</think>c", "b</think>c"},
    {"assistant", "use </think> to end it", "use </think> to end it"},
    {"assistant", "write <think>a</think>\nso", "write <think>a</think>\nso"},
    {"assistant", "<think>never ends ", "<think>never ends"},
    {"assistant", "<think>a</think>", ""},
    {"user", "<think>a</think>b", "<think>a</think>b"},
};

TEST_CASE("what clients change behind everybody's back does not count") {
  for (const Counts& c : kCounts) {
    CAPTURE(c.text);
    CHECK(CountingText(c.role, c.text) == c.counts);
  }
}

TEST_CASE("a history follows the items that it matches") {
  const std::vector<ChatMessage> log = {User(kReminder), User("a"), Assistant("", {kCall}),
                                        ToolResult("call_1", "r"), Assistant("b")};
  History h;
  for (const ChatMessage& m : {User("a"), Assistant("", {kRenamed}), ToolResult("x", "r"),
                               User(kReminder), Assistant("b"), ToolResult("x", "s"), User("c")}) {
    h.Add(m, IdentityOf(m));
  }
  const auto stored = Stored(log);
  const HistoryMatch match = MatchHistory(stored, h.identities, HistoryMode::kAsSampled);
  CHECK(match.matched == 5);
  CHECK(match.renamed);
  h.Follow(stored, match);
  REQUIRE(h.messages.size() == 7);
  for (size_t i = 0; i < log.size(); ++i) CHECK(h.identities[i].role == log[i].role);
  CHECK(h.messages[0].raw_json.empty());
  CHECK(h.messages[1].text == "a");
  CHECK(h.identities[2].call_id == "call_1");
  CHECK(h.identities[3].call_id == "call_1");
  CHECK(h.identities[5].call_id == "call_1");
  CHECK(h.messages[5].tool_call_id == "x");
  CHECK(match.SentAs(0) == 0);
  CHECK(match.SentAs(3) == 2);
  CHECK(match.SentAs(4) == 4);
  CHECK(match.SentAs(6) == 6);
  // As it was sent there are no reminders that come and go.
  CHECK(MatchHistory(stored, h.identities, HistoryMode::kAsSent).matched == 5);
  h.messages.erase(h.messages.begin());
  h.identities.erase(h.identities.begin());
  CHECK(MatchHistory(stored, h.identities, HistoryMode::kAsSent).matched == 0);
}

TEST_CASE("stored calls get the ids that were sent") {
  const std::string calls =
      R"({"content":"\"id\":\"a\"","tool_calls":[{"id":"a","x":1},{"id":"b"},{"id":"a"}]})";
  CHECK(WithCallIds(calls, "a\nb\na", "b\nc\nd") ==
        R"({"content":"\"id\":\"a\"","tool_calls":[{"id":"b","x":1},{"id":"c"},{"id":"d"}]})");
  const std::string result = R"({"role":"tool","tool_call_id":"a"})";
  CHECK(WithCallIds(result, "a", "b") == R"({"role":"tool","tool_call_id":"b"})");
  for (const char* sent : {"", "b\nc", "b\"", "\\"}) CHECK(WithCallIds(result, "a", sent) == result);
}

TEST_CASE("a lineage is named alike where its messages match") {
  const Digest root = LineageRoot(Digest{});
  auto name = [&](const ChatMessage& m) { return LineageNext(root, IdentityOf(m)); };
  CHECK(name(Assistant("x", {kCall})) == name(Assistant("", {kCallAgain})));
  CHECK(name(Assistant("x ")) == name(Assistant("x")));
  CHECK(name(Assistant("", {kCall})) != name(Assistant("", {kOther})));
  CHECK(name(User("x")) != name(System("x")));
  CHECK(LineageRoot(Digest{}) != LineageRoot(Digest{{1}}));
  CHECK(LineageNext(root, IdentityOf(User(kReminder))) == root);

  const auto name_of = [&](const std::vector<ChatMessage>& messages) {
    HistoryName out(root);
    CallNumbers calls;
    for (const ChatMessage& m : messages) out.Add(IdentityOf(m), &calls);
    return out;
  };
  const auto text = name_of({User("a"), Assistant("b")});
  CHECK(text.by_ids == text.by_calls);
  const auto by = [&](const ToolCall& call, const char* answers) {
    return name_of({User("a"), Assistant("", {call}), ToolResult(answers, "r")}).by_calls;
  };
  CHECK(by(kCall, "call_1") == by(kRenamed, "x"));
  CHECK(by(kCall, "call_1") != by(kCall, "x"));
  CHECK(by(kCall, "call_1") != by(kOther, "call_2"));
}

TEST_CASE("the first difference is found") {
  CHECK(FirstDifference("abc", "abc") == -1);
  CHECK(FirstDifference("abc", "abd") == 2);
  CHECK(FirstDifference("abc", "ab") == 2);
  CHECK(FirstDifference("", "x") == 0);
  const std::string reminder = "<system-reminder>x</system-reminder>";
  const auto size = static_cast<int64_t>(reminder.size());
  CHECK(FirstDifference("user", "abc", reminder + "abc") == -1);
  CHECK(FirstDifference("user", "abc", reminder + "abd") == size + 2);
  CHECK(FirstDifference("user", reminder + "abc", "abd") == 2);
  CHECK(FirstDifference("user", "abcd", "ab" + reminder + "ce") == size + 3);
  CHECK(FirstDifference("user", "abc", "ab" + reminder) == size + 2);  // it ends too early
}

ItemEdit Remove(int64_t item, int64_t count = 1) {
  return {.op = ItemEdit::Op::kRemove, .item = item, .count = count, .change = {}, .message = {}};
}
ItemEdit Replace(int64_t item, const std::string& text) {
  return {.op = ItemEdit::Op::kReplace,
          .item = item,
          .change = [text](ChatMessage* m) { *m = User(text); },
          .message = {}};
}
ItemEdit Insert(int64_t item, const std::string& text) {
  return {.op = ItemEdit::Op::kInsert, .item = item, .change = {}, .message = User(text)};
}

History Letters(const std::string& letters) {
  History h;
  for (const char c : letters) {
    const ChatMessage m = User(std::string(1, c));
    h.Add(m, IdentityOf(m));
  }
  return h;
}

struct EditCase {
  const char* name;
  std::vector<ItemEdit> edits;
  std::string want;  // the letters, or how the refusal begins
  int64_t untouched;
};

const std::vector<EditCase> kEditCases = {
    {"none", {}, "abcd", 4},
    {"out", {Remove(1)}, "acd", 1},
    {"some out", {Remove(1, 2)}, "ad", 1},
    {"all out", {Remove(0, 4)}, "", 0},
    {"another", {Replace(2, "X")}, "abXd", 2},
    {"in front", {Insert(0, "X")}, "Xabcd", 0},
    {"at the end", {Insert(4, "X")}, "abcdX", 4},
    {"two in one place keep their order", {Insert(2, "X"), Insert(2, "Y")}, "abXYcd", 2},
    {"in any order", {Replace(3, "Z"), Insert(1, "X"), Remove(0)}, "XbcZ", 0},
    {"beside what goes", {Insert(1, "X"), Remove(1, 2), Insert(3, "Y")}, "aXYd", 1},
    {"item too large", {Remove(4)}, "edits[0].item: ", 4},
    {"too many items", {Replace(0, "X"), Remove(2, 3)}, "edits[1].item: ", 0},
    {"more than there can be", {Remove(1, int64_t{1} << 62)}, "edits[0].item: ", 1},
    {"negative", {Insert(-1, "X")}, "edits[0].item: ", -1},
    {"none of them", {Remove(1, 0)}, "edits[0].item: ", 1},
    {"insert too far", {Insert(5, "X")}, "edits[0].item: ", 4},
    {"taken twice", {Remove(1, 2), Replace(2, "X")}, "edits[1].item: edits[0]", 1},
    {"inside what goes", {Insert(2, "X"), Remove(1, 2)}, "edits[0].item: edits[1]", 1},
};

TEST_CASE("edits change a history or are refused by name") {
  for (const EditCase& c : kEditCases) {
    CAPTURE(c.name);
    const auto got = ApplyEdits(Letters("abcd"), c.edits);
    CHECK(UntouchedItems(c.edits, 4) == c.untouched);
    if (!got.ok()) {
      CHECK(got.status().code() == Code::kInvalid);
      CHECK_MESSAGE(got.status().message().starts_with(c.want), got.status().ToString());
      CHECK(c.want.starts_with("edits"));
      continue;
    }
    std::string letters;
    for (size_t i = 0; i < got->messages.size(); ++i) {
      letters += got->messages[i].text;
      CHECK(got->identities[i] == IdentityOf(got->messages[i]));
    }
    CHECK(letters == c.want);
  }
}

}  // namespace
}  // namespace holdfast
