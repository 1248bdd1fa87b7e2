// Sessions over HTTP: create, list, read, branch, snapshot, delete.
#include <chrono>

#include "api/openai_chat.h"
#include "api/recorded_request.h"
#include "api/route.h"

namespace holdfast {
namespace {

constexpr size_t kMaxTokensShown = 1u << 20;
constexpr size_t kMaxEdits = 64;      // of one branch

Json BranchJson(const BranchInfo& b) {
  return {{"object", "branch"},
          {"name", b.name},
          {"session_id", b.session_id},
          {"parent", TextOrNull(b.parent)},
          {"parent_tokens", b.parent_tokens},
          {"items", b.items},
          {"tokens", b.tokens},
          {"generation", b.generation},
          {"head", HeadTag{b.name, b.generation}.Text()},
          {"default", b.is_default},
          {"busy", b.busy},
          {"resident", b.resident},
          {"state", b.state},
          {"running_turn", TextOrNull(b.turn)},
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

Json MeasuredJson(const std::optional<ShadowKl>& kl) {
  if (!kl) return nullptr;
  return {{"kl", kl->mean}, {"kl_largest", kl->largest}, {"tokens", kl->tokens},
          {"same_top", kl->same_top}};
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
      if (source.variant != 0) {  // else of this session's own branches
        span["segment"] = source.segment.Text();
        span["variant"] = source.variant;
      }
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
          {"measured", MeasuredJson(p.measured)},
          {"totals", TotalsJson(t)},
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
          {"pinned", s.pinned},        {"created_at", s.created_ms / 1000}};
}

Json TreeJson(const TreeInfo& t) {
  Json branches = Json::array(), snapshots = Json::array();
  for (const TreeInfo::Branch& b : t.branches) {
    Json items = Json::array();
    for (const ItemInfo& i : b.items) items.push_back(ItemJson(i));
    branches.push_back({{"branch", BranchJson(b.info)},
                        {"parent_items", b.parent_items},
                        {"own_items", std::move(items)}});
  }
  for (const SnapshotInfo& s : t.snapshots) snapshots.push_back(SnapshotJson(s));
  return {{"object", "tree"},
          {"session_id", t.session_id},
          {"default_branch", t.default_branch},
          {"branches", std::move(branches)},
          {"snapshots", std::move(snapshots)}};
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

// Where a branch begins.
void ReadPoint(Fields& fields, MakeBranch* out) {
  out->from = fields.Text("branch", "", 256);
  out->snapshot = fields.Text("snapshot", "", 256);
  if (fields.Find("at_item") != nullptr) out->at_item = fields.Int("at_item", 0, 1 << 30, 0);
  if (fields.Find("at_token") != nullptr) out->at_token = fields.Int("at_token", 0, 1 << 30, 0);
  if (out->at_item.has_value() + out->at_token.has_value() + !out->snapshot.empty() > 1) {
    fields.Fail("at_item", "at_token and snapshot exclude each other");
  }
}

ItemEdit ReadEdit(Fields edit, const SegmentReader& segments) {
  ItemEdit out;
  if (edit.Find("op") == nullptr) edit.Fail("op", "is missing");
  if (edit.Find("item") == nullptr) edit.Fail("item", "is missing");
  constexpr ItemEdit::Op kOps[] = {ItemEdit::Op::kRemove, ItemEdit::Op::kReplace,
                                   ItemEdit::Op::kInsert};
  out.op = kOps[edit.OneOf("op", {"remove", "replace", "insert"})];
  out.item = edit.Int("item", 0, 1 << 30, 0);
  out.count = edit.Int("count", 1, 1 << 30, 1);
  const std::string content = edit.Text("content", "", kMaxTextBytes);
  const Json* message = edit.Object("message");
  const auto belongs = [&](const char* field, ItemEdit::Op op) {
    const bool given = edit.Find(field) != nullptr, needed = op != ItemEdit::Op::kRemove;
    if (given && out.op != op) edit.Fail(field, "does not belong to this op");
    if (!given && out.op == op && needed) edit.Fail(field, "is missing");
  };
  belongs("count", ItemEdit::Op::kRemove);
  belongs("content", ItemEdit::Op::kReplace);
  belongs("message", ItemEdit::Op::kInsert);
  if (out.op == ItemEdit::Op::kReplace) {
    out.change = [content](ChatMessage* m) { SetContent(content, m); };
  }
  if (message != nullptr) {
    out.message = ReadMessage(*message, edit.PathOf("message"), segments, edit.error());
  }
  return out;
}

void ReadEdits(Fields& body, const SegmentReader& segments, MakeBranch* out) {
  const Json* edits = body.Array("edits", kMaxEdits);
  if (edits == nullptr) return;
  if (edits->empty()) body.Fail("edits", "is empty");
  for (size_t i = 0; i < edits->size() && !body.error()->has_value(); ++i) {
    out->edits.push_back(
        ReadEdit(Fields((*edits)[i], "edits[" + std::to_string(i) + "]", body.error()), segments));
  }
}

// Messages of kInvalid begin with the field that they are about: "edits[1].item: ...".
void RefuseBranch(Call& call, const Status& status) {
  ApiError e = ErrorOf(status);
  if (e.status == 400 && (e.message.starts_with("edits") || e.message.starts_with("name:"))) {
    e.param = e.message.substr(0, e.message.find(": "));
  }
  if (e.code == "context_length_exceeded") e.param = "edits";
  call.Refuse(e);
}

// Fork, rewind and the general form are one thing: a new branch, which becomes the default one or
// not. Where the branch begins stands in the body itself, or in its field `from`.
enum class PointIn : uint8_t { kBody, kFrom };
void MakeBranchFrom(Call& call, PointIn where, MakeBranch make) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  if (where == PointIn::kBody) {
    ReadPoint(fields, &make);
  } else {
    if (const Json* from = fields.Object("from")) {
      Fields point(*from, "from", &error);
      ReadPoint(point, &make);
    }
    if (fields.Bool("make_default", false)) make.default_branch = MakeBranch::Default::kMove;
  }
  make.name = fields.Text("name", "", 256);
  if (fields.Bool("retokenise", false)) make.tokens = MakeBranch::Tokens::kThisModel;
  ReadEdits(fields, SegmentsOf(call), &make);
  if (error.has_value()) return call.Refuse(*error);
  const auto made = call.runtime.keeper().Branch(call.tenant, call.request.segments[0], make);
  if (!made.ok()) return RefuseBranch(call, made.status());
  call.Reply(201, BranchJson(*made));
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
    // A look after each comment: the session may have expired.
    open = open && AwaitChange(body, &said, [&](int ms) {
             return keeper.WaitForChange(seen, ms) != seen;
           });
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
  range.order = ListOrder::kAscending;
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
          {"generation", s.generation},
          {"head", HeadTag{s.default_branch, s.generation}.Text()},
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
  ReplyList(call, call.runtime.keeper().List(call.tenant, *range), SessionJson, "id");
}

void HandleGetSession(Call& call) {
  ReplyOne(call, 200, call.runtime.keeper().Get(call.tenant, call.request.segments[0]),
           SessionJson);
}

void HandleDeleteSession(Call& call) {
  const auto cancel = QueryFlag(call, "cancel");
  if (!cancel) return;
  const Status s = call.runtime.keeper().Delete(
      call.tenant, call.request.segments[0],
      *cancel ? Keeper::Running::kCancel : Keeper::Running::kRefuse);
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
            ItemJson, "index");
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
            &BranchInfo::name, BranchJson, "name");
}

void HandleTree(Call& call) {
  ReplyOne(call, 200, call.runtime.keeper().Tree(call.tenant, call.request.segments[0]), TreeJson);
}

void HandleBranch(Call& call) { MakeBranchFrom(call, PointIn::kFrom, {}); }

void HandleFork(Call& call) { MakeBranchFrom(call, PointIn::kBody, {}); }

void HandleRewind(Call& call) {
  MakeBranch make;
  make.default_branch = MakeBranch::Default::kMove;
  MakeBranchFrom(call, PointIn::kBody, std::move(make));
}

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
            &SnapshotInfo::id, SnapshotJson, "id");
}

