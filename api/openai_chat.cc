#include "api/openai_chat.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "api/chat_stream.h"

namespace holdfast {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int64_t kMaxTokensLimit = int64_t{1} << 31;
constexpr int64_t kMaxTtlUnits = 10'000;  // of a ttl, in whatever unit

// The text of a segment, and the tokens that are to stand for it.
void ReadSegmentPart(Fields& part, const SegmentReader& segments, ChatMessage* out) {
  const std::string id = part.Text("segment_id", "", 256);
  if (id.empty()) part.Fail("segment_id", "is missing");
  if (part.error()->has_value()) return;
  Result<SegmentBody> body = segments(id);
  if (!body.ok()) {
    *part.error() = ErrorOf(body.status());
    (*part.error())->param = part.PathOf("segment_id");
    return;
  }
  const size_t begin = out->text.size();
  out->text += body->text;
  out->spans.push_back({begin, out->text.size(), std::move(body->tokens)});
}

// Content as one text: a string, null, or a list of parts that are text or name a segment.
void ReadContent(Fields& message, const SegmentReader& segments, ChatMessage* out) {
  const Json* content = message.Find("content");
  if (content == nullptr) return;
  if (content->is_string()) {
    out->text = message.Text("content", "", kMaxTextBytes);
    return;
  }
  if (!content->is_array()) {
    return message.Fail("content", "must be a string or an array of parts");
  }
  for (size_t i = 0; i < content->size() && !message.error()->has_value(); ++i) {
    Fields part((*content)[i], message.PathOf("content[" + std::to_string(i) + "]"),
                message.error());
    const std::string type = part.Text("type");
    if (type == "segment") {
      ReadSegmentPart(part, segments, out);
    } else if (type == "text" || type == "input_text" || type == "output_text" ||
               type == "refusal") {
      out->text += part.Text(type == "refusal" ? "refusal" : "text", "", kMaxTextBytes);
    } else {
      part.Fail("type", "'" + type + "' is not supported: this model reads text only");
    }
  }
}

void ReadToolCalls(Fields& message, ChatMessage* out, Json* raw) {
  const Json* calls = message.Array("tool_calls", kMaxTools);
  if (calls == nullptr || calls->empty()) return;
  Json list = Json::array();
  for (size_t i = 0; i < calls->size(); ++i) {
    Fields call((*calls)[i], message.PathOf("tool_calls[" + std::to_string(i) + "]"),
                message.error());
    const Json* function = call.Object("function");
    if (function == nullptr) continue;  // a kind of call that we do not know
    Fields f(*function, call.PathOf("function"), call.error());
    ToolCall& c = out->tool_calls.emplace_back();
    c.id = call.Text("id");
    c.name = f.Text("name");
    const Json* arguments = f.Find("arguments");
    if (arguments != nullptr) {  // some clients send the object instead of its text
      c.arguments = arguments->is_string() ? arguments->get<std::string>() : DumpJson(*arguments);
    }
    list.push_back({{"id", c.id},
                    {"type", "function"},
                    {"function", {{"name", c.name}, {"arguments", c.arguments}}}});
  }
  if (!list.empty()) (*raw)["tool_calls"] = std::move(list);
}

void ReadMessages(Fields& body, const SegmentReader& segments, ChatRequest* out) {
  const Json* messages = body.Array("messages", kMaxMessages);
  if (messages == nullptr || messages->empty()) {
    return body.Fail("messages", "must be an array with at least one message");
  }
  for (size_t i = 0; i < messages->size() && !body.error()->has_value(); ++i) {
    out->messages.push_back(ReadMessage(
        (*messages)[i], "messages[" + std::to_string(i) + "]", segments, body.error()));
  }
}

// Function tools; kinds that we do not know are skipped, as agents offer many.
void ReadTools(Fields& body, ChatRequest* out) {
  const Json* tools = body.Array("tools", kMaxTools);
  if (tools == nullptr) return;
  Json kept = Json::array();
  for (size_t i = 0; i < tools->size(); ++i) {
    Fields tool((*tools)[i], "tools[" + std::to_string(i) + "]", body.error());
    if (tool.Text("type", "function") != "function") continue;
    const Json* function = tool.Object("function");
    if (function == nullptr) {
      tool.Fail("function", "is missing");
      return;
    }
    Fields f(*function, tool.PathOf("function"), body.error());
    Tool t;
    t.name = f.Text("name", "", 256);
    if (t.name.empty()) f.Fail("name", "is missing");
    if (const Json* parameters = f.Object("parameters")) t.parameters_json = DumpJson(*parameters);
    out->tools.push_back(std::move(t));
    kept.push_back((*tools)[i]);
  }
  if (!kept.empty()) out->tools_json = DumpJson(kept);
}

void ReadToolChoice(Fields& body, ChatRequest* out) {
  const Json* choice = body.Find("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    Fields c(*choice, "tool_choice", body.error());
    const Json* function = c.Object("function");
    if (function == nullptr) return c.Fail("function", "is missing");
    out->tool_choice = ToolChoice::kNamed;
    out->tool_name = Fields(*function, "tool_choice.function", body.error()).Text("name");
    const auto is_named = [&](const Tool& t) { return t.name == out->tool_name; };
    if (std::none_of(out->tools.begin(), out->tools.end(), is_named)) {
      body.Fail("tool_choice", "names '" + out->tool_name + "', which is not among the tools");
    }
    return;
  }
  constexpr ToolChoice kChoices[] = {ToolChoice::kAuto, ToolChoice::kNone, ToolChoice::kRequired};
  out->tool_choice = kChoices[body.OneOf("tool_choice", {"auto", "none", "required"})];
  if (out->tool_choice == ToolChoice::kRequired && out->tools.empty()) {
    body.Fail("tool_choice", "is 'required', but there are no tools");
  }
}

void ReadFormat(Fields& body, ChatRequest* out) {
  const Json* format = body.Object("response_format");
  if (format == nullptr) return;
  Fields f(*format, "response_format", body.error());
  constexpr ResponseFormat kFormats[] = {ResponseFormat::kText, ResponseFormat::kJsonObject,
                                         ResponseFormat::kJsonSchema};
  out->format = kFormats[f.OneOf("type", {"text", "json_object", "json_schema"})];
  if (out->format != ResponseFormat::kJsonSchema) return;
  const Json* schema = f.Object("json_schema");
  if (schema == nullptr) return f.Fail("json_schema", "is missing");
  Fields s(*schema, f.PathOf("json_schema"), body.error());
  const Json* inner = s.Object("schema");
  if (inner == nullptr) return s.Fail("schema", "is missing");
  out->schema_json = DumpJson(*inner);
  out->strict_schema = s.Bool("strict", false);
}

void ReadSampling(Fields& body, ChatRequest* out) {
  SamplingParams& s = out->sampling;
  s.temperature = static_cast<float>(body.Number("temperature", 0, 2, 1));
  s.top_p = static_cast<float>(body.Number("top_p", 0, 1, 1));
  if (s.top_p == 0) s.top_p = std::numeric_limits<float>::min();  // OpenAI takes 0: the best token
  s.top_k = static_cast<int>(body.Int("top_k", -1, 1 << 20, 0));
  if (s.top_k < 0) s.top_k = 0;
  s.min_p = static_cast<float>(body.Number("min_p", 0, 0.999, 0));
  s.presence_penalty = static_cast<float>(body.Number("presence_penalty", -2, 2, 0));
  s.frequency_penalty = static_cast<float>(body.Number("frequency_penalty", -2, 2, 0));
  s.repetition_penalty = static_cast<float>(body.Number("repetition_penalty", 0.1, 10, 1));
  if (body.Find("seed") != nullptr) {
    out->seed = static_cast<uint64_t>(body.Int("seed", std::numeric_limits<int64_t>::min(),
                                               std::numeric_limits<int64_t>::max(), 0));
  }
  const Json* bias = body.Object("logit_bias");
  if (bias == nullptr) return;
  for (const auto& [key, value] : bias->items()) {
    TokenId id = 0;
    const auto end = key.data() + key.size();
    if (std::from_chars(key.data(), end, id).ptr != end || id < 0 || !value.is_number()) {
      return body.Fail("logit_bias", "must map token ids to numbers");
    }
    s.logit_bias.emplace_back(id, std::clamp(value.get<float>(), -100.0f, 100.0f));
  }
}

void ReadStops(Fields& body, ChatRequest* out) {
  const Json* stop = body.Find("stop");
  if (stop == nullptr) return;
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > kMaxStops) {
    return body.Fail("stop", "has more than " + std::to_string(kMaxStops) + " entries");
  }
  for (const Json& s : list) {
    if (!s.is_string()) return body.Fail("stop", "must be a string or an array of strings");
    const auto& text = s.get_ref<const std::string&>();
    if (text.size() > kMaxStopBytes) return body.Fail("stop", "has an entry that is too long");
    if (!text.empty()) out->stop.push_back(text);
  }
}

