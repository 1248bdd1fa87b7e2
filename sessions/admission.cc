// Begin: from a request to an admitted turn with its timeline.
//
// Each try reads the session's tree, finds the place, takes the lease of the head, looks whether
// the head has moved meanwhile (then tries again), and writes the admitted row. Nothing is locked
// while the history is rendered; the lease alone keeps the head still from then on.

#include "sessions/admission.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "sessions/turn_seed.h"

namespace holdfast {
namespace {

constexpr int kMaxTries = 16;             // a head that moves this often under us: kUnavailable
constexpr size_t kMaxMessages = 10000;
constexpr size_t kMaxIdBytes = 256;       // of an external id, a branch name or an idempotency key
constexpr int64_t kExpectedOutput = 1024; // tokens that room is made for ahead; more find theirs
constexpr int64_t kTurnsRemembered = 8;   // over so many a larger turn's pages are forgotten
constexpr int kMaxAnonymousLookups = 64;  // outputs in a history that are looked for, newest first

Digest RequestDigest(const TurnRequest& r) {
  Hasher h("turn-request-1");
  h.Add(r.params_digest).U64(r.seed.has_value()).U64(r.seed.value_or(0));
  h.Text(r.session.id).Text(r.session.branch).Text(r.tools_json).Text(r.template_kwargs_json);
  h.U64(r.append).U64(r.messages.size());
  for (const ChatMessage& m : r.messages) {
    h.Text(m.role).Text(m.text).Text(m.tool_call_id).U64(m.tool_calls.size());
    for (const ToolCall& c : m.tool_calls) h.Text(c.id).Text(c.name).Text(c.arguments);
  }
  return h.Finish();
}

Digest InputDigest(const TurnRequest& r, const TurnDraft& draft) {
  return Hasher("turn-input-1")
      .Add(r.params_digest)
      .U64(r.seed.has_value())
      .U64(r.seed.value_or(0))
      .Values(std::span<const TokenId>(draft.tokens))
      .Finish();
}

// That room is made for ahead.
int64_t PagesOf(int64_t prompt, int64_t max_tokens) {
  return (prompt + std::min(max_tokens, kExpectedOutput)) / kPageTokens + 2;
}

Status StoreDegraded(const std::string& why) {
  return Status::Exhausted("store_degraded: no durable turn can be taken on: " + why);
}

class Admission {
 public:
  Admission(Keeper::Impl& keeper, const TurnRequest& request) : k_(keeper), r_(request) {}

  Result<std::unique_ptr<Turn>> Run() {
    HOLDFAST_RETURN_IF_ERROR(Validate());
    request_digest_ = RequestDigest(r_);
    for (int i = 0; i < kMaxTries; ++i) {
      if (k_.shut) return Status::Unavailable("shutting down");
      HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<Turn> turn, Try());
      if (turn != nullptr) return turn;
    }
    return Status::Unavailable("the session's head moved " + std::to_string(kMaxTries) +
                               " times while this turn was prepared");
  }

 private:
  // Where the turn will run.
  struct Target {
    int64_t branch = 0;
    int64_t generation = 0;
    bool make_session = false, make_branch = false;
    HeadLeases::Lease lease;
  };

  bool IsBusy(int64_t branch) const {
    return k_.leases.IsBusy(branch) && !(waited_ && waited_.branch() == branch);
  }
  Status Validate() const;
  Result<std::unique_ptr<Turn>> Try();  // null: something moved, try again
  Result<std::unique_ptr<Turn>> TryKey(bool* again);
  Result<std::unique_ptr<Turn>> Replay(const TurnRow& row);
  Status FindSessionOfRequest();
  Status FindAnonymousSession();
  Result<std::vector<const BranchRow*>> Candidates() const;
  Result<History> FullHistory(std::span<const BranchRow* const> candidates) const;
  Status CheckHead(const Place& place) const;
  Status FindRetry(const Place& place);
  Result<std::optional<Target>> Lease(const Place& place);
  Result<std::optional<Target>> LeaseBusy(const BranchRow& branch);
  Result<bool> Unmoved(const Target& target, const Place& place);
  Status Record(const Place& place, const Target& target, Turn::Impl* turn);
  Status RecordPlace(Txn& txn, const Place& place, const Target& target, Turn::Impl* turn,
                     int64_t* ordinal, uint64_t* session_seed);
  Status RecordRows(Txn& txn, const Place& place, const Target& target, Turn::Impl* turn);
  Result<std::unique_ptr<Turn>> Start(const Place& place, Target target);
  void NoteHead(const Place& place, const Target& target, Turn::Impl* turn);
  Status Stitch(const Place& place, Turn::Impl* turn);
  std::optional<Recipe> RecipeAt(const Place& place) const;
  void NoteUsed(const TenantScope& scope, const StitchReport& report, std::vector<FoundRun> runs);

