#include "api/chat_stream.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

namespace holdfast {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kLookAroundMs = 200;      // how long to wait before looking whether pages lack
constexpr uint64_t kShortPages = 8;     // fewer free ones than this are a shortage
constexpr int64_t kRelievePages = 64;

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json CallJson(const ToolCall& call) {
  return {{"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

ChatEvent TextEvent(ChatEvent::Kind kind, std::string text, int index) {
  ChatEvent e;
  e.kind = kind;
  e.text = std::move(text);
  e.index = index;
  return e;
}

// A call as a stream shows it: its name, then its arguments.
void AppendCall(const ToolCall& call, int index, std::deque<ChatEvent>* out) {
  ChatEvent begin;
  begin.kind = ChatEvent::Kind::kToolCall;
  begin.index = index;
  begin.call.id = call.id;
  begin.call.name = call.name;
  out->push_back(std::move(begin));
  out->push_back(TextEvent(ChatEvent::Kind::kToolArgs, call.arguments, index));
}

ChatEvent StartedEvent(const TurnStart& start) {
  ChatEvent e;
  e.kind = ChatEvent::Kind::kStarted;
  e.started = start;
  return e;
}

// The same turn gives the same ids, also when it is decoded again after a crash.
std::string CallId(const std::string& turn_id, int index) {
  return "call_" + Hasher("call-id-1").Text(turn_id).U64(index).Finish().Hex().substr(0, 24);
}

}  // namespace

const char* FinishName(ChatFinish finish) {
  switch (finish) {
    case ChatFinish::kStop: return "stop";
    case ChatFinish::kLength: return "length";
    case ChatFinish::kToolCalls: return "tool_calls";
    case ChatFinish::kCancelled: return "cancelled";
    case ChatFinish::kError: return "error";
  }
  return "error";
}

void StreamCount::Add() {
  std::lock_guard lock(mu_);
  ++count_;
}

void StreamCount::Remove() {
  std::lock_guard lock(mu_);
  if (--count_ == 0) none_.notify_all();
}

bool StreamCount::WaitForNone(int timeout_ms) {
  std::unique_lock lock(mu_);
  return none_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return count_ == 0; });
}

std::string AssistantJson(const std::string& content, const std::vector<ToolCall>& calls) {
  Json message = {{"role", "assistant"}, {"content", content}};
  for (const ToolCall& call : calls) message["tool_calls"].push_back(CallJson(call));
  return Dump(message);
}

std::string EncodeResponse(const StoredResponse& response) {
  Json value = {{"finish", static_cast<int>(response.finish)},
                {"content", response.content},
                {"warning", response.warning},
                {"calls", Json::array()}};
  for (const ToolCall& call : response.tool_calls) value["calls"].push_back(CallJson(call));
  return Dump(value);
}

Result<StoredResponse> DecodeResponse(std::string_view bytes) {
  try {
    const Json value = Json::parse(bytes);
    StoredResponse out;
    out.finish = static_cast<ChatFinish>(value.at("finish").get<int>());
    out.content = value.at("content").get<std::string>();
    out.warning = value.at("warning").get<std::string>();
    for (const Json& call : value.at("calls")) {
      const Json& function = call.at("function");
      out.tool_calls.push_back({call.at("id").get<std::string>(),
                                function.at("name").get<std::string>(),
                                function.at("arguments").get<std::string>()});
    }
    return out;
  } catch (const Json::exception& e) {
    return Status::Corrupt(std::string("runtime: the stored response can't be read: ") + e.what());
  }
}

LiveStream::LiveStream(LiveStreamParts parts)
    : p_(std::move(parts)),
      reader_({p_.tool_names, p_.parallel,
               [id = p_.turn->start().turn_id](int index) { return CallId(id, index); }}),
      start_(p_.turn->start()),
      prompt_(p_.turn->prompt().begin(), p_.turn->prompt().end()) {
  p_.alive->Add();
  p_.turn->OnCancel([generation = p_.generation] { generation->Cancel(); });
}

LiveStream::~LiveStream() {
  if (!ended_) {
    dropped_ = true;
    p_.generation->Cancel();
    while (!ended_) {  // at most two steps: what was generated is kept with the aborted turn
      auto event = p_.generation->Next(-1);
      if (!event) break;
      if (event->token) Take(std::move(*event->token));
      if (event->finish) Finish(std::move(*event->finish));
    }
  }
  for (const ChatEvent& e : ready_) {
    if (e.done) e.done->status.IgnoreError();  // nobody is there to be told
  }
  p_.turn.reset();
  p_.generation.reset();
  p_.alive->Remove();
}

void LiveStream::Cancel() { p_.generation->Cancel(); }

std::optional<ChatEvent> LiveStream::Next(int timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  if (!started_) {
    started_ = true;
    return StartedEvent(start_);
  }
  while (ready_.empty() && !ended_) {
    int wait = kLookAroundMs;
    if (timeout_ms >= 0) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
      wait = static_cast<int>(std::clamp<int64_t>(left, 0, kLookAroundMs));
    }
    auto event = p_.generation->Next(wait);
    if (!event) {
      RelieveShortage();
      if (timeout_ms >= 0 && Clock::now() >= deadline) return std::nullopt;
      continue;
    }
    if (event->token) Take(std::move(*event->token));
    if (event->finish) Finish(std::move(*event->finish));
  }
  if (ready_.empty()) return std::nullopt;
  ChatEvent e = std::move(ready_.front());
  ready_.pop_front();
  return e;
}