void ReadLimits(Fields& body, ChatCall* out) {
  ChatRequest& r = out->request;
  r.max_tokens = body.Int("max_completion_tokens", 1, kMaxTokensLimit,
                          body.Int("max_tokens", 1, kMaxTokensLimit, 0));
  if (body.Int("n", 1, 128, 1) != 1) body.Fail("n", "must be 1");
  out->logprobs = body.Bool("logprobs", false);
  r.top_logprobs = out->logprobs ? static_cast<int>(body.Int("top_logprobs", 0, 20, 0)) : -1;
  if (!out->logprobs && body.Find("top_logprobs") != nullptr &&
      body.Int("top_logprobs", 0, 20, 0) > 0) {
    body.Fail("top_logprobs", "needs logprobs: true");
  }
  out->stream = body.Bool("stream", false);
  if (const Json* options = body.Object("stream_options")) {
    Fields f(*options, "stream_options", body.error());
    out->include_usage = f.Bool("include_usage", false);
  }
  out->return_token_ids = body.Bool("return_token_ids", false);
  r.speculate = body.Bool("speculate", true);
}

void ReadSession(Fields& body, ChatRequest* out) {
  out->session.id = body.Text("session_id", "", 256);
  out->session.branch = body.Text("branch", "", 256);
  constexpr OnBusy kBusy[] = {OnBusy::kFork, OnBusy::kQueue, OnBusy::kReject};
  out->on_busy = kBusy[body.OneOf("on_busy", {"fork", "queue", "reject"})];
  constexpr HistoryMode kHistory[] = {HistoryMode::kAsSampled, HistoryMode::kAsSent};
  out->history = kHistory[body.OneOf("history", {"as_sampled", "as_sent"})];
  constexpr Durability kDurability[] = {Durability::kTurn, Durability::kLazy, Durability::kKv,
                                        Durability::kNone};
  out->durability = kDurability[body.OneOf("durability", {"turn", "lazy", "kv", "none"})];
  if (const Json* kwargs = body.Object("chat_template_kwargs")) {
    out->template_kwargs_json = DumpJson(*kwargs);
  }
}

