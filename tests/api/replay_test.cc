// Replay end to end: what was not changed verifies; what was planted is named.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/model/gguf.h"
#include "engine/store/file_page_store.h"
#include "tests/api/bundle_bench.h"
#include "tests/api/runtime_bench.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

using F16 = std::integral_constant<KvType, KvType::kF16>;  // how K is stored
using I8 = std::integral_constant<KvType, KvType::kI8>;

struct Replayed {
  Status status;
  std::vector<ReplayStep> steps;
  ReplayReport report;
  std::optional<FreeOutcome> free;
  Recording recording;
  const ReplayDivergence& divergence() const {
    REQUIRE(report.divergence);
    return *report.divergence;
  }
};

ReplayRequest Verify(const std::string& session) {
  ReplayRequest r;
  r.tenant = "ann";
  r.session = session;
  return r;
}

Replayed Rerun(RuntimeBench& b, ReplayRequest request) {
  Replayed out;
  auto replay = b.runtime().StartReplay(std::move(request));
  if (!replay.ok()) {
    out.status = replay.status();
    return out;
  }
  out.recording = (*replay)->recording();
  for (;;) {
    auto next = (*replay)->Next(-1);
    if (!next.ok()) out.status = next.status();
    if (!next.ok() || !next->has_value()) return out;
    ReplayEvent& e = **next;
    CHECK(e.done <= e.total);
    if (e.step) out.steps.push_back(std::move(*e.step));
    if (e.report) out.report = std::move(*e.report);
    if (e.free) out.free = std::move(e.free);
  }
}

Replayed Good(RuntimeBench& b, ReplayRequest request) {
  Replayed r = Rerun(b, std::move(request));
  REQUIRE_MESSAGE(r.status.ok(), r.status.ToString());
  return r;
}

// `turns` short questions; the answers.
std::vector<Answer> Converse(RuntimeBench& b, const std::string& session, int turns,
                             float temperature = 0) {
  std::vector<Answer> answers;
  Talk talk(session);
  for (int i = 0; i < turns; ++i) {
    talk.User("go " + std::to_string(i));
    ChatRequest r = talk.Request();
    r.sampling.temperature = temperature;
    r.max_tokens = 12;
    // Drawn answers are as long as greedy ones, whatever the session's seed.
    r.sampling.logit_bias = {{kTinyEndOfText, -100.0f}, {kTinyTurnEnd, -100.0f}};
    answers.push_back(b.Say(r));
    talk.Keep(answers.back());
  }
  return answers;
}

