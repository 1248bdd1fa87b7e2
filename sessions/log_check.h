// The rules that the rows of a session keep, checked one row after another: by an import before a
// row is believed, by fsck over what the database holds. Rows come as a bundle numbers them
// (bundle_rows.h): bases, contexts, nodes ascending, each followed by its items, then branches,
// turns, snapshots, events.
//
//   basis     its digest is that of its fields
//   context   of bounded size
//   node      parent before it, inside its tokens; committed only after committed ones; an origin
//             for each token and a digest for each sampled one; tokens of the vocabulary
//   item      inside its node, after the item before it; header and trailer inside it
//   recipe    of an output, one at most; a policy that lets KV be approximate
//   branch    its head is committed; tokens and items are those of the way to the head
//   turn      names a branch; parent and output are nodes; ended
//   snapshot  as a branch
//
// Each check returns what is wrong with that row (kCorrupt) and remembers the row all the same, so
// that a caller may go on. Memory: about 100 bytes for each node, 8 for each item. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "sessions/bundle_rows.h"

namespace holdfast {

class LogCheck {
 public:
  static constexpr int64_t kMaxNodes = 1 << 20;  // turns, snapshots and events likewise
  static constexpr int64_t kMaxBranches = 4096;  // bases likewise

  // `vocab`: tokens below it are those of nodes made under `model`.
  LogCheck(const Digest& model, int64_t vocab) : model_(model), vocab_(vocab) {}

  Status Basis(const BundleBasis& basis);
  Status Context(const BundleContext& context);
  Status Node(const BundleNode& node);
  Status Item(const BundleItem& item);  // of the node before
  Status Recipe(const BundleRecipe& recipe);  // likewise
  Status Branch(const BundleBranch& branch);
  Status Turn(const BundleTurn& turn);
  Status Snapshot(const BundleSnapshot& snapshot);
  Status Event(const BundleEvent& event);
  // The session itself, when all of its rows have come.
  Status Finish(const BundleSession& session) const;

 private:
  struct NodeState {
    int64_t tokens = 0;
    int64_t tokens_before = 0, items_before = 0;  // on the way to it
    bool committed = false, output = false, recipe = false;
    std::vector<int64_t> item_ends;
  };
  // Of the way to a point: what is wrong with the point, or its tokens and items.
  struct Way {
    int64_t tokens = 0, items = 0;
  };
  Result<Way> WayTo(NodeRef node, int64_t count) const;
  bool Knows(NodeRef node) const {
    return node.n >= 0 && node.n <= static_cast<int64_t>(nodes_.size());
  }
  Status CheckWay(const std::string& what, NodeRef node, int64_t count, Way said) const;

  const Digest model_;
  const int64_t vocab_;
  std::vector<NodeState> nodes_;
  int64_t bases_ = 0, contexts_ = 0, turns_ = 0, snapshots_ = 0, events_ = 0;
  std::vector<int64_t> ordinals_;  // of the branches
};

}  // namespace holdfast