// "5m", "1h", "90s", "2d" in seconds; nullopt where it is none of these.
std::optional<int64_t> ReadTtl(const std::string& text) {
  int64_t n = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, n);
  if (error != std::errc() || end - at != 1 || n < 1 || n > kMaxTtlUnits) return std::nullopt;
  switch (*at) {
    case 's': return n;
    case 'm': return n * 60;
    case 'h': return n * 3600;
    case 'd': return n * 86400;
    default: return std::nullopt;
  }
}

// `cache_control` of anything that clients put it on. The longest one counts, as all of them say
// that this context comes again.
void ReadCacheControl(const Json& owner, const std::string& path, ChatRequest* out,
                      std::optional<ApiError>* error) {
  if (!owner.is_object()) return;
  Fields fields(owner, path, error);
  const Json* control = fields.Object("cache_control");
  if (control == nullptr) return;
  Fields c(*control, fields.PathOf("cache_control"), error);
  const std::optional<int64_t> ttl = ReadTtl(c.Text("ttl", "5m", 32));
  if (!ttl) return c.Fail("ttl", "must be a number with s, m, h or d behind it, like \"5m\"");
  out->hints.ttl_s = std::max(out->hints.ttl_s, *ttl);
}

void ReadRetention(const Json& json, Fields& body, ChatRequest* out) {
  ReadCacheControl(json, "", out, body.error());
  for (const char* list : {"messages", "tools"}) {
    const Json* items = body.Find(list);
    for (size_t i = 0; items != nullptr && items->is_array() && i < items->size(); ++i) {
      const std::string path = std::string(list) + "[" + std::to_string(i) + "]";
      ReadCacheControl((*items)[i], path, out, body.error());
      if (!(*items)[i].is_object()) continue;
      const auto content = (*items)[i].find("content");
      if (content == (*items)[i].end() || !content->is_array()) continue;
      for (size_t k = 0; k < content->size(); ++k) {
        ReadCacheControl((*content)[k], path + ".content[" + std::to_string(k) + "]", out,
                         body.error());
      }
    }
  }
  ReadForesight(body, &out->hints.pin, &out->hints.wake_at_ms);
}

