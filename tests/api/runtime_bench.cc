#include "tests/api/runtime_bench.h"

#include <nlohmann/json.hpp>

#include "api/card_json.h"
#include "api/chat_stream.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {

RuntimeBench::RuntimeBench(const RuntimeBenchOptions& options) : options_(options) {
  WriteModel();
  Open();
}

void RuntimeBench::WriteModel() {
  TinyModelSpec spec;
  spec.seed = options_.model_seed;
  spec.vocab = options_.vocab;
  spec.head = TinyHead::kSeparate;  // with a tied one it says one letter for ever
  REQUIRE(WriteTinyModel(spec, folder_.File("tiny.gguf")).ok());
}

void RuntimeBench::ChangeModel(uint64_t seed, int vocab) {
  runtime_.reset();
  options_.model_seed = seed;
  options_.vocab = vocab;
  WriteModel();
  Open();
}

void RuntimeBench::Open() {
  RuntimeOptions r;
  r.engine.model_path = folder_.File("tiny.gguf");
  r.engine.kv_bytes = options_.kv_bytes;
  r.engine.kv_type = options_.kv_type;
  r.engine.cpu.level = options_.cpu;
  r.data_dir = folder_.File("data");
  r.disk_bytes = options_.disk_bytes;
  r.tend_every_ms = options_.tend_every_ms;
  r.gc_every_ms = options_.gc_every_ms;
  r.quotas = options_.quotas;
  r.page_store = options_.page_store;
  r.max_resident = options_.max_resident;
  r.database_vfs = options_.vfs;
  r.env = options_.env;
  r.index_env = options_.index_env;
  auto opened = Runtime::Open(r);
  REQUIRE_MESSAGE(opened.ok(), opened.status().ToString());
  runtime_ = std::move(opened).value();
}

void RuntimeBench::GiveCard() {
  const ModelCard card = OpenCard(runtime_->engine().model().fingerprint(),
                                  {.mean = 0.01, .bound = 0.02, .contexts = 8});
  const auto saved = SaveCard(runtime_->data_path(), card);
  REQUIRE_MESSAGE(saved.ok(), saved.status().ToString());
  Restart();
}

void RuntimeBench::Restart() {
  runtime_.reset();
  Open();
}

Status RuntimeBench::Start(ChatRequest request, std::unique_ptr<ChatStream>* stream) {
  HOLDFAST_ASSIGN_OR_RETURN(*stream, runtime_->Chat(std::move(request)));
  return Status();
}

Answer RuntimeBench::Drain(ChatStream* stream) {
  Answer a;
  while (auto event = stream->Next(-1)) {
    a.streamed += event->kind == ChatEvent::Kind::kText ? event->text : "";
    a.calls += event->kind == ChatEvent::Kind::kToolCall;
    for (const ChatTokenLogprob& l : event->logprobs) a.digests.push_back(l.sample.logits_digest);
    if (event->done) a.done = std::move(*event->done);
  }
  return a;
}

Answer RuntimeBench::Say(ChatRequest request) {
  std::unique_ptr<ChatStream> stream;
  const Status s = Start(std::move(request), &stream);
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  Answer a = Drain(stream.get());
  REQUIRE_MESSAGE(a.done.status.ok(), a.done.status.ToString());
  return a;
}

Talk& Talk::User(const std::string& text) {
  ChatMessage m;
  m.role = "user";
  m.text = text;
  m.raw_json = nlohmann::ordered_json{{"role", "user"}, {"content", text}}.dump();
  messages_.push_back(std::move(m));
  return *this;
}

Talk& Talk::Tool(const std::string& call_id, const std::string& text) {
  ChatMessage m;
  m.role = "tool";
  m.text = text;
  m.tool_call_id = call_id;
  m.raw_json =
      nlohmann::ordered_json{{"role", "tool"}, {"tool_call_id", call_id}, {"content", text}}.dump();
  messages_.push_back(std::move(m));
  return *this;
}

Talk& Talk::Keep(const Answer& answer) {
  ChatMessage m;
  m.role = "assistant";
  m.text = answer.done.content;
  m.tool_calls = answer.done.tool_calls;
  m.raw_json = AssistantJson(m.text, m.tool_calls);
  messages_.push_back(std::move(m));
  return *this;
}

ChatRequest Talk::Request() const {
  ChatRequest r;
  r.tenant = tenant_;
  r.session.id = session_;
  r.messages = messages_;
  r.sampling.temperature = 0;
  r.max_tokens = 24;
  r.top_logprobs = 0;
  return r;
}

}  // namespace holdfast
