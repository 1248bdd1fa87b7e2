// /v1/segments: make, list, read, pin and delete spans of tokens whose KV is used again wherever
// they come back.
#include <charconv>

#include "api/route.h"
#include "api/segments.h"

namespace holdfast {
namespace {

constexpr size_t kMaxSegmentTokens = 1u << 20;

Json VariantJson(const SegmentInfo::VariantInfo& v) {
  return {{"kind", VariantKindName(v.kind)},
          {"tokens", v.tokens},
          {"position", v.position},
          {"generation", v.generation},
          {"created_at", v.created_ms / 1000},
          {"used_at", v.used_ms / 1000},
          {"hits", v.hits}};
}

Json SegmentJson(const SegmentInfo& s) {
  Json variants = Json::array();
  for (const auto& v : s.variants) variants.push_back(VariantJson(v));
  return {{"object", "segment"},
          {"id", s.id.Text()},
          {"role", s.role},
          {"tokens", s.tokens},
          {"given", s.given},
          {"pinned", s.pinned},
          {"kv_bytes", s.kv_bytes},
          {"hits", s.hits},
          {"hit_tokens", s.hit_tokens},
          {"variants", std::move(variants)},
          {"created_at", s.created_ms / 1000},
          {"used_at", s.used_ms / 1000}};
}

// Where a page of the list begins.
Result<int64_t> PlaceOf(const SegmentStore& segments, const TenantScope& scope,
                        const ListRange& range) {
  if (const auto id = SegmentId::Parse(range.after)) {
    const auto segment = segments.Get(scope, *id);
    if (segment.ok()) return segment->n;
    return Status::Invalid("after: " + segment.status().message());
  }
  return PositionOf(range);
}

// The segment of the path; null after a refusal.
std::optional<SegmentId> IdOf(Call& call) {
  const std::string& text = call.request.segments[0];
  const auto id = SegmentId::Parse(text);
  if (!id) call.Refuse(Status::NotFound("segment '" + text + "' does not exist"));
  return id;
}

}  // namespace

void HandleAddSegment(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  NewSegment add;
  add.tenant = call.tenant;
  constexpr const char* kRoles[] = {"user", "tool", "system", "assistant"};
  add.role = kRoles[fields.OneOf("role", {"user", "tool", "system", "assistant"})];
  add.text = fields.Text("text", "", call.options.limits.body_bytes);
  if (const Json* tokens = fields.Array("tokens", kMaxSegmentTokens)) {
    for (size_t i = 0; i < tokens->size(); ++i) {
      const Json& t = (*tokens)[i];
      const bool is_id = t.is_number_integer() && t.get<int64_t>() >= 0 &&
                         t.get<int64_t>() <= INT32_MAX;
      if (!is_id) fields.Fail("tokens[" + std::to_string(i) + "]", "is not a token of this model");
      add.tokens.push_back(is_id ? t.get<TokenId>() : kNoToken);
    }
  }
  add.warm = fields.Bool("warm", false);
  add.pin = fields.Bool("pin", false);
  if (error.has_value()) return call.Refuse(*error);
  const auto made = call.runtime.AddSegment(add);
  if (made.ok()) return call.Reply(201, SegmentJson(*made));
  ApiError e = ErrorOf(made.status());
  const bool named = e.message.starts_with("text") || e.message.starts_with("tokens");
  if (named) e.param = e.message.substr(0, e.message.find_first_of(": "));
  if (!named && e.status == 400) e.param = add.tokens.empty() ? "text" : "tokens";
  call.Refuse(e);
}

void HandleListSegments(Call& call) {
  const auto range = ReadRange(call);
  if (!range.has_value()) return;
  const SegmentStore& segments = call.runtime.segments();
  const TenantScope scope(call.tenant);
  const auto after = PlaceOf(segments, scope, *range);
  if (!after.ok()) return call.Refuse(after.status());
  Listed<SegmentInfo> listed;
  listed.rows = segments.List(scope, *after, range->limit + 1, range->order);
  if (static_cast<int>(listed.rows.size()) > range->limit) {
    listed.rows.pop_back();
    listed.next = std::to_string(listed.rows.back().n);
  }
  ReplyList(call, Result<Listed<SegmentInfo>>(std::move(listed)), SegmentJson, "id");
}

void HandleGetSegment(Call& call) {
  const auto id = IdOf(call);
  if (!id) return;
  ReplyOne(call, 200, call.runtime.segments().Get(TenantScope(call.tenant), *id), SegmentJson);
}

void HandlePinSegment(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  const bool pinned = Fields(*body, "", &error).Bool("pinned", true);
  if (error.has_value()) return call.Refuse(*error);
  const auto id = IdOf(call);
  if (!id) return;
  const auto pin = pinned ? SegmentStore::Pin::kOn : SegmentStore::Pin::kOff;
  ReplyOne(call, 200, call.runtime.segments().SetPin(TenantScope(call.tenant), *id, pin),
           SegmentJson);
}

void HandleDeleteSegment(Call& call) {
  const auto id = IdOf(call);
  if (!id) return;
  const Status s = call.runtime.segments().Delete(TenantScope(call.tenant), *id);
  if (!s.ok()) return call.Refuse(s);
  call.Reply(200, {{"id", id->Text()}, {"object", "segment.deleted"}, {"deleted", true}});
}

}  // namespace holdfast