// `reuse`: a policy by name, or an object with the contract that it must keep.
void ReadReuse(Fields& body, ChatRequest* out) {
  const Json* reuse = body.Find("reuse");
  if (reuse == nullptr) return;
  ReuseOptions& r = out->reuse;
  const auto policy = [&](Fields& fields, std::string_view name, std::string fallback) {
    const std::string text = fields.Text(name, std::move(fallback), 32);
    const std::optional<ReusePolicy> parsed = ParseReusePolicy(text);
    if (!parsed) fields.Fail(name, "must be off, exact, fast, balanced, quality or verify");
    r.policy = parsed.value_or(ReusePolicy::kExact);
  };
  if (!reuse->is_object()) return policy(body, "reuse", "exact");
  Fields fields(*reuse, "reuse", body.error());
  r.max_kl = fields.Number("max_kl", 0, 100, 0);
  r.budget = fields.Number("budget", 0, 1, 1);
  policy(fields, "policy", r.max_kl > 0 ? "balanced" : "exact");
}

// How the KV of the prompt was made: every token counts once.
Json StitchJson(const StitchReport& s) {
  const ProvenanceTotals& t = s.totals;
  Json stitch = {{"policy", ReusePolicyName(s.policy)},
                 {"approximate", t.approximate > 0},
                 {"tokens", TotalsJson(t)},
                 {"tainted_tokens", t.approximate}};
  if (s.policy <= ReusePolicy::kExact) return stitch;
  stitch["expected_kl"] = s.expected_kl;
  stitch["kl_bound"] = s.kl_bound;
  stitch["remade"] = s.remade;
  stitch["hardened"] = s.hardened;
  if (!s.fallback.empty()) stitch["fallback"] = s.fallback;
  if (!s.run_faults.empty()) stitch["faults"] = s.run_faults;
  stitch["runs"] = Json::array();
  for (const RunReport& run : s.runs) {
    stitch["runs"].push_back({{"from", run.begin},
                              {"to", run.end},
                              {"segment", run.variant == 0 ? Json(nullptr)
                                                           : Json(run.segment.Text())},
                              {"variant", run.variant},
                              {"kind", VariantKindName(run.kind)},
                              {"shift", run.shift},
                              {"used", run.used},
                              {"link", run.link},
                              {"reason", run.reason}});
  }
  return stitch;
}

