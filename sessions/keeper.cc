#include "sessions/keeper.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "engine/base/elapsed.h"
#include "sessions/admission.h"
#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

constexpr int kSweepSessions = 16;  // expired sessions deleted in one sweep
constexpr int64_t kDrainMs = 250;   // that a turn waits for pages of its tenant to be written

// What a finished decode adds: the output node, and how much of it the head takes.
struct Output {
  std::vector<TokenId> tokens;
  std::vector<TokenOrigin> origins;
  std::vector<uint64_t> digests;
  int64_t header = 0;  // tokens that open the output
  int64_t kept = 0;    // of `tokens`; less than all where a stray end token stands last
};

Output MakeOutput(const Keeper::Impl& k, const Turn::Impl& turn, const TurnOutcome& outcome) {
  const TurnDraft& draft = turn.draft;
  Output out;
  out.tokens.assign(draft.tokens.begin() + draft.input_count, draft.tokens.end());
  out.origins.assign(draft.origins.begin() + draft.input_count, draft.origins.end());
  out.header = static_cast<int64_t>(out.tokens.size());
  size_t count = outcome.generated.size();
  if (outcome.timeline) {
    const int64_t there =
        outcome.timeline->size() - static_cast<int64_t>(turn.prompt.size());
    count = std::min(count, static_cast<size_t>(std::max<int64_t>(there, 0)));
  }
  for (size_t i = 0; i < count; ++i) {
    const GeneratedToken& g = outcome.generated[i];
    out.tokens.push_back(g.token);
    out.origins.push_back(g.forced ? TokenOrigin::kForced : TokenOrigin::kSampled);
    if (!g.forced) out.digests.push_back(g.digest);
  }
  out.kept = static_cast<int64_t>(out.tokens.size());
  if (count > 0 && k.renderer->IsStrayEnd(out.tokens.back())) --out.kept;
  return out;
}

// The input and output nodes of a turn with their items; sets *output_node. `committed`: the name
// of the history with the output, or none for an aborted turn.
Status InsertNodes(Txn& txn, const Keeper::Impl& k, const Turn::Impl& turn, const Output& output,
                   const TurnOutcome& outcome, const std::optional<HistoryName>& committed,
                   int64_t* output_node) {
  const TurnDraft& draft = turn.draft;
  NewNode node;
  node.sid = turn.sid;
  node.status = committed ? NodeStatus::kCommitted : NodeStatus::kAborted;
  node.turn = turn.start.turn_id;
  node.seed = turn.seed;
  node.basis = k.basis;
  node.template_digest = draft.context;
  node.model_digest = k.options.model_digest;
  HOLDFAST_ASSIGN_OR_RETURN(node.parent, InsertInput(txn, draft, node));
  HOLDFAST_RETURN_IF_ERROR(InsertContext(
      txn, turn.sid, draft.context, {turn.tools_json, turn.kwargs_json}));
  node.kind = NodeKind::kOutput;
  node.sampling = turn.sampling_json;
  if (committed) {
    node.lineage_hash = committed->by_ids;
    if (committed->by_calls != committed->by_ids) node.calls_hash = committed->by_calls;
  }
  node.tokens = output.tokens;
  node.origins = output.origins;
  node.digests = output.digests;
  HOLDFAST_ASSIGN_OR_RETURN(*output_node, InsertNode(txn, node));
  NewItem item;
  item.count = output.kept;
  item.header = output.header;
  const bool ended = output.kept > output.header &&
                     k.options.tokenizer->IsEndOfGeneration(output.tokens[output.kept - 1]);
  item.trailer = ended ? 1 : 0;
  item.identity = IdentityOf(outcome.message);
  item.content = outcome.message.text;
  item.raw = outcome.message.raw_json;
  return InsertItem(txn, *output_node, item);
}

