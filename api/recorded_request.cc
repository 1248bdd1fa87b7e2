#include "api/recorded_request.h"

#include "api/json.h"

namespace holdfast {
namespace {

constexpr const char* kChoices[] = {"auto", "none", "required", "named"};
constexpr const char* kFormats[] = {"text", "json_object", "json_schema"};

template <typename T, size_t N>
void ReadWord(const Json& object, const char* field, const char* const (&words)[N], T* out) {
  const std::string word = object.value(field, std::string());
  for (size_t i = 0; i < N; ++i) {
    if (word == words[i]) *out = static_cast<T>(i);
  }
}

void ReadObject(const Json& j, ChatRequest* r) {
  SamplingParams& s = r->sampling;
  s.temperature = j.value("temperature", s.temperature);
  s.top_k = j.value("top_k", s.top_k);
  s.top_p = j.value("top_p", s.top_p);
  s.min_p = j.value("min_p", s.min_p);
  s.presence_penalty = j.value("presence_penalty", s.presence_penalty);
  s.frequency_penalty = j.value("frequency_penalty", s.frequency_penalty);
  s.repetition_penalty = j.value("repetition_penalty", s.repetition_penalty);
  s.repetition_window = j.value("repetition_window", s.repetition_window);
  r->max_tokens = j.value("max_tokens", r->max_tokens);
  if (j.contains("seed")) r->seed = j.at("seed").get<uint64_t>();
  if (j.contains("logit_bias")) {
    s.logit_bias = j.at("logit_bias").get<std::vector<std::pair<TokenId, float>>>();
  }
  r->stop = j.value("stop", r->stop);
  ReadWord(j, "tool_choice", kChoices, &r->tool_choice);
  r->tool_name = j.value("tool_name", r->tool_name);
  r->parallel_tool_calls = j.value("parallel_tool_calls", r->parallel_tool_calls);
  ReadWord(j, "format", kFormats, &r->format);
  r->schema_json = j.value("schema", r->schema_json);
  r->strict_schema = j.value("strict", r->strict_schema);
}

}  // namespace

std::string SamplingText(const ChatRequest& r) {
  const SamplingParams& s = r.sampling;
  Json j = {{"temperature", s.temperature},
            {"top_k", s.top_k},
            {"top_p", s.top_p},
            {"min_p", s.min_p},
            {"presence_penalty", s.presence_penalty},
            {"frequency_penalty", s.frequency_penalty},
            {"repetition_penalty", s.repetition_penalty},
            {"repetition_window", s.repetition_window},
            {"max_tokens", r.max_tokens}};
  if (r.seed) j["seed"] = *r.seed;
  if (!s.logit_bias.empty()) j["logit_bias"] = s.logit_bias;
  if (!r.stop.empty()) j["stop"] = r.stop;
  if (r.tool_choice != ToolChoice::kAuto) {
    j["tool_choice"] = kChoices[static_cast<size_t>(r.tool_choice)];
  }
  if (!r.tool_name.empty()) j["tool_name"] = r.tool_name;
  if (!r.parallel_tool_calls) j["parallel_tool_calls"] = false;
  if (r.format != ResponseFormat::kText) j["format"] = kFormats[static_cast<size_t>(r.format)];
  if (!r.schema_json.empty()) j["schema"] = r.schema_json;
  if (r.strict_schema) j["strict"] = true;
  return DumpJson(j);
}

Status ReadSamplingText(std::string_view text, ChatRequest* request) {
  if (text.empty()) return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const Json object, ParseJson(text));
  try {
    ReadObject(object, request);
  } catch (const Json::exception& e) {
    return Status::Invalid(std::string("sampling: ") + e.what());
  }
  return Status();
}

Status ReadToolsText(std::string_view tools_json, ChatRequest* request) {
  request->tools_json = tools_json;
  if (tools_json.empty()) return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const Json tools, ParseJson(tools_json));
  try {
    for (const Json& tool : tools) {
      const Json& function = tool.at("function");
      Tool t;
      t.name = function.at("name").get<std::string>();
      if (function.contains("parameters")) t.parameters_json = DumpJson(function["parameters"]);
      request->tools.push_back(std::move(t));
    }
  } catch (const Json::exception& e) {
    return Status::Corrupt(std::string("the recorded tools can't be read: ") + e.what());
  }
  return Status();
}

ChatMessage MessageOf(const RecordedItem& item) {
  ChatMessage m;
  m.role = item.role;
  m.text = item.content;
  m.raw_json = item.raw_json;
  if (m.role == "tool") m.tool_call_id = item.call_id;
  const auto raw = ParseJson(item.raw_json);
  if (!raw.ok() || !raw->contains("tool_calls")) return m;
  try {
    for (const Json& call : raw->at("tool_calls")) {
      const Json& function = call.at("function");
      m.tool_calls.push_back({call.at("id"), function.at("name"), function.at("arguments")});
    }
  } catch (const Json::exception&) {
    m.tool_calls.clear();  // the template still sees them as they are
  }
  return m;
}

void SetContent(const std::string& content, ChatMessage* message) {
  message->text = content;
  if (auto raw = ParseJson(message->raw_json); raw.ok() && raw->is_object()) {
    (*raw)["content"] = content;
    message->raw_json = DumpJson(*raw);
  }
}

}  // namespace holdfast
