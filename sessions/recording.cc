#include "sessions/recording.h"

#include <algorithm>
#include <map>
#include <utility>

#include "sessions/context.h"
#include "sessions/turn_seed.h"

namespace holdfast {
namespace {

constexpr int64_t kMaxAttempts = 16;  // turns that began at one place, when a seed is traced

int64_t Micros(double ms) { return static_cast<int64_t>(ms * 1000); }
double Millis(int64_t us) { return static_cast<double>(us) / 1000; }

class Loader {
 public:
  Loader(Reader& reader, const SessionTree& tree) : reader_(reader), tree_(tree) {}

  Result<Recording> Load(const BranchRow& branch) {
    out_.session_id = tree_.session.id;
    out_.branch = branch.name;
    const Lineage lineage = LineageOf(tree_, branch.head);
    for (const Lineage::Step& step : lineage.steps) {
      const int64_t items = static_cast<int64_t>(out_.items.size());
      HOLDFAST_RETURN_IF_ERROR(LoadItems(step));
      HOLDFAST_RETURN_IF_ERROR(LoadNode(step, items));
    }
    return std::move(out_);
  }

 private:
  Status LoadItems(const Lineage::Step& step) {
    const auto found = tree_.items.find(step.node);
    if (found == tree_.items.end()) return Status();
    const bool sampled = tree_.nodes.at(step.node).kind == NodeKind::kOutput;
    for (const ItemRow& row : found->second) {
      if (row.first >= step.count) break;
      HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts, LoadItemTexts(reader_, row.id));
      RecordedItem item;
      item.role = row.identity.role;
      item.call_id = row.identity.call_id;
      item.content = std::move(texts.content);
      item.raw_json = std::move(texts.raw);
      item.first = step.first + row.first;
      item.count = std::min(row.count, step.count - row.first);
      item.header = std::min(row.header, item.count);
      item.trailer = item.count == row.count ? row.trailer : 0;
      item.sampled = sampled;
      out_.items.push_back(std::move(item));
    }
    return Status();
  }

  // `items`: of the branch before this node.
  Status LoadNode(const Lineage::Step& step, int64_t items) {
    Rows rows = reader_.Query(
        "SELECT tokens, origins, digests, sampling, seed, basis FROM node WHERE id = ?", step.node);
    if (!rows.Next()) {
      if (!rows.status().ok()) return rows.status();
      return Status::Conflict("node " + std::to_string(step.node) + " is gone");
    }
    const auto tokens = rows.Array<TokenId>(0);
    const auto origins = rows.Array<TokenOrigin>(1);
    const auto digests = rows.Array<uint64_t>(2);
    const auto sampled = std::count(origins.begin(), origins.end(), TokenOrigin::kSampled);
    if (!rows.status().ok()) return rows.status();
    if (tokens.size() != origins.size() || static_cast<int64_t>(tokens.size()) < step.count ||
        static_cast<int64_t>(digests.size()) != sampled) {
      return Status::Corrupt("node " + std::to_string(step.node) +
                             ": tokens, origins and digests do not fit together");
    }
    std::optional<Basis> basis;
    if (!rows.IsNull(5)) {
      HOLDFAST_ASSIGN_OR_RETURN(basis, FindBasis(rows.Int(5)));
    }
    // An answer over approximate KV can't be drawn again over what full prefill gives: its tokens
    // are taken as given, and what follows them is compared.
    const bool approximate = GetRecipe(reader_, step.node).ok();
    out_.tokens.insert(out_.tokens.end(), tokens.begin(), tokens.begin() + step.count);
    size_t next = 0;
    for (int64_t i = 0; i < step.count; ++i) {
      const bool has = origins[i] == TokenOrigin::kSampled && !approximate;
      const bool given = origins[i] == TokenOrigin::kSampled && approximate;
      out_.origins.push_back(given ? TokenOrigin::kForced : origins[i]);
      out_.digests.push_back(has && basis ? digests[next] : 0);
      next += has;
    }
    const NodeRow& node = tree_.nodes.at(step.node);
    if (node.kind != NodeKind::kOutput) return Status();
    RecordedTurn turn;
    turn.id = node.turn;
    turn.sampling = rows.Text(3);
    turn.seed = static_cast<uint64_t>(rows.Int(4));
    turn.basis = std::move(basis);
    turn.first_item = first_item_;
    turn.items = items - first_item_;
    turn.begin = begin_;
    const auto own = tree_.items.find(step.node);
    const int64_t header = own == tree_.items.end() ? 0 : own->second.front().header;
    turn.output = step.first + std::min(header, step.count);
    turn.end = begin_ = step.first + step.count;
    first_item_ = static_cast<int64_t>(out_.items.size());
    HOLDFAST_ASSIGN_OR_RETURN(
        auto context, LoadContext(reader_, tree_.session.sid, node.template_digest));
    if (context) {
      turn.tools = std::move(context->tools);
      turn.kwargs = std::move(context->kwargs);
    }
    HOLDFAST_RETURN_IF_ERROR(LoadTurn(&turn));
    turn.seed_follows = SeedFollows(turn);
    out_.turns.push_back(std::move(turn));
    return Status();
  }

