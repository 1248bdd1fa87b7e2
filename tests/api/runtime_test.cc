#include "api/runtime.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <functional>

#include "tests/api/runtime_bench.h"
#include "tests/engine/store/fault_vfs.h"

namespace holdfast {
namespace {

const std::vector<std::string> kQuestions = {
    "What is in the folder? List all of it, one name to a line, please.",
    "Now open the first file and tell me what it is for.",
    "Shorter.",
    "And what does the second one do, in a sentence or two that a child would understand?"};

// Asks all questions, with `between` after each answer.
std::vector<Answer> AskAll(RuntimeBench& b, Talk talk,
                           const std::function<void(RuntimeBench&)>& between = {}) {
  std::vector<Answer> answers;
  for (const std::string& q : kQuestions) {
    talk.User(q);
    answers.push_back(b.Say(talk.Request()));
    talk.Keep(answers.back());
    if (between) between(b);
  }
  return answers;
}

TEST_CASE("warm, restarted, recomputed and evicted conversations are the same to the bit") {
  RuntimeBench warm;
  const std::vector<Answer> want = AskAll(warm, Talk("chat"));
  REQUIRE(want.size() == kQuestions.size());
  for (const Answer& a : want) {
    CHECK(a.done.completion_tokens.size() == 24);
    CHECK(a.digests.size() == 24);
    CHECK(a.done.report.durable);
    CHECK(a.streamed == a.done.content);
    CHECK(a.done.finish == ChatFinish::kLength);
  }
  CHECK(want[1].done.report.start.stitch.from_warm > 0);
  CHECK(want[1].done.report.start.branch == "main");
  CHECK(warm.runtime().stats().keeper.turns_committed == kQuestions.size());

  SUBCASE("restarted after each turn") {
    RuntimeBench b;
    const auto got = AskAll(b, Talk("chat"), [](RuntimeBench& r) { r.Restart(); });
    CHECK(got == want);
    CHECK(got[3].done.report.start.stitch.from_warm == 0);
    CHECK(got[3].done.report.start.stitch.from_store > 0);
    CHECK(b.runtime().stats().keeper.tails_restored == 0);  // a new process counts anew
    // All rows but those after the last sampled token come from the store.
    CHECK(got[3].done.report.start.stitch.from_store ==
          got[3].done.report.start.kept_tokens - 1);
  }
  SUBCASE("restarted, with no page store") {
    RuntimeBench b({.page_store = false});
    const auto got = AskAll(b, Talk("chat"), [](RuntimeBench& r) { r.Restart(); });
    CHECK(got == want);
    CHECK(got[3].done.report.start.stitch.from_store == 0);
    CHECK(got[3].done.report.start.stitch.to_compute ==
          static_cast<int64_t>(got[3].done.prompt_tokens.size()));
  }
  SUBCASE("no warm heads, pool emptied") {
    RuntimeBench b({.max_resident = 0});
    CHECK(AskAll(b, Talk("chat"), [](RuntimeBench& r) {
            r.runtime().engine().pool().DropCached();
          }) == want);
  }
  SUBCASE("another tenant, an anonymous session") {
    CHECK(AskAll(warm, Talk("", "bob")) == want);
    CHECK(warm.runtime().keeper().List("bob", {})->rows.size() == 1);
  }
}

TEST_CASE("what loading and computing cost is known at the next start") {
  RuntimeBench b;
  CHECK(b.runtime().stitcher().rates().compute_ms_per_token == 0);
  AskAll(b, Talk("chat"));
  const double computing = b.runtime().stitcher().rates().compute_ms_per_token;
  CHECK(computing > 0);
  CHECK(b.runtime().stitcher().rates().load_ms_per_page == 0);
  b.Restart();
  const StitchRates known = b.runtime().stitcher().rates();
  CHECK_FALSE(DiffersMuch(known, {.compute_ms_per_token = computing}));
  CHECK(known.load_ms_per_page > 0);  // a few pages were read
  b.Restart();
  CHECK_FALSE(DiffersMuch(b.runtime().stitcher().rates(), known));
}

TEST_CASE("a forked head answers as the head it left") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User(kQuestions[0]);
  talk.Keep(b.Say(talk.Request()));
  MakeBranch make;
  make.name = "side";
  REQUIRE(b.runtime().keeper().Branch("ann", "chat", make).ok());
  talk.User(kQuestions[1]);
  const Answer main = b.Say(talk.Request());
  ChatRequest side = talk.Request();
  side.session.branch = "side";
  const Answer forked = b.Say(side);
  CHECK(forked.done.report.start.branch == "side");
  CHECK(forked == main);
  CHECK(forked.done.report.start.stitch.to_compute < 32);
}

TEST_CASE("a data folder goes on under another model, and back") {
  RuntimeBench b, never;
  Talk talk("chat");
  for (const char* text : {"one", "two"}) {
    talk.User(text);
    const Answer a = b.Say(talk.Request());
    CHECK(a == never.Say(talk.Request()));
    talk.Keep(a);
  }
  const auto append = [&](const std::string& text) {
    ChatRequest r = Talk("chat").User(text).Request();
    r.append = true;
    return b.Say(r).done.report.start;
  };
  b.ChangeModel(2, 400);
  const TurnStart other = append("three");
  REQUIRE(other.miss);
  CHECK(other.miss->reason == "model_changed");
  CHECK(other.branch != "main");
  CHECK(append("four").branch == other.branch);
  b.ChangeModel(1, 320);
  CHECK(append("five").miss->reason == "model_changed");
  const auto items = b.runtime().keeper().Items("ann", "chat", "", {});
  CHECK(items->rows.size() == 10);
  CHECK(items->rows[8].raw_json.find("five") != std::string::npos);
  // The branch that the first model left is where it was, to the bit.
  talk.User("six");
  ChatRequest back = talk.Request();
  back.session.branch = "main";
  const Answer a = b.Say(back);
  CHECK(a.done.report.start.branch == "main");
  CHECK_FALSE(a.done.report.start.miss);
  CHECK(a == never.Say(talk.Request()));
  CHECK(b.runtime().keeper().CheckLog()->damaged() == 0);
}

TEST_CASE("a cancelled turn asked again gives the same tokens") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User(kQuestions[0]);
  ChatRequest r = talk.Request();
  r.sampling.temperature = 1.0f;  // and no seed: the session's decides
  r.max_tokens = 300;
  const Tokenizer& tokenizer = b.runtime().engine().tokenizer();
  // Whatever the seed, it ends at max_tokens.
  for (TokenId t = 0; t < static_cast<TokenId>(tokenizer.vocab_size()); ++t) {
    if (tokenizer.IsEndOfGeneration(t)) r.sampling.logit_bias.emplace_back(t, -100.0f);
  }
  std::vector<TokenId> seen;
  {
    std::unique_ptr<ChatStream> stream;
    REQUIRE(b.Start(r, &stream).ok());
    while (seen.size() < 5) {
      auto e = stream->Next(-1);
      REQUIRE(e);
      seen.insert(seen.end(), e->tokens.begin(), e->tokens.end());
    }
  }
  SUBCASE("at once") {}
  SUBCASE("after a restart") { b.Restart(); }
  const Answer again = b.Say(r);
  CHECK(again.done.report.start.retry);
  REQUIRE(again.done.completion_tokens.size() >= seen.size());
  CHECK(std::equal(seen.begin(), seen.end(), again.done.completion_tokens.begin()));
  // Once committed, asking again is asking for another answer.
  const Answer other = b.Say(r);
  CHECK_FALSE(other.done.report.start.retry);
  CHECK(other.done.report.start.branch != again.done.report.start.branch);
  CHECK(other.done.completion_tokens != again.done.completion_tokens);
}

