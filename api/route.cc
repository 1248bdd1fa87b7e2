#include "api/route.h"

#include <charconv>

#include "api/segments.h"

namespace holdfast {
namespace {

void RefuseField(Call& call, const std::string& name, const std::string& why) {
  ApiError e = ErrorOf(400, name + " " + why);
  e.param = name;
  call.Refuse(e);
}

}  // namespace

std::string QueryText(const Call& call, const std::string& name) {
  const auto it = call.request.query.find(name);
  return it == call.request.query.end() ? "" : it->second;
}

std::optional<ListRange> ReadRange(Call& call, int default_limit) {
  ListRange range;
  range.limit = default_limit;
  range.after = QueryText(call, "after");
  const std::string order = QueryText(call, "order");
  if (order == "desc") range.order = ListOrder::kDescending;
  if (!order.empty() && order != "asc" && order != "desc") {
    RefuseField(call, "order", "must be asc or desc");
    return std::nullopt;
  }
  const std::string limit = QueryText(call, "limit");
  const char* end = limit.data() + limit.size();
  const bool given = call.request.query.contains("limit");
  if (!given || (std::from_chars(limit.data(), end, range.limit).ptr == end && range.limit >= 1 &&
                 range.limit <= kMaxPage)) {
    return range;
  }
  RefuseField(call, "limit", "must be from 1 to " + std::to_string(kMaxPage));
  return std::nullopt;
}

std::optional<Json> ReadBody(Call& call) {
  if (call.request.body.empty()) return Json::object();
  Result<Json> body = ParseJson(call.request.body);
  if (body.ok()) return std::move(*body);
  call.Refuse(body.status());
  return std::nullopt;
}

std::optional<bool> WantsStream(Call& call) {
  const std::string stream = QueryText(call, "stream");
  if (stream == "true" || stream == "false") return stream == "true";
  if (stream.empty()) {
    return call.request.header("accept").find("text/event-stream") != std::string_view::npos;
  }
  RefuseField(call, "stream", "must be true or false");
  return std::nullopt;
}

std::optional<bool> QueryFlag(Call& call, const std::string& name) {
  const std::string text = QueryText(call, name);
  if (text == "true" || text == "false" || text.empty()) return text == "true";
  RefuseField(call, name, "must be true or false");
  return std::nullopt;
}

SegmentReader SegmentsOf(Call& call) {
  return [&call, tokens = int64_t{0}](std::string_view id) mutable -> Result<SegmentBody> {
    const Engine& engine = call.runtime.engine();
    HOLDFAST_ASSIGN_OR_RETURN(SegmentBody body, SegmentNamed(call.runtime.segments(),
                                                             engine.tokenizer(), call.tenant, id));
    tokens += static_cast<int64_t>(body.tokens.size());
    if (tokens <= engine.max_context()) return body;
    return Status::Invalid("context_length_exceeded: the segments up to this one take " +
                           std::to_string(tokens) + " tokens, this model's context holds " +
                           std::to_string(engine.max_context()));
  };
}

}  // namespace holdfast