Status MoveHead(Txn& txn, const Turn::Impl& turn, const Output& output, int64_t output_node,
                const Digest& hash, const HeadMemory& memory, int64_t now_ms) {
  const TurnDraft& draft = turn.draft;
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "UPDATE branch SET node = ?, count = ?, generation = generation + 1, head_hash = ?, "
      "tokens = ?, items = ?, updated_ms = ?, wake_ms = ?, keep_until_ms = ?, pinned = ? "
      "WHERE id = ? AND generation = ?",
      output_node, output.kept, hash,
      draft.base_tokens + static_cast<int64_t>(draft.tokens.size()) + output.kept - output.header,
      draft.base_items + static_cast<int64_t>(draft.items.size()) + 1, now_ms, memory.expected_ms,
      memory.keep_until_ms, memory.pinned, turn.branch, turn.generation));
  if (txn.changes() != 1) return Status::Conflict("the branch is gone or its head has moved");
  const KeeperOptions& now = turn.keeper->options;  // a session belongs to its last turn's model
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "UPDATE session SET updated_ms = ?, model = ?, model_digest = ?, "
      "expires_ms = CASE WHEN ttl_s > 0 THEN ? + ttl_s * 1000 END WHERE sid = ?",
      now_ms, now.model_name, now.model_digest, now_ms, turn.sid));
  if (!turn.becomes_default) return Status();
  return MoveDefault(txn, turn.branch, {turn.sid, now_ms, {}, turn.start.branch, "", ""});
}

}  // namespace

Result<Point> InsertInput(Txn& txn, const TurnDraft& draft, NewNode node) {
  if (draft.input_count == 0) return draft.base;
  node.parent = draft.base;
  node.tokens = std::span(draft.tokens).first(draft.input_count);
  node.origins = std::span(draft.origins).first(draft.input_count);
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t input, InsertNode(txn, node));
  for (const NewItem& item : draft.items) {
    HOLDFAST_RETURN_IF_ERROR(InsertItem(txn, input, item));
  }
  return Point{input, draft.input_count};
}

Turn::Turn(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Turn::~Turn() {
  if (!impl_->ended) impl_->keeper->AbortTurn(impl_.get(), {});
}
const TurnStart& Turn::start() const { return impl_->start; }
uint64_t Turn::seed() const { return impl_->seed; }
std::span<const TokenId> Turn::prompt() const { return impl_->prompt; }
int64_t Turn::max_tokens() const { return impl_->max_tokens; }
const std::optional<std::string>& Turn::replay() const { return impl_->replay; }
std::span<const TokenId> Turn::replayed_tokens() const { return impl_->replayed; }
void Turn::OnCancel(std::function<void()> stop) {
  impl_->keeper->running.OnCancel(impl_->start.turn_id, std::move(stop));
}
Timeline Turn::TakeTimeline() {
  Timeline t = std::move(*impl_->timeline);
  impl_->timeline.reset();
  return t;
}

StitchReport Turn::Settled(int64_t reused) const {
  return holdfast::Settled(impl_->start.stitch, reused, impl_->loading.get(),
                           impl_->keeper->options.pool->page_bytes());
}

int64_t Keeper::Impl::NowMs() {
  return options.now_ms ? options.now_ms() : env.WallMicros() / 1000;
}

HeadMemory Keeper::Impl::MemoryAfter(const Turn::Impl& turn, int64_t now_ms) const {
  HeadMemory memory;
  memory.pinned = turn.hints.pin.value_or(turn.pinned);
  if (turn.hints.ttl_s > 0) memory.keep_until_ms = now_ms + turn.hints.ttl_s * 1000;
  memory.expected_ms = turn.hints.wake_at_ms;
  return memory;
}

Status Keeper::Impl::CheckNewSession(std::string_view tenant) {
  return options.db->Read(
      [&](Reader& reader) { return quotas.CheckNewSession(reader, tenant, NowMs()); });
}

Status Keeper::Impl::MakeRoomOf(const TenantScope& scope, int64_t branch, int64_t pages) {
  const int64_t limit = quotas.Of(scope.tenant()).host_bytes;
  if (limit == 0) return Status();
  const auto page_bytes = static_cast<int64_t>(options.pool->page_bytes());
  // What the branch's warm head holds becomes the turn's.
  const auto others = [&] {
    return static_cast<int64_t>(options.pool->leased_by(scope)) -
           warm.Filled(branch) / kPageTokens;
  };
  const auto missing = [&] { return others() + pages - limit / page_bytes; };
  warm.MakeRoomOf(scope, missing);
  // Pages on their way to the store are held too.
  if (missing() > 0 && options.drain_pages) options.drain_pages(kDrainMs);
  const int64_t leased = others();
  if (leased + pages <= limit / page_bytes) return Status();
  return Status::Exhausted(
      "quota_exceeded: tenant '" + scope.tenant() + "' may use " + std::to_string(limit) +
      " bytes of memory for KV; what runs holds " + std::to_string(leased * page_bytes) +
      " and this one needs " + std::to_string(pages * page_bytes) +
      ": wait for that to end, send a shorter context or a smaller max_tokens");
}

uint64_t Keeper::Impl::RandomU64() {
  uint64_t v = 0;
  // Without randomness ids would collide and be refused as conflicts, which is all that can be
  // done.
  env.FillRandom(std::as_writable_bytes(std::span(&v, 1))).IgnoreError();
  return v;
}

std::string Keeper::Impl::NewId(std::string_view prefix) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string id(prefix);
  const uint64_t parts[2] = {RandomU64(), RandomU64()};
  for (int i = 0; i < 24; ++i) id += kHex[(parts[i / 16] >> (4 * (i % 16))) & 15];
  return id;
}