void HandleGetSnapshot(Call& call) {
  ReplyOne(call, 200,
           call.runtime.keeper().GetSnapshot(call.tenant, call.request.segments[0],
                                             call.request.segments[1]),
           SnapshotJson);
}

void HandlePinSnapshot(Call& call) {
  const std::optional<Json> body = ReadBody(call);
  if (!body.has_value()) return;
  std::optional<ApiError> error;
  const bool pinned = Fields(*body, "", &error).Bool("pinned", true);
  if (error.has_value()) return call.Refuse(*error);
  ReplyOne(call, 200,
           call.runtime.keeper().PinSnapshot(call.tenant, call.request.segments[0],
                                             call.request.segments[1],
                                             pinned ? SnapshotPin::kOn : SnapshotPin::kOff),
           SnapshotJson);
}

void HandleDeleteSnapshot(Call& call) {
  const std::string& id = call.request.segments[1];
  const Status s = call.runtime.keeper().DeleteSnapshot(call.tenant, call.request.segments[0], id);
  if (!s.ok()) return call.Refuse(s);
  call.Reply(200, {{"id", id}, {"object", "snapshot.deleted"}, {"deleted", true}});
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
  ReadForesight(fields, &request.pin, &request.wake_at_ms);
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
    return ReplyList(call, keeper.Events(call.tenant, call.request.segments[0], *range), EventJson,
                     "seq");
  }
  StreamEvents(call, *range);
}

}  // namespace holdfast
