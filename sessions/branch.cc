// Keeper::Branch: forks, rewinds and edits.
//
// A plain branch is a new name for a point: no token is written. One whose history is edited, or is
// to be in another model's tokens, is placed as a turn with that history is (place.cc): it leaves
// its source after the longest beginning that stands, and an input node holds the rest, tokenised
// anew. So a chat that sends the edited history goes on at its head. Nothing is computed; the next
// turn does that.

#include <algorithm>
#include <utility>

#include "sessions/admission.h"
#include "sessions/context.h"
#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// The point that `cut` ends at, with the hash of its whole items. `context`: LineageContext's.
void CutAt(const Lineage& cut, const Digest& context, NewBranch* out) {
  out->head = cut.head;
  out->tokens = out->parent_tokens = cut.tokens;
  out->items = static_cast<int64_t>(cut.items.size());
  out->head_hash = HashOf(cut, context);
}

Result<int64_t> CutOf(const Lineage& lineage, const MakeBranch& request) {
  if (request.at_item) {
    const int64_t n = *request.at_item;
    if (n < 0 || n > static_cast<int64_t>(lineage.items.size())) {
      return Status::Invalid("at_item: " + std::to_string(n) + ", the branch has " +
                             std::to_string(lineage.items.size()) + " items");
    }
    return n == 0 ? 0 : lineage.items[n - 1].end;
  }
  if (request.at_token) {
    if (*request.at_token < 0 || *request.at_token > lineage.tokens) {
      return Status::Invalid("at_token: " + std::to_string(*request.at_token) +
                             ", the branch has " + std::to_string(lineage.tokens) + " tokens");
    }
    return *request.at_token;
  }
  return lineage.tokens;
}

// The lineage that a new branch is cut from, and the name of the branch that it leaves.
Result<Lineage> SourceOf(Reader& reader, const SessionTree& tree, const MakeBranch& request,
                         std::string* from) {
  if (request.snapshot.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* branch, PickBranch(tree, request.from));
    *from = branch->name;
    return LineageOf(tree, branch->head);
  }
  HOLDFAST_ASSIGN_OR_RETURN(const SnapshotRow snapshot,
                            FindSnapshot(reader, tree.session.sid, request.snapshot));
  *from = snapshot.info.branch;
  return LineageOf(tree, snapshot.point);
}

class Branching {
 public:
  Branching(Keeper::Impl& keeper, const MakeBranch& request) : k_(keeper), r_(request) {
    made_.name = request.name;
    made_.now_ms = keeper.NowMs();
  }

  // From which point it leaves, and what its history is.
  Status Read(Reader& reader, std::string_view tenant, std::string_view id);
  // The tokens of that history, where they are made anew.
  Status Render();
  Status Write(Txn& txn);
  const std::string& name() const { return made_.name; }
  // Tokens that Write adds to the log.
  int64_t added() const { return place_ ? place_->draft.input_count : 0; }

 private:
  Status ReadHistory(Reader& reader);

  Keeper::Impl& k_;
  const MakeBranch& r_;
  NewBranch made_;
  SessionTree tree_;
  Lineage lineage_;                 // up to where it leaves, edits apart
  std::optional<History> history_;  // to be rendered
  PromptContext context_;           // its tools and arguments until Render
  std::optional<Place> place_;
};

Status Branching::Read(Reader& reader, std::string_view tenant, std::string_view id) {
  HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                            FindSession(reader, {tenant, id, k_.NowMs()}));
  HOLDFAST_ASSIGN_OR_RETURN(tree_, LoadTree(reader, session));
  made_.sid = session.sid;
  HOLDFAST_ASSIGN_OR_RETURN(lineage_, SourceOf(reader, tree_, r_, &made_.parent_name));
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t tokens, CutOf(lineage_, r_));
  Lineage cut = LineageOf(tree_, lineage_.At(tokens));
  HOLDFAST_ASSIGN_OR_RETURN(const Digest context,
                            LineageContext(reader, k_, made_.sid, cut.template_digest));
  CutAt(cut, context, &made_);
  lineage_ = std::move(cut);
  const bool foreign = made_.items > 0 && lineage_.model_digest != k_.options.model_digest;
  if (r_.edits.empty() && !(foreign && r_.tokens == MakeBranch::Tokens::kThisModel)) {
    return Status();
  }
  return ReadHistory(reader);
}