// A sequence that waits for a page while warm heads hold all of them would wait for ever.
void LiveStream::RelieveShortage() {
  const PoolStats pool = p_.engine->pool().stats();
  if (pool.slots_max - pool.leased < kShortPages) p_.keeper->MakeRoom(kRelievePages);
}

void LiveStream::Queue(std::vector<ToolCallEvent> pieces) {
  for (ToolCallEvent& piece : pieces) {
    if (piece.kind == ToolCallEvent::Kind::kText) {
      content_ += piece.text;
      ready_.push_back(TextEvent(ChatEvent::Kind::kText, std::move(piece.text), 0));
    } else {
      AppendCall(piece.call, piece.index, &ready_);
      calls_.push_back(std::move(piece.call));
    }
  }
}

void LiveStream::Take(TokenEvent token) {
  const TokenId id = token.sample.token;
  const bool forced = token.forced || generated_.size() < p_.forced;
  generated_.push_back({id, forced ? 0 : token.sample.logits_digest, forced});
  const size_t before = ready_.size();
  if (!token.text.empty()) Queue(reader_.Push(token.text));
  if (ready_.size() == before) {
    ready_.push_back(TextEvent(ChatEvent::Kind::kTokens, "", 0));
  }
  ChatEvent& carrier = ready_[before];
  carrier.tokens.push_back(id);
  if (p_.top_logprobs >= 0) {
    const Tokenizer& tokenizer = p_.engine->tokenizer();
    ChatTokenLogprob& logprob = carrier.logprobs.emplace_back();
    logprob.text = tokenizer.TokenText(id);
    for (const TokenLogprob& top : token.sample.top) {
      logprob.top_texts.push_back(tokenizer.TokenText(top.token));
    }
    logprob.sample = std::move(token.sample);
  }
}