Json LogprobJson(const ChatTokenLogprob& t) {
  auto entry = [](const std::string& text, float logprob) {
    Json bytes = Json::array();
    for (unsigned char c : text) bytes.push_back(c);
    return Json{{"token", text}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
  };
  Json e = entry(t.text, t.sample.logprob);
  e["top_logprobs"] = Json::array();
  for (size_t i = 0; i < t.sample.top.size(); ++i) {
    const std::string text = i < t.top_texts.size() ? t.top_texts[i] : "";
    e["top_logprobs"].push_back(entry(text, t.sample.top[i].logprob));
  }
  return e;
}

Json LogprobsJson(const std::vector<ChatTokenLogprob>& tokens) {
  Json content = Json::array();
  for (const ChatTokenLogprob& t : tokens) content.push_back(LogprobJson(t));
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json ToolCallJson(const ToolCall& call) {
  return {{"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

}  // namespace

ChatMessage ReadMessage(const Json& object, const std::string& path,
                        const SegmentReader& segments, std::optional<ApiError>* error) {
  Fields fields(object, path, error);
  ChatMessage m;
  constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  m.role = fields.Text("role");
  if (std::find(std::begin(kRoles), std::end(kRoles), m.role) == std::end(kRoles)) {
    fields.Fail("role", m.role.empty() ? "is missing" : "'" + m.role + "' is not a known role");
    return m;
  }
  if (m.role == "developer") m.role = "system";  // the newer name of the same thing
  ReadContent(fields, segments, &m);
  Json raw = {{"role", m.role}, {"content", m.text}};
  if (m.role == "assistant") ReadToolCalls(fields, &m, &raw);
  if (m.role == "assistant" && fields.Find("reasoning_content") != nullptr) {
    raw["reasoning_content"] = fields.Text("reasoning_content", "", kMaxTextBytes);
  }
  if (m.role == "tool") {
    m.tool_call_id = fields.Text("tool_call_id");
    if (m.tool_call_id.empty()) fields.Fail("tool_call_id", "is missing");
    raw["tool_call_id"] = m.tool_call_id;
  }
  if (const std::string name = fields.Text("name"); !name.empty()) raw["name"] = name;
  m.raw_json = DumpJson(raw);
  return m;
}

void ReadForesight(Fields& body, std::optional<bool>* pin, int64_t* wake_at_ms) {
  if (body.Find("pin") != nullptr) *pin = body.Bool("pin", false);
  *wake_at_ms = static_cast<int64_t>(1000 * body.Number("wake_at", 0, kMaxUnixTime, 0));
}

std::optional<ApiError> ReadChatCall(std::string_view body, const SegmentReader& segments,
                                     ChatCall* out) {
  Result<Json> json = ParseJson(body);
  if (!json.ok()) return ErrorOf(json.status());
  std::optional<ApiError> error;
  Fields fields(*json, "", &error);
  out->model = fields.Text("model", "", 1024);
  ReadMessages(fields, segments, &out->request);
  ReadTools(fields, &out->request);
  ReadToolChoice(fields, &out->request);
  out->request.parallel_tool_calls = fields.Bool("parallel_tool_calls", true);
  ReadFormat(fields, &out->request);
  ReadSampling(fields, &out->request);
  ReadStops(fields, &out->request);
  ReadLimits(fields, out);
  ReadSession(fields, &out->request);
  ReadRetention(*json, fields, &out->request);
  ReadReuse(fields, &out->request);
  return error;
}

Json UsageJson(const ChatDone& done) {
  const auto prompt = static_cast<int64_t>(done.prompt_tokens.size());
  const auto completion = static_cast<int64_t>(done.completion_tokens.size());
  const StitchReport& s = done.report.start.stitch;
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details",
           {{"cached_tokens", s.from_warm + s.from_pool + s.from_store + s.shifted}}},
          {"completion_tokens_details",
           {{"reasoning_tokens", 0},
            {"accepted_prediction_tokens", done.drafts.accepted},
            {"rejected_prediction_tokens", done.drafts.drafted - done.drafts.accepted}}},
          {"stitch", StitchJson(s)}};
}

Json TotalsJson(const ProvenanceTotals& t) {
  return {{"exact", t.exact}, {"restored", t.restored}, {"shifted", t.shifted},
          {"link", t.link},   {"selected", t.selected}, {"fresh", t.fresh}};
}

Json MissJson(const std::optional<Miss>& m) {
  if (!m) return nullptr;
  Json miss = {{"reason", m->reason}, {"at_token", m->at_token}};
  if (m->message >= 0) miss["message"] = m->message;
  if (!m->field.empty()) miss["field"] = m->field;
  if (!m->name.empty()) miss["name"] = m->name;
  if (!m->change.empty()) miss["change"] = m->change;
  if (m->at_char >= 0) miss["at_char"] = m->at_char;
  return miss;
}

std::optional<HeadTag> HeadAfter(const TurnReport& report) {
  const TurnStart& s = report.start;
  if (!report.committed || s.replayed) return std::nullopt;
  return HeadTag{s.branch, s.generation + 1};
}

Json KeeperJson(const TurnReport& report) {
  const TurnStart& s = report.start;
  Json miss = MissJson(s.miss);
  if (!s.miss && !s.stitch.miss.empty()) miss = {{"reason", s.stitch.miss}};
  const auto head = HeadAfter(report);
  return {{"session_id", s.session_id},
          {"branch", s.branch},
          {"turn_id", s.turn_id},
          {"head", head ? Json(head->Text()) : Json(nullptr)},
          {"new_session", s.new_session},
          {"retry", s.retry},
          {"replayed", s.replayed},
          {"committed", report.committed},
          {"durable", report.durable},
          {"durable_kv", report.durable_kv ? Json(*report.durable_kv) : Json(nullptr)},
          {"history", s.history == HistoryMode::kAsSent ? "as_sent" : "as_sampled"},
          {"tokens",
           {{"prompt", s.prompt_tokens},
            {"kept", s.kept_tokens},
            {"warm", s.stitch.from_warm},
            {"pool", s.stitch.from_pool},
            {"disk", s.stitch.from_store},
            {"shifted", s.stitch.shifted},
            {"computed", s.stitch.to_compute},
            {"generated", report.generated}}},
          {"miss", std::move(miss)},
          {"timings",
           {{"queue_ms", report.queue_ms},
            {"restore_ms", report.restore_ms},
            {"prefill_ms", report.prefill_ms},
            {"decode_ms", report.decode_ms},
            {"commit_ms", report.commit_ms}}}};
}

ChatWriter::ChatWriter(const ChatCall& call, std::string id, std::string model,
                       int64_t created_unix_s)
    : call_(call), id_(std::move(id)), model_(std::move(model)), created_(created_unix_s) {}

Json ChatWriter::Base(std::string_view object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}};
}

