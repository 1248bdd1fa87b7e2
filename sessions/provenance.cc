// How the KV of a branch was made, what that cost, and making it exact again.

#include <algorithm>
#include <cstdio>
#include <utility>

#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// What a whole branch is where no approximation was made: exact, wherever its pages are.
Provenance ExactSpans(const Survey& survey, int64_t tokens) {
  Provenance spans;
  const int64_t pool = std::min(survey.pool, tokens);
  const int64_t disk = std::min(survey.pool + survey.store, tokens);
  AddSpan(&spans, {.begin = 0, .end = pool, .origin = KvOrigin::kExact, .tier = KvTier::kPool});
  AddSpan(&spans, {.begin = pool, .end = disk, .origin = KvOrigin::kExact,
                   .tier = KvTier::kStore});
  AddSpan(&spans, {.begin = disk, .end = tokens});
  return spans;
}

// The branch's head with its recipe, if it has one.
struct HeadRecipe {
  HeadId id;
  BranchRow branch;
  std::optional<Recipe> recipe;
  std::optional<ShadowKl> measured;
};

// `pick` gives the branch of a tree.
template <typename Pick>
Result<HeadRecipe> ReadRecipe(Keeper::Impl& k, std::string_view tenant, std::string_view id,
                              const Pick& pick) {
  HeadRecipe out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(k, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, pick(tree));
        out.branch = *b;
        out.id = {tree.session.sid, b->id, std::string(tenant), tree.session.id};
        auto recipe = GetRecipe(reader, b->head.node);
        if (recipe.ok()) {
          out.recipe = std::move(recipe).value();
        } else if (recipe.status().code() != Code::kNotFound) {
          return recipe.status();
        }
        HOLDFAST_ASSIGN_OR_RETURN(out.measured, GetShadowKl(reader, b->head.node));
        return Status();
      }));
  return out;
}

Result<HeadRecipe> ReadRecipe(Keeper::Impl& k, std::string_view tenant, std::string_view id,
                              std::string_view branch) {
  return ReadRecipe(k, tenant, id,
                    [&](const SessionTree& tree) { return PickBranch(tree, branch); });
}

Result<HeadRecipe> ReadRecipeOf(Keeper::Impl& k, const HeadId& id) {
  return ReadRecipe(k, id.tenant, id.session,
                    [&](const SessionTree& tree) -> Result<const BranchRow*> {
                      if (const BranchRow* b = tree.BranchById(id.branch)) return b;
                      return Status::NotFound("the branch is gone");
                    });
}

std::string TextOf(const ShadowKl& kl) {
  char text[160];
  std::snprintf(text, sizeof(text),
                "KL %.6f nats a token, %.6f at most, over %lld tokens; %.1f %% with the same "
                "likeliest one",
                kl.mean, kl.largest, static_cast<long long>(kl.tokens), 100 * kl.same_top);
  return text;
}

}  // namespace

Result<ProvenanceInfo> Keeper::Provenance(std::string_view tenant, std::string_view id,
                                          std::string_view branch) {
  HOLDFAST_ASSIGN_OR_RETURN(const HeadRecipe head, ReadRecipe(*impl_, tenant, id, branch));
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                            impl_->TokensAt(head.id, head.branch.head));
  ProvenanceInfo info;
  info.session_id = head.id.session;
  info.branch = head.branch.name;
  info.tokens = static_cast<int64_t>(tokens.size());
  if (head.recipe) {
    info.spans = FirstOf(head.recipe->spans, info.tokens);
    info.sources = head.recipe->sources;
    info.expected_kl = head.recipe->expected_kl;
    info.kl_bound = head.recipe->kl_bound;
    info.policy = head.recipe->reuse.policy;
    info.hardened = head.recipe->hardened;
    info.measured = head.measured;
  }
  if (!head.recipe || head.recipe->hardened) {
    info.spans = ExactSpans(impl_->options.stitcher->Look(TenantScope(head.id.tenant), tokens),
                            info.tokens);
  }
  return info;
}

Result<bool> Keeper::Harden(std::string_view tenant, std::string_view id,
                            std::string_view branch) {
  HOLDFAST_ASSIGN_OR_RETURN(const HeadRecipe head, ReadRecipe(*impl_, tenant, id, branch));
  if (!head.recipe || head.recipe->hardened) return false;
  HOLDFAST_RETURN_IF_ERROR(impl_->caretaker.EnqueueIdle(
      [k = impl_.get(), id = head.id] { return k->HardenBranch(id); }));
  return true;
}

