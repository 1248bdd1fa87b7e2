// Export. Everything small (branches, turns, snapshots, events) and the list of nodes and pages is
// read at one moment; nodes, which never change, and pages, which may vanish, are read as they are
// written, so that a bundle of any size needs little memory and no long read transaction (which
// would keep the log from being checkpointed).
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <unordered_set>
#include <utility>

#include "engine/kv/page_store.h"
#include "sessions/bundle.h"
#include "sessions/bundle_file.h"
#include "sessions/bundle_scan.h"
#include "sessions/context.h"
#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// A page that the store had; its parent is one before it in the list, or the root.
struct PlannedPage {
  PageKey key;
  int64_t parent = -1;  // index in the list; -1 = the root
  std::vector<TokenId> tokens;
};

// What a bundle that ends at a snapshot holds of the session.
struct Ending {
  int64_t snapshot = 0;       // its row
  Lineage way;                // to it
  BundleBranch branch;        // the only one
  std::unordered_set<Digest, DigestHash> contexts;
  bool cuts_item = false;     // of its last node

  // The rows of that node as far as they belong to it; false: not at all.
  bool Cut(BundleNode* n) const {
    const auto count = static_cast<size_t>(way.head.count);
    n->tokens.resize(std::min(count, n->tokens.size()));
    n->origins.resize(std::min(count, n->origins.size()));
    const auto sampled = std::count(n->origins.begin(), n->origins.end(),
                                    static_cast<uint8_t>(TokenOrigin::kSampled));
    n->digests.resize(std::min(n->digests.size(), static_cast<size_t>(sampled)));
    if (cuts_item) n->lineage_hash.reset();  // it names items that are left out
    return true;
  }
  bool Cut(BundleItem* i) const { return i->first + i->count <= way.head.count; }
};

BundleSection SectionOf(const BundleBasis&) { return BundleSection::kBasis; }
BundleSection SectionOf(const BundleContext&) { return BundleSection::kContext; }
BundleSection SectionOf(const BundleBranch&) { return BundleSection::kBranch; }
BundleSection SectionOf(const BundleTurn&) { return BundleSection::kTurn; }
BundleSection SectionOf(const BundleSnapshot&) { return BundleSection::kSnapshot; }
BundleSection SectionOf(const BundleEvent&) { return BundleSection::kEvent; }

// A turn that runs has not happened yet: elsewhere it was aborted.
template <typename Row>
void EndIfRunning(Row&, int64_t) {}
void EndIfRunning(BundleTurn& t, int64_t now_ms) {
  if (t.status >= static_cast<int64_t>(TurnStatus::kCommitted)) return;
  t.status = static_cast<int64_t>(TurnStatus::kAborted);
  t.output = {};
  t.ended_ms = now_ms;
}

Status Add(BundleWriter& out, BundleSection kind, std::span<const std::byte> row) {
  return out.Add(kind, {&row, 1});
}

}  // namespace

Result<std::vector<Point>> HeadsOf(Reader& reader, const SessionTree& tree) {
  std::vector<Point> heads;
  for (const BranchRow& b : tree.branches) heads.push_back(b.head);
  Rows rows = reader.Query("SELECT node, count FROM snapshot WHERE sid = ?", tree.session.sid);
  while (rows.Next()) {
    if (!rows.IsNull(0)) heads.push_back({rows.Int(0), rows.Int(1)});
  }
  if (!rows.status().ok()) return rows.status();
  return heads;
}

BundleSession SessionSection(const SessionRow& row, const RowNumbers& numbers, int64_t turns) {
  BundleSession s;
  s.id = row.id;
  if (!row.external_id.empty()) s.external_id = row.external_id;
  s.anonymous = row.anonymous;
  s.model = row.model;
  s.model_digest = row.model_digest;
  s.seed = static_cast<int64_t>(row.seed);
  s.next_ordinal = row.next_ordinal;
  s.ttl_s = row.ttl_s;
  s.meta = row.meta;
  s.created_ms = row.created_ms;
  s.updated_ms = row.updated_ms;
  s.default_branch.n = numbers.Branch(row.default_branch);
  s.nodes = static_cast<int64_t>(numbers.node_ids.size());
  s.branches = static_cast<int64_t>(numbers.branch_ids.size());
  s.turns = turns;
  return s;
}

struct BundleExport::Impl {
  Keeper::Impl* keeper = nullptr;
  ExportOptions options;
  TenantScope scope{""};
  BundleSession session;
  RowNumbers numbers;
  using Sections = std::vector<std::pair<BundleSection, std::vector<std::byte>>>;
  Sections first, small;  // before and after the nodes
  std::vector<PlannedPage> pages;
  uint64_t bytes_expected = 0, page_bytes = 0;