  Keeper::Impl& k_;
  const TurnRequest& r_;
  Digest request_digest_;

  // Of this try:
  PromptContext context_;
  std::optional<TurnRow> retry_;         // the aborted turn that this is
  std::optional<SessionRow> session_;    // none: to be made
  std::optional<int64_t> only_branch_;   // the anonymous head that was found
  SessionTree tree_;
  HeadLeases::Lease waited_;             // got by waiting, while the place is looked for again
};

Status Admission::Validate() const {
  if (r_.messages.empty()) return Status::Invalid("messages: at least one is needed");
  if (r_.messages.size() > kMaxMessages) {
    return Status::Invalid("messages: " + std::to_string(r_.messages.size()) +
                           " are more than the " + std::to_string(kMaxMessages) + " allowed");
  }
  if (std::max({r_.session.id.size(), r_.session.branch.size(), r_.idempotency_key.size()}) >
      kMaxIdBytes) {
    return Status::Invalid("a session id, branch name or idempotency key may have " +
                           std::to_string(kMaxIdBytes) + " bytes");
  }
  if (r_.append && r_.session.id.empty()) {
    return Status::Invalid("session: an appended turn needs one");
  }
  if (r_.if_head && r_.session.id.empty()) {
    return Status::Invalid("session: a turn that names a head needs one");
  }
  if (r_.durability != Durability::kNone && k_.options.db->degraded()) {
    return StoreDegraded(k_.options.db->degraded_reason());
  }
  return k_.quotas.CheckDisk(r_.tenant, k_.options.pool->page_bytes());
}

Result<std::unique_ptr<Turn>> Admission::Try() {
  retry_.reset();
  session_.reset();
  only_branch_.reset();
  tree_ = {};
  HOLDFAST_ASSIGN_OR_RETURN(context_, MakeContext(k_, r_.tools_json, r_.template_kwargs_json));
  if (!r_.idempotency_key.empty()) {
    bool again = false;
    auto served = TryKey(&again);
    if (!served.ok() || again || *served != nullptr) return served;
  }
  HOLDFAST_RETURN_IF_ERROR(FindSessionOfRequest());
  if (session_) {
    HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(tree_, LoadTree(reader, *session_));
      return Status();
    }));
  }
  HOLDFAST_ASSIGN_OR_RETURN(auto candidates, Candidates());
  if (r_.history == HistoryMode::kAsSampled) {
    HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) {
      return TakeRecordedTools(reader, k_, tree_, candidates, &context_);
    }));
  }
  PlaceRequest where;
  HOLDFAST_ASSIGN_OR_RETURN(where.history, FullHistory(candidates));
  where.mode = r_.history;
  where.context = &context_;
  where.model_digest = k_.options.model_digest;
  where.now_ms = k_.NowMs();
  auto found = FindPlace(*k_.options.db, *k_.renderer, tree_, candidates, std::move(where));
  if (!found.ok()) {
    // A node that went away under the reader: the session was deleted meanwhile.
    if (found.status().code() == Code::kConflict) return std::unique_ptr<Turn>();
    return found.status();
  }
  Place place = std::move(found).value();
  const int64_t prompt = static_cast<int64_t>(place.prompt.size());
  if (prompt == 0) return Status::Invalid("messages: the chat template made no tokens of them");
  HOLDFAST_RETURN_IF_ERROR(CheckHead(place));
  HOLDFAST_RETURN_IF_ERROR(CheckLength(place, k_.options.max_context));
  HOLDFAST_RETURN_IF_ERROR(FindRetry(place));
  HOLDFAST_ASSIGN_OR_RETURN(std::optional<Target> target, Lease(place));
  if (!target) return std::unique_ptr<Turn>();
  if (target->make_session) HOLDFAST_RETURN_IF_ERROR(k_.CheckNewSession(r_.tenant));
  const int64_t room = k_.options.max_context - prompt;
  HOLDFAST_RETURN_IF_ERROR(
      k_.MakeRoomOf(TenantScope(r_.tenant), target->branch,
                    PagesOf(prompt, r_.max_tokens > 0 ? std::min(r_.max_tokens, room) : room)));
  HOLDFAST_ASSIGN_OR_RETURN(const bool unmoved, Unmoved(*target, place));
  if (!unmoved) return std::unique_ptr<Turn>();
  return Start(place, std::move(*target));
}