Status Keeper::Impl::Recover() {
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(
        "SELECT (SELECT COALESCE(MAX(id), 0) FROM branch), "
        "(SELECT COUNT(*) FROM session WHERE expires_ms IS NOT 0), "
        "(SELECT COALESCE(MAX(sid), 0) FROM session)");
    if (rows.Next()) {
      next_branch = rows.Int(0) + 1;
      sessions = static_cast<uint64_t>(rows.Int(1));
      next_sid = rows.Int(2) + 1;
    }
    return rows.status();
  }));
  // Rates that can't be read are measured anew.
  options.db
      ->Read([&](Reader& reader) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(kept_rates, GetRates(reader, options.fp, options.machine));
        return Status();
      })
      .IgnoreError();
  options.stitcher->BeginWith(kept_rates);
  HOLDFAST_RETURN_IF_ERROR(LoadPauses());
  const int64_t now = NowMs();
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(
        "SELECT s.sid, b.id, s.tenant, s.id, b.wake_ms, b.keep_until_ms, b.pinned "
        "FROM branch b JOIN session s ON s.sid = b.sid WHERE b.wake_ms > ? "
        "ORDER BY b.wake_ms LIMIT ?",
        now - HeadTable::kLongestPauseMs, static_cast<int64_t>(HeadTable::kMaxHeads));
    while (rows.Next()) {
      heads.SetMemory({rows.Int(0), rows.Int(1), std::string(rows.Text(2)),
                        std::string(rows.Text(3))},
                      {rows.Int(4), rows.Int(5), rows.Int(6) != 0});
    }
    return rows.status();
  }));
  return options.db->Write(
      [this, now](Txn& txn) -> Status {
        // Imports that did not end (bundle_import.cc).
        HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM session WHERE expires_ms = 0"));
        HOLDFAST_RETURN_IF_ERROR(txn.Run("UPDATE gc SET done_ms = ? WHERE done_ms = 0", now));
        HOLDFAST_ASSIGN_OR_RETURN(basis, InsertBasis(txn, options.basis));
        HOLDFAST_RETURN_IF_ERROR(
            txn.Run("INSERT INTO event(sid, at_ms, kind, branch, turn, detail) "
                    "SELECT t.sid, ?, 'turn_aborted', b.name, t.id, 'process ended' "
                    "FROM turn t JOIN branch b ON b.id = t.branch WHERE t.status < 2",
                    now));
        return txn.Run("UPDATE turn SET status = ?, ended_ms = ? WHERE status < 2",
                       TurnStatus::kAborted, now);
      },
      WriteClass::kTurn);
}

// Queued, not waited for: where that fails the next start knows older ones.
void Keeper::Impl::KeepRates() {
  if (options.machine.empty()) return;
  const StitchRates now = options.stitcher->rates();
  std::lock_guard lock(rates_mu);
  if (!DiffersMuch(kept_rates, now)) return;
  const Status queued = options.db->Submit(
      [fp = options.fp, machine = options.machine, now](Txn& txn) {
        return PutRates(txn, fp, machine, now);
      },
      WriteClass::kBackground, [](const Status& written) { written.IgnoreError(); });
  if (queued.ok()) kept_rates = now;
}

Status Keeper::Impl::LoadPauses() {
  HeadTable::Pauses pauses;
  const Status read = options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(
        "SELECT tool, pauses FROM tool_pause WHERE length(tool) = 32 AND length(pauses) % 8 = 0");
    while (rows.Next()) pauses[rows.DigestAt(0)] = rows.Array<double>(1);
    return rows.status();
  });
  if (read.ok()) heads.KnowPauses(pauses);
  return read;
}