  bool WantsPages() const {
    return options.pages && !options.key.empty() && keeper->options.store != nullptr;
  }
  std::optional<Ending> end;  // none: the whole session goes out

  template <typename Row>
  Status AddTo(Sections* to, const Row& row) {
    to->emplace_back(SectionOf(row), EncodeRow(row));
    bytes_expected += kBundleSectionBytes + to->back().second.size();
    return Status();
  }
  Status Plan(Reader& reader, const SessionRow& row);
  Status PlanEnd(Reader& reader, const SessionTree& tree);
  Status PlanFirst(Reader& reader, int64_t sid);
  Status PlanSmall(Reader& reader, int64_t sid, int64_t* turns);
  Status PlanSize(Reader& reader, int64_t sid);
  Status PlanPages(Reader& reader, const SessionTree& tree);
  void PlanLineage(std::span<const TokenId> tokens, std::map<PageKey, int64_t>* seen);
  Status WriteNodes(BundleWriter& out, Counts* counts);
  Status WritePages(BundleWriter& out, Counts* counts);
};

Status BundleExport::Impl::Plan(Reader& reader, const SessionRow& row) {
  HOLDFAST_RETURN_IF_ERROR(LoadNumbers(reader, row.sid, &numbers));
  HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, row));
  if (!options.snapshot.empty()) HOLDFAST_RETURN_IF_ERROR(PlanEnd(reader, tree));
  HOLDFAST_RETURN_IF_ERROR(PlanFirst(reader, row.sid));
  int64_t turns = 0;
  HOLDFAST_RETURN_IF_ERROR(PlanSmall(reader, row.sid, &turns));
  session = SessionSection(row, numbers, turns);
  const BranchRow* main = tree.BranchById(row.default_branch);
  const Lineage head = end ? end->way : LineageOf(tree, main != nullptr ? main->head : Point{});
  session.head_model = head.tokens > 0 ? head.model_digest : row.model_digest;
  session.fp = keeper->options.fp;
  session.numerics = kNumericsVersion;
  for (const LayerGroup& g : keeper->options.pool->groups()) {
    session.page_groups.push_back(g.PayloadBytes());
    page_bytes += g.PayloadBytes();
  }
  HOLDFAST_RETURN_IF_ERROR(PlanSize(reader, row.sid));
  if (!WantsPages()) return Status();
  return PlanPages(reader, tree);
}

// Leaves of the session's rows what is on the way to the snapshot, under one branch.
Status BundleExport::Impl::PlanEnd(Reader& reader, const SessionTree& tree) {
  HOLDFAST_ASSIGN_OR_RETURN(const SnapshotRow snapshot,
                            FindSnapshot(reader, tree.session.sid, options.snapshot));
  HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* source, PickBranch(tree, snapshot.info.branch));
  end.emplace();
  end->snapshot = snapshot.n;
  end->way = LineageOf(tree, snapshot.point);
  std::set<int64_t> bases;
  RowNumbers kept;
  for (const Lineage::Step& step : end->way.steps) {
    kept.node_ids.push_back(step.node);
    end->contexts.insert(tree.nodes.at(step.node).template_digest);
    Rows rows = reader.Query("SELECT basis FROM node WHERE id = ?", step.node);
    if (rows.Next() && !rows.IsNull(0)) bases.insert(rows.Int(0));
    HOLDFAST_RETURN_IF_ERROR(rows.status());
  }
  kept.basis_ids.assign(bases.begin(), bases.end());
  kept.branch_ids = {source->id};
  kept.NumberAll();
  for (const BranchRow& b : tree.branches) kept.branches[b.id] = 1;  // whose turns came before
  numbers = std::move(kept);
  BundleBranch& b = end->branch;
  b.name = source->name;
  b.ordinal = source->ordinal;  // so that the next turn has the seed that it had here
  b.node.n = snapshot.point.node;
  numbers(b.node);
  b.count = snapshot.point.count;
  HOLDFAST_ASSIGN_OR_RETURN(
      const Digest context,
      LineageContext(reader, *keeper, tree.session.sid, end->way.template_digest));
  b.head_hash = HashOf(end->way, context);
  b.tokens = end->way.tokens;
  b.items = static_cast<int64_t>(end->way.items.size());
  b.created_ms = source->created_ms;
  b.updated_ms = snapshot.info.created_ms;
  if (const auto last = tree.items.find(snapshot.point.node); last != tree.items.end()) {
    const ItemRow& item = last->second.back();
    end->cuts_item = item.first + item.count > snapshot.point.count;
  }
  return Status();
}

