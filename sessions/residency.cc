// Where a branch's tokens are, and loading them ahead of need.

#include <algorithm>
#include <utility>

#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// A branch as the calls of this file need it, read at one moment.
struct Read {
  HeadId id;
  BranchRow branch;
  std::string state;
  std::vector<TokenId> tokens;
};

Result<Read> ReadBranch(Keeper::Impl& k, std::string_view tenant, std::string_view id,
                        std::string_view branch) {
  Read out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(k, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        out.id = {tree.session.sid, b->id, std::string(tenant), tree.session.id};
        out.branch = *b;
        out.state = StateOf(k, tree, *b);
        HOLDFAST_ASSIGN_OR_RETURN(out.tokens, LoadTokens(reader, LineageOf(tree, b->head)));
        return Status();
      }));
  return out;
}

ResidencyInfo ResidencyOf(Keeper::Impl& k, const Read& read, Survey* survey) {
  const TenantScope scope(read.id.tenant);
  *survey = k.options.stitcher->Look(scope, read.tokens);
  ResidencyInfo info;
  info.session_id = read.id.session;
  info.branch = read.branch.name;
  info.state = read.state;
  info.tokens = static_cast<int64_t>(read.tokens.size());
  info.pool.tokens = survey->pool;
  info.disk.tokens = survey->store;
  const int64_t whole = survey->pool + survey->store;
  const int64_t filled = std::min(k.warm.Filled(read.id.branch), info.tokens);
  if (filled > survey->pool) {
    info.pool.tokens = filled;  // its partial page, and pages that are not sealed
    info.disk.tokens = 0;
  } else if (info.tokens > whole) {
    const auto rest = std::span(read.tokens).subspan(whole);
    info.disk.tokens += k.warm.StoredTail(survey->end, rest.first(rest.size() - 1));
  }
  info.missing.tokens = info.tokens - info.pool.tokens - info.disk.tokens;
  const auto page_bytes = static_cast<int64_t>(k.options.pool->page_bytes());
  for (ResidencyInfo::Tier* tier : {&info.pool, &info.disk, &info.missing}) {
    tier->bytes = (tier->tokens + kPageTokens - 1) / kPageTokens * page_bytes;
  }
  const StitchRates rates = k.options.stitcher->rates();
  if (rates.compute_ms_per_token > 0) {
    info.prefill_ms = static_cast<double>(info.tokens) * rates.compute_ms_per_token;
  }
  const int64_t load_pages = survey->load / kPageTokens;
  if (rates.compute_ms_per_token > 0 && (load_pages == 0 || rates.load_ms_per_page > 0)) {
    const int64_t compute = info.missing.tokens + survey->store - survey->load;
    info.restore_ms = static_cast<double>(load_pages) * rates.load_ms_per_page +
                      static_cast<double>(compute) * rates.compute_ms_per_token;
  }
  return info;
}

}  // namespace

Result<std::vector<TokenId>> Keeper::Impl::TokensAt(const HeadId& id, std::optional<Point> head) {
  std::vector<TokenId> out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*this, id.tenant, id.session, [&](Reader& reader, const SessionTree& tree) {
        const BranchRow* b = tree.BranchById(id.branch);
        if (!head && b == nullptr) return Status::NotFound("the branch is gone");
        auto tokens = LoadTokens(reader, LineageOf(tree, head ? *head : b->head));
        if (tokens.ok()) out = std::move(*tokens);
        return tokens.status();
      }));
  return out;
}

Result<ResidencyInfo> Keeper::Residency(std::string_view tenant, std::string_view id,
                                        std::string_view branch) {
  HOLDFAST_ASSIGN_OR_RETURN(const Read read, ReadBranch(*impl_, tenant, id, branch));
  Survey survey;
  ResidencyInfo info = ResidencyOf(*impl_, read, &survey);
  // The table may not have heard yet of pages that went.
  const int64_t total = std::max<int64_t>(info.tokens - 1, 0) / kPageTokens;
  impl_->heads.PagesSeen(read.id.branch, {survey.pool / kPageTokens, total});
  if (const auto state = impl_->heads.StateOf(read.id.branch)) info.state = HeadStateName(*state);
  return info;
}

Result<PrefetchInfo> Keeper::Prefetch(std::string_view tenant, std::string_view id,
                                      const PrefetchRequest& request) {
  if (impl_->shut) return Status::Unavailable("shutting down");
  HOLDFAST_ASSIGN_OR_RETURN(Read read, ReadBranch(*impl_, tenant, id, request.branch));
  HeadMemory memory = read.branch.memory;
  if (request.pin || request.wake_at_ms > 0) {
    memory.pinned = request.pin.value_or(memory.pinned);
    if (request.wake_at_ms > 0) memory.expected_ms = request.wake_at_ms;
    HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Write(
        [&](Txn& txn) {
          return txn.Run("UPDATE branch SET wake_ms = ?, pinned = ? WHERE id = ?",
                         memory.expected_ms, memory.pinned, read.id.branch);
        },
        WriteClass::kTurn));
    impl_->heads.SetMemory(read.id, memory);
  }
  PrefetchInfo info;
  Survey survey;
  info.before = ResidencyOf(*impl_, read, &survey);
  if (request.wake_at_ms > impl_->NowMs() || survey.load == 0) return info;
  if (!impl_->heads.PrefetchBegun(read.id, memory)) return info;
  if (Status s = impl_->caretaker.Enqueue({read.id, std::move(read.tokens)}); !s.ok()) {
    impl_->heads.Prefetched(read.id.branch, {}, {0, 1});
    return s;
  }
  info.pages = survey.load / kPageTokens;
  info.tokens = survey.load;
  info.bytes = info.pages * static_cast<int64_t>(impl_->options.pool->page_bytes());
  return info;
}

}  // namespace holdfast