void Keeper::Impl::SavePauses() {
  const HeadTable::Pauses pauses = heads.TakeNewPauses();
  if (pauses.empty()) return;
  // Where this fails they are written with the tool's next one.
  options.db
      ->Write(
          [&](Txn& txn) -> Status {
            for (const auto& [tool, values] : pauses) {
              HOLDFAST_RETURN_IF_ERROR(txn.Run("INSERT OR REPLACE INTO tool_pause VALUES(?, ?)",
                                               tool, std::as_bytes(std::span(values))));
            }
            return Status();
          },
          WriteClass::kBackground)
      .IgnoreError();
}

void Keeper::Impl::SweepExpired() {
  const int64_t now = NowMs();
  int64_t due = next_sweep_ms.load();
  if (now < due || !next_sweep_ms.compare_exchange_strong(due, now + kSweepEveryMs)) return;
  SweepSome();
}

bool Keeper::Impl::SweepSome() {
  const Result<std::vector<SessionRow>> expired = Expired(NowMs(), -1, kSweepSessions);
  if (!expired.ok()) return false;
  // One that a turn runs on stays, and is looked at again in the next sweep.
  bool any = false;
  for (const SessionRow& s : *expired) any |= DeleteSession(s, Deletion::kIfExpired).ok();
  return any && expired->size() == kSweepSessions;
}

Result<std::vector<SessionRow>> Keeper::Impl::Expired(int64_t now, int64_t after, int most) {
  std::vector<SessionRow> expired;
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(
        "SELECT sid, id FROM session WHERE expires_ms IS NOT NULL AND expires_ms <= ? AND "
        "sid > ? ORDER BY sid LIMIT ?",
        now, after, most);
    while (rows.Next()) {
      SessionRow s;
      s.sid = rows.Int(0);
      s.id = rows.Text(1);
      expired.push_back(std::move(s));
    }
    return rows.status();
  }));
  return expired;
}

void Keeper::Impl::EndTurn(Turn::Impl* turn) {
  turn->ended = true;
  reserved_pages -= std::exchange(turn->reserved_pages, 0);
  turn->timeline.reset();
  turn->loading.reset();
  running.Leave(turn->start.turn_id, &turn->lease);
}

// After a commit: the turn's timeline becomes the branch's warm head, which ends at `head`, `keep`
// tokens long.
void Keeper::Impl::KeepHead(Turn::Impl* turn, std::optional<Timeline> timeline, Point head,
                            int64_t keep, std::shared_ptr<const Recipe> recipe) {
  ++committed;
  turn->base.reset();
  if (timeline && options.segments != nullptr) {
    options.segments->Learn(*timeline, turn->draft.bodies, turn->sid);
  }
  const TurnStart& start = turn->start;
  const auto answer_begin = static_cast<int64_t>(turn->prompt.size());
  if (timeline && recipe != nullptr && start.stitch.policy == ReusePolicy::kVerify &&
      keep > answer_begin) {
    LineUpShadow({{turn->sid, turn->branch, turn->tenant, start.session_id}, start.branch,
                  start.turn_id, head, answer_begin, timeline->taint()});
  }
  if (timeline && (timeline->size() <= keep || timeline->Truncate(keep).ok())) {
    warm.Put({turn->sid, turn->branch, std::move(*timeline), std::move(recipe)});
  } else {
    heads.LetGo(turn->branch, {});
  }
}

