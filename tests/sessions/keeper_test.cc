#include "sessions/keeper.h"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <future>
#include <thread>

#include "tests/api/bundle_bench.h"
#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

using Messages = std::vector<ChatMessage>;

TEST_CASE("a session made after another was deleted can be gone on with") {
  SessionBench b;
  for (int i = 0; i < 3; ++i) {  // SQLite would give it the number of the one before
    std::vector<ChatMessage> talk = {User("hello")};
    b.Say(Ask("again", talk), "yes");
    talk.push_back(Assistant("yes"));
    talk.push_back(User("more"));
    CHECK(b.Say(Ask("again", talk), "no").branch == "main");
    REQUIRE(b.keeper().Delete("ann", "again").ok());
  }
}

TEST_CASE("a conversation goes on with its sampled tokens") {
  SessionBench b;
  Messages m = {System("be brief"), User("one")};
  const TurnStart first = b.Say(Ask("chat", m), "uno");
  CHECK(first.new_session);
  CHECK(first.branch == "main");
  CHECK(first.external_id == "chat");
  CHECK(first.kept_tokens == 0);
  CHECK_FALSE(first.miss);

  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  auto turn = b.Begin(Ask("chat", m));
  CHECK_FALSE(turn->start().new_session);
  CHECK(turn->start().session_id == first.session_id);
  CHECK(turn->start().branch == "main");
  CHECK_FALSE(turn->start().miss);
  CHECK(b.Decode(turn->prompt()) ==
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
        "<|im_start|>assistant\nuno<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n"
        "<|im_start|>assistant\n");
  // All but the last newline, the new message and the new prompt were in the log.
  const std::string kept = b.Decode(turn->prompt().first(turn->start().kept_tokens));
  CHECK(kept.ends_with("uno<|im_end|>"));
  b.Answer(std::move(turn), "dos");

  const auto items = b.keeper().Items("ann", "chat", "", {});
  REQUIRE(items.ok());
  REQUIRE(items->rows.size() == 5);
  const char* roles[] = {"system", "user", "assistant", "user", "assistant"};
  int64_t next = 0;
  for (size_t i = 0; i < 5; ++i) {
    const ItemInfo& item = items->rows[i];
    CHECK(item.role == roles[i]);
    CHECK(item.first == next);  // every token belongs to one item
    CHECK(item.sampled == (item.role == "assistant"));
    CHECK(item.header + item.trailer < item.count);
    next += item.count;
  }
  const auto tokens = b.keeper().Tokens("ann", "chat", "");
  CHECK(static_cast<int64_t>(tokens->size()) == next);
  CHECK(b.keeper().Get("ann", "chat")->turns == 2);
}

TEST_CASE("what was sampled stands, whatever its text would be tokenised as") {
  SessionBench b;
  Messages m = {User("x")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome outcome;
  outcome.message = Assistant("the");
  outcome.finish = "stop";
  for (char c : std::string("the")) outcome.generated.push_back({TinyByteToken(c), 1, false});
  outcome.generated.push_back({kTinyTurnEnd, 1, false});
  const int64_t prompt = turn->start().prompt_tokens;
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(outcome)).durable);
  m.push_back(Assistant("the"));
  m.push_back(User("y"));
  auto next = b.Begin(Ask("chat", m));
  REQUIRE(next->prompt().size() > static_cast<size_t>(prompt) + 3);
  CHECK(next->prompt()[prompt] == TinyByteToken('t'));
  CHECK(next->prompt()[prompt + 1] == TinyByteToken('h'));
  CHECK(next->prompt()[prompt + 2] == TinyByteToken('e'));
}

TEST_CASE("as_sent tokenises the whole history anew") {
  SessionBench b;
  Messages m = {User("x")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome outcome;
  outcome.message = Assistant("the");
  for (char c : std::string("the")) outcome.generated.push_back({TinyByteToken(c), 1, false});
  outcome.generated.push_back({kTinyTurnEnd, 1, false});
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(outcome)).durable);
  m.push_back(Assistant("the"));
  m.push_back(User("y"));
  TurnRequest r = Ask("chat", m);
  r.history = HistoryMode::kAsSent;
  auto next = b.Begin(r);
  const auto want = b.Encode(b.Decode(next->prompt()));
  CHECK(std::vector<TokenId>(next->prompt().begin(), next->prompt().end()) == want);
}

TEST_CASE("after a cut the end marker is put in, and a stray end token is left out") {
  SessionBench b;
  Messages m = {User("x")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome cut;
  cut.message = Assistant("ab");
  cut.finish = "length";
  for (TokenId t : b.Encode("ab")) cut.generated.push_back({t, 1, false});
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(cut)).durable);
  m.push_back(Assistant("ab"));
  m.push_back(User("y"));
  turn = b.Begin(Ask("chat", m));
  CHECK(b.Decode(turn->prompt()).find("ab<|im_end|>\n<|im_start|>user\ny") != std::string::npos);
  TurnOutcome stray;
  stray.message = Assistant("cd");
  for (TokenId t : b.Encode("cd")) stray.generated.push_back({t, 1, false});
  stray.generated.push_back({kTinyEndOfText, 1, false});
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(stray)).durable);
  m.push_back(Assistant("cd"));
  m.push_back(User("z"));
  turn = b.Begin(Ask("chat", m));
  CHECK(b.Decode(turn->prompt()).find("cd<|im_end|>\n<|im_start|>user\nz") != std::string::npos);
}

