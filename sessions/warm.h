// Warm heads: timelines kept after their turns, so that the next one begins where it ended. Bounded
// by count and by what the pool can spare; the one used longest ago goes first.
//
// When a warm head is let go its partial page is written to the page store under its tail key, and
// so are sealed pages that the store lacks; a later Stitch of the same tokens ends with
// RestoreTail. Losing any of it costs a short prefill.
//
// Thread-safe; page files are written with no lock held.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/store/database.h"
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
  };
  struct Head {
    int64_t sid = 0, branch = 0;
    Timeline timeline;
  };
  struct Stats {
    uint64_t heads = 0, tails_written = 0, tails_restored = 0;
  };

  explicit WarmHeads(const Options& options) : options_(options) {}

  // Takes out the head of the session that shares the most tokens with `tokens`, that of `branch`
  // where several do. Its borrower puts it back, or keeps it.
  std::optional<Head> Take(int64_t sid, int64_t branch, std::span<const TokenId> tokens);
  // Keeps it as the branch's warm head, in the place of an older one; lets go of others where there
  // are too many.
  void Put(Head head);
  // Gives back what Take lent; dropped when the branch has a newer one by now.
  void Return(Head head);
  void MakeRoom(int64_t pages);
  void Drop(int64_t sid);  // without writing anything
  void LetGoOfAll();
  bool IsWarm(int64_t branch) const;
  Stats stats() const;

  // Writes the partial page of the branch's warm head for good (a snapshot); ok when none is warm.
  Status WriteSnapshotTail(int64_t sid, int64_t branch);
  // Fills in rows after the whole pages of a stitched timeline from a tail record, if there is one.
  void RestoreTail(Timeline* timeline, StitchReport* report);
  // Forgets all tails of a session in the page store.
  void ForgetTails(std::span<const PageKey> keys);

 private:
  enum class TailOwner : uint8_t { kBranch, kSnapshot };
  void WriteAllDown(const std::list<Head>& heads);
  Status WriteDown(const Head& head, TailOwner owner);
  Status WriteTail(const Head& head, TailOwner owner);
  Status ForgetOlderTails(const Head& head, const PageKey& kept);
  Status WriteMissingPages(const Timeline& timeline);
  std::vector<std::span<std::byte>> PayloadOf(const PageLease& page) const;

  const Options options_;
  mutable std::mutex mu_;
  std::list<Head> heads_;  // used last at the front
  uint64_t tails_written_ = 0, tails_restored_ = 0;
};

}  // namespace holdfast