// What the idempotency key says: a turn to serve again, a retry (retry_ is set), or nothing.
Result<std::unique_ptr<Turn>> Admission::TryKey(bool* again) {
  std::optional<TurnRow> row;
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(row, FindTurnByKey(reader, r_.tenant, r_.idempotency_key));
    return Status();
  }));
  if (!row) return std::unique_ptr<Turn>();
  if (row->request_digest != request_digest_) {
    return Status::Conflict("idempotency key '" + r_.idempotency_key +
                            "' was used for another request");
  }
  if (row->status == TurnStatus::kCommitted) return Replay(*row);
  if (row->status != TurnStatus::kAborted) {
    if (IsBusy(row->branch)) {  // it runs: wait for its end, then look again
      HOLDFAST_ASSIGN_OR_RETURN(auto lease, k_.leases.Wait(row->sid, row->branch));
      *again = true;
      return std::unique_ptr<Turn>();
    }
  }
  retry_ = std::move(row);
  return std::unique_ptr<Turn>();
}

Result<std::unique_ptr<Turn>> Admission::Replay(const TurnRow& row) {
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Flush());  // it may have been lazy: now it is durable
  auto impl = std::make_unique<Turn::Impl>();
  impl->keeper = &k_;
  impl->ended = true;
  impl->replay = row.response;
  impl->start.session_id = row.session_id;
  impl->start.turn_id = row.id;
  impl->start.prompt_tokens = row.prompt_tokens;
  impl->start.replayed = true;
  impl->seed = row.seed;
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {r_.tenant, row.session_id, k_.NowMs()}));
    HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, session));
    if (const BranchRow* b = tree.BranchById(row.branch)) impl->start.branch = b->name;
    const auto items = tree.items.find(row.output);
    if (items == tree.items.end()) return Status::Corrupt("the output of " + row.id + " is gone");
    Rows rows = reader.Query("SELECT tokens FROM node WHERE id = ?", row.output);
    if (rows.Next()) impl->replayed = rows.Array<TokenId>(0);
    if (!rows.status().ok()) return rows.status();
    // The output node begins with the end of the prompt.
    const int64_t header =
        std::min<int64_t>(items->second.front().header, impl->replayed.size());
    impl->replayed.erase(impl->replayed.begin(), impl->replayed.begin() + header);
    HOLDFAST_ASSIGN_OR_RETURN(impl->prompt,
                              LoadTokens(reader, LineageOf(tree, {row.output, header})));
    return Status();
  }));
  ++k_.replays;
  return std::make_unique<Turn>(std::move(impl));
}

Status Admission::FindSessionOfRequest() {
  if (r_.session.id.empty() && !retry_) return FindAnonymousSession();
  const std::string id = retry_ ? retry_->session_id : r_.session.id;
  auto found = Result<SessionRow>(SessionRow{});
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) {
    found = FindSession(reader, {r_.tenant, id, k_.NowMs()});
    return Status();
  }));
  if (found.ok()) {
    session_ = std::move(found).value();
    return Status();
  }
  if (retry_ && found.status().code() == Code::kNotFound) {  // expired, its rows not yet gone
    retry_.reset();
    k_.next_sweep_ms = 0;
    k_.SweepExpired();
    return FindSessionOfRequest();
  }
  const bool make = found.status().code() == Code::kNotFound && !id.starts_with("sess_");
  if (make && r_.session.branch.empty()) return Status();
  return found.status();
}