CommitResult Keeper::Impl::CommitTurn(Turn::Impl* turn, TurnOutcome outcome) {
  const auto start = std::chrono::steady_clock::now();
  CommitResult result;
  const Output output = MakeOutput(*this, *turn, outcome);
  const int64_t now = NowMs();
  const HeadMemory memory = MemoryAfter(*turn, now);
  const int64_t keep = static_cast<int64_t>(turn->prompt.size()) + output.kept - output.header;
  std::vector<PageKey> pages;
  if (outcome.timeline && turn->durability == Durability::kKv) {
    pages = outcome.timeline->ExactKeys();
  }
  int64_t node = 0;  // of the output
  std::shared_ptr<Recipe> recipe;
  if (turn->recipe != nullptr) {
    recipe = std::make_shared<Recipe>(*turn->recipe);
    AddSpan(&recipe->spans, {.begin = recipe->size(), .end = keep, .generation = 1});
  }
  if (turn->recorded) {
    HistoryName name = turn->draft.name;
    CallNumbers made;
    name.Add(IdentityOf(outcome.message), &made);
    result.status = options.db->Write(
        [&](Txn& txn) -> Status {
          HOLDFAST_RETURN_IF_ERROR(
              InsertNodes(txn, *this, *turn, output, outcome, name, &node));
          HOLDFAST_RETURN_IF_ERROR(MoveHead(txn, *turn, output, node, name.by_ids, memory, now));
          if (recipe != nullptr) HOLDFAST_RETURN_IF_ERROR(PutRecipe(txn, node, *recipe));
          std::string_view response;
          if (turn->keep_response) response = outcome.response;
          HOLDFAST_RETURN_IF_ERROR(txn.Run(
              "UPDATE turn SET status = ?, output = ?, finish = ?, response = ?, ended_ms = ? "
              "WHERE id = ?",
              TurnStatus::kCommitted, node, outcome.finish,
              std::as_bytes(std::span(response.data(), response.size())), now,
              turn->start.turn_id));
          HOLDFAST_RETURN_IF_ERROR(RecordTiming(txn, turn->start.turn_id, outcome.timing));
          return InsertEvent(txn, {turn->sid, now, "turn_committed", turn->start.branch,
                                   turn->start.turn_id, outcome.finish});
        },
        WriteClassOf(turn->durability));
    result.committed = result.status.ok();
    result.durable = result.committed && turn->durability != Durability::kLazy;
  }
  if (result.committed) {
    const auto tokens = static_cast<int64_t>(output.tokens.size());
    quotas.Added(turn->tenant, turn->draft.input_count + tokens);
    heads.TurnCommitted(turn->branch, {outcome.message.tool_calls, memory, now});
    KeepHead(turn, std::move(outcome.timeline), {node, output.kept}, keep, std::move(recipe));
  } else {
    ReturnBase(turn);
  }
  EndTurn(turn);
  caretaker.Poke();
  if (result.committed && turn->durability == Durability::kKv) {
    result.durable_kv = SyncKv(*turn, pages);
  }
  result.commit_ms = MsSince(start);
  return result;
}

// The turn's tokens are durable whatever comes of its pages: those can be made again. But who asked
// for them is told where they are not there.
bool Keeper::Impl::SyncKv(const Turn::Impl& turn, const std::vector<PageKey>& pages) {
  Status synced = Status::Unavailable("there is no page store");
  if (options.sync_pages) synced = options.sync_pages();
  // An error may have been told to somebody else who waited for the same pages.
  if (synced.ok() && options.store != nullptr &&
      !std::all_of(pages.begin(), pages.end(),
                   [&](const PageKey& key) { return options.store->Contains(key); })) {
    synced = Status::Io("not all pages were written");
  }
  if (synced.ok()) return true;
  ++kv_failures;
  options.db
      ->Write(
          [&](Txn& txn) {
            return InsertEvent(txn, {turn.sid, NowMs(), "kv_not_durable", turn.start.branch,
                                     turn.start.turn_id, synced.message()});
          },
          WriteClass::kBackground)
      .IgnoreError();  // the answer says it as well
  return false;
}

void Keeper::Impl::AbortTurn(Turn::Impl* turn, TurnOutcome outcome) {
  if (turn->ended) return;
  ++aborted;
  if (turn->recorded) {
    const Output output = MakeOutput(*this, *turn, outcome);
    const bool any = static_cast<int64_t>(output.tokens.size()) > output.header;
    const int64_t now = NowMs();
    // Where this fails the row is found open at the next start, and aborted then.
    options.db
        ->Write(
            [&](Txn& txn) -> Status {
              int64_t node = 0;
              if (any) {
                HOLDFAST_RETURN_IF_ERROR(
                    InsertNodes(txn, *this, *turn, output, outcome, std::nullopt, &node));
              }
              HOLDFAST_RETURN_IF_ERROR(txn.Run(
                  "UPDATE turn SET status = ?, output = ?, finish = ?, ended_ms = ? WHERE id = ?",
                  TurnStatus::kAborted, any ? SqlValue(node) : SqlValue(), outcome.finish, now,
                  turn->start.turn_id));
              return InsertEvent(txn, {turn->sid, now, "turn_aborted", turn->start.branch,
                                       turn->start.turn_id, outcome.finish});
            },
            WriteClassOf(turn->durability))
        .IgnoreError();
  }
  outcome.timeline.reset();
  ReturnBase(turn);
  EndTurn(turn);
}

