// Chat turns over HTTP: POST /v1/chat/completions and POST /v1/sessions/{}/turns.
#include <algorithm>
#include <array>
#include <chrono>

#include "api/openai_chat.h"
#include "api/route.h"

namespace holdfast {
namespace {

constexpr int kPingMs = 5000;  // a comment on the stream after so much silence

using Clock = std::chrono::steady_clock;

int64_t NowUnix() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Where an id is looked for (DESIGN section 8): the body's session_id, then headers.
void FindSession(const HttpRequest& request, SessionRef* session) {
  static constexpr std::array<const char*, 3> kHeaders = {"x-session-id", "session-id",
                                                          "x-claude-code-session-id"};
  for (const char* name : kHeaders) {
    if (!session->id.empty()) return;
    session->id = std::string(request.header(name).substr(0, 256));
  }
}

// `If-Match: "main:3"`: the head that the turn goes on from, in quotes as an ETag is.
Status ReadIfMatch(const HttpRequest& request, ChatRequest* chat) {
  std::string_view tag = request.header("if-match");
  if (tag.empty()) return Status();
  const bool quoted = tag.size() >= 2 && tag.front() == '"' && tag.back() == '"';
  if (quoted) tag = tag.substr(1, tag.size() - 2);
  chat->if_head = HeadTag::Parse(tag);
  if (!quoted || !chat->if_head) {
    return Status::Invalid("if-match: it names one head, as in \"main:3\", with its quotes");
  }
  if (!chat->session.branch.empty() && chat->session.branch != chat->if_head->branch) {
    return Status::Invalid("if-match: it names another branch than the body");
  }
  chat->session.branch = chat->if_head->branch;
  return Status();
}

// Pulls events until the end, giving up on a client that has gone. False: it went.
template <typename Peer, typename OnEvent, typename OnSilence>
bool Pump(ChatStream& stream, const Peer& peer, const OnEvent& on_event,
          const OnSilence& on_silence) {
  auto last = Clock::now();
  bool cancelled = false;
  for (;;) {
    std::optional<ChatEvent> event = stream.Next(kAliveCheckMs);
    if (event.has_value()) {
      if (event->kind != ChatEvent::Kind::kStarted) last = Clock::now();
      if (!cancelled && !on_event(*event)) {
        cancelled = true;
        stream.Cancel();
      }
      if (event->kind == ChatEvent::Kind::kDone) return !cancelled;
      continue;
    }
    if (cancelled) continue;
    const bool silent = Clock::now() - last >= std::chrono::milliseconds(kPingMs);
    if (silent) last = Clock::now();
    if (peer.ClientGone() || (silent && !on_silence())) {
      cancelled = true;
      stream.Cancel();
    }
  }
}

ApiError ErrorOfTurn(const ChatDone& done) {
  if (done.status.code() == Code::kCancelled) {  // and not by this client, which still listens
    ApiError e = ErrorOf(Status::Conflict("the turn was cancelled"));
    e.code = "turn_cancelled";
    return e;
  }
  return done.status.ok() ? ErrorOf(500, "the turn failed") : ErrorOf(done.status);
}

void AnswerWhole(Call& call, ChatStream& stream, const ChatWriter& writer) {
  std::vector<TokenId> tokens;
  std::vector<ChatTokenLogprob> logprobs;
  std::optional<ChatDone> done;
  Pump(stream, call.exchange,
       [&](ChatEvent& event) {
         tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
         std::move(event.logprobs.begin(), event.logprobs.end(), std::back_inserter(logprobs));
         if (event.done.has_value()) done = std::move(event.done);
         return true;
       },
       [] { return true; });
  if (!done->report.start.session_id.empty()) {
    call.exchange.AddHeader("x-session-id", done->report.start.session_id);
  }
  if (const auto head = HeadAfter(done->report)) {
    std::string tag(1, '"');
    tag += head->Text();
    call.exchange.AddHeader("etag", tag + '"');
  }
  if (done->finish == ChatFinish::kError || done->finish == ChatFinish::kCancelled) {
    return call.Refuse(ErrorOfTurn(*done));
  }
  call.exchange.Send(200, "application/json; charset=utf-8",
                     writer.Whole(*done, tokens, logprobs));
}

// Owns what a streamed answer needs until its last byte.
struct StreamedAnswer {
  ChatCall chat;
  std::unique_ptr<ChatStream> stream;
  std::unique_ptr<ChatWriter> writer;
};

void AnswerStream(Call& call, std::shared_ptr<StreamedAnswer> answer) {
  call.exchange.Stream(200, "text/event-stream; charset=utf-8", [answer](HttpBody& body) {
    auto send = [&](const std::string& payload) { return body.Write("data: " + payload + "\n\n"); };
    if (!body.Write(": ok\n\n")) answer->stream->Cancel();
    Pump(*answer->stream, body,
         [&](ChatEvent& event) {
           const bool failed = event.done.has_value() && event.done->finish == ChatFinish::kError;
           if (failed) return send(ErrorJson(ErrorOfTurn(*event.done)));
           const auto chunks = answer->writer->Chunks(event);
           return std::all_of(chunks.begin(), chunks.end(), send);
         },
         [&] { return body.Write(": ping\n\n"); });
    body.Write("data: [DONE]\n\n");
  });
}

void HandleTurn(Call& call, bool append) {
  auto answer = std::make_shared<StreamedAnswer>();
  ChatCall& chat = answer->chat;
  if (auto error = ReadChatCall(call.request.body, SegmentsOf(call), &chat)) {
    return call.Refuse(*error);
  }
  if (call.options.strict_model && chat.model != call.options.model_name) {
    ApiError e = ErrorOf(Status::NotFound("model_not_found: no model '" + chat.model +
                                          "'; this server has '" + call.options.model_name + "'"));
    e.param = "model";
    return call.Refuse(e);
  }
  chat.request.append = append;
  if (append) chat.request.session.id = call.request.segments[0];
  FindSession(call.request, &chat.request.session);
  if (Status s = ReadIfMatch(call.request, &chat.request); !s.ok()) {
    return call.Refuse(ErrorOf(s));
  }
  chat.request.tenant = call.tenant;
  chat.request.request_id = call.request_id;
  chat.request.idempotency_key = std::string(call.request.header("idempotency-key").substr(0, 256));
  auto stream = call.runtime.Chat(chat.request);
  if (!stream.ok()) {
    ApiError e = ErrorOf(stream.status());
    if (e.code == "context_length_exceeded") e.param = "messages";
    return call.Refuse(e);
  }
  answer->stream = std::move(stream).value();
  answer->writer = std::make_unique<ChatWriter>(
      chat, "chatcmpl-" + call.request_id, call.options.model_name, NowUnix());
  if (chat.stream) {
    AnswerStream(call, std::move(answer));
  } else {
    AnswerWhole(call, *answer->stream, *answer->writer);
  }
}

}  // namespace

void HandleChat(Call& call) { HandleTurn(call, false); }

void HandleTurns(Call& call) { HandleTurn(call, true); }

void HandleCancelTurn(Call& call) {
  const std::string &session = call.request.segments[0], &turn = call.request.segments[1];
  ReplyOne(call, 200, call.runtime.keeper().CancelTurn(call.tenant, session, turn),
           [&](bool aborted) {
             return Json{{"id", turn},
                         {"object", "turn.cancelled"},
                         {"status", aborted ? "aborted" : "committed"}};
           });
}

}  // namespace holdfast
