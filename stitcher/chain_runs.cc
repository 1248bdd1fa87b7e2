#include "stitcher/chain_runs.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "stitcher/anchor_index.h"

namespace holdfast {
namespace {

// A run in a chain as a variant over the pages that cover it.
FoundRun SliceOf(const ExactChain& chain, const FoundRun& run) {
  const int64_t begin = run.offset, blocks = begin / kPageTokens;
  const PageKey& parent = blocks == 0 ? chain.root : chain.keys[static_cast<size_t>(blocks - 1)];
  auto v = std::make_shared<Variant>(
      SliceOfChain(chain.tokens, parent, begin, begin + run.end - run.begin));
  v->sink.assign(chain.tokens.begin(), chain.tokens.begin() + blocks * kPageTokens);
  return {run.begin, run.end, std::move(v), 0, run.shared_left};
}

}  // namespace

ChainRuns FindInChains(std::span<const ExactChain> chains, std::span<const TokenId> prompt) {
  ChainRuns out;
  AnchorIndex index;
  for (size_t i = 0; i < chains.size(); ++i) {
    const auto tokens = chains[i].paged();
    const int64_t common =
        std::mismatch(tokens.begin(), tokens.end(), prompt.begin(), prompt.end()).first -
        tokens.begin();
    out.shared = std::max(out.shared, common);
    auto whole = std::make_shared<Variant>();
    whole->row = static_cast<int64_t>(i);
    whole->segment.digest = chains[i].keys.back();  // a name of its own
    whole->tokens.assign(tokens.begin(), tokens.end());
    whole->count = static_cast<int32_t>(tokens.size());
    index.Add(std::move(whole));
  }
  const auto end = static_cast<int64_t>(prompt.size());
  for (const FoundRun& run : index.Find(prompt, out.shared, end)) {
    out.runs.push_back(SliceOf(chains[static_cast<size_t>(run.variant->row)], run));
  }
  return out;
}

}  // namespace holdfast
