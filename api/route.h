// What handlers share: reading the query and the body, and answering with objects and lists. Lists
// have OpenAI's shape: {"object":"list","data":[...],"first_id":...,"last_id":...,"has_more":...,
// "next":...}; `after`, `limit` and `order` page through them. `after` is the id of a row (of one
// without an id: its name, index or seq), or `next` of the page before.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
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

// An id as lists name it: a text, also of a row that is known by a number.
inline Json RowId(const Json& id) { return id.is_string() ? id : Json(id.dump()); }
inline Json TextOrNull(const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); }
std::string QueryText(const Call& call, const std::string& name);  // "" when it is absent

// Each is empty after a refusal, which it has sent.
std::optional<ListRange> ReadRange(Call& call, int default_limit = ListRange().limit);
std::optional<Json> ReadBody(Call& call);        // {} where there is none
// Segments of the caller. Together they may be as long as the context: more is not read at all.
SegmentReader SegmentsOf(Call& call);
// Whether a stream is wanted instead of a list: ?stream=, or else the Accept header.
std::optional<bool> WantsStream(Call& call);
std::optional<bool> QueryFlag(Call& call, const std::string& name);  // false when it is absent

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

// `id_field` of a row's JSON is what `after` takes to go on behind it.
template <typename T, typename ToJson>
void ReplyList(Call& call, const Result<Listed<T>>& listed, ToJson to_json,
               const char* id_field) {
  if (!listed.ok()) return call.Refuse(listed.status());
  Json data = Json::array();
  for (const T& row : listed->rows) data.push_back(to_json(row));
  const bool any = !data.empty();
  Json first = any ? RowId(data.front()[id_field]) : Json(nullptr);
  Json last = any ? RowId(data.back()[id_field]) : Json(nullptr);
  call.Reply(200, {{"object", "list"},
                   {"data", std::move(data)},
                   {"first_id", std::move(first)},
                   {"last_id", std::move(last)},
                   {"has_more", !listed->next.empty()},
                   {"next", TextOrNull(listed->next)}});
}

// A page of rows that are all there, as the query asks. `id` of a row: a function or a member.
// Without a limit: as many as a page may have.
template <typename T, typename Id, typename ToJson>
void ReplyRows(Call& call, Result<std::vector<T>> rows, Id id, ToJson to_json,
               const char* id_field) {
  std::optional<ListRange> range = ReadRange(call, kMaxPage);
  if (!range) return;
  if (!rows.ok()) return call.Refuse(rows.status());
  if (!range->after.empty()) {
    const auto at = std::find_if(rows->begin(), rows->end(), [&](const T& row) {
      return std::invoke(id, row) == range->after;
    });
    if (at == rows->end()) {
      return call.Refuse(Status::Invalid("after: '" + range->after + "' is not in this list"));
    }
    range->after = std::to_string(at - rows->begin());
  }
  const Result<ListPage> page = PageOf(*range, static_cast<int64_t>(rows->size()));
  if (!page.ok()) return call.Refuse(page.status());
  Listed<T> listed;
  for (const int64_t i : page->positions) listed.rows.push_back(std::move((*rows)[i]));
  if (!page->next.empty()) listed.next = std::invoke(id, listed.rows.back());
  ReplyList(call, Result<Listed<T>>(std::move(listed)), to_json, id_field);
}

template <typename T, typename ToJson>
void ReplyOne(Call& call, int status, const Result<T>& row, ToJson to_json) {
  if (!row.ok()) return call.Refuse(row.status());
  call.Reply(status, to_json(*row));
}

}  // namespace holdfast