// The session whose whole head is a beginning of this history that ends in an output of ours, with
// nothing running on it: it goes on. A session that has such a beginning inside (a turn asked again
// after its commit, a message edited) gets a branch, so that sampled tokens still stand. Else, for
// a first turn, the unfinished one of the same request.
Status Admission::FindAnonymousSession() {
  std::vector<HistoryName> outputs;  // of the histories that end in an assistant's message
  HistoryName name(LineageRoot(context_.lineage));
  CallNumbers calls;
  for (const ChatMessage& m : r_.messages) {
    name.Add(IdentityOf(m), &calls);
    if (m.role == "assistant") outputs.push_back(name);
  }
  const SessionKey tenant{r_.tenant, {}, k_.NowMs()};
  return k_.options.db->Read([&](Reader& reader) -> Status {
    int looked = 0;
    for (auto it = outputs.rbegin(); it != outputs.rend() && looked < kMaxAnonymousLookups;
         ++it, ++looked) {
      HOLDFAST_ASSIGN_OR_RETURN(auto hit, FindAnonymous(reader, tenant, *it));
      if (!hit) continue;
      if (hit->branch != 0 && IsBusy(hit->branch)) return Status();
      session_ = std::move(hit->session);
      if (hit->branch != 0) only_branch_ = hit->branch;
      return Status();
    }
    HOLDFAST_ASSIGN_OR_RETURN(auto row, FindAbortedFirst(reader, r_.tenant, request_digest_));
    if (!row || IsBusy(row->branch)) return Status();
    auto session = FindSession(reader, {r_.tenant, row->session_id, tenant.now_ms});
    if (!session.ok()) return Status();
    session_ = std::move(session).value();
    only_branch_ = row->branch;
    return Status();
  });
}

Result<std::vector<const BranchRow*>> Admission::Candidates() const {
  std::vector<const BranchRow*> out;
  for (const BranchRow& b : tree_.branches) {
    if (only_branch_ && b.id != *only_branch_) continue;
    if (!r_.session.branch.empty() && b.name != r_.session.branch) continue;
    const bool unnamed_append = r_.append && r_.session.branch.empty();
    if (unnamed_append && b.id != tree_.session.default_branch) continue;
    out.push_back(&b);
  }
  if (out.empty() && !r_.session.branch.empty()) {
    return Status::NotFound("branch '" + r_.session.branch + "' does not exist");
  }
  return out;
}

Result<History> Admission::FullHistory(std::span<const BranchRow* const> candidates) const {
  History out;
  if (r_.append && !candidates.empty()) {
    const Lineage lineage = LineageOf(tree_, candidates.front()->head);
    HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(out, LoadHistory(reader, lineage));
      return Status();
    }));
  }
  for (const ChatMessage& m : r_.messages) out.Add(m, IdentityOf(m));
  return out;
}

// Whether the turn goes on where the client believes that it does.
Status Admission::CheckHead(const Place& place) const {
  if (!r_.if_head) return Status();
  if (place.branch == nullptr || place.branch->name != r_.if_head->branch) {
    return Status::NotFound("branch '" + r_.if_head->branch + "' does not exist");
  }
  const HeadTag head{place.branch->name, place.branch->generation};
  if (head.generation != r_.if_head->generation) {
    return Status::Conflict("head_moved: the branch stands at " + head.Text() + ", not at " +
                            r_.if_head->Text());
  }
  if (place.at_head()) return Status();
  return Status::Conflict("head_moved: the history leaves " + head.Text() + " after " +
                          std::to_string(place.draft.base_tokens) + " tokens" +
                          (place.miss ? " (" + place.miss->reason + ")" : ""));
}

