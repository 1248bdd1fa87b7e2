// Sessions over HTTP: create, list, read, fork, rewind, snapshot, delete. Lists have OpenAI's
// shape: {"object":"list","data":[...],"has_more":...,"next":...}; `after` and `limit` page through
// them.
#include <charconv>
#include <chrono>

#include "api/fields.h"
#include "api/server.h"

namespace holdfast {
namespace {

constexpr int kMaxPage = 1000;
constexpr size_t kMaxTokensShown = 1u << 20;
constexpr int kAliveCheckMs = 100;    // how soon a client that left is noticed
constexpr std::chrono::seconds kPing{15};  // a comment on the stream after so much silence

Json TextOrNull(const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); }

Json BranchJson(const BranchInfo& b) {
  return {{"object", "branch"},
          {"name", b.name},
          {"session_id", b.session_id},
          {"parent", TextOrNull(b.parent)},
          {"parent_tokens", b.parent_tokens},
          {"items", b.items},
          {"tokens", b.tokens},
          {"generation", b.generation},
          {"default", b.is_default},
          {"busy", b.busy},
          {"resident", b.resident},
          {"state", b.state},
          {"created_at", b.created_ms / 1000},
          {"updated_at", b.updated_ms / 1000}};
}

Json ItemJson(const ItemInfo& i) {
  Json message = nullptr;
  if (auto parsed = ParseJson(i.raw_json); parsed.ok()) message = std::move(*parsed);
  return {{"object", "item"},
          {"index", i.index},
          {"role", i.role},
          {"call_id", TextOrNull(i.call_id)},
          {"turn_id", TextOrNull(i.turn_id)},
          {"sampled", i.sampled},
          {"tokens",
           {{"first", i.first}, {"count", i.count}, {"header", i.header}, {"trailer", i.trailer}}},
          {"message", std::move(message)}};
}

Json TierJson(const ResidencyInfo::Tier& t) { return {{"tokens", t.tokens}, {"bytes", t.bytes}}; }

Json NumberOrNull(const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); }

Json ResidencyJson(const ResidencyInfo& r) {
  return {{"object", "residency"},
          {"session_id", r.session_id},
          {"branch", r.branch},
          {"state", r.state},
          {"tokens", r.tokens},
          {"tiers",
           {{"pool", TierJson(r.pool)},
            {"disk", TierJson(r.disk)},
            {"missing", TierJson(r.missing)}}},
          {"est_restore_ms", NumberOrNull(r.restore_ms)},
          {"est_prefill_ms", NumberOrNull(r.prefill_ms)}};
}

Json ProvenanceJson(const ProvenanceInfo& p) {
  const ProvenanceTotals t = TotalsOf(p.spans);
  Json spans = Json::array();
  for (const ProvenanceSpan& s : p.spans) {
    Json span = {{"from", s.begin},
                 {"to", s.end},
                 {"origin", OriginName(s)},
                 {"tier", KvTierName(s.tier)},
                 {"generation", s.generation}};
    if (s.source >= 0) {
      const RecipeSource& source = p.sources[static_cast<size_t>(s.source)];
      span["segment"] = source.segment.Text();
      span["variant"] = source.variant;
      span["kind"] = VariantKindName(source.kind);
    }
    if (s.origin == KvOrigin::kShifted) span["shift"] = s.shift;
    spans.push_back(std::move(span));
  }
  return {{"object", "provenance"},
          {"session_id", p.session_id},
          {"branch", p.branch},
          {"tokens", p.tokens},
          {"policy", ReusePolicyName(p.policy)},
          {"approximate", t.approximate > 0},
          {"hardened", p.hardened},
          {"expected_kl", p.expected_kl},
          {"kl_bound", p.kl_bound},
          {"totals",
           {{"exact", t.exact},
            {"restored", t.restored},
            {"shifted", t.shifted},
            {"link", t.link},
            {"selected", t.selected},
            {"fresh", t.fresh}}},
          {"spans", std::move(spans)}};
}

Json PrefetchJson(const PrefetchInfo& p) {
  return {{"object", "prefetch"},
          {"started", {{"pages", p.pages}, {"tokens", p.tokens}, {"bytes", p.bytes}}},
          {"before", ResidencyJson(p.before)}};
}

Json SnapshotJson(const SnapshotInfo& s) {
  return {{"object", "snapshot"},      {"id", s.id},         {"label", TextOrNull(s.label)},
          {"branch", s.branch},        {"tokens", s.tokens}, {"items", s.items},
          {"created_at", s.created_ms / 1000}};
}

Json EventJson(const EventInfo& e) {
  return {{"object", "event"},
          {"seq", e.seq},
          {"type", e.kind},
          {"branch", TextOrNull(e.branch)},
          {"turn_id", TextOrNull(e.turn_id)},
          {"detail", TextOrNull(e.detail)},
          {"ts_ms", e.at_ms}};
}