TEST_CASE("a changed message makes a branch, and says where") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  const TurnStart second = b.Say(Ask("chat", m), "dos");
  Messages other = {m[0], m[1], User("twin")};
  const TurnStart changed = b.Say(Ask("chat", other), "gemelo");
  CHECK(changed.branch != "main");
  REQUIRE(changed.miss);
  CHECK(changed.miss->reason == "message_changed");
  CHECK(changed.miss->message == 2);
  CHECK(changed.miss->field == "content");
  CHECK(changed.miss->at_char == 2);
  CHECK(changed.kept_tokens == second.kept_tokens);
  // Both go on by their own histories.
  m.push_back(Assistant("dos"));
  m.push_back(User("three"));
  CHECK(b.Say(Ask("chat", m), "tres").branch == "main");
  other.push_back(Assistant("gemelo"));
  other.push_back(User("three"));
  CHECK(b.Say(Ask("chat", other), "trillizo").branch == changed.branch);
}

TEST_CASE("a time to live that no clock reaches is refused") {
  SessionBench b;
  CreateSession create;
  for (const int64_t ttl : {int64_t{-1}, kMaxTtlSeconds + 1, INT64_MAX}) {
    create.ttl_s = ttl;
    CHECK(b.keeper().Create("ann", create).status().code() == Code::kInvalid);
  }
  create.ttl_s = kMaxTtlSeconds;
  CHECK(b.keeper().Create("ann", create).ok());
}

TEST_CASE("a branch is made though a client has taken the name that it would have got") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  MakeBranch make;
  make.name = "b2";  // as the one after it would be called
  REQUIRE(b.keeper().Branch("ann", "chat", make).ok());
  CHECK(b.Say(Ask("chat", m), "eins").branch == "b2-2");
  CHECK(b.keeper().Branch("ann", "chat", {})->name == "b3");
}

TEST_CASE("the same history again is another answer on another branch") {
  SessionBench b;
  const Messages m = {User("one")};
  auto first = b.Begin(Ask("chat", m));
  const uint64_t seed = first->seed();
  const std::vector<TokenId> prompt(first->prompt().begin(), first->prompt().end());
  b.Answer(std::move(first), "uno");
  auto again = b.Begin(Ask("chat", m));
  CHECK(again->start().branch != "main");
  CHECK(again->seed() != seed);
  CHECK_FALSE(again->start().retry);
  CHECK(again->start().miss->reason == "history_shorter");
  CHECK(std::vector<TokenId>(again->prompt().begin(), again->prompt().end()) == prompt);
  // Its input is in the log already: only the generation prompt is new.
  CHECK(b.Decode(again->prompt().subspan(again->start().kept_tokens)) == "<|im_start|>assistant\n");
}

TEST_CASE("a seed of the request decides alone") {
  SessionBench b;
  const Messages m = {User("one")};
  TurnRequest r = Ask("a", m);
  r.seed = 42;
  TurnRequest s = Ask("b", m);
  s.seed = 42;
  CHECK(b.Begin(r)->seed() == b.Begin(s)->seed());
  s.seed = 43;
  CHECK(b.Begin(r)->seed() != b.Begin(s)->seed());
}

TEST_CASE("an unfinished turn asked again is a retry, also after a restart") {
  SessionBench b;
  const Messages m = {User("one")};
  auto turn = b.Begin(Ask("chat", m));
  const uint64_t seed = turn->seed();
  const std::string id = turn->start().turn_id;
  SUBCASE("aborted") { turn.reset(); }
  SUBCASE("aborted with tokens") {
    TurnOutcome o;
    o.message = Assistant("u");
    o.generated.push_back({TinyByteToken('u'), 3, false});
    b.keeper().Abort(std::move(turn), std::move(o));
  }
  SUBCASE("restarted after the abort") {
    turn.reset();
    b.Restart();
  }
  auto again = b.Begin(Ask("chat", m));
  CHECK(again->start().retry);
  CHECK(again->start().branch == "main");
  CHECK(again->start().turn_id == id);
  CHECK(again->seed() == seed);
  b.Answer(std::move(again), "uno");
  // With other parameters it is another turn.
  const Messages n = {User("two")};
  auto other = b.Begin(Ask("chat2", n));
  const std::string other_id = other->start().turn_id;
  other.reset();
  TurnRequest changed = Ask("chat2", n);
  changed.params_digest.bytes[0] = 1;
  auto fresh = b.Begin(changed);
  CHECK_FALSE(fresh->start().retry);
  CHECK(fresh->start().turn_id != other_id);
}

TEST_CASE("an idempotency key serves a committed turn from the log") {
  SessionBench b;
  const Messages m = {User("one")};
  TurnRequest r = Ask("", m);
  r.idempotency_key = "k1";
  auto turn = b.Begin(r);
  const std::string session = turn->start().session_id;
  const std::vector<TokenId> prompt(turn->prompt().begin(), turn->prompt().end());
  SUBCASE("committed") {
    b.Answer(std::move(turn), "uno");
    b.Restart();
    auto again = b.Begin(r);
    REQUIRE(again->replay());
    CHECK(*again->replay() == "uno");
    CHECK(again->start().replayed);
    CHECK(again->start().session_id == session);
    CHECK(b.Decode(again->replayed_tokens()) == "uno<|im_end|>");
    CHECK(std::vector<TokenId>(again->prompt().begin(), again->prompt().end()) == prompt);
    CHECK(b.keeper().Get("ann", session)->turns == 1);
    const Messages other = {User("two")};
    TurnRequest wrong = Ask("", other);
    wrong.idempotency_key = "k1";
    CHECK(b.keeper().Begin(wrong).status().code() == Code::kConflict);
    TurnRequest tenant = r;  // another tenant's keys are its own
    tenant.tenant = "bob";
    CHECK_FALSE(b.Begin(tenant)->replay());
  }
  SUBCASE("aborted: the same turn again") {
    const uint64_t seed = turn->seed();
    turn.reset();
    auto again = b.Begin(r);
    CHECK(again->start().retry);
    CHECK(again->seed() == seed);
    CHECK(again->start().session_id == session);
  }
  SUBCASE("running: waits for its end") {
    auto again = std::async(std::launch::async, [&] { return b.Begin(r)->replay(); });
    b.Answer(std::move(turn), "uno");
    CHECK(again.get() == "uno");
  }
}

