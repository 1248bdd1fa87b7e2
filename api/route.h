// What handlers share: reading the query and the body, and answering with objects and lists. Lists
// have OpenAI's shape: {"object":"list","data":[...],"has_more":...,"next":...}; `after` and
// `limit` page through them.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/fields.h"
#include "api/openai_chat.h"
#include "api/server.h"

namespace holdfast {

inline constexpr int kMaxPage = 1000;
inline constexpr int kAliveCheckMs = 100;  // how soon a client that left is noticed

inline Json TextOrNull(const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); }
std::string QueryText(const Call& call, const std::string& name);  // "" when it is absent

// Each is empty after a refusal, which it has sent.
std::optional<ListRange> ReadRange(Call& call);  // `limit` and `after` of the query
std::optional<Json> ReadBody(Call& call);        // {} where there is none
// Segments of the caller. Together they may be as long as the context: more is not read at all.
SegmentReader SegmentsOf(Call& call);
// Whether a stream is wanted instead of a list: ?stream=, or else the Accept header.
std::optional<bool> WantsStream(Call& call);

std::string RandomId(std::string_view prefix);  // and 24 hexadecimal digits

inline constexpr std::chrono::seconds kPing{15};  // a comment on a stream after so much silence

// Of a stream of events: waits until `changed(ms)` is true, or for a comment's time, which is then
// sent (and the reader may look whether what it follows is still there). False: the client is gone.
template <typename Changed>
bool AwaitChange(HttpBody& body, std::chrono::steady_clock::time_point* said,
                 const Changed& changed) {
  while (!body.ClientGone()) {
    if (changed(kAliveCheckMs)) return true;
    if (std::chrono::steady_clock::now() - *said < kPing) continue;
    *said = std::chrono::steady_clock::now();
    return body.Write(": ping\n\n");
  }
  return false;
}

template <typename T, typename ToJson>
void ReplyList(Call& call, const Result<Listed<T>>& listed, ToJson to_json) {
  if (!listed.ok()) return call.Refuse(listed.status());
  Json data = Json::array();
  for (const T& row : listed->rows) data.push_back(to_json(row));
  call.Reply(200, {{"object", "list"},
                   {"data", std::move(data)},
                   {"has_more", !listed->next.empty()},
                   {"next", TextOrNull(listed->next)}});
}

template <typename T, typename ToJson>
void ReplyRows(Call& call, Result<std::vector<T>> rows, ToJson to_json) {
  if (!rows.ok()) return call.Refuse(rows.status());
  ReplyList(call, Result<Listed<T>>(Listed<T>{std::move(*rows), ""}), to_json);
}

template <typename T, typename ToJson>
void ReplyOne(Call& call, int status, const Result<T>& row, ToJson to_json) {
  if (!row.ok()) return call.Refuse(row.status());
  call.Reply(status, to_json(*row));
}

}  // namespace holdfast
