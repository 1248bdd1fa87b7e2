// The session keeper: durable conversations over SQLite, and the timelines that are warm.
//
// Truth is the token log (DESIGN: tokens are the truth, KV is a cache). A session is a tree of
// immutable nodes; a branch is a named point (node, count) in it; its head moves only in the
// transaction that commits a turn. History that a client sends is matched item by item (tool-call
// id, then content), and the tokens that were sampled are used again, never a re-rendering.
//
// A turn: Begin (match, tokenise what is new, take the head's lease, write the admitted row, stitch
// a timeline) -> decode elsewhere -> Commit or Abort. Dropping a Turn aborts it.
//
// Thread-safe; no lock is held over I/O. All calls may block on SQLite or page files, and Begin
// with OnBusy::kQueue waits for the head: never call them from the model thread. Ids of sessions,
// branches and snapshots of another tenant are kNotFound, as are those that never were.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/kv/page_store.h"
#include "engine/store/database.h"
#include "sessions/bundle.h"
#include "sessions/basis.h"
#include "sessions/head_table.h"
#include "sessions/quota.h"
#include "sessions/recording.h"
#include "sessions/tree.h"
#include "sessions/turn.h"
#include "stitcher/stitcher.h"

namespace holdfast {

class File;
class SegmentStore;

struct KeeperStats {
  uint64_t sessions = 0, turns_committed = 0, turns_aborted = 0, retries = 0, replays = 0;
  uint64_t running = 0;              // turns between Begin and their end
  uint64_t resident_timelines = 0;
  uint64_t tails_written = 0, tails_restored = 0;
  uint64_t pages_given_up = 0;       // of warm heads, that the disk was too slow to take
  HeadTable::Counts heads;           // that are known, by state
  uint64_t prefetches = 0, pages_prefetched = 0;
  uint64_t unsynced = 0;             // commits (admissions too) that a power cut would take
  uint64_t kv_failures = 0;          // turns of Durability::kKv whose pages are not all on disk
  uint64_t hardened = 0;             // branches computed in full after approximate turns
  uint64_t collections = 0, collected_pages = 0;  // gcs, and the pages that they have deleted
  // Of policy verify: answers measured against full prefill, their tokens, the sum and the largest
  // of these tokens' KL, answers for which there was no time or no memory.
  uint64_t verified = 0, verified_tokens = 0, verify_skipped = 0;
  double verified_kl = 0, verified_kl_max = 0;  // nats
  bool degraded = false;             // the last commit failed; nothing durable is taken on
};

// What a check of the token log found.
struct LogReport {
  struct Kind {
    int64_t rows = 0, damaged = 0;
  };
  Kind sessions, nodes, items, recipes, branches, turns, snapshots, events, tails;
  Kind segments, variants;        // of all models
  int64_t database_damaged = 0;   // SQLite's own pages and references
  std::vector<std::string> what;  // the first that are damaged, with session and reason
  int64_t damaged() const {
    return database_damaged + sessions.damaged + nodes.damaged + items.damaged + recipes.damaged +
           branches.damaged + turns.damaged + snapshots.damaged + events.damaged + tails.damaged +
           segments.damaged + variants.damaged;
  }
};

// What a gc has deleted.
struct Collected {
  int64_t sessions = 0;  // whose time to live had ended
  DeletedPages pages;    // that nobody needs any more
  // No file holds a byte of what was deleted. False: a long read, an export or a backup, has held
  // the database's log all the while, so that texts of deleted rows are still there; run it again.
  bool shredded = false;
};

struct KeeperOptions {
  // Those below outlive the keeper.
  Database* db = nullptr;            // opened with Keeper::Migrations() among its migrations
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;
  PagePool* pool = nullptr;
  Stitcher* stitcher = nullptr;
  PageStore* store = nullptr;        // for partial pages; null = none is kept
  SegmentStore* segments = nullptr;  // learns from committed turns; null = nothing does
  Digest fp;                         // Model::fingerprint(): whose pages
  Digest model_digest;               // Model::weights_digest(): whose tokens
  Basis basis;                       // recorded with each turn
  std::string model_name;
  int64_t max_context = 0;           // tokens of one timeline
  // Runs of a prompt, inside `where`, that were computed elsewhere, ascending and disjoint, for
  // requests that let KV be approximate, behind what the session itself has; null = none are found.
  std::function<std::vector<FoundRun>(const TenantScope&, std::span<const TokenId>,
                                      TokenRange where)> find_runs;

