// Inside sessions: what keeper.cc, admission.cc, branch.cc and keeper_tree.cc share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/env.h"
#include "sessions/caretaker.h"
#include "sessions/head_table.h"
#include "sessions/keeper.h"
#include "sessions/lease.h"
#include "sessions/log.h"
#include "sessions/prompt.h"
#include "sessions/quota.h"
#include "sessions/running.h"
#include "sessions/warm.h"
#include "stitcher/segment_store.h"

namespace holdfast {

// What a turn adds to the log after its base, worked out at Begin and written by Commit or Abort.
struct TurnDraft {
  Point base;
  int64_t base_tokens = 0, base_items = 0;
  std::vector<TokenId> tokens;       // input, then what opens the output
  std::vector<TokenOrigin> origins;  // one per token
  int64_t input_count = 0;           // tokens of the input node; 0 = there is none
  std::vector<NewItem> items;        // of the input node
  std::vector<BodySpan> bodies;      // in the whole context: what segments may be made of
  HistoryName name;                  // of the lineage with the input's items
  Digest context;                    // template, tokenizer, model, tools, template arguments
};

struct Turn::Impl {
  Keeper::Impl* keeper = nullptr;
  TurnStart start;
  uint64_t seed = 0;
  std::vector<TokenId> prompt;
  int64_t max_tokens = 0;
  std::optional<Timeline> timeline;
  std::shared_ptr<PageLoad> loading;  // pages of the timeline that are still on their way, or null
  std::shared_ptr<const Recipe> recipe;  // how the prompt's KV is made, where it is not exact
  std::optional<std::string> replay;
  std::vector<TokenId> replayed;

  HeadLeases::Lease lease;
  std::optional<WarmHeads::Head> base;  // the warm head before this turn; it returns after an abort
  bool becomes_default = false;         // its branch, with the commit
  std::string tenant, sampling_json, tools_json, kwargs_json;
  int64_t sid = 0, branch = 0, generation = 0;
  bool recorded = false;                // there is a row: the turn can be committed
  RetentionHints hints;
  bool pinned = false;                  // the branch, until now
  bool keep_response = false;           // it has an idempotency key
  Durability durability = Durability::kTurn;
  TurnDraft draft;
  int64_t reserved_pages = 0;
  bool ended = false;
};

// An answer that is to be measured against full prefill (policy verify).
struct ShadowJob {
  HeadId id;
  std::string branch, turn;          // names
  Point head;                        // behind the answer
  int64_t answer_begin = 0;
  Digest taint;                      // of the timeline that it was given over
};

struct Keeper::Impl {
  explicit Impl(const KeeperOptions& o)
      : options(o), leases(o.max_waiting),
        warm({o.pool, o.store, o.db, o.fp, o.max_resident, &heads, o.stitcher,
              [this] { return NowMs(); }}),
        caretaker(this), quotas(o.quotas, o.db) {}

  const KeeperOptions options;
  RealEnv env;
  std::unique_ptr<PromptRenderer> renderer;
  HeadLeases leases;
  RunningTurns running;
  HeadTable heads;
  WarmHeads warm;
  Caretaker caretaker;
  Quotas quotas;
  std::atomic<bool> shut{false};
  std::atomic<int64_t> next_branch{1}, next_sid{1};  // deleted sessions' stay closed
  int64_t basis = 0;  // its row; constant after Open
  std::atomic<int64_t> next_sweep_ms{0};
  std::atomic<int64_t> reserved_pages{0};  // that running turns may still ask the pool for
  std::atomic<int64_t> turn_pages{0};      // of the largest of the last turns
  std::atomic<uint64_t> sessions{0}, committed{0}, aborted{0}, retries{0}, replays{0};
  std::atomic<uint64_t> hardened{0}, kv_failures{0}, collections{0}, collected_pages{0};
  std::mutex collect_mu;  // one gc at a time
  struct Verified {
    uint64_t answers = 0, tokens = 0, skipped = 0;
    double kl = 0, kl_max = 0;
  };
  std::mutex verified_mu;
  Verified verified;  // under verified_mu
  std::mutex rates_mu;
  StitchRates kept_rates;  // under rates_mu: as the database has them

  int64_t NowMs();
  // What a branch's next head is remembered with after a turn.
  HeadMemory MemoryAfter(const Turn::Impl& turn, int64_t now_ms) const;
  uint64_t RandomU64();
  std::string NewId(std::string_view prefix);  // prefix and 24 hexadecimal digits
  Digest RootHash(const Digest& context) const { return LineageRoot(context); }