void FlipBit(const std::string& path, uint64_t at) {
  std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
  f.seekg(static_cast<std::streamoff>(at));
  const char byte = static_cast<char>(f.get() ^ 1);
  f.seekp(static_cast<std::streamoff>(at));
  f.put(byte);
  REQUIRE(f.good());
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

PageKey KeyOf(RuntimeBench& b, const Recording& r, int64_t block) {
  PageKey key = RootKey(b.runtime().engine().model().fingerprint(), TenantScope("ann"), {});
  for (int64_t i = 0; i <= block; ++i) {
    key = NextKey(key, std::span(r.tokens).subspan(i * kPageTokens, kPageTokens), {});
  }
  return key;
}

TEST_CASE_TEMPLATE("a session of 40 turns verifies, from memory and from disk", Kv, F16, I8) {
  RuntimeBench b({.kv_type = Kv::value});
  const auto answers = Converse(b, "chat", 40);
  int64_t sampled = 0;
  for (const Answer& a : answers) sampled += static_cast<int64_t>(a.digests.size());
  const uint64_t pages = b.runtime().stats().engine.pool.cached;
  const Replayed warm = Good(b, Verify("chat"));
  CHECK_FALSE(warm.report.divergence);
  CHECK(warm.report.steps == sampled);
  CHECK(warm.report.undigested == 0);
  CHECK(warm.report.changed.empty());
  CHECK(warm.report.tokens == static_cast<int64_t>(warm.recording.tokens.size()));
  CHECK(warm.report.pages_memory == (warm.report.tokens - 1) / kPageTokens);
  // It leaves nothing behind in the pool's index.
  CHECK(b.runtime().stats().engine.pool.cached <= pages);
  size_t next = 0;
  for (const Answer& a : answers) {
    for (size_t i = 0; i < a.digests.size(); ++i, ++next) {
      REQUIRE(warm.steps.at(next).digest == a.digests[i]);
      REQUIRE(warm.steps[next].drawn == a.done.completion_tokens[i]);
      REQUIRE(warm.recording.items[warm.steps[next].item].role == "assistant");
    }
  }
  b.Restart();
  const Replayed cold = Good(b, Verify("chat"));
  CHECK_FALSE(cold.report.divergence);
  CHECK(cold.report.steps == sampled);
  CHECK(cold.report.pages_disk == (cold.report.tokens - 1) / kPageTokens);
  CHECK(cold.report.pages_memory == 0);
}

TEST_CASE_TEMPLATE("drawn answers verify: sampling, penalties, grammars, stops, tools, forks",
                   Kv, F16, I8) {
  RuntimeBench b({.kv_type = Kv::value});
  Converse(b, "hot", 3, 1.0f);
  ChatRequest odd = Talk("odd").User("say something").Request();
  odd.sampling = {.temperature = 0.9f, .top_k = 50, .top_p = 0.95f, .min_p = 0.01f,
                  .presence_penalty = 0.5f, .repetition_penalty = 1.2f,
                  .logit_bias = {{40, 2.5f}, {50, -1.0f}}};
  odd.seed = 77;
  odd.stop = {"qu", "~"};
  odd.max_tokens = 200;
  b.Say(odd);
  ChatRequest json = Talk("json").User("answer").Request();
  json.sampling.temperature = 1.0f;
  json.format = ResponseFormat::kJsonSchema;
  json.schema_json = R"({"type":"object","properties":{"ok":{"type":"boolean"},)"
                     R"("n":{"type":"integer"}},"required":["ok","n"],)"
                     R"("additionalProperties":false})";
  json.max_tokens = 60;
  b.Say(json);
  ChatRequest tool = Talk("tool").User("read").Request();
  tool.sampling.temperature = 1.0f;
  tool.tools_json = R"([{"type":"function","function":{"name":"read","parameters":)"
                    R"({"type":"object","properties":{"path":{"enum":["a","b"]}},)"
                    R"("required":["path"],"additionalProperties":false}}}])";
  tool.tools = {{"read", R"({"type":"object","properties":{"path":{"enum":["a","b"]}},)"
                         R"("required":["path"],"additionalProperties":false})"}};
  tool.tool_choice = ToolChoice::kRequired;
  tool.max_tokens = 200;
  CHECK(b.Say(tool).calls > 0);
  MakeBranch side;
  side.at_item = 2;
  side.name = "side";
  REQUIRE(b.runtime().keeper().Branch("ann", "hot", side).ok());
  ChatRequest more = Talk("hot").User("and now?").Request();
  more.append = true;
  more.session.branch = "side";
  more.sampling.temperature = 1.0f;
  b.Say(more);
  b.Restart();
  for (const std::string session : {"hot", "odd", "json", "tool"}) {
    CAPTURE(session);
    const Replayed r = Good(b, Verify(session));
    CHECK_FALSE(r.report.divergence);
    CHECK(r.report.steps > 0);
  }
  ReplayRequest fork = Verify("hot");
  fork.branch = "side";
  const Replayed r = Good(b, fork);
  CHECK_FALSE(r.report.divergence);
  CHECK(r.recording.turns.size() == 2);
}

TEST_CASE("one bit of one weight is named") {
  RuntimeBench b;
  Converse(b, "chat", 3);
  b.Close();
  const std::string path = b.File("tiny.gguf"), bytes = ReadFile(path);
  const auto file = Gguf::Parse(std::as_bytes(std::span(bytes)));
  REQUIRE(file.ok());
  const GgufTensor* tensor = file->FindTensor("blk.1.ffn_down.weight");
  REQUIRE(tensor != nullptr);
  // A code of the first block: 2 bytes of scale, then 32 of them.
  FlipBit(path, static_cast<uint64_t>(reinterpret_cast<const char*>(tensor->data.data()) -
                                      bytes.data()) + 5);
  b.Restart();
  const Replayed r = Good(b, Verify("chat"));
  const ReplayDivergence& d = r.divergence();
  CHECK(d.what == "logits");
  CHECK(d.cause == "weights");
  CHECK(d.index == r.recording.turns[0].output);
  CHECK(d.expected_digest != d.got_digest);
  CHECK(r.report.changed == std::vector<std::string>{"weights"});
  CHECK(r.recording.ItemOf(d.index) == 1);
}

TEST_CASE("one bit of a page in memory is named") {
  RuntimeBench b;
  Converse(b, "chat", 5);
  const Recording r = Good(b, Verify("chat")).recording;
  const auto tokens = std::span(r.tokens).subspan(2 * kPageTokens, kPageTokens);
  PageLease page = b.runtime().engine().pool().Find(KeyOf(b, r, 2), tokens);
  REQUIRE(page);
  const LayerGroup& g = b.runtime().engine().pool().groups()[0];
  const size_t at = g.HeadOffset(1, 0) + g.KBytes() + 7 * g.v_dim * KvTypeBytes(g.v_type);
  page.payload()[at] ^= std::byte{1};
  const Replayed bad = Good(b, Verify("chat"));
  const ReplayDivergence& d = bad.divergence();
  CHECK(d.what == "page");
  CHECK(d.cause == "page");
  CHECK(d.tier == "memory");
  CHECK(d.index == 2 * kPageTokens);
  CHECK(d.detail.find("layer 1") != std::string::npos);
  CHECK(d.detail.find("V of token 71") != std::string::npos);
  SUBCASE("answers drawn over it do not agree with a cold replay, and it is still the page") {
    ChatRequest more = Talk("chat").User("what next?").Request();
    more.append = true;
    b.Say(more);
    page.payload()[at] ^= std::byte{1};
    const Replayed after = Good(b, Verify("chat"));
    CHECK(after.divergence().what == "logits");
    CHECK(after.divergence().cause == "unknown");
    page.payload()[at] ^= std::byte{1};
    CHECK(Good(b, Verify("chat")).divergence().cause == "page");
  }
  SUBCASE("before and behind it nothing is wrong") {
    ReplayRequest part = Verify("chat");
    part.to = 2 * kPageTokens;
    CHECK_FALSE(Good(b, part).report.divergence);
    part = Verify("chat");
    part.from = 3 * kPageTokens;
    CHECK_FALSE(Good(b, part).report.divergence);
  }
}

TEST_CASE("one bit of a page on disk is named, whether its tag tells or not") {
  RuntimeBench b;
  Converse(b, "chat", 5);
  const Recording r = Good(b, Verify("chat")).recording;
  const PageKey key = KeyOf(b, r, 1), parent = KeyOf(b, r, 0);
  const Digest fp = b.runtime().engine().model().fingerprint();
  const auto groups = b.runtime().engine().pool().groups();
  b.Close();
  RealEnv env;
  FilePageStore::Options options;
  options.path = b.File("data") + "/pages";
  options.env = &env;
  auto store = FilePageStore::Open(options);
  REQUIRE_MESSAGE(store.ok(), store.status().ToString());
  (*store)->DescribeModel(fp, groups);
  PageHeader header;
  header.fp = fp;
  header.key = key;
  header.parent = parent;
  header.tokens.assign(r.tokens.begin() + kPageTokens, r.tokens.begin() + 2 * kPageTokens);
  std::vector<std::byte> payload(groups[0].PayloadBytes());
  const std::vector<std::span<std::byte>> in = {payload};
  REQUIRE((*store)->Get(header, in).ok());
  std::string detail;
  SUBCASE("a record that was written so") {
    payload[100] ^= std::byte{4};
    REQUIRE((*store)->Delete(key).ok());
    const std::vector<std::span<const std::byte>> out = {payload};
    REQUIRE((*store)->Put(header, out).ok());
    REQUIRE((*store)->Sync().ok());
    store->reset();
    detail = "K of token";
  }
  SUBCASE("a record that rotted") {
    store->reset();
    bool found = false;
    for (const auto& f : std::filesystem::recursive_directory_iterator(options.path)) {
      if (!f.is_regular_file()) continue;
      const std::string bytes = ReadFile(f.path());
      const size_t at = bytes.find(std::string(reinterpret_cast<char*>(payload.data()), 64));
      if (at == std::string::npos) continue;
      FlipBit(f.path(), at + 100);
      found = true;
    }
    REQUIRE(found);
    detail = "damaged";
  }
  b.Restart();
  const Replayed bad = Good(b, Verify("chat"));
  const ReplayDivergence& d = bad.divergence();
  CHECK(d.cause == "page");
  CHECK(d.tier == "disk");
  CHECK(d.index == kPageTokens);
  CHECK_MESSAGE(d.detail.find(detail) != std::string::npos, d.detail);
}

TEST_CASE("another template is named, with the first token that it makes otherwise") {
  RuntimeBench b;
  Converse(b, "chat", 3);
  b.Close();
  const std::string path = b.File("tiny.gguf"), bytes = ReadFile(path);
  const std::string piece = "{% if add_generation_prompt %}<|im_start|>assistant\n";
  const size_t at = bytes.find(piece);
  REQUIRE(at != std::string::npos);
  FlipBit(path, at + piece.size() - 2);  // "assistanu"
  b.Restart();
  const Replayed r = Good(b, Verify("chat"));
  const ReplayDivergence& d = r.divergence();
  CHECK(d.what == "prompt");
  CHECK(d.cause == "template");
  CHECK(d.index < r.recording.turns[0].output);
  CHECK(d.index > r.recording.items[0].first);
  CHECK(d.expected == r.recording.tokens[d.index]);
  CHECK(d.got != d.expected);
  CHECK(r.report.changed == std::vector<std::string>{"template"});
}

TEST_CASE("another seed and other sampling are named") {
  RuntimeBench b;
  Converse(b, "chat", 3, 1.0f);
  ReplayRequest request = Verify("chat");
  SUBCASE("asked for") {
    request.seed = 5;
    CHECK(Good(b, request).divergence().cause == "seed");
    request.seed.reset();
    request.sampling_json = R"({"temperature":0})";
    CHECK(Good(b, request).divergence().cause == "sampling");
  }
  SUBCASE("in the log") {
    REQUIRE(b.runtime()
                .database()
                .Write(
                    [](Txn& txn) {
                      return txn.Run("UPDATE node SET seed = seed + 1 WHERE kind = 1 AND id = "
                                     "(SELECT MAX(id) FROM node)");
                    },
                    WriteClass::kTurn)
                .ok());
    const Replayed r = Good(b, request);
    const ReplayDivergence& d = r.divergence();
    CHECK(d.what == "token");
    CHECK(d.cause == "seed");
    CHECK(d.expected != d.got);
    CHECK(d.expected_digest == d.got_digest);
    CHECK(d.index >= r.recording.turns[2].output);
  }
  SUBCASE("in the log of the turn too") {
    REQUIRE(b.runtime()
                .database()
                .Write(
                    [](Txn& txn) -> Status {
                      HOLDFAST_RETURN_IF_ERROR(txn.Run("UPDATE turn SET seed = 1234"));
                      return txn.Run("UPDATE node SET seed = 1234");
                    },
                    WriteClass::kTurn)
                .ok());
    CHECK(Good(b, request).divergence().cause == "seed");
  }
  SUBCASE("other parameters in the log") {
    REQUIRE(b.runtime()
                .database()
                .Write(
                    [](Txn& txn) {
                      return txn.Run("UPDATE node SET sampling = '{\"temperature\":0.01}' WHERE "
                                     "kind = 1");
                    },
                    WriteClass::kTurn)
                .ok());
    CHECK(Good(b, request).divergence().cause == "sampler");
  }
}

TEST_CASE("a digest that was altered in the log has no known cause") {
  RuntimeBench b;
  Converse(b, "chat", 2);
  REQUIRE(b.runtime()
              .database()
              .Write(
                  [](Txn& txn) {
                    return txn.Run("UPDATE node SET digests = CAST(zeroblob(length(digests) - 8)"
                                   " || x'0100000000000000' AS BLOB) WHERE kind = 1");
                  },
                  WriteClass::kTurn)
              .ok());
  const Replayed r = Good(b, Verify("chat"));
  CHECK(r.divergence().what == "logits");
  CHECK(r.divergence().cause == "unknown");
  CHECK(r.report.undigested == 11);  // those that are zero say nothing
}

TEST_CASE("forced: alternatives and ranks of what was said") {
  RuntimeBench b;
  const auto answers = Converse(b, "chat", 3);
  ReplayRequest request = Verify("chat");
  request.mode = ReplayMode::kForced;
  request.top_k = 4;
  const Replayed all = Good(b, request);
  REQUIRE(all.steps.size() == 36);
  for (const ReplayStep& s : all.steps) {
    REQUIRE(s.top.size() == 4);
    CHECK(s.rank == 1);  // greedy
    CHECK(s.top[0].token == s.recorded);
    CHECK(s.top[0].logprob == s.logprob);
    CHECK(s.top[3].logprob <= s.top[2].logprob);
    CHECK(s.digest == s.recorded_digest);
  }
  request.from_item = 2;
  request.to = all.steps.back().index;
  const Replayed part = Good(b, request);
  CHECK(part.steps.size() == 23);
  CHECK(part.steps.front().index == all.steps[12].index);
  CHECK(part.steps.front().digest == all.steps[12].digest);

  Converse(b, "hot", 2, 1.5f);
  request = Verify("hot");
  request.mode = ReplayMode::kForced;
  request.top_k = 20;
  int64_t behind = 0;
  for (const ReplayStep& s : Good(b, request).steps) {
    CHECK(s.rank >= 1);
    behind += s.rank > 1;
    if (s.rank <= 20) {
      CHECK(s.top[s.rank - 1].token == s.recorded);
      CHECK(s.top[s.rank - 1].logprob == doctest::Approx(s.logprob));
    }
  }
  CHECK(behind > 0);
}

ReplayRequest Free(const std::string& session) {
  ReplayRequest r = Verify(session);
  r.mode = ReplayMode::kFree;
  return r;
}

TEST_CASE("free: with nothing changed the same answer, as a branch") {
  RuntimeBench b;
  Converse(b, "chat", 3, 1.0f);
  for (int64_t point : {0, 1, 2}) {
    ReplayRequest request = Free("chat");
    const Recording r = Good(b, Verify("chat")).recording;
    if (point == 1) request.from = r.turns[1].output + 5;
    if (point == 2) request.from_item = 2;
    const Replayed same = Good(b, request);
    REQUIRE(same.free);
    CHECK(same.free->replayed == same.free->recorded);
    CHECK(same.free->diff.size() == 1);
    CHECK(same.free->forced == (point == 1 ? 5 : 0));
    CHECK(same.free->branch != "main");
    CHECK(same.steps.size() == 12);
    for (const ReplayStep& s : same.steps) CHECK(s.digest == s.recorded_digest);
    ReplayRequest made = Verify("chat");
    made.branch = same.free->branch;
    const Replayed verified = Good(b, made);
    CHECK_FALSE(verified.report.divergence);
    CHECK(verified.recording.turns.size() == (point == 0 ? 3 : 2));
  }
  CHECK(b.runtime().keeper().Get("ann", "chat")->turns == 6);
  CHECK(b.runtime().keeper().Get("ann", "chat")->default_branch == "main");
}

TEST_CASE("free: another seed, other sampling, from a token on") {
  RuntimeBench b;
  Converse(b, "chat", 2, 1.0f);
  const Recording r = Good(b, Verify("chat")).recording;
  ReplayRequest request = Free("chat");
  request.from = r.turns[1].output + 4;
  request.name = "what-if";
  request.seed = 99;
  const Replayed other = Good(b, request);
  REQUIRE(other.free);
  CHECK(other.free->branch == "what-if");
  CHECK(other.free->forced == 4);
  CHECK(other.free->replayed != other.free->recorded);
  REQUIRE(other.free->diff.size() > 1);
  CHECK(other.free->diff[0].kind == DiffHunk::Kind::kEqual);
  CHECK(other.free->diff[0].a_count >= 4);
  request.name = "greedy";
  request.seed.reset();
  request.sampling_json = R"({"temperature":0,"max_tokens":6})";
  const Replayed greedy = Good(b, request);
  CHECK(greedy.free->replayed.size() == 6);
  ReplayRequest verify = Verify("chat");
  verify.branch = "greedy";
  const Replayed verified = Good(b, verify);
  CHECK_FALSE(verified.report.divergence);
  CHECK(verified.report.steps == 12 + 2);  // those that were given were not drawn
  // The name is taken now.
  CHECK(Rerun(b, request).status.code() == Code::kConflict);
}

TEST_CASE("free: an edited tool output") {
  RuntimeBench b;
  Talk talk("chat");
  talk.User("read a");
  ChatMessage call;
  call.role = "assistant";
  call.tool_calls = {{"call_1", "read", R"({"path":"a"})"}};
  call.raw_json = R"({"role":"assistant","content":"","tool_calls":[{"id":"call_1","type":)"
                  R"("function","function":{"name":"read","arguments":"{\"path\":\"a\"}"}}]})";
  ChatRequest ask = talk.Tool("call_1", "four apples").Request();
  ask.messages.insert(ask.messages.begin() + 1, call);
  const Answer answer = b.Say(ask);
  ReplayRequest request = Free("chat");
  request.edits = {{2, "nine pears"}};
  const Replayed edited = Good(b, request);
  REQUIRE(edited.free);
  CHECK(edited.free->recorded == answer.done.completion_tokens);
  CHECK(edited.free->replayed != edited.free->recorded);
  const auto items = b.runtime().keeper().Items("ann", "chat", edited.free->branch, {});
  REQUIRE(items->rows.size() == 4);
  CHECK(items->rows[2].raw_json.find("nine pears") != std::string::npos);
  CHECK(items->rows[2].call_id == "call_1");
  CHECK(items->rows[1].call_id == "call_1");
  // The same content again is the same answer.
  request.edits = {{2, "four apples"}};
  CHECK(Good(b, request).free->replayed == answer.done.completion_tokens);
  request.edits = {{3, "no"}};
  CHECK(Rerun(b, request).status.message().starts_with("edits[0].item"));
  request.edits = {{4, "no"}};
  CHECK(Rerun(b, request).status.message().starts_with("edits[0].item"));
}