TEST_CASE("a key whose turn was cut off serves a new turn when the head has moved") {
  SessionBench b;
  const Messages m = {User("one")};
  TurnRequest r = Ask("chat", m);
  r.idempotency_key = "k1";
  b.Begin(r).reset();
  const Messages other = {User("two")};
  b.Say(Ask("chat", other), "dos");
  auto turn = b.Begin(r);
  CHECK_FALSE(turn->start().retry);
  CHECK(turn->start().branch != "main");
  b.Answer(std::move(turn), "uno");
  CHECK(b.Begin(r)->replay() == "uno");
}

TEST_CASE("a busy head forks, waits or refuses") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  auto running = b.Begin(Ask("chat", m));
  TurnRequest r = Ask("chat", m);
  r.params_digest.bytes[0] = 9;  // not the same request
  SUBCASE("fork") {
    auto fork = b.Begin(r);
    CHECK(fork->start().branch != "main");
    CHECK(fork->start().miss->reason == "busy_head");
    CHECK(fork->prompt().size() == running->prompt().size());
  }
  SUBCASE("reject") {
    r.on_busy = OnBusy::kReject;
    const Status s = b.keeper().Begin(r).status();
    CHECK(s.code() == Code::kConflict);
  }
  SUBCASE("queue") {
    r.on_busy = OnBusy::kQueue;
    const Messages add = {User("three")};
    TurnRequest append = Ask("chat", add);
    append.append = true;
    append.on_busy = OnBusy::kQueue;
    auto waiting = std::async(std::launch::async, [&] {
      auto turn = b.Begin(append);
      return std::pair(turn->start().branch, b.Decode(turn->prompt()));
    });
    b.Answer(std::move(running), "dos");
    const auto [branch, prompt] = waiting.get();
    CHECK(branch == "main");
    CHECK(prompt.find("dos<|im_end|>\n<|im_start|>user\nthree") != std::string::npos);
  }
}

TEST_CASE("a turn that names a head goes on there or is refused") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  TurnRequest r = Ask("chat", m);
  r.session.branch = "main";
  r.if_head = HeadTag{"main", 1};
  const auto refused = [&](const TurnRequest& request, Code code, std::string_view word) {
    const Status s = b.keeper().Begin(request).status();
    CHECK(s.code() == code);
    CHECK_MESSAGE(s.message().starts_with(word), s.message());
  };
  SUBCASE("it stands there") {
    auto turn = b.Begin(r);
    CHECK(turn->start().branch == "main");
    CHECK(turn->start().generation == 1);
    b.Answer(std::move(turn), "dos");
    refused(r, Code::kConflict, "head_moved: the branch stands at main:2, not at main:1");
    CHECK(b.Begin(Ask("chat", m))->start().branch != "main");  // without a condition: a branch
  }
  SUBCASE("it is ahead of what the client has seen") {
    r.if_head->generation = 0;
    refused(r, Code::kConflict, "head_moved");
  }
  SUBCASE("the history is another") {
    m[1] = Assistant("une");
    r.messages = m;
    refused(r, Code::kConflict, "head_moved: the history leaves main:1 after");
  }
  SUBCASE("a turn runs on it") {
    auto running = b.Begin(Ask("chat", m));
    for (const OnBusy busy : {OnBusy::kFork, OnBusy::kQueue, OnBusy::kReject}) {
      r.on_busy = busy;
      r.params_digest.bytes[0] = 9;  // not the same request
      refused(r, Code::kConflict, "busy_head");
    }
  }
  SUBCASE("the last turn was aborted: the same again is taken up") {
    const std::string id = b.Begin(r)->start().turn_id;
    auto again = b.Begin(r);
    CHECK(again->start().turn_id == id);
    CHECK(again->start().retry);
  }
  SUBCASE("no such branch or session") {
    r.session.branch = r.if_head->branch = "side";
    refused(r, Code::kNotFound, "");
    r.session.id = "other";
    refused(r, Code::kNotFound, "");
    r.session.id = "";
    refused(r, Code::kInvalid, "session");
  }
}

TEST_CASE("head tags") {
  CHECK(HeadTag::Parse("a:b:12")->branch == "a:b");
  CHECK(HeadTag::Parse("a:b:12")->generation == 12);
  CHECK(HeadTag::Parse("main:0")->Text() == "main:0");
  for (const char* bad : {"", "main", "main:", ":1", "main:-1", "main:1x", "main: 1",
                          "main:99999999999999999999"}) {
    CHECK_MESSAGE(!HeadTag::Parse(bad).has_value(), bad);
  }
}