// The turn has come to nothing: its head is as it was.
void Keeper::Impl::ReturnBase(Turn::Impl* turn) {
  using Kept = HeadTable::Kept;
  const bool kept = turn->base || warm.IsWarm(turn->branch);
  heads.TurnAborted(turn->branch, kept ? Kept::kTimeline : Kept::kNothing);
  if (turn->base) warm.Return(std::move(*turn->base));
}

Keeper::Keeper(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Keeper::~Keeper() { Shutdown(); }

std::vector<Migration> Keeper::Migrations() {
  std::vector<Migration> all = SessionMigrations();
  for (Migration& m : SegmentStore::Migrations()) all.push_back(std::move(m));
  for (Migration& m : SegmentGcMigrations()) all.push_back(std::move(m));
  for (Migration& m : RecipeMigrations()) all.push_back(std::move(m));
  for (Migration& m : RateMigrations()) all.push_back(std::move(m));
  return all;
}

Result<std::unique_ptr<Keeper>> Keeper::Open(const KeeperOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  HOLDFAST_ASSIGN_OR_RETURN(impl->renderer,
                            PromptRenderer::Create(options.tokenizer, options.chat_template));
  HOLDFAST_RETURN_IF_ERROR(impl->Recover());
  impl->SweepExpired();
  impl->caretaker.Start(options.tend_every_ms);
  return std::unique_ptr<Keeper>(new Keeper(std::move(impl)));
}

Result<std::unique_ptr<Turn>> Keeper::Begin(const TurnRequest& request) {
  if (impl_->shut) return Status::Unavailable("shutting down");
  return AdmitTurn(*impl_, request);
}

CommitResult Keeper::Commit(std::unique_ptr<Turn> turn, TurnOutcome outcome) {
  return impl_->CommitTurn(&turn->impl(), std::move(outcome));
}

void Keeper::Abort(std::unique_ptr<Turn> turn, TurnOutcome outcome) {
  impl_->AbortTurn(&turn->impl(), std::move(outcome));
}

void Keeper::Tend() { impl_->caretaker.Tend(); }

void Keeper::MakeRoom(int64_t pages) { impl_->warm.MakeRoom(pages); }

void Keeper::Shutdown() {
  if (impl_->shut.exchange(true)) return;
  impl_->leases.Close();
  impl_->caretaker.Stop();
  impl_->warm.LetGoOfAll();
  impl_->KeepRates();
  impl_->SavePauses();
  impl_->options.db->Flush().IgnoreError();  // lazy turns; it fails where the store is degraded
}

KeeperStats Keeper::stats() const {
  const WarmHeads::Stats warm = impl_->warm.stats();
  KeeperStats s;
  s.sessions = impl_->sessions;
  s.turns_committed = impl_->committed;
  s.turns_aborted = impl_->aborted;
  s.retries = impl_->retries;
  s.replays = impl_->replays;
  s.running = static_cast<uint64_t>(impl_->leases.held());
  s.resident_timelines = warm.heads;
  s.tails_written = warm.tails_written;
  s.tails_restored = warm.tails_restored;
  s.pages_given_up = warm.given_up;
  s.heads = impl_->heads.counts();
  s.prefetches = impl_->caretaker.prefetches();
  s.pages_prefetched = impl_->caretaker.pages_prefetched();
  const DatabaseStats db = impl_->options.db->stats();
  s.unsynced = db.unsynced;
  s.hardened = impl_->hardened;
  s.kv_failures = impl_->kv_failures;
  s.collections = impl_->collections;
  s.collected_pages = impl_->collected_pages;
  {
    std::lock_guard lock(impl_->verified_mu);
    const Impl::Verified& v = impl_->verified;
    s.verified = v.answers;
    s.verified_tokens = v.tokens;
    s.verify_skipped = v.skipped;
    s.verified_kl = v.kl;
    s.verified_kl_max = v.kl_max;
  }
  s.degraded = impl_->options.db->degraded();
  return s;
}

}  // namespace holdfast