TEST_CASE("what another model has said: named by verify, answered anew by free") {
  for (const int vocab : {320, 400}) {  // the same tokenizer, and another
    CAPTURE(vocab);
    RuntimeBench b;
    const auto answers = Converse(b, "chat", 3);
    const Recording recording = Good(b, Verify("chat")).recording;
    b.ChangeModel(2, vocab);
    const Replayed verified = Good(b, Verify("chat"));
    CHECK(verified.divergence().cause == (vocab == 320 ? "weights" : "tokenizer"));
    CHECK(verified.report.changed.front() == "weights");
    ReplayRequest request = Free("chat");
    request.name = "anew";
    const Replayed r = Good(b, request);
    REQUIRE(r.free);
    CHECK(r.free->branch == "anew");
    REQUIRE(r.free->miss);
    CHECK(r.free->miss->reason == "model_changed");
    CHECK(r.report.changed == verified.report.changed);
    CHECK(r.free->recorded.size() > 0);
    for (const ReplayStep& step : r.steps) CHECK(step.recorded_digest == 0);
    // As if it had been asked so from the beginning.
    Talk talk("fresh");
    for (int i = 0; i < 3; ++i) {
      if (i > 0) talk.Keep(answers[i - 1]);
      talk.User("go " + std::to_string(i));
    }
    ChatRequest fresh = talk.Request();
    fresh.max_tokens = 12;
    fresh.sampling.logit_bias = {{kTinyEndOfText, -100.0f}, {kTinyTurnEnd, -100.0f}};
    CHECK(b.Say(fresh).done.completion_tokens == r.free->replayed);
    ReplayRequest own = Verify("chat");
    own.branch = "anew";
    CHECK_FALSE(Good(b, own).report.divergence);
    // From a token on only where the tokens mean the same.
    request.name.clear();
    request.from = recording.turns[2].output + 3;
    const Replayed inside = Rerun(b, request);
    if (vocab == 320) {
      REQUIRE_MESSAGE(inside.status.ok(), inside.status.ToString());
      CHECK(inside.free->forced == 3);
    } else {
      CHECK(inside.status.code() == Code::kInvalid);
      CHECK(inside.status.message().starts_with("from"));
    }
  }
}