// `limit` and `after` of the query.
std::optional<ListRange> ReadRange(Call& call) {
  ListRange range;
  if (const auto it = call.request.query.find("after"); it != call.request.query.end()) {
    range.after = it->second;
  }
  const auto it = call.request.query.find("limit");
  if (it == call.request.query.end()) return range;
  const char* end = it->second.data() + it->second.size();
  if (std::from_chars(it->second.data(), end, range.limit).ptr == end && range.limit >= 1 &&
      range.limit <= kMaxPage) {
    return range;
  }
  ApiError e = ErrorOf(400, "limit must be from 1 to " + std::to_string(kMaxPage));
  e.param = "limit";
  call.Refuse(e);
  return std::nullopt;
}

std::string QueryText(const Call& call, const std::string& name) {
  const auto it = call.request.query.find(name);
  return it == call.request.query.end() ? "" : it->second;
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

// The body as an object; an empty body is {}. Null after a refusal.
std::optional<Json> ReadBody(Call& call) {
  if (call.request.body.empty()) return Json::object();
  Result<Json> body = ParseJson(call.request.body);
  if (body.ok()) return std::move(*body);
  call.Refuse(body.status());
  return std::nullopt;
}

// Fork and rewind are the same thing: a new branch, which becomes the default one or not.
void MakeBranchFrom(Call& call, MakeBranch::Default default_branch) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  MakeBranch make;
  make.from = fields.Text("branch", "", 256);
  make.name = fields.Text("name", "", 256);
  make.snapshot = fields.Text("snapshot", "", 256);
  if (fields.Find("at_item") != nullptr) make.at_item = fields.Int("at_item", 0, 1 << 30, 0);
  if (fields.Find("at_token") != nullptr) make.at_token = fields.Int("at_token", 0, 1 << 30, 0);
  if (make.at_item.has_value() + make.at_token.has_value() + !make.snapshot.empty() > 1) {
    fields.Fail("at_item", "at_token and snapshot exclude each other");
  }
  make.default_branch = default_branch;
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 201, call.runtime.keeper().Branch(call.tenant, call.request.segments[0], make),
           BranchJson);
}

// Whether events are wanted as a stream: ?stream=, or else the Accept header. Null after a refusal.
std::optional<bool> WantsStream(Call& call) {
  const std::string stream = QueryText(call, "stream");
  if (stream == "true" || stream == "false") return stream == "true";
  if (stream.empty()) {
    return call.request.header("accept").find("text/event-stream") != std::string_view::npos;
  }
  ApiError e = ErrorOf(400, "stream must be true or false");
  e.param = "stream";
  call.Refuse(e);
  return std::nullopt;
}

// Sends the events after `range.after`, then each new one once it is committed, until the client is
// gone, the server stops or there is no such session any more.
void FollowEvents(Keeper& keeper, const std::string& tenant, const std::string& id,
                  ListRange range, HttpBody& body) {
  bool open = body.Write(": ok\n\n");
  auto said = std::chrono::steady_clock::now();
  while (open && !body.ClientGone()) {
    const uint64_t seen = keeper.WaitForChange(0, 0);
    const auto events = keeper.Events(tenant, id, range);
    if (!events.ok()) {
      if (events.status().code() != Code::kNotFound) body.Break();
      return;
    }
    for (const EventInfo& e : events->rows) {
      range.after = std::to_string(e.seq);
      open = open && body.Write("id: " + range.after + "\nevent: " + e.kind + "\ndata: " +
                                DumpJson(EventJson(e)) + "\n\n");
      said = std::chrono::steady_clock::now();
    }
    if (!events->next.empty()) continue;
    while (!body.ClientGone() && keeper.WaitForChange(seen, kAliveCheckMs) == seen) {
      if (std::chrono::steady_clock::now() - said < kPing) continue;
      said = std::chrono::steady_clock::now();
      open = body.Write(": ping\n\n");
      break;  // a look at the session, which may have expired
    }
  }
}

// Last-Event-ID, which a browser sends when it connects again, goes before ?after=.
void StreamEvents(Call& call, ListRange range) {
  if (const auto last = call.request.header("last-event-id"); !last.empty()) range.after = last;
  Keeper& keeper = call.runtime.keeper();
  // By the server's id: the client's own may soon be another session's.
  const auto session = keeper.Get(call.tenant, call.request.segments[0]);
  if (!session.ok()) return call.Refuse(session.status());
  range.limit = 1;
  const auto first = keeper.Events(call.tenant, session->id, range);
  if (!first.ok()) return call.Refuse(first.status());
  range.limit = kMaxPage;
  call.exchange.AddHeader("cache-control", "no-cache");
  call.exchange.Stream(200, "text/event-stream; charset=utf-8",
                       [&keeper, tenant = call.tenant, id = session->id, range](HttpBody& body) {
                         FollowEvents(keeper, tenant, id, range, body);
                       });
}

}  // namespace