TEST_CASE("an anonymous conversation is found by its history") {
  SessionBench b;
  Messages m = {User("one")};
  const TurnStart first = b.Say(Ask("", m), "uno");
  CHECK(b.keeper().Get("ann", first.session_id)->anonymous);
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  SUBCASE("it goes on") { CHECK(b.Say(Ask("", m), "dos").session_id == first.session_id); }
  SUBCASE("asked again after its commit it is a branch, with the tokens that were sampled") {
    auto turn = b.Begin(Ask("", m));
    const std::vector<TokenId> prompt(turn->prompt().begin(), turn->prompt().end());
    b.Answer(std::move(turn), "dos");
    auto again = b.Begin(Ask("", m));
    CHECK(again->start().session_id == first.session_id);
    CHECK(again->start().branch != "main");
    CHECK(std::vector<TokenId>(again->prompt().begin(), again->prompt().end()) == prompt);
  }
  SUBCASE("not for another tenant") {
    TurnRequest r = Ask("", m);
    r.tenant = "bob";
    CHECK(b.Say(r, "dos").session_id != first.session_id);
  }
  SUBCASE("not while a turn runs on it") {
    auto running = b.Begin(Ask("", m));
    CHECK(running->start().session_id == first.session_id);
    CHECK(b.Begin(Ask("", m))->start().session_id != first.session_id);
  }
  SUBCASE("not with an answer that we did not give") {
    m[1] = Assistant("one");
    CHECK(b.Say(Ask("", m), "dos").session_id != first.session_id);
  }
  SUBCASE("not when its time has run out") {
    b.now_ms += 3601 * 1000;
    CHECK(b.Say(Ask("", m), "dos").session_id != first.session_id);
    CHECK(b.keeper().Get("ann", first.session_id).status().code() == Code::kNotFound);
  }
  SUBCASE("a first turn that was cut off is taken up again") {
    const Messages n = {User("cut")};
    auto turn = b.Begin(Ask("", n));
    const std::string session = turn->start().session_id;
    const uint64_t seed = turn->seed();
    turn.reset();
    b.Restart();
    auto again = b.Begin(Ask("", n));
    CHECK(again->start().session_id == session);
    CHECK(again->seed() == seed);
  }
}

TEST_CASE("other tools begin anew, but for what is equal") {
  SessionBench b;
  Messages m = {User("one")};
  TurnRequest r = Ask("chat", m);
  r.tools_json = R"([{"type":"function","function":{"name":"f"}}])";
  b.Say(r, "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  TurnRequest same = Ask("chat", m);
  same.tools_json = r.tools_json;
  CHECK(b.Say(same, "dos").branch == "main");
  TurnRequest other = Ask("chat", m);
  other.tools_json = R"([{"type":"function","function":{"name":"g"}}])";
  const TurnStart start = b.Say(other, "dos");
  CHECK(start.branch != "main");
  REQUIRE(start.miss);
  CHECK(start.miss->reason == "tools_changed");
  CHECK(start.kept_tokens == 0);
}

TEST_CASE("a tool round trip matches by call id") {
  SessionBench b;
  Messages m = {User("read it")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome o;
  o.message = Assistant("", {{"call_a", "read_file", R"({"path": "x"})"}});
  const std::string said =
      R"(<tool_call>{"name":"read_file","arguments":{"path":"x"}}</tool_call>)";
  for (TokenId t : b.Encode(said)) o.generated.push_back({t, 1, false});
  o.generated.push_back({kTinyTurnEnd, 1, false});
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(o)).durable);
  m.push_back(Assistant("", {{"call_a", "read_file", R"({"path":    "x"})"}}));
  m.push_back(ToolResult("call_a", "content"));
  auto next = b.Begin(Ask("chat", m));
  CHECK(next->start().branch == "main");
  CHECK_FALSE(next->start().miss);
  CHECK(b.Decode(next->prompt()).find(said + "<|im_end|>\n<|im_start|>tool\ncontent") !=
        std::string::npos);
}

TEST_CASE("ids: ours must exist, others are the tenant's own") {
  SessionBench b;
  const Messages m = {User("one")};
  CHECK(b.keeper().Begin(Ask("sess_000", m)).status().code() == Code::kNotFound);
  const TurnStart ann = b.Say(Ask("chat", m), "uno");
  TurnRequest bob = Ask("chat", m);
  bob.tenant = "bob";
  CHECK(b.Say(bob, "uno").session_id != ann.session_id);
  bob.session.id = ann.session_id;
  CHECK(b.keeper().Begin(bob).status().code() == Code::kNotFound);
  CHECK(b.keeper().Get("bob", ann.session_id).status().code() == Code::kNotFound);
  CHECK(b.keeper().Delete("bob", ann.session_id).code() == Code::kNotFound);
  TurnRequest named = Ask("chat", m);
  named.session.branch = "nowhere";
  CHECK(b.keeper().Begin(named).status().code() == Code::kNotFound);
}

TEST_CASE("bad input is refused by name") {
  SessionBench b;
  CHECK(b.keeper().Begin(Ask("chat", {})).status().code() == Code::kInvalid);
  const Messages m = {User("x")};
  TurnRequest append = Ask("", m);
  append.append = true;
  CHECK(b.keeper().Begin(append).status().code() == Code::kInvalid);
  const Messages big = {User(std::string(20000, 'x'))};
  const Status s = b.keeper().Begin(Ask("chat", big)).status();
  CHECK(s.code() == Code::kInvalid);
  CHECK(s.message().starts_with("context_length_exceeded: "));
  CHECK(s.message().find(std::to_string(b.engine().max_context())) != std::string::npos);
}