TEST_CASE("an imported session verifies against the digests that its bundle brought") {
  RuntimeBench home, away;
  Converse(home, "chat", 3);
  const std::string key = "a bundle's key, shared";
  const auto bundle = ExportBytes(home.runtime().keeper(), "ann", "chat", {.key = key});
  REQUIRE_MESSAGE(bundle.ok(), bundle.status().ToString());
  const auto report =
      ImportBytes(away.runtime().keeper(), "ann", *bundle, {.key = key, .as = ""});
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  const Replayed r = Good(away, Verify("chat"));
  CHECK_FALSE(r.report.divergence);
  CHECK(r.report.steps > 0);
  CHECK(r.report.undigested == 0);
  CHECK(r.report.changed.empty());
}

TEST_CASE("what cannot be replayed is refused by name") {
  RuntimeBench b;
  Converse(b, "chat", 2);
  const auto refused = [&](auto change, Code code, const char* field) {
    ReplayRequest r = Verify("chat");
    change(r);
    const Status s = Rerun(b, r).status;
    CHECK(s.code() == code);
    CHECK_MESSAGE(s.message().starts_with(field), s.ToString());
  };
  refused([](ReplayRequest& r) { r.session = "nobody"; }, Code::kNotFound, "session");
  refused([](ReplayRequest& r) { r.tenant = "bob"; }, Code::kNotFound, "session");
  refused([](ReplayRequest& r) { r.branch = "another"; }, Code::kNotFound, "branch");
  refused([](ReplayRequest& r) { r.from = 10, r.to = 5; }, Code::kInvalid, "from, to");
  refused([](ReplayRequest& r) { r.to = 1 << 20; }, Code::kInvalid, "from, to");
  refused([](ReplayRequest& r) { r.from_item = 9; }, Code::kInvalid, "from_item");
  refused([](ReplayRequest& r) { r.top_k = 21; }, Code::kInvalid, "top_k");
  refused([](ReplayRequest& r) { r.sampling_json = R"({"temperature":"hot"})"; }, Code::kInvalid,
          "sampling");
  refused([](ReplayRequest& r) { r.sampling_json = R"({"temperature":7})"; }, Code::kInvalid,
          "temperature");
  refused([](ReplayRequest& r) { r.mode = ReplayMode::kFree, r.from = 100000; }, Code::kInvalid,
          "from");
  REQUIRE(b.runtime().keeper().Create("ann", {.external_id = "empty", .meta_json = {}}).ok());
  refused([](ReplayRequest& r) { r.session = "empty", r.mode = ReplayMode::kFree; },
          Code::kInvalid, "branch");
  CHECK(Good(b, Verify("empty")).report.steps == 0);
}

TEST_CASE("a replay can be cancelled, dropped, and outlived by nothing") {
  RuntimeBench b;
  Converse(b, "chat", 20);
  {
    auto dropped = b.runtime().StartReplay(Verify("chat"));
    REQUIRE(dropped.ok());
    REQUIRE((*dropped)->Next(0).ok());  // its first segment runs
  }
  auto cancelled = b.runtime().StartReplay(Verify("chat"));
  REQUIRE(cancelled.ok());
  REQUIRE((*cancelled)->Next(0).ok());
  (*cancelled)->Cancel();
  Status last;
  while (last.ok()) last = (*cancelled)->Next(-1).status();
  CHECK(last.code() == Code::kCancelled);
  cancelled->reset();
  CHECK_FALSE(Good(b, Verify("chat")).report.divergence);
  b.runtime().Shutdown(0);
  CHECK(Rerun(b, Verify("chat")).status.code() == Code::kUnavailable);
}

}  // namespace
}  // namespace holdfast
