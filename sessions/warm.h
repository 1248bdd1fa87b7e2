// Warm heads: timelines kept after their turns, so that the next one begins where it ended. Bounded
// by count and by what the pool can spare; who goes first is retention's to say (retention.h).
//
// Before a warm head is let go its partial page is written to the page store under its tail key,
// and so are sealed pages that the store lacks; a later Stitch of the same tokens ends with
// RestoreTail. Losing any of it costs a short prefill. WriteAhead, on the caretaker's thread, does
// it for those that will go first while they are still warm: who lets go of them then only gives
// back memory. Where it had no time for that, who wants the room waits for it, as long as that is
// worth it (head_saver.h): a disk that stalls delays no turn by more than a moment.
//
// Thread-safe; no lock is held over I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/store/database.h"
#include "sessions/head_saver.h"
#include "sessions/head_table.h"
#include "stitcher/stitcher.h"

namespace holdfast {

class WarmHeads {
 public:
  struct Options {
    PagePool* pool = nullptr;
    PageStore* store = nullptr;  // may be null: nothing is written
    Database* db = nullptr;      // table `tail`
    Digest fp;
    int max_heads = 64;
    HeadTable* table = nullptr;  // is told who was let go, and says how likely each is resumed
    Stitcher* stitcher = nullptr;  // what loading and computing cost; reads tails
    std::function<int64_t()> now_ms;
  };
  struct Head {
    int64_t sid = 0, branch = 0;
    Timeline timeline;
    std::shared_ptr<const Recipe> recipe = nullptr;  // of a tainted timeline
  };
  struct Stats {
    uint64_t heads = 0, tails_written = 0, tails_restored = 0;
    uint64_t given_up = 0;  // pages that the disk was too slow to take
  };

  explicit WarmHeads(const Options& options)
      : options_(options), saver_(options.pool, options.store, options.db) {}

  // Takes out the head of the session that shares the most tokens with `tokens`, that of `branch`
  // where several do. Its borrower puts it back, or keeps it.
  std::optional<Head> Take(int64_t sid, int64_t branch, std::span<const TokenId> tokens);
  // The first `length` tokens of the branch's warm head; nullopt when it is not warm, or shorter.
  std::optional<Timeline> ForkOf(int64_t branch, int64_t length) const;
  // Keeps it as the branch's warm head, in the place of an older one; lets go of others where there
  // are too many.
  void Put(Head head);
  // Gives back what Take lent; dropped when the branch has a newer one by now.
  void Return(Head head);
  // Lets go of heads until the pool has room for `pages`.
  void MakeRoom(int64_t pages);
  // Writes down, and keeps, the heads that would be let go for `pages` and one head more.
  void WriteAhead(int64_t pages);
  // Lets go of the tenant's warm heads until `missing` pages are none or no head is warm.
  void MakeRoomOf(const TenantScope& scope, const std::function<int64_t()>& missing);
  void Drop(int64_t sid);  // without writing anything
  void LetGoOfAll();  // waits until all is written, however long that takes
  bool IsWarm(int64_t branch) const;
  Stats stats() const;

  // Writes the partial page of the branch's warm head, if there is one, for good (a snapshot), as
  // long as waiting for that is worth it.
  void WriteSnapshotTail(int64_t sid, int64_t branch);
  // What it takes to have pages again: from disk where they are there, else by computing.
  double SecondsToHave(std::span<const PageKey> keys) const;
  // Rows of the branch's warm head that have their KV; 0 when none is warm.
  int64_t Filled(int64_t branch) const;
  // The longest partial page in the store that begins with the first of `tokens` after the pages of
  // `parent`; 0 = there is none.
  int64_t StoredTail(const PageKey& parent, std::span<const TokenId> tokens) const;
  // Fills in rows after the whole pages of a stitched timeline from a tail record, if there is one
  // that comes in time (Stitcher::ReadTail).
  void RestoreTail(Timeline* timeline, StitchReport* report);
  // Forgets all tails of a session in the page store.
  void ForgetTails(std::span<const PageKey> keys) { saver_.ForgetTails(keys); }

 private:
  using Heads = std::list<Head>;
  using TailOwner = HeadSaver::TailOwner;
  using Unsaved = HeadSaver::Unsaved;
  struct Leaver {
    Heads::iterator head;
    int64_t pages = 0;  // that it alone holds
  };
  std::vector<Leaver> LineLocked();
  void LetGoWhile(const std::function<int64_t()>& missing, const TenantScope* of);
  std::vector<PageKey> OwnPages(const Head& head) const;
  int64_t MissingInPool(int64_t pages) const;
  void LetGo(Heads* gone, HeadSaver::Wait wait = HeadSaver::Wait::kWhileWorthIt);
  double ComputeMsPerToken() const;
  std::optional<Unsaved> UnsavedOf(const Head& head, TailOwner owner) const;
  std::vector<HeadSaver::Record> UnsavedPages(const Timeline& timeline) const;
  void Save(std::vector<Unsaved> heads, HeadSaver::Wait wait);

  const Options options_;
  mutable std::mutex mu_;
  Heads heads_;
  uint64_t tails_restored_ = 0;
  HeadSaver saver_;
};

}  // namespace holdfast
