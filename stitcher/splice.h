// Inside stitcher: the part of Stitch behind the exact prefix. Pins the pages that runs need
// (memory, disk, or computed again from the tokens of their chain), asks for windows, and lays
// runs and rows to compute behind one another in a timeline.
//
// On any fault of a run that run is computed, not the request: the plan is made again without it.
// Nothing is put into the timeline before every page that the plan needs is pinned. Pages that come
// from the store are awaited for as long as plan.h allows it for the exact prefix, all runs
// together; what is not there then counts as lost ("slow_store").
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "stitcher/stitcher.h"

namespace holdfast {

// A run's place in the exact chain that it was computed in, as whole pages, and those pages.
struct RunSource {
  PageKey parent;                    // the chain's key before the first of `tokens`
  int64_t home = 0;                  // index of tokens[0] there
  std::span<const TokenId> tokens;   // borrowed
  std::span<const TokenId> left;     // the chain's first `home` tokens; empty: not known
  int64_t shift = 0;                 // index in the prompt minus index there
  std::vector<PageKey> keys;         // of all its pages
  std::vector<PageLease> pages;      // beside `keys`; empty where they are not pinned

  // Of the pages that hold the prompt's tokens [begin, end).
  struct Pages {
    size_t first = 0, end = 0;
  };
  Pages PagesOf(int64_t begin, int64_t end) const;
};
RunSource SourceOf(const FoundRun& run);
RunSource SourceOf(const RecipeSource& source, int64_t shift);

class Splicer {
 public:
  struct Parts {
    PagePool* pool = nullptr;
    PageStore* store = nullptr;      // may be null
    Digest fp;
    // Begins to load a chain's blocks, one at least, front first.
    std::function<std::shared_ptr<PageLoad>(PageLoad::Chain)> load;
    StitchRates rates;
    std::shared_ptr<const ModelCard> card;            // null: none
    ChooseWindowsFn choose;                           // may be null
    // All pages of an exact chain, computed where they are nowhere; null: can't be done.
    std::function<Result<Timeline>(const TenantScope&, std::span<const TokenId>)> compute;
  };
  Splicer(Parts parts, const StitchRequest& request) : p_(std::move(parts)), request_(request) {}

  // Makes the first `length` tokens as `recipe` says, of which out->timeline has the beginning.
  // False: a source can't be had, nothing has changed.
  bool Remake(const Recipe& recipe, int64_t length, Stitched* out);
  // Everything that is left, by a plan. `use`: whether runs may be used.
  enum class Runs : uint8_t { kAsPlanned, kNone };
  Status Finish(Runs use, Stitched* out);

 private:
  struct Wanted {
    RunSource* source;
    int64_t begin = 0, end = 0;      // of the prompt
    Status status;
  };

  PageTier TierOf(const RunSource& source, RunSource::Pages pages, int64_t* to_load) const;
  void Pin(std::span<Wanted> wanted);
  double MsToWait(int64_t pages);
  Status PinByComputing(RunSource* source, RunSource::Pages pages) const;
  void MakeOffers();
  RunPlan MakePlan(int64_t begin) const;
  RunPlan PlanPinned(Stitched* out);
  Status Put(const RunStep& step, Timeline* timeline) const;
  Status PutPiece(const Piece& piece, const RunStep& step, Timeline* timeline) const;
  void AddChosenWindows(const Timeline& timeline, RunPlan* plan);
  void Note(const RunStep& step, Recipe* recipe, Stitched* out);
  int32_t SourceIndex(size_t run, Recipe* recipe);

  const Parts p_;
  const StitchRequest& request_;
  std::vector<RunOffer> offers_;
  std::vector<RunSource> sources_;   // beside request_.runs
  std::vector<int32_t> noted_;       // beside them: index among the recipe's sources, or -1
  std::optional<std::chrono::steady_clock::time_point> deadline_;  // of all loads
};

// Uses the prompt's tokens [begin, end) from the pinned pages of `source`.
Status SpliceFrom(const RunSource& source, int64_t begin, int64_t end, Timeline* timeline);

}  // namespace holdfast