TEST_CASE("branches: fork at an item or a token, rewind, go on") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  b.Say(Ask("chat", m), "dos");
  MakeBranch make;
  make.at_item = 2;
  make.name = "early";
  const auto early = b.keeper().Branch("ann", "chat", make);
  REQUIRE(early.ok());
  CHECK(early->items == 2);
  CHECK(early->parent == "main");
  CHECK_FALSE(early->is_default);
  CHECK(b.keeper().Branch("ann", "chat", make).status().code() == Code::kConflict);

  MakeBranch rewind;
  rewind.at_item = 2;
  rewind.default_branch = MakeBranch::Default::kMove;
  const auto rewound = b.keeper().Branch("ann", "chat", rewind);
  REQUIRE(rewound.ok());
  CHECK(rewound->is_default);
  const Messages add = {User("three")};
  TurnRequest append = Ask("chat", add);
  append.append = true;
  auto turn = b.Begin(append);
  CHECK(turn->start().branch == rewound->name);
  CHECK(b.Decode(turn->prompt()).find("two") == std::string::npos);
  turn.reset();

  MakeBranch at_token;
  at_token.from = "main";
  at_token.at_token = 5;
  const auto cut = b.keeper().Branch("ann", "chat", at_token);
  REQUIRE(cut.ok());
  CHECK(cut->tokens == 5);
  CHECK(b.keeper().Tokens("ann", "chat", cut->name)->size() == 5);
  at_token.at_token = 100000;
  CHECK(b.keeper().Branch("ann", "chat", at_token).status().code() == Code::kInvalid);
  CHECK(b.keeper().Branches("ann", "chat")->size() == 4);
}

ItemEdit Becomes(int64_t item, const ChatMessage& message) {
  return {.op = ItemEdit::Op::kReplace,
          .item = item,
          .change = [message](ChatMessage* m) { *m = message; },
          .message = {}};
}

TEST_CASE("edits make the branch on which a chat with that history goes on") {
  SessionBench b;
  Messages m = {User("one")};
  for (const char* answer : {"uno", "dos", "tres"}) {
    b.Say(Ask("chat", m), answer);
    m.push_back(Assistant(answer));
    m.push_back(User(std::string("after ") + answer));
  }
  m.pop_back();
  const auto items = b.keeper().Items("ann", "chat", "", {});
  struct Case {
    const char* name;
    std::vector<ItemEdit> edits;
    Messages want;
    int64_t stands;  // items of the source that stand
  };
  const std::vector<Case> cases = {
      {"replaced", {Becomes(2, User("zwei"))},
       {m[0], m[1], User("zwei"), m[3], m[4], m[5]}, 2},
      {"removed", {{.item = 2, .count = 2, .change = {}, .message = {}}},
       {m[0], m[1], m[4], m[5]}, 2},
      {"the tail removed", {{.item = 4, .count = 2, .change = {}, .message = {}}},
       {m[0], m[1], m[2], m[3]}, 4},
      {"an answer in other words", {Becomes(3, Assistant("2"))},
       {m[0], m[1], m[2], Assistant("2"), m[4], m[5]}, 3},
      {"put in",
       {{.op = ItemEdit::Op::kInsert, .item = 6, .change = {}, .message = User("and?")}},
       {m[0], m[1], m[2], m[3], m[4], m[5], User("and?")}, 6},
      {"put in front",
       {{.op = ItemEdit::Op::kInsert, .item = 0, .change = {}, .message = System("be brief")}},
       {System("be brief"), m[0], m[1], m[2], m[3], m[4], m[5]}, 0},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    MakeBranch make;
    make.edits = c.edits;
    make.from = "main";
    make.name = c.name;
    const auto made = b.keeper().Branch("ann", "chat", make);
    REQUIRE_MESSAGE(made.ok(), made.status().ToString());
    CHECK(made->items == static_cast<int64_t>(c.want.size()));
    CHECK(made->parent == "main");
    CHECK(made->generation == 0);
    const ItemInfo* last = c.stands == 0 ? nullptr : &items->rows[c.stands - 1];
    CHECK(made->parent_tokens == (last == nullptr ? 0 : last->first + last->count));
    const auto tokens = b.keeper().Tokens("ann", "chat", c.name);
    CHECK(static_cast<int64_t>(tokens->size()) == made->tokens);
    const auto stored = b.keeper().Items("ann", "chat", c.name, {});
    REQUIRE(stored->rows.size() == c.want.size());
    for (size_t i = 0; i < c.want.size(); ++i) {
      CHECK(stored->rows[i].role == c.want[i].role);
      CHECK(stored->rows[i].raw_json == c.want[i].raw_json);
    }
    Messages next = c.want;
    next.push_back(User("and now?"));
    const auto turn = b.Begin(Ask("chat", next));
    CHECK(turn->start().branch == c.name);
    CHECK_FALSE(turn->start().miss);
    CHECK(turn->start().kept_tokens == made->tokens);
    CHECK(std::equal(tokens->begin(), tokens->end(), turn->prompt().begin()));
    // As if it had been said so from the beginning, in another session.
    CHECK(b.Decode(turn->prompt()) == b.Decode(b.Begin(Ask(c.name, next))->prompt()));
  }
  CHECK(b.keeper().CheckLog()->damaged() == 0);
  b.Restart();
  const Messages add = {User("more")};
  TurnRequest append = Ask("chat", add);
  append.append = true;
  append.session.branch = "replaced";
  CHECK(b.Say(append, "mas").branch == "replaced");
  CHECK(b.keeper().Get("ann", "chat")->default_branch == "main");
  CHECK(b.keeper().Tokens("ann", "chat", "main")->size() > 0);
  CHECK(b.keeper().CheckLog()->damaged() == 0);
}