// Sets retry_ to the aborted turn that this request repeats, if its head is still where it was.
Status Admission::FindRetry(const Place& place) {
  if (!retry_ && session_) {
    HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(retry_, FindAborted(reader, session_->sid, place.draft.base,
                                                    InputDigest(r_, place.draft)));
      return Status();
    }));
  }
  if (!retry_) return Status();
  const BranchRow* branch = tree_.BranchById(retry_->branch);
  const bool allowed = r_.session.branch.empty() || (branch && branch->name == r_.session.branch);
  if (branch == nullptr || !allowed || branch->head != place.draft.base || IsBusy(branch->id)) {
    retry_.reset();
  }
  return Status();
}

// Leases the head that the turn will run on; nullopt: lost a race, or waited and must look again.
Result<std::optional<Admission::Target>> Admission::Lease(const Place& place) {
  HeadLeases::Lease waited = std::move(waited_);
  auto take = [&](int64_t sid, int64_t branch) {
    if (waited && waited.branch() == branch) return std::optional(std::move(waited));
    return k_.leases.TryTake(sid, branch);
  };
  Target target;
  if (retry_) {
    const BranchRow* branch = tree_.BranchById(retry_->branch);
    auto lease = take(session_->sid, branch->id);
    if (!lease) return std::optional<Target>();
    target.branch = branch->id;
    target.generation = branch->generation;
    target.lease = std::move(*lease);
    return std::optional<Target>(std::move(target));
  }
  if (session_ && place.branch != nullptr && place.at_head()) {
    if (auto lease = take(session_->sid, place.branch->id)) {
      target.branch = place.branch->id;
      target.generation = place.branch->generation;
      target.lease = std::move(*lease);
      return std::optional<Target>(std::move(target));
    }
    if (r_.if_head || r_.on_busy != OnBusy::kFork) return LeaseBusy(*place.branch);
    if (only_branch_) return std::optional<Target>();  // taken meanwhile: a new session
  }
  target.make_session = !session_;
  target.make_branch = session_.has_value();
  target.branch = k_.next_branch++;
  auto lease = k_.leases.TryTake(session_ ? session_->sid : -target.branch, target.branch);
  if (!lease) return std::optional<Target>();
  target.lease = std::move(*lease);
  return std::optional<Target>(std::move(target));
}

Result<std::optional<Admission::Target>> Admission::LeaseBusy(const BranchRow& branch) {
  if (r_.if_head || r_.on_busy == OnBusy::kReject) {
    return Status::Conflict("busy_head: a turn runs on branch '" + branch.name + "'");
  }
  HOLDFAST_ASSIGN_OR_RETURN(waited_, k_.leases.Wait(session_->sid, branch.id));
  return std::optional<Target>();
}

// Whether the leased head is where it was when the place was found.
Result<bool> Admission::Unmoved(const Target& target, const Place&) {
  if (target.make_session || target.make_branch) return true;
  bool same = false;
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query("SELECT generation FROM branch WHERE id = ?", target.branch);
    same = rows.Next() && rows.Int(0) == target.generation;
    return rows.status();
  }));
  return same;
}