  Result<Basis> FindBasis(int64_t id) {
    if (const auto it = bases_.find(id); it != bases_.end()) return it->second;
    Rows rows = reader_.Query(
        "SELECT weights, fp, numerics, operations, chat_template, tokenizer, kv FROM basis "
        "WHERE id = ?",
        id);
    Basis b;
    if (rows.Next()) {
      b.weights = rows.DigestAt(0);
      b.fp = rows.DigestAt(1);
      b.numerics = rows.DigestAt(2);
      b.operations = rows.Text(3);
      b.chat_template = rows.DigestAt(4);
      b.tokenizer = rows.DigestAt(5);
      b.kv = rows.Text(6);
    }
    if (!rows.status().ok()) return rows.status();
    return bases_[id] = b;
  }

  Status LoadTurn(RecordedTurn* turn) {
    Rows rows = reader_.Query(
        "SELECT seed, finish, created_ms, ended_ms, queue_us, restore_us, prefill_us, decode_us "
        "FROM turn WHERE id = ?",
        turn->id);
    turn->turn_seed = turn->seed;
    if (rows.Next()) {
      turn->turn_seed = static_cast<uint64_t>(rows.Int(0));
      turn->finish = rows.Text(1);
      turn->created_ms = rows.Int(2);
      turn->ended_ms = rows.IsNull(3) ? rows.Int(2) : rows.Int(3);
      turn->timing = {Millis(rows.Int(4)), Millis(rows.Int(5)), Millis(rows.Int(6)),
                      Millis(rows.Int(7))};
    }
    return rows.status();
  }

  // Whether the session's seed gives this turn's; a request's own seed is not known here.
  bool SeedFollows(const RecordedTurn& turn) const {
    for (int64_t ordinal = 0; ordinal < tree_.session.next_ordinal; ++ordinal) {
      for (int64_t attempt = 0; attempt < kMaxAttempts; ++attempt) {
        if (SessionSeed(tree_.session.seed, ordinal, turn.output, attempt) == turn.seed) {
          return true;
        }
      }
    }
    return false;
  }