std::string ChatWriter::Whole(const ChatDone& done, const std::vector<TokenId>& tokens,
                              const std::vector<ChatTokenLogprob>& logprobs) const {
  Json message = {{"role", "assistant"}, {"content", done.content}, {"refusal", nullptr}};
  if (!done.tool_calls.empty()) {
    if (done.content.empty()) message["content"] = nullptr;
    message["tool_calls"] = Json::array();
    for (const ToolCall& c : done.tool_calls) message["tool_calls"].push_back(ToolCallJson(c));
  }
  Json choice = {{"index", 0},
                 {"message", std::move(message)},
                 {"logprobs", call_.logprobs ? LogprobsJson(logprobs) : Json(nullptr)},
                 {"finish_reason", FinishName(done.finish)}};
  if (call_.return_token_ids) choice["token_ids"] = tokens;
  Json body = Base("chat.completion");
  body["choices"] = Json::array({std::move(choice)});
  body["usage"] = UsageJson(done);
  if (call_.return_token_ids) body["prompt_token_ids"] = done.prompt_tokens;
  body["keeper"] = KeeperJson(done.report);
  if (!done.warning.empty()) body["warning"] = done.warning;
  return DumpJson(body);
}

std::string ChatWriter::Chunk(Json delta, const ChatEvent& event, Json finish_reason) const {
  Json logprobs = event.logprobs.empty() ? Json(nullptr) : LogprobsJson(event.logprobs);
  Json choice = {{"index", 0},
                 {"delta", std::move(delta)},
                 {"logprobs", std::move(logprobs)},
                 {"finish_reason", std::move(finish_reason)}};
  if (call_.return_token_ids) choice["token_ids"] = event.tokens;
  Json chunk = Base("chat.completion.chunk");
  chunk["choices"] = Json::array({std::move(choice)});
  if (call_.include_usage) chunk["usage"] = nullptr;
  if (event.done.has_value()) {
    chunk["keeper"] = KeeperJson(event.done->report);
    if (call_.return_token_ids) chunk["prompt_token_ids"] = event.done->prompt_tokens;
    if (!event.done->warning.empty()) chunk["warning"] = event.done->warning;
  }
  return DumpJson(chunk);
}

std::vector<std::string> ChatWriter::Chunks(const ChatEvent& event) {
  std::vector<std::string> out;
  if (!role_sent_) {
    role_sent_ = true;
    out.push_back(Chunk({{"role", "assistant"}, {"content", ""}}, ChatEvent()));
  }
  switch (event.kind) {
    case ChatEvent::Kind::kStarted: break;
    case ChatEvent::Kind::kText:
      out.push_back(Chunk({{"content", event.text}}, event));
      break;
    case ChatEvent::Kind::kToolCall: {
      Json call = ToolCallJson({event.call.id, event.call.name, ""});
      call["index"] = event.index;
      out.push_back(Chunk({{"tool_calls", Json::array({std::move(call)})}}, event));
      break;
    }
    case ChatEvent::Kind::kToolArgs: {
      Json call = {{"index", event.index}, {"function", {{"arguments", event.text}}}};
      out.push_back(Chunk({{"tool_calls", Json::array({std::move(call)})}}, event));
      break;
    }
    case ChatEvent::Kind::kTokens:
      if (call_.return_token_ids || !event.logprobs.empty()) {
        out.push_back(Chunk(Json::object(), event));
      }
      break;
    case ChatEvent::Kind::kDone: {
      out.push_back(Chunk(Json::object(), event, FinishName(event.done->finish)));
      if (call_.include_usage) {
        Json chunk = Base("chat.completion.chunk");
        chunk["choices"] = Json::array();
        chunk["usage"] = UsageJson(*event.done);
        out.push_back(DumpJson(chunk));
      }
      break;
    }
  }
  return out;
}

}  // namespace holdfast
