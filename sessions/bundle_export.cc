// Export. Everything small (branches, turns, snapshots, events) and the list of nodes and pages is
// read at one moment; nodes, which never change, and pages, which may vanish, are read as they are
// written, so that a bundle of any size needs little memory and no long read transaction (which
// would keep the log from being checkpointed).
#include <map>
#include <optional>
#include <utility>

#include "engine/kv/page_store.h"
#include "sessions/bundle.h"
#include "sessions/bundle_file.h"
#include "sessions/bundle_scan.h"
#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// A page that the store had; its parent is one before it in the list, or the root.
struct PlannedPage {
  PageKey key;
  int64_t parent = -1;  // index in the list; -1 = the root
  std::vector<TokenId> tokens;
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
  Status Plan(Reader& reader, const SessionRow& row);
  Status PlanPages(Reader& reader, const SessionTree& tree);
  void PlanLineage(std::span<const TokenId> tokens, std::map<PageKey, int64_t>* seen);
  Status WriteNodes(BundleWriter& out, Counts* counts);
  Status WritePages(BundleWriter& out, Counts* counts);
};

Status BundleExport::Impl::Plan(Reader& reader, const SessionRow& row) {
  HOLDFAST_RETURN_IF_ERROR(LoadNumbers(reader, row.sid, &numbers));
  const int64_t now = keeper->NowMs();
  int64_t turns = 0;
  const auto add = [&](Sections& to, auto& r) {
    to.emplace_back(SectionOf(r), EncodeRow(r));
    bytes_expected += kBundleSectionBytes + to.back().second.size();
    return Status();
  };
  HOLDFAST_RETURN_IF_ERROR(ForEachBasisAndContext(
      reader, numbers, row.sid, [&](auto& r) { return add(first, r); }));
  HOLDFAST_RETURN_IF_ERROR(ForEachSmallRow(reader, numbers, row.sid, [&](auto& r) {
    EndIfRunning(r, now);
    turns += SectionOf(r) == BundleSection::kTurn;
    return add(small, r);
  }));
  session = SessionSection(row, numbers, turns);
  HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, row));
  const BranchRow* main = tree.BranchById(row.default_branch);
  session.head_model = row.model_digest;
  if (main != nullptr && main->tokens > 0) {
    session.head_model = LineageOf(tree, main->head).model_digest;
  }
  session.fp = keeper->options.fp;
  session.numerics = kNumericsVersion;
  for (const LayerGroup& g : keeper->options.pool->groups()) {
    session.page_groups.push_back(g.PayloadBytes());
    page_bytes += g.PayloadBytes();
  }
  Rows size = reader.Query(
      "SELECT (SELECT COALESCE(SUM(length(tokens) + length(origins) + length(digests) + 300), 0) "
      "FROM node WHERE sid = ?1) + (SELECT COALESCE(SUM(length(content) + length(raw) + 120), 0) "
      "FROM item i JOIN node n ON n.id = i.node WHERE n.sid = ?1)",
      row.sid);
  if (size.Next()) bytes_expected += static_cast<uint64_t>(size.Int(0));
  HOLDFAST_RETURN_IF_ERROR(size.status());
  if (!WantsPages()) return Status();
  return PlanPages(reader, tree);
}

// The pages of every branch and snapshot, each once, ancestors first.
Status BundleExport::Impl::PlanPages(Reader& reader, const SessionTree& tree) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<Point> heads, HeadsOf(reader, tree));
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
    const auto take = [&](auto& row) {
      rows.push_back(EncodeRow(row));
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
