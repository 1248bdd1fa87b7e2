// Where a prompt's runs come from: first the session itself. An edited or compacted history has
// nearly all of its tokens in a chain that some branch has computed, in one piece across messages;
// segments, which are single messages, fill the gaps.

#include <algorithm>
#include <utility>

#include "sessions/keeper_impl.h"
#include "stitcher/chain_runs.h"

namespace holdfast {
namespace {

constexpr size_t kMaxBranchesLookedAt = 8;  // of one session

// Where chains may be: the default branch, the first one (which edits have left), the newest.
std::vector<const BranchRow*> BranchesOf(const SessionTree& tree) {
  std::vector<const BranchRow*> out;
  const auto add = [&](const BranchRow* b) {
    if (b == nullptr || out.size() == kMaxBranchesLookedAt) return;
    if (std::find(out.begin(), out.end(), b) == out.end()) out.push_back(b);
  };
  add(tree.BranchById(tree.session.default_branch));
  if (!tree.branches.empty()) add(&tree.branches.front());
  for (auto b = tree.branches.rbegin(); b != tree.branches.rend(); ++b) add(&*b);
  return out;
}

// The session's chains as far as their pages are exact and there; of those that begin alike the
// longest.
std::vector<ExactChain> ChainsOf(Keeper::Impl& k, const SessionTree& tree,
                                 const TenantScope& scope) {
  std::vector<ExactChain> chains;
  for (const BranchRow* b : BranchesOf(tree)) {
    const Lineage lineage = LineageOf(tree, b->head);
    if (lineage.model_digest != k.options.model_digest) continue;
    ExactChain chain{RootKey(k.options.fp, scope, Digest{}), {}, {}};
    const Status read = k.options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(chain.tokens, LoadTokens(reader, lineage));
      return Status();
    });
    if (!read.ok()) continue;  // deleted meanwhile
    chain.keys = k.options.stitcher->Look(scope, chain.tokens).keys;
    if (chain.keys.size() * kPageTokens < kMinSegmentTokens) continue;
    const auto holds = [](const ExactChain& all, const ExactChain& part) {
      const size_t n = part.keys.size();
      return all.keys.size() >= n && all.keys[n - 1] == part.keys.back();
    };
    if (std::any_of(chains.begin(), chains.end(), [&](const auto& c) { return holds(c, chain); })) {
      continue;
    }
    std::erase_if(chains, [&](const ExactChain& c) { return holds(chain, c); });
    chains.push_back(std::move(chain));
  }
  return chains;
}

}  // namespace

std::vector<FoundRun> RunsOf(Keeper::Impl& k, const SessionTree& tree, const TenantScope& scope,
                             std::span<const TokenId> prompt) {
  ChainRuns found = FindInChains(ChainsOf(k, tree, scope), prompt);
  if (!k.options.find_runs) return std::move(found.runs);
  std::vector<FoundRun> out;
  TokenRange gap{found.shared, 0};
  const auto fill = [&](int64_t end) {
    gap.end = end;
    if (gap.size() < kMinSegmentTokens) return;
    for (FoundRun& run : k.options.find_runs(scope, prompt, gap)) out.push_back(std::move(run));
  };
  for (FoundRun& run : found.runs) {
    fill(run.begin);
    gap.begin = run.end;
    out.push_back(std::move(run));
  }
  fill(static_cast<int64_t>(prompt.size()));
  return out;
}

}  // namespace holdfast