// Makes the session or the branch that the turn needs; sets the branch's ordinal and the session's
// seed.
Status Admission::RecordPlace(Txn& txn, const Place& place, const Target& target,
                              Turn::Impl* turn, int64_t* ordinal, uint64_t* session_seed) {
  const int64_t now = k_.NowMs();
  if (target.make_session) {
    NewSession s;
    s.sid = k_.next_sid++;
    s.id = k_.NewId("sess_");
    s.tenant = r_.tenant;
    s.external_id = r_.session.id;
    s.anonymous = r_.session.id.empty();
    s.model = k_.options.model_name;
    s.model_digest = k_.options.model_digest;
    s.root_hash = LineageRoot(context_.lineage);
    s.seed = *session_seed = k_.RandomU64();
    s.ttl_s = s.anonymous ? k_.options.anonymous_ttl_s : 0;
    s.now_ms = now;
    s.main_branch = target.branch;
    turn->start.session_id = s.id;
    turn->start.branch = "main";
    turn->sid = s.sid;
    return InsertSession(txn, s);
  }
  turn->sid = session_->sid;
  turn->start.session_id = session_->id;
  *session_seed = session_->seed;
  if (!target.make_branch) {
    const BranchRow* branch = tree_.BranchById(target.branch);
    *ordinal = branch->ordinal;
    turn->start.branch = branch->name;
    return Status();
  }
  NewBranch b;
  b.id = target.branch;
  b.sid = turn->sid;
  b.head = place.draft.base;
  b.head_hash = LineageRoot(context_.lineage);
  for (int64_t i = 0; i < place.draft.base_items; ++i) {
    b.head_hash = LineageNext(b.head_hash, place.lineage.items[i].identity);
  }
  b.tokens = b.parent_tokens = place.draft.base_tokens;
  b.items = place.draft.base_items;
  b.now_ms = now;
  b.parent_name = place.branch != nullptr ? place.branch->name : "";
  HOLDFAST_RETURN_IF_ERROR(InsertBranch(txn, &b, ordinal));
  turn->start.branch = b.name;
  return Status();
}

Status Admission::RecordRows(Txn& txn, const Place& place, const Target& target,
                             Turn::Impl* turn) {
  int64_t ordinal = 0, attempt = 0;
  uint64_t session_seed = 0;
  HOLDFAST_RETURN_IF_ERROR(RecordPlace(txn, place, target, turn, &ordinal, &session_seed));
  const SqlValue key = r_.idempotency_key.empty() ? SqlValue() : SqlValue(r_.idempotency_key);
  if (retry_) {
    turn->seed = retry_->seed;
    turn->start.turn_id = retry_->id;
    return txn.Run(
        "UPDATE turn SET status = ?, request_digest = ?, "
        "idempotency_key = COALESCE(idempotency_key, ?), ended_ms = NULL WHERE n = ?",
        TurnStatus::kAdmitted, request_digest_, key, retry_->n);
  }
  // An aborted turn that can't be taken up again (its head has moved) gives its key away.
  HOLDFAST_RETURN_IF_ERROR(
      txn.Run("UPDATE turn SET idempotency_key = NULL WHERE tenant = ? AND idempotency_key = ? AND "
              "status = ?",
              r_.tenant, key, TurnStatus::kAborted));
  const int64_t index = static_cast<int64_t>(place.prompt.size());
  const Point base = place.draft.base;
  const SqlValue node = base.node == 0 ? SqlValue() : SqlValue(base.node);
  {
    Rows rows = txn.Query(
        "SELECT COUNT(*) FROM turn WHERE branch = ? AND parent IS ? AND parent_count = ?",
        target.branch, node, base.count);
    if (rows.Next()) attempt = rows.Int(0);
    HOLDFAST_RETURN_IF_ERROR(rows.status());
  }
  turn->seed = r_.turn_seed ? *r_.turn_seed
               : r_.seed    ? RequestSeed(*r_.seed, index)
                            : SessionSeed(session_seed, ordinal, index, attempt);
  turn->start.turn_id = k_.NewId("turn_");
  return txn.Run(
      "INSERT INTO turn(id, sid, branch, tenant, idempotency_key, request_digest, input_digest, "
      "parent, parent_count, status, seed, sampling, prompt_tokens, finish, response, created_ms) "
      "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', x'', ?)",
      turn->start.turn_id, turn->sid, target.branch, r_.tenant, key, request_digest_,
      InputDigest(r_, place.draft), node, base.count, TurnStatus::kAdmitted, turn->seed,
      r_.sampling_json, index, k_.NowMs());
}