TEST_CASE("a seed gives the same answer in any session") {
  RuntimeBench b;
  ChatRequest r = Talk("one").User(kQuestions[0]).Request();
  r.sampling.temperature = 1.0f;
  r.seed = 7;
  ChatRequest s = r;
  s.session.id = "two";
  CHECK(b.Say(r) == b.Say(s));
}

ChatRequest WithTools(ChatRequest r) {
  r.tools = {{"read_file", R"({"type":"object","properties":{"path":{"enum":["a","b"]}},)"
                           R"("required":["path"],"additionalProperties":false})"}};
  r.tools_json = R"([{"type":"function","function":{"name":"read_file"}}])";
  r.max_tokens = 200;
  return r;
}

TEST_CASE("a tool round trip") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User("read a");
  ChatRequest r = WithTools(talk.Request());
  r.tool_choice = ToolChoice::kRequired;
  r.parallel_tool_calls = false;
  const Answer call = b.Say(r);
  REQUIRE(call.done.tool_calls.size() == 1);
  CHECK(call.done.finish == ChatFinish::kToolCalls);
  CHECK(call.calls == 1);
  CHECK(call.done.tool_calls[0].name == "read_file");
  CHECK(call.done.content.empty());
  talk.Keep(call).Tool(call.done.tool_calls[0].id, "the content");
  const Answer next = b.Say(WithTools(talk.Request()));
  CHECK(next.done.report.start.branch == "main");
  CHECK_FALSE(next.done.report.start.miss);
  CHECK(next.done.report.start.stitch.from_warm > 0);

  r.tool_choice = ToolChoice::kNamed;
  r.tool_name = "write_file";
  CHECK(b.runtime().Chat(r).status().code() == Code::kInvalid);
}