  Reader& reader_;
  const SessionTree& tree_;
  Recording out_;
  int64_t first_item_ = 0, begin_ = 0;  // behind the last output
  std::map<int64_t, Basis> bases_;
};

std::vector<ChatMessage> MessagesOf(std::span<const RecordedItem> items) {
  std::vector<ChatMessage> messages;
  for (const RecordedItem& item : items) {
    ChatMessage m;
    m.role = item.role;
    m.text = item.content;
    if (m.role == "tool") m.tool_call_id = item.call_id;
    m.raw_json = item.raw_json;
    messages.push_back(std::move(m));
  }
  return messages;
}

Result<std::optional<PromptDifference>> RenderTurn(const PromptRenderer& renderer,
                                                   const Recording& r, const RecordedTurn& turn) {
  const auto messages = MessagesOf(std::span(r.items).first(turn.first_item + turn.items));
  const PromptArgs args{messages, turn.tools, turn.kwargs, turn.created_ms / 1000};
  std::vector<TokenId> rendered;
  if (turn.begin > 0) {
    auto after =
        renderer.After(args, static_cast<int>(turn.first_item), r.tokens[turn.begin - 1]);
    if (!after.ok()) return after.status();
    if (after->has_value()) rendered = std::move((*after)->tokens);
  } else {
    HOLDFAST_ASSIGN_OR_RETURN(PromptTokens whole, renderer.Whole(args));
    rendered = std::move(whole.tokens);
  }
  const auto recorded = std::span(r.tokens).subspan(turn.begin, turn.output - turn.begin);
  const auto [a, b] = std::mismatch(recorded.begin(), recorded.end(), rendered.begin(),
                                    rendered.end());
  if (a == recorded.end() && b == rendered.end()) return std::optional<PromptDifference>();
  return std::optional(PromptDifference{.index = turn.begin + (a - recorded.begin()),
                                        .recorded = a == recorded.end() ? kNoToken : *a,
                                        .rendered = b == rendered.end() ? kNoToken : *b});
}

}  // namespace

int64_t Recording::ItemOf(int64_t token) const {
  const auto it = std::upper_bound(items.begin(), items.end(), token,
                                   [](int64_t t, const RecordedItem& i) { return t < i.first; });
  return it - items.begin() - 1;
}

const RecordedTurn* Recording::TurnOf(int64_t token) const {
  const auto it = std::upper_bound(turns.begin(), turns.end(), token,
                                   [](int64_t t, const RecordedTurn& r) { return t < r.end; });
  return it == turns.end() ? nullptr : &*it;
}

Result<Recording> LoadRecording(Reader& reader, const SessionTree& tree, const BranchRow& branch) {
  return Loader(reader, tree).Load(branch);
}

Status CompareWithTemplate(const PromptRenderer& renderer, const Basis& now,
                           Recording* recording) {
  for (const RecordedTurn& turn : recording->turns) {
    if (!turn.basis || (turn.basis->chat_template == now.chat_template &&
                        turn.basis->tokenizer == now.tokenizer)) {
      continue;
    }
    auto difference = RenderTurn(renderer, *recording, turn);
    // A template that refuses the messages makes nothing of them.
    if (!difference.ok()) {
      difference = std::optional(PromptDifference{
          .index = turn.begin, .recorded = recording->tokens[turn.begin], .rendered = kNoToken});
    }
    if (!difference->has_value()) continue;
    recording->prompt_difference = **difference;
    return Status();
  }
  return Status();
}

Result<int64_t> InsertBasis(Txn& txn, const Basis& b) {
  const Digest digest = b.digest();
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "INSERT OR IGNORE INTO basis(digest, weights, fp, numerics, operations, chat_template, "
      "tokenizer, kv) VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
      digest, b.weights, b.fp, b.numerics, b.operations, b.chat_template, b.tokenizer, b.kv));
  Rows rows = txn.Query("SELECT id FROM basis WHERE digest = ?", digest);
  const int64_t id = rows.Next() ? rows.Int(0) : 0;
  if (!rows.status().ok()) return rows.status();
  return id;
}

Status RecordTiming(Txn& txn, std::string_view turn, const TurnTiming& t) {
  return txn.Run(
      "UPDATE turn SET queue_us = ?, restore_us = ?, prefill_us = ?, decode_us = ? WHERE id = ?",
      Micros(t.queue_ms), Micros(t.restore_ms), Micros(t.prefill_ms), Micros(t.decode_ms), turn);
}

}  // namespace holdfast