// Writes the admitted row. kConflict: somebody made the session or used the key first.
Status Admission::Record(const Place& place, const Target& target, Turn::Impl* turn) {
  Status over;  // the tenant's quota
  Status s = k_.options.db->Write(
      [&](Txn& txn) -> Status {
        if (target.make_session) over = k_.quotas.CheckNewSession(txn, r_.tenant, k_.NowMs());
        return over.ok() ? RecordRows(txn, place, target, turn) : over;
      },
      r_.durability == Durability::kNone ? WriteClass::kBackground : WriteClassOf(r_.durability));
  turn->recorded = s.ok();
  if (!over.ok()) return over;
  if (s.ok() || s.code() == Code::kConflict) return s;
  if (r_.durability != Durability::kNone) return StoreDegraded(s.message());
  // Nothing durable was asked for: go on without a row. The seed is drawn where none was given.
  const int64_t index = static_cast<int64_t>(place.prompt.size());
  turn->seed = r_.seed ? RequestSeed(*r_.seed, index) : k_.RandomU64();
  turn->start.turn_id = k_.NewId("turn_");
  return Status();
}

Result<std::unique_ptr<Turn>> Admission::Start(const Place& place, Target target) {
  auto impl = std::make_unique<Turn::Impl>();
  impl->keeper = &k_;
  impl->tenant = r_.tenant;
  impl->sampling_json = r_.sampling_json;
  impl->tools_json = context_.tools;
  impl->kwargs_json = context_.kwargs;
  impl->hints = r_.hints;
  impl->keep_response = !r_.idempotency_key.empty();
  impl->durability = r_.durability;
  // What is appended to a session is found there by the next who appends, also where it had to
  // leave the default branch (another model, other tools, a template that drops old reasoning).
  impl->becomes_default =
      session_ && r_.append && r_.session.branch.empty() && !place.at_head();
  impl->branch = target.branch;
  impl->generation = target.generation;
  impl->draft = place.draft;
  impl->prompt = place.prompt;
  if (Status s = Record(place, target, impl.get()); !s.ok()) {
    impl->ended = true;
    if (s.code() == Code::kConflict) return std::unique_ptr<Turn>();
    return s;
  }
  impl->lease = std::move(target.lease);
  NoteHead(place, target, impl.get());
  k_.running.Enter(impl->start.turn_id, {impl->sid, impl->branch});
  if (target.make_session) k_.leases.Name(target.branch, impl->sid);
  if (target.make_session && impl->recorded) ++k_.sessions;
  if (retry_) ++k_.retries;
  TurnStart& start = impl->start;
  start.generation = target.generation;
  start.external_id = session_ ? session_->external_id : r_.session.id;
  start.prompt_tokens = static_cast<int64_t>(place.prompt.size());
  start.kept_tokens = place.draft.base_tokens;
  start.miss = place.miss;
  if (!start.miss && target.make_branch && place.at_head() && place.branch != nullptr) {
    start.miss.emplace();
    start.miss->reason = "busy_head";
    start.miss->at_token = place.draft.base_tokens;
  }
  start.new_session = target.make_session;
  start.retry = retry_.has_value();
  start.history = r_.history;
  const int64_t room = k_.options.max_context - start.prompt_tokens;
  impl->max_tokens = r_.max_tokens > 0 ? std::min(r_.max_tokens, room) : room;
  auto turn = std::make_unique<Turn>(std::move(impl));
  // A failure drops, and so aborts, the turn.
  HOLDFAST_RETURN_IF_ERROR(Stitch(place, &turn->impl()));
  return turn;
}

// The head has a turn now. One that this turn leaves behind, most of it kept, is superseded.
void Admission::NoteHead(const Place& place, const Target& target, Turn::Impl* turn) {
  const BranchRow* branch = tree_.BranchById(target.branch);
  const HeadMemory memory = branch != nullptr ? branch->memory : HeadMemory{};
  turn->pinned = memory.pinned;
  const int64_t now = k_.NowMs();
  k_.heads.TurnBegun({turn->sid, target.branch, r_.tenant, turn->start.session_id}, memory, now);
  if (!target.make_branch || place.branch == nullptr) return;
  const BranchRow& left = *place.branch;
  const BranchUse by = {turn->start.branch, left.name, 0, place.draft.base_tokens, now + 1};
  if (IsSuperseded(UseOf(left), by)) k_.heads.Supersede(left.id);
}