Status Branching::ReadHistory(Reader& reader) {
  HOLDFAST_ASSIGN_OR_RETURN(History history, LoadHistory(reader, lineage_));
  HOLDFAST_ASSIGN_OR_RETURN(history_, ApplyEdits(std::move(history), r_.edits));
  if (lineage_.tokens == 0) return Status();  // nobody has said what its tools are
  HOLDFAST_ASSIGN_OR_RETURN(auto recorded,
                            LoadContext(reader, made_.sid, lineage_.template_digest));
  if (!recorded) {
    return Status::Invalid("edits: this branch was recorded before its tools were kept");
  }
  context_ = {std::move(recorded->tools), std::move(recorded->kwargs), {}, {}};
  return Status();
}

Status Branching::Render() {
  if (!history_) return Status();
  BranchRow stands;  // what no edit has touched
  const int64_t kept =
      UntouchedItems(r_.edits, static_cast<int64_t>(lineage_.item_points.size()));
  if (kept > 0) stands.head = lineage_.item_points[kept - 1];
  if (history_->messages.empty()) {
    CutAt({}, {}, &made_);
    return Status();
  }
  PlaceRequest where;
  HOLDFAST_ASSIGN_OR_RETURN(
      context_, MakeContext(k_, std::move(context_.tools), std::move(context_.kwargs)));
  where.history = std::move(*history_);
  where.context = &context_;
  where.model_digest = k_.options.model_digest;
  where.now_ms = made_.now_ms;
  const BranchRow* const candidates[] = {&stands};
  HOLDFAST_ASSIGN_OR_RETURN(
      place_, FindPlace(*k_.options.db, *k_.renderer, tree_, candidates, std::move(where)));
  HOLDFAST_RETURN_IF_ERROR(CheckLength(*place_, k_.options.max_context));
  const TurnDraft& draft = place_->draft;
  made_.head = draft.base;
  made_.head_hash = draft.name.by_ids;
  made_.parent_tokens = draft.base_tokens;
  made_.tokens = draft.base_tokens + draft.input_count;
  made_.items = draft.base_items;
  if (draft.input_count > 0) made_.items += static_cast<int64_t>(draft.items.size());
  return Status();
}

Status Branching::Write(Txn& txn) {
  if (added() > 0) {
    NewNode node;
    node.sid = made_.sid;
    node.basis = k_.basis;
    node.template_digest = place_->draft.context;
    node.model_digest = k_.options.model_digest;
    HOLDFAST_ASSIGN_OR_RETURN(made_.head, InsertInput(txn, place_->draft, node));
    HOLDFAST_RETURN_IF_ERROR(InsertContext(txn, made_.sid, node.template_digest,
                                           {context_.tools, context_.kwargs}));
  }
  made_.id = k_.next_branch++;
  int64_t ordinal = 0;
  HOLDFAST_RETURN_IF_ERROR(InsertBranch(txn, &made_, &ordinal));
  if (r_.default_branch == MakeBranch::Default::kKeep) return Status();
  return MoveDefault(txn, made_.id, {made_.sid, made_.now_ms, {}, made_.name, "", ""});
}

}  // namespace

Result<BranchInfo> Keeper::Branch(std::string_view tenant, std::string_view id,
                                  const MakeBranch& request) {
  HOLDFAST_RETURN_IF_ERROR(CheckBranchName("name", request.name));
  if (impl_->shut) return Status::Unavailable("shutting down");
  Branching branching(*impl_, request);
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read(
      [&](Reader& reader) { return branching.Read(reader, tenant, id); }));
  HOLDFAST_RETURN_IF_ERROR(branching.Render());
  if (branching.added() > 0) {
    HOLDFAST_RETURN_IF_ERROR(
        impl_->quotas.CheckDisk(tenant, impl_->options.pool->page_bytes()));
  }
  Status s = impl_->options.db->Write([&](Txn& txn) { return branching.Write(txn); },
                                      WriteClass::kTurn);
  if (s.code() == Code::kConflict) {
    return request.name.empty()
               ? Status::NotFound("the session was deleted")
               : Status::Conflict("branch '" + request.name + "' is there already");
  }
  HOLDFAST_RETURN_IF_ERROR(std::move(s));
  impl_->quotas.Added(std::string(tenant), branching.added());
  BranchInfo info;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader&, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branching.name()));
        info = InfoOf(*impl_, tree, *b);
        return Status();
      }));
  return info;
}

}  // namespace holdfast