void LiveStream::Finish(FinishEvent finish) {
  if (!finish.text.empty()) Queue(reader_.Push(finish.text));
  Queue(reader_.Finish());
  if (finish.prefill_ms > 0) p_.stitcher->ObserveCompute(finish.prefilled, finish.prefill_ms);

  ChatDone done;
  done.status = finish.status;
  done.content = content_;
  done.warning = p_.warning;
  done.tool_calls = calls_;
  TurnOutcome outcome;
  outcome.generated = generated_;
  outcome.message.role = "assistant";
  outcome.message.text = content_;
  outcome.message.tool_calls = calls_;
  outcome.message.raw_json = AssistantJson(content_, calls_);
  size_t kept = generated_.size();
  if (finish.timeline) {
    const int64_t there = finish.timeline->size() - static_cast<int64_t>(prompt_.size());
    kept = std::min(kept, static_cast<size_t>(std::max<int64_t>(there, 0)));
  }
  for (size_t i = 0; i < kept; ++i) done.completion_tokens.push_back(generated_[i].token);
  done.prompt_tokens = prompt_;
  done.drafts = finish.drafts;
  done.report.start = start_;
  done.report.start.stitch = p_.turn->Settled(finish.reused);
  done.report.generated = static_cast<int64_t>(kept);
  done.report.queue_ms = finish.queue_ms;
  done.report.restore_ms = start_.stitch.restore_ms;
  done.report.prefill_ms = finish.prefill_ms;
  done.report.decode_ms = finish.decode_ms;
  outcome.timeline = std::move(finish.timeline);
  outcome.timing = {finish.queue_ms, start_.stitch.restore_ms, finish.prefill_ms,
                    finish.decode_ms};
  done.finish = End(finish, std::move(outcome), &done);
  ChatEvent last;
  last.kind = ChatEvent::Kind::kDone;
  last.done = std::move(done);
  ready_.push_back(std::move(last));
  ended_ = true;
}

// Commits or aborts the turn.
ChatFinish LiveStream::End(const FinishEvent& finish, TurnOutcome outcome, ChatDone* done) {
  ChatFinish how = ChatFinish::kStop;
  switch (finish.reason) {
    case FinishReason::kEnd:
    case FinishReason::kStopString:
      how = calls_.empty() ? ChatFinish::kStop : ChatFinish::kToolCalls;
      break;
    case FinishReason::kLength: how = ChatFinish::kLength; break;
    case FinishReason::kCancelled: how = ChatFinish::kCancelled; break;
    case FinishReason::kError: how = ChatFinish::kError; break;
  }
  // A turn whose end nobody saw has not happened, though it may be complete.
  if (dropped_ && how != ChatFinish::kError) how = ChatFinish::kCancelled;
  outcome.finish = FinishName(how);
  if (how == ChatFinish::kCancelled || how == ChatFinish::kError) {
    p_.keeper->Abort(std::move(p_.turn), std::move(outcome));
    return how;
  }
  outcome.response = EncodeResponse({how, content_, p_.warning, calls_});
  const CommitResult commit = p_.keeper->Commit(std::move(p_.turn), std::move(outcome));
  commit.status.IgnoreError();  // told by `durable`
  done->report.committed = commit.committed;
  done->report.durable = commit.durable;
  done->report.durable_kv = commit.durable_kv;
  done->report.commit_ms = commit.commit_ms;
  return how;
}

ReplayStream::ReplayStream(StreamCount* alive, const Turn& turn, StoredResponse response)
    : alive_(alive) {
  alive_->Add();
  ready_.push_back(StartedEvent(turn.start()));
  ChatDone done;
  done.completion_tokens.assign(turn.replayed_tokens().begin(), turn.replayed_tokens().end());
  if (!response.content.empty()) {
    ready_.push_back(TextEvent(ChatEvent::Kind::kText, response.content, 0));
  } else {
    ready_.push_back(TextEvent(ChatEvent::Kind::kTokens, "", 0));
  }
  ready_.back().tokens = done.completion_tokens;
  for (size_t i = 0; i < response.tool_calls.size(); ++i) {
    AppendCall(response.tool_calls[i], static_cast<int>(i), &ready_);
  }
  done.finish = response.finish;
  done.content = std::move(response.content);
  done.warning = std::move(response.warning);
  done.tool_calls = std::move(response.tool_calls);
  done.prompt_tokens.assign(turn.prompt().begin(), turn.prompt().end());
  done.report.start = turn.start();
  done.report.committed = done.report.durable = true;
  done.report.generated = static_cast<int64_t>(done.completion_tokens.size());
  ChatEvent last;
  last.kind = ChatEvent::Kind::kDone;
  last.done = std::move(done);
  ready_.push_back(std::move(last));
}

ReplayStream::~ReplayStream() { alive_->Remove(); }

std::optional<ChatEvent> ReplayStream::Next(int) {
  if (ready_.empty()) return std::nullopt;
  ChatEvent e = std::move(ready_.front());
  ready_.pop_front();
  return e;
}

}  // namespace holdfast