  std::map<std::string, TenantQuota> quotas;  // by tenant; "*" = of each that is not named
  int max_resident = 64;             // warm heads
  int64_t anonymous_ttl_s = 3600;
  int max_waiting = 64;              // turns that wait for one head (OnBusy::kQueue)
  std::function<int64_t()> now_ms;   // Unix time; null = the system clock
  int64_t tend_every_ms = 500;         // rounds of the keeper's own thread; 0 = it has none (tests)
  // Where something was deleted, that thread runs a gc (Collect) so long after the last one, once
  // no turn runs; after twice the time it waits for that no longer. 0 = none.
  int64_t gc_every_ms = 0;
  std::function<Status()> sync_pages;  // makes sealed pages durable (Durability::kKv); may be null
  // Waits, for so many ms at most, until no sealed page waits to be written; may be null.
  std::function<void(int64_t most_ms)> drain_pages;
  std::string machine;  // names it beside what was measured on it (stitcher/rates.h); "" = not kept
};

class Keeper {
 public:
  // The tables (sessions/schema.cc) and those of segments beside them, for
  // Database::Options::migrations.
  static std::vector<Migration> Migrations();
  // Marks the turns of a process that died as aborted, drops expired sessions, tells the stitcher
  // what this machine has measured before.
  static Result<std::unique_ptr<Keeper>> Open(const KeeperOptions& options);
  ~Keeper();  // Shutdown

  // kInvalid: bad messages, a template that refuses them, "context_length_exceeded: ..." with both
  // counts. kNotFound: unknown session or branch. kConflict: busy head (OnBusy::kReject), or an
  // idempotency key that was used for another request. kExhausted: too many wait for the head, no
  // pool pages, or the store is degraded and the turn wants durability; "quota_exceeded: ..." and
  // "insufficient_storage: ..." where the tenant has more than its quota (quota.h).
  Result<std::unique_ptr<Turn>> Begin(const TurnRequest& request);
  // Items, tokens and the moved head in one transaction. The timeline becomes the warm head.
  CommitResult Commit(std::unique_ptr<Turn> turn, TurnOutcome outcome);
  // The head has not moved; what was generated is kept as an aborted turn.
  void Abort(std::unique_ptr<Turn> turn, TurnOutcome outcome);

  Result<SessionInfo> Create(std::string_view tenant, const CreateSession& request);
  // `range.after` may be the id of a session too.
  Result<Listed<SessionInfo>> List(std::string_view tenant, const ListRange& range);
  // `id` here and below: "sess_..." or the client's own.
  Result<SessionInfo> Get(std::string_view tenant, std::string_view id);
  // With all branches, nodes, items, snapshots, events and partial pages. What runs: kConflict, or
  // it is cancelled first, and nothing new begins meanwhile.
  enum class Running : uint8_t { kRefuse, kCancel };
  Status Delete(std::string_view tenant, std::string_view id, Running running = Running::kRefuse);
  // Ends a turn that runs as if its client had gone, and waits until it has ended. True: it was
  // aborted, now or before; false: it was committed first.
  Result<bool> CancelTurn(std::string_view tenant, std::string_view id, std::string_view turn);