// Computes the branch in full and makes that its warm head. Its recipe says from then on that it
// was approximate once. The lease is taken at the end, for a moment: no turn finds the head busy.
Status Keeper::Impl::HardenBranch(const HeadId& id) {
  HOLDFAST_ASSIGN_OR_RETURN(const HeadRecipe head, ReadRecipeOf(*this, id));
  if (!head.recipe || head.recipe->hardened) return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensAt(id, head.branch.head));
  const auto pages = static_cast<int64_t>(tokens.size()) / kPageTokens + 2;
  warm.MakeRoom(reserved_pages + pages);
  HOLDFAST_ASSIGN_OR_RETURN(
      Timeline exact,
      options.stitcher->ComputeExact(TenantScope(id.tenant), tokens, nullptr,
                                     {.stop = [this] { return caretaker.MustYield(); }}));
  const auto lease = leases.TryTake(id.sid, id.branch);
  if (!lease) return Status::Cancelled("a turn runs on the branch");
  HOLDFAST_ASSIGN_OR_RETURN(const HeadRecipe now, ReadRecipeOf(*this, id));
  if (now.branch.head != head.branch.head) return Status::Cancelled("the head has moved");
  Recipe recipe = *head.recipe;
  recipe.hardened = true;
  recipe.expected_kl = recipe.kl_bound = 0;
  recipe.sources.clear();
  recipe.spans = {{.begin = 0, .end = static_cast<int64_t>(tokens.size()),
                   .origin = KvOrigin::kExact}};
  Status marked = options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(PutRecipe(txn, head.branch.head.node, recipe));
        return InsertEvent(txn, {id.sid, NowMs(), "hardened", head.branch.name, "", ""});
      },
      WriteClass::kBackground);
  if (!marked.ok()) return marked;
  ++hardened;
  // Of a cold head the pages are cached now, which is all that its next turn needs.
  if (warm.IsWarm(id.branch)) warm.Put({id.sid, id.branch, std::move(exact)});
  return Status();
}

void Keeper::Impl::LineUpShadow(ShadowJob job) {
  if (caretaker.EnqueueIdle([this, job = std::move(job)] {
        const Status done = ShadowTurn(job);
        if (!done.ok() && done.code() != Code::kCancelled) {
          std::lock_guard lock(verified_mu);
          ++verified.skipped;
        }
        return done;
      }).ok()) {
    return;
  }
  std::lock_guard lock(verified_mu);
  ++verified.skipped;
}

// Measures what an answer's approximate context cost, and tells it. Warm heads are left alone:
// where the pool has no room beside them, nothing is measured.
Status Keeper::Impl::ShadowTurn(const ShadowJob& job) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensAt(job.id, job.head));
  Recipe recipe;
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(recipe, GetRecipe(reader, job.head.node));
    return Status();
  }));
  const PoolStats pool = options.pool->stats();
  const auto free = static_cast<int64_t>(pool.slots_max - pool.leased) - reserved_pages;
  if (free < 2 * (static_cast<int64_t>(tokens.size()) / kPageTokens + 2)) {
    return Status::Exhausted("the pool has no room for a second prefill");
  }
  std::optional<Timeline> base = warm.ForkOf(job.id.branch, job.answer_begin);
  if (base && base->taint() != job.taint) base.reset();  // the head was made anew since
  HOLDFAST_ASSIGN_OR_RETURN(
      const ShadowKl kl,
      options.stitcher->Shadow({.scope = TenantScope(job.id.tenant),
                                .tokens = tokens,
                                .answer_begin = job.answer_begin,
                                .recipe = &recipe,
                                .base = base ? &*base : nullptr,
                                .stop = [this] { return caretaker.MustYield(); }}));
  Status told = options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(PutShadowKl(txn, job.head.node, kl));
        return InsertEvent(txn, {job.id.sid, NowMs(), "verified", job.branch, job.turn,
                                 TextOf(kl)});
      },
      WriteClass::kBackground);
  if (!told.ok()) return told;
  std::lock_guard lock(verified_mu);
  ++verified.answers;
  verified.tokens += static_cast<uint64_t>(kl.tokens);
  verified.kl += kl.mean * static_cast<double>(kl.tokens);
  verified.kl_max = std::max(verified.kl_max, kl.largest);
  return Status();
}

}  // namespace holdfast