TEST_CASE("a JSON schema is enforced") {
  RuntimeBench b;
  ChatRequest r = Talk("chat").User("answer").Request();
  r.format = ResponseFormat::kJsonSchema;
  r.schema_json = R"({"type":"object","properties":{"ok":{"type":"boolean"}},)"
                  R"("required":["ok"],"additionalProperties":false})";
  r.strict_schema = true;
  r.max_tokens = 100;
  const Answer a = b.Say(r);
  CHECK(a.done.finish == ChatFinish::kStop);
  CHECK(a.done.content.find("\"ok\"") != std::string::npos);
  r.schema_json = std::string(1, '{');
  CHECK(b.runtime().Chat(r).status().code() == Code::kInvalid);
}

TEST_CASE("a page of one tenant is never used for another") {
  RuntimeBench b;
  const ChatRequest ann = Talk("s", "ann").User(kQuestions[0] + kQuestions[3]).Request();
  ChatRequest bob = ann;
  bob.tenant = "bob";
  ChatRequest again = ann;
  again.session.id = "t";
  const Answer first = b.Say(ann);
  CHECK(first.done.report.start.stitch.to_compute ==
        static_cast<int64_t>(first.done.prompt_tokens.size()));
  const auto before = b.runtime().stats();
  const Answer other = b.Say(bob);
  const auto after = b.runtime().stats();
  CHECK(other.done.report.start.stitch.to_compute ==
        static_cast<int64_t>(other.done.prompt_tokens.size()));
  CHECK(after.engine.pool.hits == before.engine.pool.hits);
  CHECK(after.store.gets == before.store.gets);
  CHECK(other == first);
  // The same tenant has them, in another session too: the counters do count.
  const Answer same = b.Say(again);
  CHECK(same.done.report.start.stitch.from_pool >= 64);
  CHECK(b.runtime().stats().engine.pool.hits > after.engine.pool.hits);
  // And from the disk likewise.
  b.Restart();
  bob.session.id = "u";
  CHECK(b.Say(bob).done.report.start.stitch.from_store > 0);
  bob.tenant = "carl";
  CHECK(b.Say(bob).done.report.start.stitch.from_store == 0);
}