  // kInvalid: too many items for one answer.
  Result<TreeInfo> Tree(std::string_view tenant, std::string_view id);
  Result<std::vector<BranchInfo>> Branches(std::string_view tenant, std::string_view id);
  // `branch` "" = the default one. `range.after` is an item index.
  Result<Listed<ItemInfo>> Items(std::string_view tenant, std::string_view id,
                                 std::string_view branch, const ListRange& range);
  // The token ids of a branch, as the model saw them.
  Result<std::vector<TokenId>> Tokens(std::string_view tenant, std::string_view id,
                                      std::string_view branch);
  // A branch with all that a replay of it needs, and where today's template parts with it.
  Result<Recording> Recorded(std::string_view tenant, std::string_view id,
                             std::string_view branch);
  // The same of the way to a snapshot: the branch as it was then.
  Result<Recording> RecordedAt(std::string_view tenant, std::string_view id,
                               std::string_view snapshot);
  // Fork: Default::kKeep. Rewind: Default::kMove. Moves no bytes of KV; with edits, or under
  // another model, writes the tokens that are new. kInvalid names the edit ("edits[1].item: ..."),
  // or is the template's refusal of the edited history, or "context_length_exceeded: ...".
  Result<BranchInfo> Branch(std::string_view tenant, std::string_view id,
                            const MakeBranch& request);
  // A labelled point that stays; writes the partial page of its head, so that it restores whole.
  Result<SnapshotInfo> Snapshot(std::string_view tenant, std::string_view id,
                                std::string_view branch, std::string_view label);
  Result<std::vector<SnapshotInfo>> Snapshots(std::string_view tenant, std::string_view id);
  Result<SnapshotInfo> GetSnapshot(std::string_view tenant, std::string_view id,
                                   std::string_view snapshot);
  // Its pages leave the disk last, as those of a pinned head do.
  Result<SnapshotInfo> PinSnapshot(std::string_view tenant, std::string_view id,
                                   std::string_view snapshot, SnapshotPin pin);
  // With its partial page, where nothing else ends there.
  Status DeleteSnapshot(std::string_view tenant, std::string_view id, std::string_view snapshot);
  Result<Listed<EventInfo>> Events(std::string_view tenant, std::string_view id,
                                   const ListRange& range);
  // A number that grows whenever any session has changed; waits, for at most `ms`, until it is no
  // longer `seen`. Read it before Events to miss none.
  uint64_t WaitForChange(uint64_t seen, int ms) const;

  // A session as a file that goes on elsewhere (bundle.h), as it is now; what runs is left out.
  Result<std::unique_ptr<BundleExport>> Export(std::string_view tenant, std::string_view id,
                                               const ExportOptions& options);
  // Makes a session of a bundle (`size` bytes of `file`, read twice): all of it or nothing.
  // kCorrupt: not a whole bundle; kInvalid: another version, or messages of another model that this
  // one's template refuses; kConflict: its external id, or that of `options.as`, is there already.
  Result<ImportReport> Import(std::string_view tenant, File* file, uint64_t size,
                              const ImportOptions& options);

  // fsck: every row of every tenant's sessions against the rules of log_check.h. Sessions may be
  // used meanwhile.
  Result<LogReport> CheckLog();
  // Deletes the sessions whose time to live has ended, but for those that a turn runs on.
  Result<int64_t> DeleteExpired();
  // gc: that, then all pages that nobody needs, of this model and others, and then what deleted
  // rows have left in the database's files. Sessions may be used meanwhile.
  Result<Collected> Collect();
  // Which pages some branch, snapshot, partial page or segment needs, as of now.
  Result<KeepPage> PagesInUse();

  // How the KV of each token of a branch was made, as its last turn left it.
  Result<ProvenanceInfo> Provenance(std::string_view tenant, std::string_view id,
                                    std::string_view branch);
  // Begins to compute a branch in full, in the background, once no turn runs: then its KV is exact
  // and its taint is gone. What was sampled stays as it was. False: it is exact already.
  // kExhausted: too many are waiting.
  Result<bool> Harden(std::string_view tenant, std::string_view id, std::string_view branch);

  // Where the tokens of a branch are and what a turn on it would cost.
  Result<ResidencyInfo> Residency(std::string_view tenant, std::string_view id,
                                  std::string_view branch);
  // Begins to load a branch's pages from disk into the pool, in the background; a second call while
  // it does begins nothing. With `wake_at_ms` it is done shortly before then. kExhausted: too many
  // are waiting.
  Result<PrefetchInfo> Prefetch(std::string_view tenant, std::string_view id,
                                const PrefetchRequest& request);
  // One round of the keeper's own thread: lets go of heads before memory runs out, puts what is
  // cached in the order of its worth, in the pool and on disk, and loads what is expected soon.
  void Tend();
  // Lets go of warm heads until `pages` pool pages are free or none is warm.
  void MakeRoom(int64_t pages);
  // Refuses new turns (kUnavailable), writes the partial pages of warm heads and lets go of them,
  // makes lazy turns durable.
  void Shutdown();
  KeeperStats stats() const;

  struct Impl;

 private:
  explicit Keeper(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