Status BundleExport::Impl::PlanFirst(Reader& reader, int64_t sid) {
  return ForEachBasisAndContext(reader, numbers, sid, [&](auto& r) {
    if constexpr (requires { r.tools; }) {
      if (end && !end->contexts.contains(r.digest)) return Status();
    }
    return AddTo(&first, r);
  });
}

Status BundleExport::Impl::PlanSmall(Reader& reader, int64_t sid, int64_t* turns) {
  if (!end) {
    const int64_t now = keeper->NowMs();
    return ForEachSmallRow(reader, numbers, sid, [&](auto& r) {
      EndIfRunning(r, now);
      *turns += SectionOf(r) == BundleSection::kTurn;
      return AddTo(&small, r);
    });
  }
  std::vector<BundleTurn> passed;
  HOLDFAST_RETURN_IF_ERROR(ForEachNumbered<BundleTurn>(
      reader, numbers, "sid = ? ORDER BY n", sid, [&](BundleTurn& t) {
        const bool committed = t.status == static_cast<int64_t>(TurnStatus::kCommitted);
        if (committed && t.output.n > 0 && t.parent.n >= 0) passed.push_back(std::move(t));
        return Status();
      }));
  *turns = end->branch.generation = static_cast<int64_t>(passed.size());
  HOLDFAST_RETURN_IF_ERROR(AddTo(&small, end->branch));
  for (const BundleTurn& t : passed) HOLDFAST_RETURN_IF_ERROR(AddTo(&small, t));
  return ForEachNumbered<BundleSnapshot>(reader, numbers, "n = ?", end->snapshot,
                                         [&](auto& r) { return AddTo(&small, r); });
}

// What nodes and items will take, about.
Status BundleExport::Impl::PlanSize(Reader& reader, int64_t sid) {
  const auto add = [&](const std::string& nodes, int64_t argument) {
    Rows size = reader.Query(
        "SELECT (SELECT COALESCE(SUM(length(tokens) + length(origins) + length(digests) + 300), 0) "
        "FROM node n WHERE " + nodes +
            ") + (SELECT COALESCE(SUM(length(content) + length(raw) + 120), 0) "
            "FROM item i JOIN node n ON n.id = i.node WHERE " + nodes + ")",
        argument);
    if (size.Next()) bytes_expected += static_cast<uint64_t>(size.Int(0));
    return size.status();
  };
  if (!end) return add("n.sid = ?1", sid);
  for (const int64_t id : numbers.node_ids) HOLDFAST_RETURN_IF_ERROR(add("n.id = ?1", id));
  return Status();
}

// The pages of every branch and snapshot, each once, ancestors first.
Status BundleExport::Impl::PlanPages(Reader& reader, const SessionTree& tree) {
  std::vector<Point> heads;
  if (end) {
    heads.push_back(end->way.head);
  } else {
    HOLDFAST_ASSIGN_OR_RETURN(heads, HeadsOf(reader, tree));
  }
  std::map<PageKey, int64_t> seen;
  for (const Point& head : heads) {
    const Lineage lineage = LineageOf(tree, head);
    if (lineage.model_digest != keeper->options.model_digest) continue;
    HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, LoadTokens(reader, lineage));
    PlanLineage(tokens, &seen);
  }
  bytes_expected += pages.size() * (kBundleSectionBytes + 8 + kPageTokens * 4 + page_bytes);
  return Status();
}

void BundleExport::Impl::PlanLineage(std::span<const TokenId> tokens,
                                     std::map<PageKey, int64_t>* seen) {
  PageKey key = RootKey(keeper->options.fp, scope, Digest{});
  int64_t parent = -1;
  for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    const auto block = tokens.subspan(at, kPageTokens);
    key = NextKey(key, block, Digest{});
    const auto [it, is_new] = seen->emplace(key, static_cast<int64_t>(pages.size()));
    if (is_new) {
      if (!keeper->options.store->Contains(key)) {
        seen->erase(it);
        return;  // what comes after a gap would be computed again all the same
      }
      pages.push_back({key, parent, {block.begin(), block.end()}});
    }
    parent = it->second;
  }
}