TEST_CASE("two at once on a head: the second has a branch of its own") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User(kQuestions[0]);
  talk.Keep(b.Say(talk.Request())).User(kQuestions[1]);
  std::unique_ptr<ChatStream> first, second;
  REQUIRE(b.Start(talk.Request(), &first).ok());
  REQUIRE(b.Start(talk.Request(), &second).ok());
  ChatRequest reject = talk.Request();
  reject.on_busy = OnBusy::kReject;
  CHECK(b.runtime().Chat(reject).status().code() == Code::kConflict);
  const Answer two = RuntimeBench::Drain(second.get());
  const Answer one = RuntimeBench::Drain(first.get());
  CHECK(one.done.report.start.branch == "main");
  CHECK(two.done.report.start.branch != "main");
  CHECK(one == two);  // greedy
  CHECK(two.done.report.durable);
}

TEST_CASE("an idempotency key serves the answer again") {
  RuntimeBench b;
  ChatRequest r = WithTools(Talk("").User("read a").Request());
  r.tool_choice = ToolChoice::kRequired;
  r.parallel_tool_calls = false;
  r.idempotency_key = "key-1";
  const Answer first = b.Say(r);
  b.Restart();
  const Answer again = b.Say(r);
  CHECK(again.done.report.start.replayed);
  CHECK(again.done.completion_tokens == first.done.completion_tokens);
  CHECK(again.done.tool_calls.size() == 1);
  CHECK(again.done.tool_calls[0].id == first.done.tool_calls[0].id);
  CHECK(again.done.tool_calls[0].arguments == first.done.tool_calls[0].arguments);
  CHECK(again.done.finish == first.done.finish);
  CHECK(b.runtime().keeper().List("ann", {})->rows.size() == 1);
}

TEST_CASE("a stop string cuts what the client gets and the head alike") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User(kQuestions[0]);
  ChatRequest r = talk.Request();
  r.max_tokens = 60;
  const Answer whole = b.Say(r);
  REQUIRE(whole.done.content.size() > 12);
  ChatRequest cut = r;
  cut.session.id = "cut";
  cut.stop = {whole.done.content.substr(8, 3)};
  const Answer stopped = b.Say(cut);
  CHECK(stopped.done.finish == ChatFinish::kStop);
  CHECK(stopped.done.content == whole.done.content.substr(0, whole.done.content.find(cut.stop[0])));
  const auto tokens = b.runtime().keeper().Tokens("ann", "cut", "");
  CHECK(tokens->size() ==
        stopped.done.prompt_tokens.size() + stopped.done.completion_tokens.size());
  Talk next("cut");
  next.User(kQuestions[0]).Keep(stopped).User("go on");
  CHECK(b.Say(next.Request()).done.report.start.branch == "main");
}

TEST_CASE("a store that fails degrades, refuses durable turns, and heals") {
  testing::FaultVfs vfs;
  RuntimeBench b({.vfs = vfs.name()});
  Talk talk("chat");
  talk.User(kQuestions[0]);
  talk.Keep(b.Say(talk.Request())).User(kQuestions[1]);
  std::unique_ptr<ChatStream> stream;
  REQUIRE(b.Start(talk.Request(), &stream).ok());
  vfs.FailAt(1, testing::FaultVfs::Fault::kDiskFull, testing::FaultVfs::Repeat::kFromThenOn);
  const Answer a = RuntimeBench::Drain(stream.get());
  CHECK(a.done.status.ok());
  CHECK_FALSE(a.done.report.durable);
  CHECK(a.done.completion_tokens.size() == 24);
  CHECK(b.runtime().stats().keeper.degraded);
  const Status refused = b.runtime().Chat(talk.Request()).status();
  CHECK(refused.code() == Code::kExhausted);
  CHECK(refused.message().starts_with("store_degraded: "));
  CHECK(b.runtime().keeper().Get("ann", "chat").ok());  // reads go on
  ChatRequest fleeting = talk.Request();
  fleeting.durability = Durability::kNone;
  const Answer none = b.Say(fleeting);
  CHECK_FALSE(none.done.report.durable);
  CHECK(none == a);
  vfs.Heal();
  while (b.runtime().stats().keeper.degraded) b.runtime().database().stats();
  const Answer healed = b.Say(talk.Request());
  CHECK(healed.done.report.durable);
  CHECK(healed == a);
}