Json SessionJson(const SessionInfo& s) {
  Json meta = nullptr;
  if (!s.meta_json.empty()) {
    if (auto parsed = ParseJson(s.meta_json); parsed.ok()) meta = std::move(*parsed);
  }
  return {{"object", "session"},
          {"id", s.id},
          {"external_id", TextOrNull(s.external_id)},
          {"anonymous", s.anonymous},
          {"model", s.model},
          {"default_branch", s.default_branch},
          {"branches", s.branches},
          {"turns", s.turns},
          {"items", s.items},
          {"tokens", s.tokens},
          {"ttl_s", s.ttl_s},
          {"metadata", std::move(meta)},
          {"created_at", s.created_ms / 1000},
          {"updated_at", s.updated_ms / 1000}};
}

void HandleCreateSession(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  CreateSession create;
  create.external_id = fields.Text(fields.Find("id") != nullptr ? "id" : "external_id", "", 256);
  if (create.external_id.starts_with("sess_")) {
    fields.Fail("id", "must not begin with 'sess_': those ids are given by the server");
  }
  create.ttl_s = fields.Int("ttl_s", 0, int64_t{10} * 365 * 86400, 0);
  if (const Json* meta = fields.Object("metadata")) create.meta_json = DumpJson(*meta);
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 201, call.runtime.keeper().Create(call.tenant, create), SessionJson);
}

void HandleListSessions(Call& call) {
  const auto range = ReadRange(call);
  if (!range.has_value()) return;
  ReplyList(call, call.runtime.keeper().List(call.tenant, *range), SessionJson);
}

void HandleGetSession(Call& call) {
  ReplyOne(call, 200, call.runtime.keeper().Get(call.tenant, call.request.segments[0]),
           SessionJson);
}

void HandleDeleteSession(Call& call) {
  const Status s = call.runtime.keeper().Delete(call.tenant, call.request.segments[0]);
  if (!s.ok()) return call.Refuse(s);
  call.Reply(200, {{"id", call.request.segments[0]}, {"object", "session.deleted"},
                   {"deleted", true}});
}

void HandleItems(Call& call) {
  const auto range = ReadRange(call);
  if (!range.has_value()) return;
  ReplyList(call,
            call.runtime.keeper().Items(call.tenant, call.request.segments[0],
                                        QueryText(call, "branch"), *range),
            ItemJson);
}

void HandleTokens(Call& call) {
  const auto tokens = call.runtime.keeper().Tokens(call.tenant, call.request.segments[0],
                                                   QueryText(call, "branch"));
  if (!tokens.ok()) return call.Refuse(tokens.status());
  if (tokens->size() > kMaxTokensShown) {
    return call.Refuse(Status::Invalid("more than " + std::to_string(kMaxTokensShown) + " tokens"));
  }
  call.Reply(200, {{"object", "tokens"}, {"tokens", *tokens}, {"count", tokens->size()}});
}

void HandleBranches(Call& call) {
  ReplyRows(call, call.runtime.keeper().Branches(call.tenant, call.request.segments[0]),
            BranchJson);
}

void HandleFork(Call& call) { MakeBranchFrom(call, MakeBranch::Default::kKeep); }

void HandleRewind(Call& call) { MakeBranchFrom(call, MakeBranch::Default::kMove); }

void HandleSnapshot(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  const std::string branch = fields.Text("branch", "", 256), label = fields.Text("label", "", 256);
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 201,
           call.runtime.keeper().Snapshot(call.tenant, call.request.segments[0], branch, label),
           SnapshotJson);
}

void HandleSnapshots(Call& call) {
  ReplyRows(call, call.runtime.keeper().Snapshots(call.tenant, call.request.segments[0]),
            SnapshotJson);
}

void HandleResidency(Call& call) {
  ReplyOne(call, 200,
           call.runtime.keeper().Residency(call.tenant, call.request.segments[0],
                                           QueryText(call, "branch")),
           ResidencyJson);
}

void HandleProvenance(Call& call) {
  ReplyOne(call, 200,
           call.runtime.keeper().Provenance(call.tenant, call.request.segments[0],
                                            QueryText(call, "branch")),
           ProvenanceJson);
}

void HandleHarden(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  const std::string branch = fields.Text("branch", "", 256);
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 202, call.runtime.keeper().Harden(call.tenant, call.request.segments[0], branch),
           [](bool begun) { return Json{{"object", "harden"}, {"begun", begun}}; });
}

void HandlePrefetch(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  PrefetchRequest request;
  request.branch = fields.Text("branch", "", 256);
  if (fields.Find("pin") != nullptr) request.pin = fields.Bool("pin", false);
  request.wake_at_ms =
      static_cast<int64_t>(1000 * fields.Number("wake_at", 0, kMaxUnixTime, 0));
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 202,
           call.runtime.keeper().Prefetch(call.tenant, call.request.segments[0], request),
           PrefetchJson);
}

void HandleEvents(Call& call) {
  const auto range = ReadRange(call);
  if (!range.has_value()) return;
  const auto stream = WantsStream(call);
  if (!stream.has_value()) return;
  Keeper& keeper = call.runtime.keeper();
  if (!*stream) {
    return ReplyList(call, keeper.Events(call.tenant, call.request.segments[0], *range), EventJson);
  }
  StreamEvents(call, *range);
}

}  // namespace holdfast