Status BundleExport::Impl::WriteNodes(BundleWriter& out, Counts* counts) {
  for (const int64_t id : numbers.node_ids) {
    std::vector<std::vector<std::byte>> rows;  // the node, then its items
    std::optional<std::vector<std::byte>> approximate;
    const bool is_last = end && id == end->way.head.node;
    const auto take = [&](auto& row) {
      if (!is_last || end->Cut(&row)) rows.push_back(EncodeRow(row));
      return Status();
    };
    const Status read = keeper->options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_RETURN_IF_ERROR(
          ForEachNumbered<BundleNode>(reader, numbers, "id = ?", id, take));
      HOLDFAST_RETURN_IF_ERROR(
          ForEachNumbered<BundleItem>(reader, numbers, "node = ? ORDER BY id", id, take));
      const Result<Recipe> recipe = GetRecipe(reader, id);
      if (recipe.status().code() == Code::kNotFound) return Status();
      // One that can't be read is one all the same.
      approximate = EncodeRow(BundleRecipe{static_cast<int64_t>(
          recipe.ok() ? recipe->reuse.policy : ReusePolicy::kFast)});
      return Status();
    });
    if (!read.ok()) return read;
    if (rows.empty()) {
      return Status::Conflict("session '" + session.id + "' was deleted while it was exported");
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      HOLDFAST_RETURN_IF_ERROR(
          Add(out, i == 0 ? BundleSection::kNode : BundleSection::kItem, rows[i]));
    }
    if (approximate) HOLDFAST_RETURN_IF_ERROR(Add(out, BundleSection::kRecipe, *approximate));
    ++counts->nodes;
    counts->items += static_cast<int64_t>(rows.size()) - 1;
  }
  return Status();
}

Status BundleExport::Impl::WritePages(BundleWriter& out, Counts* counts) {
  std::vector<int64_t> written(pages.size(), 0);  // number in the bundle, 0 = gone
  std::vector<std::vector<std::byte>> buffers;
  for (const uint64_t bytes : session.page_groups) buffers.emplace_back(bytes);
  const std::vector<std::span<std::byte>> payload(buffers.begin(), buffers.end());
  for (size_t i = 0; i < pages.size(); ++i) {
    const PlannedPage& page = pages[i];
    const int64_t parent = page.parent < 0 ? 0 : written[page.parent];
    if (page.parent >= 0 && parent == 0) continue;
    PageHeader header;
    header.fp = session.fp;
    header.key = page.key;
    header.parent = page.parent < 0 ? RootKey(session.fp, scope, Digest{}) : pages[page.parent].key;
    header.tokens = page.tokens;
    if (!keeper->options.store->Get(header, payload).ok()) continue;
    std::vector<std::span<const std::byte>> parts = {
        std::as_bytes(std::span(&parent, 1)), std::as_bytes(std::span(page.tokens))};
    parts.insert(parts.end(), buffers.begin(), buffers.end());
    HOLDFAST_RETURN_IF_ERROR(out.Add(BundleSection::kPage, parts));
    written[i] = ++counts->pages;
  }
  return Status();
}

BundleExport::BundleExport(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BundleExport::~BundleExport() = default;
uint64_t BundleExport::bytes_expected() const { return impl_->bytes_expected; }
const std::string& BundleExport::session_id() const { return impl_->session.id; }

Result<BundleExport::Counts> BundleExport::WriteTo(const Sink& sink) {
  Counts counts;
  BundleWriter out(sink, impl_->options.key);
  HOLDFAST_RETURN_IF_ERROR(out.Begin());
  HOLDFAST_RETURN_IF_ERROR(Add(out, BundleSection::kSession, EncodeRow(impl_->session)));
  for (const auto& [kind, row] : impl_->first) HOLDFAST_RETURN_IF_ERROR(Add(out, kind, row));
  HOLDFAST_RETURN_IF_ERROR(impl_->WriteNodes(out, &counts));
  for (const auto& [kind, row] : impl_->small) HOLDFAST_RETURN_IF_ERROR(Add(out, kind, row));
  HOLDFAST_RETURN_IF_ERROR(impl_->WritePages(out, &counts));
  HOLDFAST_RETURN_IF_ERROR(out.End());
  counts.bytes = out.bytes();
  return counts;
}

Result<std::unique_ptr<BundleExport>> Keeper::Export(std::string_view tenant, std::string_view id,
                                                     const ExportOptions& options) {
  HOLDFAST_RETURN_IF_ERROR(CheckBundleKey(options.key));
  auto plan = std::make_unique<BundleExport::Impl>();
  plan->keeper = impl_.get();
  plan->options = options;
  plan->scope = TenantScope(std::string(tenant));
  if (plan->WantsPages() && impl_->options.sync_pages) {
    impl_->options.sync_pages().IgnoreError();  // what is not written is left out
  }
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow row,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    return plan->Plan(reader, row);
  }));
  return std::make_unique<BundleExport>(std::move(plan));
}

}  // namespace holdfast
