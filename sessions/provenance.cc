// How the KV of a branch was made, and making it exact again.

#include <algorithm>
#include <utility>

#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// Of a session, the newest ones, for a source's left chain.
constexpr int kMaxBranchesLookedAt = 32;

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
};

Result<HeadRecipe> ReadRecipe(Keeper::Impl& k, std::string_view tenant, std::string_view id,
                              std::string_view branch) {
  HeadRecipe out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(k, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        out.branch = *b;
        out.id = {tree.session.sid, b->id, std::string(tenant), tree.session.id};
        auto recipe = GetRecipe(reader, b->head.node);
        if (recipe.ok()) {
          out.recipe = std::move(recipe).value();
        } else if (recipe.status().code() != Code::kNotFound) {
          return recipe.status();
        }
        return Status();
      }));
  return out;
}

// Chain keys of whole pages: entry i is the key before token 32 i.
std::vector<PageKey> ChainKeys(const PageKey& root, std::span<const TokenId> tokens) {
  std::vector<PageKey> keys = {root};
  for (; tokens.size() >= kPageTokens; tokens = tokens.subspan(kPageTokens)) {
    keys.push_back(NextKey(keys.back(), tokens.first(kPageTokens), Digest{}));
  }
  return keys;
}

}  // namespace

void FillLeft(Keeper::Impl& k, const SessionTree& tree, const TenantScope& scope, Recipe* recipe) {
  const auto lacks = [](const RecipeSource& s) { return s.home > 0 && s.left.empty(); };
  const PageKey root = RootKey(k.options.fp, scope, Digest{});
  int looked = 0;
  for (auto b = tree.branches.rbegin(); b != tree.branches.rend() && looked < kMaxBranchesLookedAt;
       ++b, ++looked) {
    if (std::none_of(recipe->sources.begin(), recipe->sources.end(), lacks)) return;
    std::vector<TokenId> tokens;
    // A branch that can't be read has nothing to give.
    k.options.db
        ->Read([&](Reader& reader) -> Status {
          HOLDFAST_ASSIGN_OR_RETURN(tokens, LoadTokens(reader, LineageOf(tree, b->head)));
          return Status();
        })
        .IgnoreError();
    const std::vector<PageKey> keys = ChainKeys(root, tokens);
    for (RecipeSource& s : recipe->sources) {
      const auto block = static_cast<size_t>(s.home / kPageTokens);
      if (!lacks(s) || block >= keys.size() || keys[block] != s.parent) continue;
      s.left.assign(tokens.begin(), tokens.begin() + s.home);
    }
  }
}

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
  }
  if (!head.recipe || head.recipe->hardened) {
    info.spans = ExactSpans(impl_->options.stitcher->Look(TenantScope(head.id.tenant), tokens),
                            info.tokens);
  }
  return info;
}

Result<bool> Keeper::Harden(std::string_view tenant, std::string_view id,
                            std::string_view branch) {
  if (impl_->shut) return Status::Unavailable("shutting down");
  HOLDFAST_ASSIGN_OR_RETURN(const HeadRecipe head, ReadRecipe(*impl_, tenant, id, branch));
  if (!head.recipe || head.recipe->hardened) return false;
  HOLDFAST_RETURN_IF_ERROR(impl_->caretaker.Enqueue(HardenJob{head.id}));
  return true;
}

// Computes the branch in full and makes that its warm head. Its recipe says from then on that it
// was approximate once.
Status Keeper::Impl::HardenBranch(const HeadId& id) {
  auto lease = leases.TryTake(id.sid, id.branch);
  if (!lease) return Status::Conflict("a turn runs on the branch");
  int64_t node = 0;
  std::string name;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*this, id.tenant, id.session, [&](Reader&, const SessionTree& tree) {
        const BranchRow* b = tree.BranchById(id.branch);
        if (b == nullptr) return Status::NotFound("the branch is gone");
        node = b->head.node;
        name = b->name;
        return Status();
      }));
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensAt(id, std::nullopt));
  const auto pages = static_cast<int64_t>(tokens.size()) / kPageTokens + 2;
  warm.MakeRoom(reserved_pages + pages);
  std::optional<WarmHeads::Head> base = warm.Take(id.sid, id.branch, tokens);
  auto exact = options.stitcher->ComputeExact(TenantScope(id.tenant), tokens,
                                              base ? &base->timeline : nullptr);
  const bool is_warm = base && base->branch == id.branch;
  if (base && (!exact.ok() || !is_warm)) warm.Return(std::move(*base));
  HOLDFAST_RETURN_IF_ERROR(exact.status());
  Status marked = options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(Recipe recipe, GetRecipe(txn, node));
        recipe.hardened = true;
        recipe.expected_kl = recipe.kl_bound = 0;
        recipe.sources.clear();
        recipe.spans = {{.begin = 0, .end = static_cast<int64_t>(tokens.size()),
                         .origin = KvOrigin::kExact}};
        HOLDFAST_RETURN_IF_ERROR(PutRecipe(txn, node, recipe));
        return InsertEvent(txn, {id.sid, NowMs(), "hardened", name, "", ""});
      },
      WriteClass::kBackground);
  if (!marked.ok()) return marked;
  // Of a cold head the pages are cached now, which is all that its next turn needs.
  if (is_warm) warm.Put({id.sid, id.branch, std::move(exact).value()});
  return Status();
}

}  // namespace holdfast
