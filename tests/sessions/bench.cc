#include "tests/sessions/bench.h"

#include <doctest/doctest.h>
#include <stdlib.h>

#include <chrono>

#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

// The texts of these tests need no escapes beyond these.
std::string Quote(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out + '"';
}

ChatMessage Message(std::string role, std::string text, const std::string& more) {
  ChatMessage m;
  m.raw_json = "{\"role\":" + Quote(role) + ",\"content\":" + Quote(text) + more + "}";
  m.role = std::move(role);
  m.text = std::move(text);
  return m;
}

}  // namespace

SessionBench::SessionBench(SessionBenchOptions options, std::unique_ptr<PageStore> store)
    : options_(std::move(options)), store_(std::move(store)) {
  std::string path = (std::filesystem::temp_directory_path() / "keeper-XXXXXX").string();
  REQUIRE(mkdtemp(path.data()) != nullptr);
  folder_ = path;
  REQUIRE(WriteTinyModel({}, folder_ / "tiny.gguf").ok());
  Open();
}

SessionBench::~SessionBench() {
  keeper_.reset();
  stitcher_.reset();
  db_.reset();
  engine_.reset();
  std::filesystem::remove_all(folder_);
}

void SessionBench::Restart() {
  keeper_.reset();
  stitcher_.reset();
  db_.reset();
  engine_.reset();
  Open();
}

void SessionBench::Open() {
  EngineOptions engine;
  engine.model_path = folder_ / "tiny.gguf";
  engine.kv_bytes = options_.kv_bytes;
  auto opened = Engine::Open(engine);
  REQUIRE_MESSAGE(opened.ok(), opened.status().ToString());
  engine_ = std::move(opened).value();
  const Tokenizer& tokenizer = engine_->tokenizer();
  ChatTemplateSpec spec{options_.chat_template.empty() ? engine_->model().chat_template()
                                                       : options_.chat_template,
                        tokenizer.TokenText(tokenizer.bos()), tokenizer.TokenText(tokenizer.eos()),
                        tokenizer.SpecialTexts()};
  auto made = ChatTemplate::Create(spec);
  REQUIRE(made.ok());
  template_ = std::move(made).value();
  Database::Options db;
  db.path = folder_ / "test.db";
  db.vfs = options_.vfs;
  db.migrations = Keeper::Migrations();
  db.lazy_delay = std::chrono::hours(1);  // lazy turns stay so until something syncs them
  auto database = Database::Open(db);
  REQUIRE_MESSAGE(database.ok(), database.status().ToString());
  db_ = std::move(database).value();
  stitcher_ = std::make_unique<Stitcher>(&engine_->pool(), store_.get(),
                                         engine_->model().fingerprint());
  stitcher_->SetCompute([this](Timeline t, const ComputeOptions& options) {
    if (while_computing) while_computing();
    auto computed = Compute(std::move(t), options);
    if (when_computed) when_computed();
    return computed;
  });
  KeeperOptions k;
  k.find_runs = options_.find_runs;
  k.db = db_.get();
  k.tokenizer = &tokenizer;
  k.chat_template = template_.get();
  k.pool = &engine_->pool();
  k.stitcher = stitcher_.get();
  k.store = store_.get();
  k.fp = engine_->model().fingerprint();
  k.model_digest = engine_->model().weights_digest();
  k.model_name = "tiny";
  k.max_context = engine_->max_context();
  k.tend_every_ms = 0;
  k.quotas = options_.quotas;
  k.gc_every_ms = options_.gc_every_ms;
  k.now_ms = [this] { return now_ms; };
  auto keeper = Keeper::Open(k);
  REQUIRE_MESSAGE(keeper.ok(), keeper.status().ToString());
  keeper_ = std::move(keeper).value();
}

Result<Timeline> SessionBench::Compute(Timeline timeline, std::map<int64_t, uint64_t>* digests) {
  ComputeOptions options;
  if (digests != nullptr) {
    options.on_logits = [digests](int64_t index, std::span<const float> logits) {
      (*digests)[index] = LogitsDigest(logits);
    };
  }
  return Compute(std::move(timeline), options);
}

Result<Timeline> SessionBench::Compute(Timeline timeline, const ComputeOptions& options) {
  if (timeline.pending() == 0) return timeline;
  if (options.stop && options.stop()) return Status::Cancelled("told to stop");
  return ComputeOn(*engine_, ComputeRequest(std::move(timeline), options));
}

std::vector<TokenId> SessionBench::Encode(std::string_view text) const {
  auto tokens = engine_->tokenizer().Encode(text);
  REQUIRE(tokens.ok());
  return std::move(tokens).value();
}

std::string SessionBench::Decode(std::span<const TokenId> tokens) const {
  std::string text;
  for (TokenId t : tokens) text += engine_->tokenizer().TokenText(t);
  return text;
}

std::unique_ptr<Turn> SessionBench::Begin(const TurnRequest& request) {
  auto turn = keeper_->Begin(request);
  REQUIRE_MESSAGE(turn.ok(), turn.status().ToString());
  return std::move(turn).value();
}

void SessionBench::Answer(std::unique_ptr<Turn> turn, std::string_view answer) {
  TurnOutcome outcome;
  outcome.message = Assistant(std::string(answer));
  outcome.finish = "stop";
  outcome.response = answer;
  for (TokenId t : Encode(answer)) outcome.generated.push_back({t, 7, false});
  outcome.generated.push_back({kTinyTurnEnd, 8, false});
  const CommitResult commit = keeper_->Commit(std::move(turn), std::move(outcome));
  REQUIRE_MESSAGE(commit.durable, commit.status.ToString());
}

TurnStart SessionBench::Say(const TurnRequest& request, std::string_view answer) {
  std::unique_ptr<Turn> turn = Begin(request);
  const TurnStart start = turn->start();
  Answer(std::move(turn), answer);
  return start;
}

ChatMessage System(std::string text) { return Message("system", std::move(text), ""); }
ChatMessage User(std::string text) { return Message("user", std::move(text), ""); }

ChatMessage Assistant(std::string text, std::vector<ToolCall> calls) {
  std::string more;
  for (const ToolCall& c : calls) {
    more += more.empty() ? ",\"tool_calls\":[" : ",";
    more += "{\"id\":" + Quote(c.id) + ",\"type\":\"function\",\"function\":{\"name\":" +
            Quote(c.name) + ",\"arguments\":" + c.arguments + "}}";
  }
  if (!more.empty()) more += ']';
  ChatMessage m = Message("assistant", std::move(text), more);
  m.tool_calls = std::move(calls);
  return m;
}

ChatMessage ToolResult(std::string call_id, std::string text) {
  ChatMessage m = Message("tool", std::move(text), ",\"tool_call_id\":" + Quote(call_id));
  m.tool_call_id = std::move(call_id);
  return m;
}

TurnRequest Ask(std::string session, std::span<const ChatMessage> messages) {
  TurnRequest r;
  r.tenant = "ann";
  r.session.id = std::move(session);
  r.messages = messages;
  return r;
}

}  // namespace holdfast
