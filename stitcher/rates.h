// What it costs to load KV and to compute it: the rates that plans rest on. They are measured as
// the process runs (moving medians), and kept in the database for the next one, so that its first
// plans know them too.
//
// Kept, rather than measured at each start: a prefill that is long enough to tell takes a second on
// a large model, which every start would wait for; and what one read takes then, of a file that the
// page cache may or may not have, says less than the last fifteen loads of real turns. A start that
// knows nothing of the disk reads a few pages (Runtime); of computing the first turn tells.
//
// A row is of one model on one machine: a folder that was moved begins anew. Where the disk or the
// machine's load has changed, the rates follow within a few turns.
#pragma once

#include <string_view>
#include <vector>

#include "engine/store/database.h"

namespace holdfast {

// 0 = not measured yet.
struct StitchRates {
  double load_ms_per_page = 0, load_ms_fixed = 0, compute_ms_per_token = 0;
};

// Whether one of them was measured first, or has changed by more than a quarter: worth a write.
bool DiffersMuch(const StitchRates& before, const StitchRates& now);

std::vector<Migration> RateMigrations();
// `machine`: the name of what measured them. All 0 where there are none.
Result<StitchRates> GetRates(Reader& reader, const Digest& fp, std::string_view machine);
Status PutRates(Txn& txn, const Digest& fp, std::string_view machine, const StitchRates& rates);

}  // namespace holdfast