// How the KV of the place's head was made, where that is not exact.
std::optional<Recipe> Admission::RecipeAt(const Place& place) const {
  if (!r_.reuse.approximate() || place.branch == nullptr || place.draft.base_tokens == 0) return {};
  std::optional<Recipe> recipe;
  // One that can't be read is none: the prompt is then planned anew.
  k_.options.db
      ->Read([&](Reader& reader) -> Status {
        auto found = GetRecipe(reader, place.branch->head.node);
        if (found.ok()) recipe = std::move(found).value();
        return found.status();
      })
      .IgnoreError();
  return recipe;
}

// Where the messages of a prompt begin.
std::vector<int64_t> BoundariesOf(const Place& place) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < place.draft.base_items; ++i) out.push_back(place.lineage.items[i].end);
  for (const NewItem& item : place.draft.items) {
    out.push_back(place.draft.base_tokens + item.first + item.count);
  }
  return out;
}

// Tells the segments which of the found runs the turn uses.
void Admission::NoteUsed(const TenantScope& scope, const StitchReport& report,
                         std::vector<FoundRun> runs) {
  if (k_.options.segments == nullptr || runs.empty()) return;
  std::erase_if(runs, [&](const FoundRun& run) {
    const auto uses = [&](const RunReport& r) { return r.used && r.begin == run.begin; };
    return run.variant->row == 0 ||
           std::none_of(report.runs.begin(), report.runs.end(), uses);
  });
  if (!runs.empty()) k_.options.segments->Used(scope, runs);
}

Status Admission::Stitch(const Place& place, Turn::Impl* turn) {
  turn->reserved_pages = PagesOf(static_cast<int64_t>(turn->prompt.size()), turn->max_tokens);
  const int64_t before = k_.turn_pages;
  k_.turn_pages = std::max(turn->reserved_pages, before - before / kTurnsRemembered);
  k_.warm.MakeRoom(k_.reserved_pages += turn->reserved_pages);
  std::optional<WarmHeads::Head> base = k_.warm.Take(turn->sid, turn->branch, turn->prompt);
  StitchRequest request{TenantScope(r_.tenant), turn->prompt,
                        base ? &base->timeline : nullptr, {}};
  const std::optional<Recipe> recipe = RecipeAt(place);
  std::vector<int64_t> boundaries;
  std::vector<FoundRun> runs;
  if (r_.reuse.approximate()) {
    boundaries = BoundariesOf(place);
    runs = RunsOf(k_, tree_, request.scope, turn->prompt);
  }
  request.reuse = r_.reuse;
  request.runs = runs;
  request.boundaries = boundaries;
  request.base_recipe = base ? base->recipe.get() : nullptr;
  request.recipe = recipe ? &*recipe : nullptr;
  request.recipe_tokens = place.draft.base_tokens;
  auto stitched = k_.options.stitcher->Stitch(request);
  if (base && base->branch == turn->branch) {
    turn->base = std::move(base);
  } else if (base) {
    k_.warm.Return(std::move(*base));
  }
  if (!stitched.ok()) return stitched.status();
  turn->start.stitch = stitched->report;
  turn->timeline = std::move(stitched->timeline);
  turn->loading = std::move(stitched->loading);
  NoteUsed(request.scope, stitched->report, std::move(runs));
  turn->recipe = std::move(stitched->recipe);
  k_.warm.RestoreTail(&*turn->timeline, &turn->start.stitch);
  // What is there already needs no room any more.
  const int64_t there = turn->timeline->filled() / kPageTokens;
  k_.reserved_pages -= there;
  turn->reserved_pages -= there;
  k_.heads.TurnRestored(turn->branch,
                        turn->loading ? turn->loading->keys() : std::vector<PageKey>());
  k_.caretaker.Poke();  // the next one's room
  return Status();
}

}  // namespace

std::optional<HeadTag> HeadTag::Parse(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  HeadTag head{std::string(text.substr(0, colon)), 0};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, head.generation);
  if (error != std::errc() || stop != end || head.generation < 0) return std::nullopt;
  return head;
}

Result<std::unique_ptr<Turn>> AdmitTurn(Keeper::Impl& keeper, const TurnRequest& request) {
  return Admission(keeper, request).Run();
}

}  // namespace holdfast
