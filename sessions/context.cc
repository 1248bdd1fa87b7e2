#include "sessions/context.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/text/tool_list.h"

namespace holdfast {
namespace {

constexpr size_t kMaxCompared = 16;  // contexts of a session, those of its latest heads

Digest DigestOf(const Keeper::Impl& keeper, std::string_view tools, std::string_view kwargs) {
  return Hasher("context-1")
      .Add(keeper.renderer->digest())
      .Add(keeper.options.model_digest)
      .Text(tools)
      .Text(kwargs)
      .Finish();
}

// An array again: what holds none of the freedoms of a client's is its own set.
Result<std::string> AsSet(std::string_view tools) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<CanonicalTool> list, CanonicalTools(tools));
  std::string text;
  for (const CanonicalTool& tool : list) text += (text.empty() ? "[" : ",") + tool.json;
  return text.empty() ? text : text + "]";
}

// The contexts of the branches' heads, the latest first.
std::vector<Digest> HeadContexts(const SessionTree& tree,
                                 std::span<const BranchRow* const> branches) {
  std::vector<const BranchRow*> latest(branches.begin(), branches.end());
  std::stable_sort(latest.begin(), latest.end(), [](const BranchRow* a, const BranchRow* b) {
    return a->updated_ms > b->updated_ms;
  });
  std::vector<Digest> out;
  for (const BranchRow* branch : latest) {
    if (branch->head.node == 0) continue;
    const Digest& digest = tree.nodes.at(branch->head.node).template_digest;
    if (std::find(out.begin(), out.end(), digest) == out.end()) out.push_back(digest);
    if (out.size() == kMaxCompared) break;
  }
  return out;
}

}  // namespace

Result<PromptContext> MakeContext(const Keeper::Impl& keeper, std::string tools,
                                  std::string kwargs) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::string set, AsSet(tools));
  PromptContext out;
  out.digest = DigestOf(keeper, tools, kwargs);
  out.lineage = DigestOf(keeper, set, kwargs);
  out.tools = std::move(tools);
  out.kwargs = std::move(kwargs);
  return out;
}

Status InsertContext(Txn& txn, int64_t sid, const Digest& digest, const TurnContext& context) {
  return txn.Run(
      "INSERT OR IGNORE INTO context(sid, digest, tools, template_kwargs) VALUES(?, ?, ?, ?)", sid,
      digest, context.tools, context.kwargs);
}

Result<std::optional<TurnContext>> LoadContext(Reader& reader, int64_t sid, const Digest& digest) {
  Rows rows = reader.Query(
      "SELECT tools, template_kwargs FROM context WHERE sid = ? AND digest = ?", sid, digest);
  std::optional<TurnContext> out;
  if (rows.Next()) out = {std::string(rows.Text(0)), std::string(rows.Text(1))};
  if (!rows.status().ok()) return rows.status();
  return out;
}

Result<Digest> LineageContext(Reader& reader, const Keeper::Impl& keeper, int64_t sid,
                              const Digest& digest) {
  HOLDFAST_ASSIGN_OR_RETURN(auto recorded, LoadContext(reader, sid, digest));
  if (!recorded) return digest;
  auto context = MakeContext(keeper, std::move(recorded->tools), std::move(recorded->kwargs));
  // Another model's is its own.
  return context.ok() && context->digest == digest ? context->lineage : digest;
}

Status TakeRecordedTools(Reader& reader, const Keeper::Impl& keeper, const SessionTree& tree,
                         std::span<const BranchRow* const> branches, PromptContext* context) {
  if (context->tools.empty()) return Status();
  const std::vector<Digest> heads = HeadContexts(tree, branches);
  if (std::find(heads.begin(), heads.end(), context->digest) != heads.end()) return Status();
  for (const Digest& digest : heads) {
    HOLDFAST_ASSIGN_OR_RETURN(auto recorded, LoadContext(reader, tree.session.sid, digest));
    if (!recorded || recorded->kwargs != context->kwargs) continue;
    auto made = MakeContext(keeper, std::move(recorded->tools), std::move(recorded->kwargs));
    if (!made.ok() || made->digest != digest || made->lineage != context->lineage) continue;
    *context = std::move(made).value();
    return Status();
  }
  return Status();
}

Miss ContextMiss(const std::optional<TurnContext>& recorded, const PromptContext& now) {
  Miss miss;
  miss.reason = "tools_changed";
  miss.field = "tools";
  if (!recorded) return miss;
  const auto before = CanonicalTools(recorded->tools);
  const auto after = CanonicalTools(now.tools);
  if (!before.ok() || !after.ok()) return miss;
  const auto [b, a] =
      std::mismatch(before->begin(), before->end(), after->begin(), after->end());
  const bool old_ends = b == before->end(), new_ends = a == after->end();
  if (old_ends && new_ends) {
    if (recorded->kwargs != now.kwargs) miss.field = "chat_template_kwargs";
  } else if (old_ends || (!new_ends && a->name < b->name)) {
    miss.name = a->name;
    miss.change = "added";
  } else {
    miss.name = b->name;
    miss.change = !new_ends && a->name == b->name ? "changed" : "removed";
  }
  return miss;
}

}  // namespace holdfast
