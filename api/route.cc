#include "api/route.h"

#include <charconv>

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

std::optional<ListRange> ReadRange(Call& call) {
  ListRange range;
  range.after = QueryText(call, "after");
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

}  // namespace holdfast