TEST_CASE("a turn of durability kv says whether its pages are on disk") {
  for (const bool fits : {true, false}) {
    CAPTURE(fits);
    RuntimeBench b({.disk_bytes = fits ? size_t{256} << 20 : size_t{64} << 10});
    Talk talk("chat");
    ChatRequest r = talk.User(std::string(300, 'x')).Request();
    r.durability = Durability::kKv;
    const TurnReport report = b.Say(r).done.report;
    CHECK(report.durable);  // the tokens are
    REQUIRE(report.durable_kv.has_value());
    CHECK(*report.durable_kv == fits);
    CHECK(b.runtime().keeper().stats().kv_failures == (fits ? 0 : 1));
    const auto events =
        b.runtime().keeper().Events("ann", "chat", {.after = "", .order = ListOrder::kDescending});
    CHECK((events->rows[0].kind == "kv_not_durable") == !fits);
    CHECK_FALSE(b.Say(talk.Request()).done.report.durable_kv);
  }
}

TEST_CASE("more warm heads than pages: the oldest go, answers stay the same") {
  RuntimeBench roomy;
  RuntimeBench tight({.kv_bytes = 768u << 10});
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 12; ++i) {
      const std::string id(1, static_cast<char>('a' + i));
      const ChatRequest r = Talk(id).User(kQuestions[i % 4] + id + kQuestions[3]).Request();
      CHECK(roomy.Say(r) == tight.Say(r));
    }
  }
  CHECK(tight.runtime().stats().keeper.resident_timelines <
        roomy.runtime().stats().keeper.resident_timelines);
}

TEST_CASE("a deleted session is gone") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User("the secret word is xyzzy");
  talk.Keep(b.Say(talk.Request()));
  REQUIRE(b.runtime().keeper().Delete("ann", "chat").ok());
  CHECK(b.runtime().keeper().Get("ann", "chat").status().code() == Code::kNotFound);
  talk.User("what was it?");
  CHECK(b.Say(talk.Request()).done.report.start.new_session);
}

TEST_CASE("a closing runtime takes no turns and ends those that run") {
  RuntimeBench b;
  ChatRequest r = Talk("chat").User(kQuestions[0]).Request();
  r.max_tokens = 1500;
  std::unique_ptr<ChatStream> stream;
  REQUIRE(b.Start(r, &stream).ok());
  b.runtime().engine().Shutdown();
  const Answer a = RuntimeBench::Drain(stream.get());
  CHECK(a.done.finish == ChatFinish::kCancelled);
  CHECK_FALSE(a.done.status.ok());
  stream.reset();
  b.runtime().Shutdown(0);
  CHECK(b.runtime().Chat(r).status().code() == Code::kUnavailable);
}

TEST_CASE("requests that cannot be are refused by name") {
  RuntimeBench b;
  ChatRequest r = Talk("chat").User("x").Request();
  r.sampling.temperature = -1;
  CHECK(b.runtime().Chat(r).status().code() == Code::kInvalid);
  r = Talk("chat").User(std::string(30000, 'x')).Request();
  const Status s = b.runtime().Chat(r).status();
  CHECK(s.code() == Code::kInvalid);
  CHECK(s.message().starts_with("context_length_exceeded: "));
  r = Talk("sess_nope").User("x").Request();
  CHECK(b.runtime().Chat(r).status().code() == Code::kNotFound);
}

}  // namespace
}  // namespace holdfast