TEST_CASE("edits: what stands keeps its sampled tokens, and a point or a snapshot is their source") {
  SessionBench b;
  Messages m = {User("one")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome o;
  o.message = Assistant("the");
  for (const char c : std::string("the")) o.generated.push_back({TinyByteToken(c), 1, false});
  o.generated.push_back({kTinyTurnEnd, 1, false});
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(o)).durable);
  m.push_back(Assistant("the"));
  const auto snapshot = b.keeper().Snapshot("ann", "chat", "", "");
  m.push_back(User("two"));
  b.Say(Ask("chat", m), "dos");
  MakeBranch make;
  make.snapshot = snapshot->id;
  make.edits = {{.op = ItemEdit::Op::kInsert, .item = 2, .change = {}, .message = User("drei")}};
  const auto made = b.keeper().Branch("ann", "chat", make);
  REQUIRE_MESSAGE(made.ok(), made.status().ToString());
  CHECK(made->items == 3);
  const auto main = b.keeper().Tokens("ann", "chat", "main");
  const auto tokens = b.keeper().Tokens("ann", "chat", made->name);
  CHECK(made->parent_tokens == snapshot->tokens);
  CHECK(std::equal(tokens->begin(), tokens->begin() + snapshot->tokens, main->begin()));
  make.snapshot.clear();
  make.at_item = 1;
  CHECK(b.keeper().Branch("ann", "chat", make).status().message().starts_with("edits[0].item"));
  make.edits[0].item = 1;
  CHECK(b.keeper().Branch("ann", "chat", make)->items == 2);
}

TEST_CASE("edits: a call's message is changed though its id stays; nothing left is the root") {
  SessionBench b;
  Messages m = {User("read it"), Assistant("", {{"call_a", "read", R"({"path": "x"})"}}),
                ToolResult("call_a", "content")};
  b.Say(Ask("chat", m), "done");
  MakeBranch make;
  make.edits = {Becomes(1, Assistant("let me see", {{"call_a", "read", R"({"path": "y"})"}}))};
  const auto made = b.keeper().Branch("ann", "chat", make);
  REQUIRE_MESSAGE(made.ok(), made.status().ToString());
  const auto items = b.keeper().Items("ann", "chat", made->name, {});
  CHECK(items->rows[1].raw_json.find("let me see") != std::string::npos);
  CHECK(items->rows[1].call_id == "call_a");
  CHECK(b.Decode(*b.keeper().Tokens("ann", "chat", made->name)).find("let me see") !=
        std::string::npos);
  make.edits = {{.item = 0, .count = 4, .change = {}, .message = {}}};
  const auto empty = b.keeper().Branch("ann", "chat", make);
  REQUIRE(empty.ok());
  CHECK(empty->tokens == 0);
  CHECK(empty->items == 0);
  make.edits = {Becomes(0, User(std::string(20000, 'x')))};
  CHECK(b.keeper().Branch("ann", "chat", make).status().message().starts_with(
      "context_length_exceeded: "));
  CHECK(b.keeper().Branches("ann", "chat")->size() == 3);
}

TEST_CASE("what is appended is found by the next who appends, also where it left the branch") {
  SessionBench b;
  const Messages one = {User("one")}, two = {User("two")}, three = {User("three")};
  TurnRequest r = Ask("chat", one);
  r.append = true;
  b.Say(r, "uno");
  r.messages = two;
  r.tools_json = R"([{"type":"function","function":{"name":"f"}}])";
  auto turn = b.Begin(r);
  const std::string branch = turn->start().branch;
  CHECK(branch != "main");
  CHECK(turn->start().miss->reason == "tools_changed");
  // Only what is committed is the default one.
  CHECK(b.keeper().Get("ann", "chat")->default_branch == "main");
  b.Answer(std::move(turn), "dos");
  CHECK(b.keeper().Get("ann", "chat")->default_branch == branch);
  CHECK(b.keeper().Events("ann", "chat", {})->rows.back().kind == "turn_committed");
  r.messages = three;
  turn = b.Begin(r);
  CHECK(turn->start().branch == branch);
  CHECK(b.Decode(turn->prompt()).find("two") != std::string::npos);
}

TEST_CASE("snapshots stay and make branches") {
  SessionBench b;
  Messages m = {User("one")};
  b.Say(Ask("chat", m), "uno");
  const auto before = b.keeper().Tokens("ann", "chat", "");
  const auto snap = b.keeper().Snapshot("ann", "chat", "", "good point");
  REQUIRE(snap.ok());
  m.push_back(Assistant("uno"));
  m.push_back(User("two"));
  b.Say(Ask("chat", m), "dos");
  b.Restart();
  REQUIRE(b.keeper().Snapshots("ann", "chat")->size() == 1);
  CHECK(b.keeper().Snapshots("ann", "chat")->front().label == "good point");
  MakeBranch make;
  make.snapshot = snap->id;
  make.name = "back";
  REQUIRE(b.keeper().Branch("ann", "chat", make).ok());
  CHECK(b.keeper().Tokens("ann", "chat", "back").value() == before.value());
  make.snapshot = "snap_none";
  make.name = "";
  CHECK(b.keeper().Branch("ann", "chat", make).status().code() == Code::kNotFound);
}

TEST_CASE("create, list by pages, delete") {
  SessionBench b;
  for (int i = 0; i < 5; ++i) {
    CreateSession c;
    c.external_id = "s";
    c.external_id += std::to_string(i);
    REQUIRE(b.keeper().Create("ann", c).ok());
    CHECK(b.keeper().Create("ann", c).status().code() == Code::kConflict);
  }
  ListRange range;
  range.limit = 2;
  std::string seen;
  do {
    const auto page = b.keeper().List("ann", range);
    REQUIRE(page.ok());
    for (const SessionInfo& s : page->rows) seen += s.external_id + " ";
    range.after = page->next;
  } while (!range.after.empty());
  CHECK(seen == "s0 s1 s2 s3 s4 ");
  CHECK(b.keeper().List("bob", {})->rows.empty());

  const Messages m = {User("one")};
  auto turn = b.Begin(Ask("s0", m));
  CHECK(b.keeper().Delete("ann", "s0").code() == Code::kConflict);
  b.Answer(std::move(turn), "uno");
  CHECK(b.keeper().Delete("ann", "s0").ok());
  CHECK(b.keeper().Get("ann", "s0").status().code() == Code::kNotFound);
  CHECK(b.keeper().List("ann", {})->rows.size() == 4);
  CHECK(b.Say(Ask("s0", m), "uno").new_session);
}

