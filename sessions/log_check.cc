#include "sessions/log_check.h"

#include <algorithm>
#include <utility>

#include "sessions/prompt.h"
#include "sessions/schema.h"
#include "sessions/tree.h"
#include "stitcher/run_plan.h"

namespace holdfast {
namespace {

constexpr size_t kMaxName = 256;     // bytes of ids, branch names, labels
constexpr size_t kMaxDetail = 4096;  // of an event's texts
constexpr size_t kMaxContext = 64 << 20;  // more than a request may have

Status Bad(const std::string& what) { return Status::Corrupt("token log: " + what); }

Status CheckTokens(const BundleNode& n, int64_t end_of_vocabulary, const std::string& what) {
  if (n.origins.size() != n.tokens.size()) {
    return Bad(what + " has " + std::to_string(n.origins.size()) + " origins for " +
               std::to_string(n.tokens.size()) + " tokens");
  }
  for (const TokenId t : n.tokens) {
    if (t < 0 || t >= end_of_vocabulary) {
      return Bad(what + " holds token " + std::to_string(t) + ", which the model does not have");
    }
  }
  size_t sampled = 0;
  for (const uint8_t o : n.origins) {
    if (o > static_cast<uint8_t>(TokenOrigin::kForced)) return Bad(what + " has a wrong origin");
    sampled += o == static_cast<uint8_t>(TokenOrigin::kSampled);
  }
  if (n.digests.size() != sampled) {
    return Bad(what + " has " + std::to_string(n.digests.size()) + " digests for " +
               std::to_string(sampled) + " sampled tokens");
  }
  return Status();
}

}  // namespace

Result<LogCheck::Way> LogCheck::WayTo(NodeRef node, int64_t count) const {
  if (node.n == 0 && count == 0) return Way{};
  if (node.n == 0 || !Knows(node)) return Status::Corrupt("refers to a node that is not there");
  const NodeState& n = nodes_[node.n - 1];
  if (count < 0 || count > n.tokens) {
    return Status::Corrupt("refers to token " + std::to_string(count) + " of a node of " +
                           std::to_string(n.tokens));
  }
  const int64_t items =
      std::upper_bound(n.item_ends.begin(), n.item_ends.end(), count) - n.item_ends.begin();
  return Way{n.tokens_before + count, n.items_before + items};
}

Status LogCheck::Basis(const BundleBasis& b) {
  if (++bases_ > kMaxBranches) return Bad("too many bases");
  if (b.kv.size() > kMaxName) return Bad("a basis names no kind of K");
  if (BasisOf(b).digest() == b.digest) return Status();
  return Bad("basis " + std::to_string(bases_) + " is not what its digest says");
}

Status LogCheck::Context(const BundleContext& c) {
  if (++contexts_ > kMaxNodes) return Bad("too many contexts");
  if (std::max(c.tools.size(), c.template_kwargs.size()) <= kMaxContext) return Status();
  return Bad("a context of more than " + std::to_string(kMaxContext) + " bytes");
}

Status LogCheck::Node(const BundleNode& n) {
  const std::string what = "node " + std::to_string(nodes_.size() + 1);
  const Result<Way> way = WayTo(n.parent, n.parent_count);
  NodeState state;
  state.tokens = static_cast<int64_t>(n.tokens.size());
  state.committed = n.status == static_cast<int64_t>(NodeStatus::kCommitted);
  state.output = n.kind == static_cast<int64_t>(NodeKind::kOutput);
  if (way.ok()) {
    state.tokens_before = way->tokens;
    state.items_before = way->items;
  }
  const bool orphan =
      state.committed && n.parent.n != 0 && Knows(n.parent) && !nodes_[n.parent.n - 1].committed;
  nodes_.push_back(std::move(state));
  if (!way.ok()) return Bad(what + " " + way.status().message());
  if (orphan) return Bad(what + " is committed, the node before it is not");
  if (static_cast<int64_t>(nodes_.size()) > kMaxNodes) return Bad("too many nodes");
  if (n.kind < 0 || n.kind > 1 || n.status < 0 || n.status > 1) {
    return Bad(what + " is of kind " + std::to_string(n.kind) + ", status " +
               std::to_string(n.status));
  }
  if (n.turn.size() > kMaxName) return Bad(what + " names no turn");
  if (n.basis.n < 0 || n.basis.n > bases_) return Bad(what + " names a basis that is not there");
  const bool ours = n.model_digest == model_;
  return CheckTokens(n, ours ? vocab_ : INT32_MAX, what);
}

Status LogCheck::Item(const BundleItem& i) {
  if (nodes_.empty()) return Bad("an item without a node");
  NodeState& n = nodes_.back();
  const std::string what = "item " + std::to_string(n.item_ends.size()) + " of node " +
                           std::to_string(nodes_.size());
  const int64_t before = n.item_ends.empty() ? 0 : n.item_ends.back();
  const bool inside = i.first >= before && i.count >= 0 && i.first <= n.tokens &&
                      i.count <= n.tokens - i.first;
  n.item_ends.push_back(inside ? i.first + i.count : before);
  if (!inside) {
    return Bad(what + " has tokens " + std::to_string(i.first) + " + " + std::to_string(i.count) +
               ", not after " + std::to_string(before) + " and inside " +
               std::to_string(n.tokens));
  }
  if (n.output && n.tokens_before + n.item_ends.back() == 0) return Bad(what + " is empty");
  if (i.header < 0 || i.trailer < 0 || i.header > i.count || i.trailer > i.count - i.header) {
    return Bad(what + " has header " + std::to_string(i.header) + ", trailer " +
               std::to_string(i.trailer) + " of " + std::to_string(i.count));
  }
  return Status();
}

Status LogCheck::Recipe(const BundleRecipe& r) {
  const std::string what = "a recipe of node " + std::to_string(nodes_.size());
  if (nodes_.empty() || !nodes_.back().output) return Bad(what + ", which is no output");
  if (std::exchange(nodes_.back().recipe, true)) return Bad(what + ", which has one already");
  if (r.policy > static_cast<int64_t>(ReusePolicy::kExact) &&
      r.policy <= static_cast<int64_t>(ReusePolicy::kVerify)) {
    return Status();
  }
  return Bad(what + " has policy " + std::to_string(r.policy));
}

Status LogCheck::CheckWay(const std::string& what, NodeRef node, int64_t count, Way said) const {
  const Result<Way> way = WayTo(node, count);
  if (!way.ok()) return Bad(what + " " + way.status().message());
  if (node.n != 0 && !nodes_[node.n - 1].committed) return Bad(what + " ends in an aborted node");
  if (way->tokens != said.tokens || way->items != said.items) {
    return Bad(what + " says " + std::to_string(said.tokens) + " tokens in " +
               std::to_string(said.items) + " items, the way to it has " +
               std::to_string(way->tokens) + " in " + std::to_string(way->items));
  }
  return Status();
}

Status LogCheck::Branch(const BundleBranch& b) {
  const std::string what = "branch '" + b.name.substr(0, kMaxName) + "'";
  ordinals_.push_back(b.ordinal);
  if (static_cast<int64_t>(ordinals_.size()) > kMaxBranches) return Bad("too many branches");
  if (b.name.empty() || b.name.size() > kMaxName || b.parent_name.size() > kMaxName) {
    return Bad(what + " has no proper name");
  }
  if (b.ordinal < 0 || b.generation < 0 || b.parent_tokens < 0) {
    return Bad(what + " counts wrongly");
  }
  return CheckWay(what, b.node, b.count, {b.tokens, b.items});
}

Status LogCheck::Turn(const BundleTurn& t) {
  const std::string what = "turn '" + t.id.substr(0, kMaxName) + "'";
  if (++turns_ > kMaxNodes) return Bad("too many turns");
  if (t.id.empty() || t.id.size() > kMaxName) return Bad(what + " has no proper id");
  if (t.branch.n < 1 || t.branch.n > static_cast<int64_t>(ordinals_.size())) {
    return Bad(what + " names a branch that is not there");
  }
  if (!Knows(t.parent) || !Knows(t.output)) return Bad(what + " names a node that is not there");
  if (t.status < 0 || t.status > static_cast<int64_t>(TurnStatus::kAborted)) {
    return Bad(what + " has status " + std::to_string(t.status));
  }
  if (t.status == static_cast<int64_t>(TurnStatus::kCommitted) && t.output.n == 0) {
    return Bad(what + " is committed and has no output");
  }
  if (t.prompt_tokens < 0) return Bad(what + " counts wrongly");
  return Status();
}

Status LogCheck::Snapshot(const BundleSnapshot& s) {
  const std::string what = "snapshot '" + s.id.substr(0, kMaxName) + "'";
  if (++snapshots_ > kMaxNodes) return Bad("too many snapshots");
  if (s.id.empty() || std::max({s.id.size(), s.label.size(), s.branch.size()}) > kMaxName) {
    return Bad(what + " has no proper name");
  }
  return CheckWay(what, s.node, s.count, {s.tokens, s.items});
}

Status LogCheck::Event(const BundleEvent& e) {
  if (++events_ > kMaxNodes) return Bad("too many events");
  if (std::max({e.kind.size(), e.branch.size(), e.turn.size(), e.detail.size()}) <= kMaxDetail) {
    return Status();
  }
  return Bad("an event with a text of more than " + std::to_string(kMaxDetail) + " bytes");
}

Status LogCheck::Finish(const BundleSession& s) const {
  const auto branches = static_cast<int64_t>(ordinals_.size());
  if (s.nodes != static_cast<int64_t>(nodes_.size()) || s.branches != branches ||
      s.turns != turns_) {
    return Bad("the session says " + std::to_string(s.nodes) + " nodes, " +
               std::to_string(s.branches) + " branches, " + std::to_string(s.turns) +
               " turns; there are " + std::to_string(nodes_.size()) + ", " +
               std::to_string(branches) + ", " + std::to_string(turns_));
  }
  if (s.default_branch.n < 1 || s.default_branch.n > branches) {
    return Bad("the session has no default branch");
  }
  if (s.ttl_s < 0 || s.ttl_s > kMaxTtlSeconds || s.anonymous < 0 || s.anonymous > 1) {
    return Bad("the session counts wrongly");
  }
  for (const int64_t o : ordinals_) {
    if (o >= s.next_ordinal) return Bad("a branch has the ordinal of one to come");
  }
  return Status();
}

}  // namespace holdfast