  Status Recover();
  // Whether the tenant may have one session more, as of now (Quotas asks again in the transaction
  // that makes one); whether a turn of `pages` fits into its memory, for which its warm heads go.
  Status CheckNewSession(std::string_view tenant);
  Status MakeRoomOf(const TenantScope& scope, int64_t branch, int64_t pages);
  // The tokens of a session up to `head`, or else to that of the branch.
  Result<std::vector<TokenId>> TokensAt(const HeadId& id, std::optional<Point> head);
  // Work of the caretaker's while no turn runs: kCancelled when one came.
  Status HardenBranch(const HeadId& id);
  Status ShadowTurn(const ShadowJob& job);
  void LineUpShadow(ShadowJob job);
  void KeepRates();
  static constexpr int64_t kSweepEveryMs = 60'000;
  // At most once in kSweepEveryMs.
  void SweepExpired();
  // Deletes some sessions that have expired; true when there may be more.
  bool SweepSome();
  // Those that have expired at `now`: sid and id, ascending, of sids above `after`.
  Result<std::vector<SessionRow>> Expired(int64_t now, int64_t after, int most);
  // `session` was read before. kNotFound: another has deleted it meanwhile. kConflict: a turn runs,
  // an import is under way, or (kIfExpired) one that has ended meanwhile gave it life again.
  enum class Deletion : uint8_t { kAnyway, kIfExpired };
  Status DeleteSession(const SessionRow& session, Deletion deletion);
  // Ends the turns of a session, whose deletion follows. kUnavailable: one has not ended in time.
  Status EndTurns(const SessionRow& session);
  // What tools took, from the database and into it.
  Status LoadPauses();
  void SavePauses();  // those that are new
  Result<int64_t> DeleteExpired();
  // Collect and PagesInUse of the keeper; kCancelled once `stop` says so.
  using Stop = std::function<bool()>;
  Result<Collected> Collect(const Stop& stop, std::chrono::milliseconds wait_for_readers);
  Result<KeepPage> PagesInUse(const Stop& stop);
  struct GcRow {
    int64_t done_ms = 0, deletions = 0;
  };
  Result<GcRow> ReadGcRow();
  struct Doomed {
    bool was_whole = false;  // else it is what an import that failed has left
    std::vector<PageKey> tails;
  };
  Result<Doomed> LookAtDoomed(const SessionRow& session, Deletion deletion);
  void EndTurn(Turn::Impl* turn);  // gives back the lease and the reservation
  void ReturnBase(Turn::Impl* turn);
  void AbortTurn(Turn::Impl* turn, TurnOutcome outcome);
  CommitResult CommitTurn(Turn::Impl* turn, TurnOutcome outcome);
  // After a commit with Durability::kKv: whether `pages` are on disk now.
  bool SyncKv(const Turn::Impl& turn, const std::vector<PageKey>& pages);
  void KeepHead(Turn::Impl* turn, std::optional<Timeline> timeline, Point head, int64_t keep,
                std::shared_ptr<const Recipe> recipe);
};

// What the rows of a turn wait for.
inline WriteClass WriteClassOf(Durability durability) {
  return durability == Durability::kLazy ? WriteClass::kLazy : WriteClass::kTurn;
}

// keeper.cc
// The input node of a draft with its items, where it has any; gives the point where the draft ends.
// `node`: all but its parent and its tokens.
Result<Point> InsertInput(Txn& txn, const TurnDraft& draft, NewNode node);

// keeper_tree.cc
// kInvalid that begins with `what`: longer than a name may be.
Status CheckName(std::string_view what, std::string_view name);
// And of a branch's: with a byte that the quoted text of a header (`ETag`) can't hold.
Status CheckBranchName(std::string_view what, std::string_view name);
BranchInfo InfoOf(const Keeper::Impl& k, const SessionTree& tree, const BranchRow& b);
// The branch of that name, or the default one for "". kNotFound.
Result<const BranchRow*> PickBranch(const SessionTree& tree, std::string_view name);
// The name of a branch's state.
std::string StateOf(const Keeper::Impl& k, const SessionTree& tree, const BranchRow& b);

// snapshot.cc
struct SnapshotRow {
  int64_t n = 0;
  Point point;
  SnapshotInfo info;
};
Result<SnapshotRow> FindSnapshot(Reader& reader, int64_t sid, std::string_view snapshot);
Result<std::vector<SnapshotInfo>> LoadSnapshots(Reader& reader, int64_t sid);

// Runs `body` over a session's tree at one moment.
template <typename Body>
Status WithTree(Keeper::Impl& k, std::string_view tenant, std::string_view id, const Body& body) {
  return k.options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, k.NowMs()}));
    HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, session));
    return body(reader, tree);
  });
}

// runs.cc
// Runs of a prompt that was placed in the tree: first what the session's own branches hold (what
// follows an edit, what stays of a compacted history), in the gaps what KeeperOptions::find_runs
// knows.
std::vector<FoundRun> RunsOf(Keeper::Impl& k, const SessionTree& tree, const TenantScope& scope,
                             std::span<const TokenId> prompt);

// admission.cc
Result<std::unique_ptr<Turn>> AdmitTurn(Keeper::Impl& keeper, const TurnRequest& request);

}  // namespace holdfast