// A map of pages that counts writes and syncs, and says when a page is deleted, the next time.
class TellingStore : public PageStore {
 public:
  std::function<void()> on_delete;
  int writes = 0;

  Status Put(const PageHeader& header,
             std::span<const std::span<const std::byte>> payload) override {
    ++writes;
    return map_->Put(header, payload);
  }
  Status Sync() override {
    ++writes;
    return map_->Sync();
  }
  Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) override {
    return map_->Get(expect, payload);
  }
  bool Contains(const PageKey& key) override { return map_->Contains(key); }
  Status Delete(const PageKey& key) override {
    if (on_delete) std::exchange(on_delete, nullptr)();
    return map_->Delete(key);
  }
  Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) override {
    return map_->Collect(keep);
  }
  void Renew(std::span<const PageKey> keys) override { map_->Renew(keys); }
  StoreStats stats() override { return map_->stats(); }

 private:
  const std::unique_ptr<PageStore> map_ = MakeMemoryPageStore(0);
};

// A bundle whose import waits, all but whole, until it may go on.
class HeldBundle : public BytesFile {
 public:
  explicit HeldBundle(const Bytes* bytes) : BytesFile(bytes), size_(bytes->size()) {}
  std::promise<void> here, go;

  Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) override {
    passes_ += offset == 0;
    uint64_t end = offset;
    for (const auto& p : parts) end += p.size();
    if (passes_ == 2 && end == size_) {
      here.set_value();
      go.get_future().wait();
    }
    return BytesFile::ReadAt(offset, parts);
  }

 private:
  const uint64_t size_;
  int passes_ = 0;
};

// A turn whose prompt is computed, so that its head is warm, and whose answer is empty.
TurnStart SayComputed(SessionBench& b, const std::string& session, const Messages& m) {
  TurnRequest request = Ask(session, m);
  request.max_tokens = 1;
  auto turn = b.Begin(request);
  const TurnStart start = turn->start();
  TurnOutcome o;
  o.message = Assistant("");
  o.timeline = b.Compute(turn->TakeTimeline(), nullptr).value();
  REQUIRE(b.keeper().Commit(std::move(turn), std::move(o)).durable);
  return start;
}

// Two warm heads, of "one" and "two", and no room for a third like them.
struct Crowded {
  TellingStore* store = new TellingStore;
  SessionBench b{{.kv_bytes = 512u << 10}, std::unique_ptr<PageStore>(store)};
  Keeper& k = b.keeper();
  std::string text;
  int64_t tokens = 0;  // of "one"

  Crowded() {
    const PagePool& pool = b.engine().pool();
    const uint64_t pages = pool.stats().slots_max * 2 / 5;
    for (int i = 0; text.size() < pages * kPageTokens; ++i) text += std::to_string(i % 10);
    tokens = SayComputed(b, "one", {User("one" + text)}).prompt_tokens;
    ++b.now_ms;
    SayComputed(b, "two", {User("two" + text)});
    REQUIRE(tokens % kPageTokens != 0);
    REQUIRE(k.stats().resident_timelines == 2);
    REQUIRE(pool.stats().slots_max - pool.stats().leased < pages);
  }
};

TEST_CASE("a turn that needs room waits for no write where the caretaker came first") {
  Crowded c;
  bool ahead = false;
  SUBCASE("it came first") { ahead = true; }
  SUBCASE("it had no time") {}
  if (ahead) {
    c.k.Tend();
    CHECK(c.k.stats().tails_written == 1);
    CHECK(c.k.stats().resident_timelines == 2);  // what is written down is still warm
    c.k.Tend();
    CHECK(c.k.stats().tails_written == 1);
  }
  c.store->writes = 0;
  SayComputed(c.b, "three", {User("three" + c.text)});
  CHECK((c.store->writes == 0) == ahead);
  CHECK(c.k.stats().tails_written == 1);
  CHECK(c.k.stats().resident_timelines == 2);
  // Whoever was let go is found again.
  const Messages again = {User("one" + c.text), Assistant(""), User("more")};
  const StitchReport found = SayComputed(c.b, "one", again).stitch;
  CAPTURE(found.miss);
  CAPTURE(found.to_compute);
  CHECK(found.from_store > 0);
  CHECK(found.from_pool + found.from_store == c.tokens);
}

TEST_CASE("a snapshot's tail stays when the branch has another") {
  Crowded c;
  c.k.Tend();
  REQUIRE(c.k.stats().tails_written == 1);  // it is the branch's own, until the snapshot
  REQUIRE(c.k.Snapshot("ann", "one", "", "here").ok());
  SayComputed(c.b, "one", {User("one" + c.text), Assistant(""), User("more")});
  c.k.MakeRoom(int64_t{1} << 30);
  c.b.engine().pool().DropCached();
  MakeBranch make;
  make.snapshot = c.k.Snapshots("ann", "one")->front().id;
  make.name = "back";
  REQUIRE(c.k.Branch("ann", "one", make).ok());
  const Messages other = {User("one" + c.text), Assistant(""), User("other")};
  TurnRequest request = Ask("one", other);
  request.session.branch = "back";
  CHECK(c.b.Begin(request)->start().stitch.from_store == c.tokens);
}

TEST_CASE("what a sweep has seen expired, and lives again when its turn comes, is not deleted") {
  auto store = std::make_unique<TellingStore>();
  std::function<void()>& between = store->on_delete;  // the deletions of the first and the next
  SessionBench b({}, std::move(store));
  Keeper& k = b.keeper();
  const Messages m = {User("one")};
  for (const char* name : {"first", "second"}) {
    REQUIRE(k.Create("ann", {.external_id = name, .meta_json = "{}", .ttl_s = 10}).ok());
  }
  SayComputed(b, "first", m);
  k.MakeRoom(int64_t{1} << 30);
  REQUIRE(k.stats().tails_written == 1);
  SUBCASE("a turn ends") {
    auto turn = b.Begin(Ask("second", m));
    b.now_ms += 11'000;
    between = [&] { b.Answer(std::move(turn), "dos"); };
    CHECK(k.DeleteExpired().value() == 1);
    CHECK(k.Items("ann", "second", "", {})->rows.size() == 2);
    CHECK_FALSE(b.Say(Ask("second", Messages{User("one"), Assistant("dos"), User("two")}), "tres")
                    .new_session);
  }
  SUBCASE("an import ends") {
    const Bytes bytes = ExportBytes(k, "ann", "first", {}).value();
    HeldBundle file(&bytes);
    std::future<Result<ImportReport>> import = std::async(std::launch::async, [&] {
      return k.Import("ann", &file, bytes.size(), {.key = "", .as = "copy"});
    });
    file.here.get_future().wait();
    b.now_ms += 11'000;
    between = [&] {
      file.go.set_value();
      import.wait();
    };
    CHECK(k.DeleteExpired().value() == 2);  // and `second`
    REQUIRE(import.get().ok());
    CHECK(k.Tokens("ann", "copy", "").ok());
    CHECK(k.Delete("ann", "copy").ok());
  }
  CHECK(k.Get("ann", "first").status().code() == Code::kNotFound);
}

TEST_CASE("of four who delete a session at once three are told that there is none") {
  SessionBench b;
  for (int i = 0; i < 20; ++i) {
    REQUIRE(b.keeper().Create("ann", {.external_id = "s", .meta_json = "{}"}).ok());
    std::atomic<int> deleted{0}, absent{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        const Status s = b.keeper().Delete("ann", "s");
        deleted += s.ok();
        absent += s.code() == Code::kNotFound;
      });
    }
    for (std::thread& t : threads) t.join();
    CHECK(deleted == 1);
    CHECK(absent == 3);
    CHECK(b.keeper().stats().sessions == 0);
  }
}

TEST_CASE("requests at one moment make no more sessions than the quota says") {
  SessionBench b({.quotas = {{"ann", {.sessions = 3}}}});
  std::atomic<int> made{0}, refused{0};
  std::promise<void> go;  // until then nothing is written
  REQUIRE(b.db().Submit([&](Txn&) { return go.get_future().wait(), Status(); }, WriteClass::kTurn,
                        [](const Status&) {}).ok());
  while (b.db().stats().queued > 0) std::this_thread::yield();
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const std::string name = std::string("s").append(std::to_string(i));
      const ChatMessage hello[] = {User("hello")};
      Status s;
      if (i % 2 == 0) {
        s = b.keeper().Create("ann", {.external_id = name, .meta_json = {}}).status();
      } else {
        s = b.keeper().Begin(Ask(name, hello)).status();
      }
      ++(s.ok() ? made : refused);
      if (!s.ok()) CHECK(s.message().starts_with("quota_exceeded: "));
    });
  }
  while (b.db().stats().queued < 8) std::this_thread::yield();  // all have seen that there is room
  go.set_value();
  for (std::thread& t : threads) t.join();
  CHECK(made == 3);
  CHECK(refused == 5);
  CHECK(b.keeper().List("ann", {})->rows.size() == 3);
}

TEST_CASE("a lazy turn is there at once, and durable with the next that is not") {
  SessionBench b;
  const ChatMessage first[] = {User("one")};
  TurnRequest request = Ask("chat", first);
  request.durability = Durability::kLazy;
  request.idempotency_key = "key";
  const auto say = [&](const TurnRequest& r) {
    std::unique_ptr<Turn> turn = b.Begin(r);
    TurnOutcome o;
    o.message = Assistant("ok");
    o.response = "ok";
    for (TokenId t : b.Encode("ok")) o.generated.push_back({t, 7, false});
    o.generated.push_back({kTinyTurnEnd, 8, false});
    return b.keeper().Commit(std::move(turn), std::move(o));
  };
  const CommitResult lazy = say(request);
  CHECK(lazy.committed);
  CHECK_FALSE(lazy.durable);
  CHECK(b.keeper().stats().unsynced == 2);  // its admission and its commit
  CHECK(b.keeper().Items("ann", "chat", "", {})->rows.size() == 2);
  SUBCASE("a turn of the same session") {
    const ChatMessage next[] = {User("one"), Assistant("ok"), User("two")};
    const CommitResult turn = say(Ask("chat", next));
    CHECK(turn.durable);
    CHECK(b.keeper().Items("ann", "chat", "", {})->rows.size() == 4);
  }
  SUBCASE("it is asked for again") {
    CHECK(b.Begin(request)->start().replayed);
  }
  SUBCASE("the keeper shuts down") { b.keeper().Shutdown(); }
  CHECK(b.keeper().stats().unsynced == 0);
}

TEST_CASE("events tell a session's life") {
  SessionBench b;
  const Messages m = {User("one")};
  b.Begin(Ask("chat", m)).reset();
  b.Say(Ask("chat", m), "uno");
  std::string kinds;
  const auto events = b.keeper().Events("ann", "chat", {});
  for (const EventInfo& e : events->rows) kinds += e.kind + " ";
  CHECK(kinds == "session_created turn_aborted turn_committed ");
}

}  // namespace
}  // namespace holdfast
