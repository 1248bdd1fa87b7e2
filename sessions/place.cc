#include <algorithm>
#include <tuple>
#include <utility>

#include "sessions/admission.h"

namespace holdfast {
namespace {

struct Scored {
  const BranchRow* branch = nullptr;
  Lineage lineage;
  HistoryMatch match;
  bool same_context = false;
};

// Sampled outputs that can be used again count most, and those of them whose calls have their own
// ids; then matched messages, then whether the history goes on from the branch's very head; the
// default branch and the older one break ties.
auto Rank(const Scored& s, int64_t default_branch) {
  return std::make_tuple(s.same_context ? s.match.resume : 0,
                         !(s.same_context && s.match.renamed), s.match.matched,
                         !s.match.miss.has_value(), s.branch->id == default_branch,
                         -s.branch->ordinal);
}

std::optional<Scored> BestBranch(const SessionTree& tree,
                                 std::span<const BranchRow* const> candidates,
                                 const PlaceRequest& request) {
  std::optional<Scored> best;
  for (const BranchRow* branch : candidates) {
    Scored s;
    s.branch = branch;
    s.lineage = LineageOf(tree, branch->head);
    s.match = MatchHistory(s.lineage.items, request.history.identities, request.mode);
    s.same_context = s.lineage.tokens == 0 || s.lineage.template_digest == request.context->digest;
    const int64_t main = tree.session.default_branch;
    if (!best || Rank(s, main) > Rank(*best, main)) best = std::move(s);
  }
  return best;
}

int64_t CommonTokens(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

struct Continued {
  PromptTokens tokens;
  int resume = 0;     // they follow after this many messages
  int64_t begin = 0;  // and this many tokens of the lineage
  bool unstable = false;
};

// Puts the log's messages in the place of those that match them, from message `from` on: those of
// earlier turns, and system messages; and where the client has dropped one. What is newest is the
// client's, and so are the ids of calls: all that is rendered has them. True: they were not the
// same.
Result<bool> TakeFromLog(Database& db, const Scored& best, int from, History* history) {
  const int newest = history->Newest();
  bool changed = false;
  HOLDFAST_RETURN_IF_ERROR(db.Read([&](Reader& reader) -> Status {
    for (int i = 0; i < best.match.matched; ++i) {
      ChatMessage& m = history->messages[i];
      const bool there = best.match.messages[i] >= 0 || !m.raw_json.empty();
      if (there && (i < from || (i >= newest && m.role != "system"))) continue;
      const ItemRow& row = *best.lineage.rows[i];
      HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts, LoadItemTexts(reader, row.id));
      if (texts.raw == m.raw_json) continue;
      texts.raw = WithCallIds(std::move(texts.raw), row.identity.call_id, CallIdsOf(m));
      if (texts.raw == m.raw_json) continue;
      if (texts.content != m.text) m.spans.clear();
      m.text = std::move(texts.content);
      m.raw_json = std::move(texts.raw);
      changed = true;
    }
    return Status();
  }));
  return changed;
}

// The tokens that were sampled for the bodies of the history's messages, one list each: for those
// that match, and for later ones that the log has in the same order.
std::vector<std::vector<TokenId>> SampledFor(const Scored& best, const History& history,
                                             std::span<const TokenId> stored) {
  std::vector<std::vector<TokenId>> out(history.messages.size());
  size_t next = 0;  // item of the log
  for (size_t i = 0; i < out.size(); ++i) {
    if (history.identities[i].role != "assistant") continue;
    for (size_t k = next; k < best.lineage.items.size(); ++k) {
      const StoredItem& item = best.lineage.items[k];
      if (!item.sampled || !StandsFor(item.identity, history.identities[i])) continue;
      const ItemRow& row = *best.lineage.rows[k];
      const auto end = stored.begin() + item.end;
      out[i].assign(end - row.count + row.header, end - row.trailer);
      next = k + 1;
      break;
    }
  }
  return out;
}

Result<Continued> RenderNew(Database& db, const PromptRenderer& renderer, const Scored* best,
                            std::span<const TokenId> stored, PlaceRequest* request) {
  Continued out;
  const bool ours = best != nullptr && request->mode == HistoryMode::kAsSampled;
  std::vector<std::vector<TokenId>> sampled;
  if (ours && best->lineage.model_digest == request->model_digest) {
    sampled = SampledFor(*best, request->history, stored);
  }
  const PromptArgs args{request->history.messages, request->context->tools,
                        request->context->kwargs, request->now_ms / 1000, sampled};
  const bool resumes = ours && best->same_context && best->match.resume > 0;
  if (resumes) {
    const int resume = best->match.resume;
    const int64_t begin = best->lineage.items[resume - 1].end;
    HOLDFAST_RETURN_IF_ERROR(TakeFromLog(db, *best, resume, &request->history).status());
    HOLDFAST_ASSIGN_OR_RETURN(auto after, renderer.After(args, resume, stored[begin - 1]));
    if (!after) {
      // What the client has dropped since (reasoning, say) may be what the template shows.
      HOLDFAST_ASSIGN_OR_RETURN(const bool other, TakeFromLog(db, *best, 0, &request->history));
      if (other) {
        HOLDFAST_ASSIGN_OR_RETURN(after, renderer.After(args, resume, stored[begin - 1]));
      }
    }
    if (after) {
      out.tokens = std::move(*after);
      out.resume = resume;
      out.begin = begin;
      return out;
    }
    out.unstable = true;
  } else if (ours) {
    HOLDFAST_RETURN_IF_ERROR(TakeFromLog(db, *best, 0, &request->history).status());
  }
  HOLDFAST_ASSIGN_OR_RETURN(out.tokens, renderer.Whole(args));
  return out;
}

// How many of the lineage's items the new rendering repeats token for token, beyond out.resume.
int KeptItems(const Scored& best, const Continued& now, std::span<const TokenId> stored) {
  const int64_t common = CommonTokens(now.tokens.tokens, stored.subspan(now.begin));
  int kept = now.resume;
  while (kept < best.match.matched) {
    const int64_t end = best.lineage.items[kept].end - now.begin;
    if (end > common || end > now.tokens.prompt_begin) break;
    if (now.tokens.items[kept - now.resume].end < end) break;
    ++kept;
  }
  return kept;
}

// The items and tokens after the first `kept` messages, which `cut` of the rendered tokens spell.
void FillDraft(const History& history, const Continued& now, int kept, int64_t cut,
               TurnDraft* draft) {
  const PromptTokens& t = now.tokens;
  draft->tokens.assign(t.tokens.begin() + cut, t.tokens.end());
  draft->origins.assign(t.origins.begin() + cut, t.origins.end());
  const int count = static_cast<int>(history.messages.size());
  int64_t first = cut;
  for (int i = kept; i < count; ++i) {
    const ItemSpan& span = t.items[i - now.resume];
    // What stands between the last message and the generation prompt is the last message's.
    const int64_t end = i + 1 == count ? t.prompt_begin : std::max(first, span.end);
    NewItem item;
    item.first = first - cut;
    item.count = end - first;
    item.header = std::clamp<int64_t>(span.body_begin - first, 0, item.count);
    item.trailer = std::clamp<int64_t>(end - span.body_end, 0, item.count - item.header);
    item.identity = history.identities[i];
    item.content = history.messages[i].text;
    item.raw = history.messages[i].raw_json;
    draft->items.push_back(std::move(item));
    first = end;
  }
  draft->input_count = count > kept ? t.prompt_begin - cut : 0;
}

// The bodies that clients sent in the draft, and those before it whose last page was not whole when
// their own turn was committed: what a model said is not pasted elsewhere.
std::vector<BodySpan> BodiesOf(const TurnDraft& draft, const Lineage* lineage) {
  std::vector<BodySpan> out;
  for (int64_t i = draft.base_items; lineage != nullptr && i-- > 0;) {
    const ItemRow& row = *lineage->rows[i];
    const int64_t end = lineage->items[i].end;
    if (end < draft.base_tokens - kPageTokens) break;
    if (row.identity.role == "assistant") continue;
    out.push_back({end - row.count + row.header, end - row.trailer, row.identity.role});
  }
  for (const NewItem& item : draft.items) {
    if (item.identity.role == "assistant") continue;
    const int64_t first = draft.base_tokens + item.first;
    out.push_back({first + item.header, first + item.count - item.trailer, item.identity.role});
  }
  return out;
}

// Where the first message that does not match differs.
Status Locate(Reader& reader, const Scored& best, const History& history, Miss* miss) {
  if (miss->field.empty()) return Status();
  const ItemRow& row = *best.lineage.rows[miss->message];
  const ChatMessage& sent = history.messages[miss->message];
  if (miss->field == "tool_calls") miss->name = DifferingCall(row.identity, sent);
  if (miss->field == "tool_call_id") miss->name = sent.tool_call_id;
  if (miss->field != "content") return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const ItemTexts texts, LoadItemTexts(reader, row.id));
  miss->at_char = FirstDifference(sent.role, texts.content, sent.text);
  return Status();
}

Miss MissAt(std::string reason, int message, std::string field) {
  Miss miss;
  miss.reason = std::move(reason);
  miss.message = message;
  miss.field = std::move(field);
  return miss;
}

// Why the branch could not be gone on with as it is, where anything stood against it. `kept`: the
// items that stay.
Result<std::optional<Miss>> MissOf(Database& db, int64_t sid, const Scored& best,
                                   const Continued& now, int kept, const PlaceRequest& request) {
  const bool as_sent = request.mode == HistoryMode::kAsSent;
  std::optional<Miss> miss = best.match.miss;
  HOLDFAST_RETURN_IF_ERROR(db.Read([&](Reader& reader) -> Status {
    if (!best.same_context) {
      HOLDFAST_ASSIGN_OR_RETURN(const auto recorded,
                                LoadContext(reader, sid, best.lineage.template_digest));
      miss = ContextMiss(recorded, *request.context);
      if (best.lineage.model_digest == request.model_digest) return Status();
      miss = MissAt("model_changed", -1, "model");
      return Status();
    }
    if (now.unstable) {
      miss = MissAt("template_unstable", kept, "");
      return Status();
    }
    const int64_t stays = kept > 0 ? best.lineage.items[kept - 1].end : 0;
    if (as_sent && (kept < best.match.matched || (!miss && stays < best.lineage.tokens))) {
      miss = MissAt("history_as_sent", kept, "");
      return Status();
    }
    if (kept < best.match.matched) {  // perhaps by what does not count, but the newest is as sent
      const std::string& sent = request.history.messages[kept].text;
      HOLDFAST_ASSIGN_OR_RETURN(const ItemTexts texts,
                                LoadItemTexts(reader, best.lineage.rows[kept]->id));
      if (texts.content != sent) {
        miss = MissAt("message_changed", kept, "content");
        miss->at_char = FirstDifference(texts.content, sent);
        return Status();
      }
    }
    return miss ? Locate(reader, best, request.history, &*miss) : Status();
  }));
  return miss;
}

}  // namespace

Result<History> LoadHistory(Reader& reader, const Lineage& lineage) {
  History out;
  for (const ItemRow* row : lineage.rows) {
    HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts, LoadItemTexts(reader, row->id));
    ChatMessage m;
    m.role = row->identity.role;
    m.text = std::move(texts.content);
    if (m.role == "tool") m.tool_call_id = row->identity.call_id;
    m.raw_json = std::move(texts.raw);
    out.Add(std::move(m), row->identity);
  }
  return out;
}

Status CheckLength(const Place& place, int64_t max_context) {
  const auto prompt = static_cast<int64_t>(place.prompt.size());
  if (prompt < max_context) return Status();
  return Status::Invalid("context_length_exceeded: the messages take " + std::to_string(prompt) +
                         " tokens, this model's context holds " + std::to_string(max_context));
}

Result<Place> FindPlace(Database& db, const PromptRenderer& renderer, const SessionTree& tree,
                        std::span<const BranchRow* const> candidates, PlaceRequest request) {
  std::optional<Scored> best = BestBranch(tree, candidates, request);
  if (best) request.history.Follow(best->lineage.items, best->match);
  std::vector<TokenId> stored;
  if (best && best->lineage.tokens > 0) {
    HOLDFAST_RETURN_IF_ERROR(db.Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(stored, LoadTokens(reader, best->lineage));
      return Status();
    }));
  }
  HOLDFAST_ASSIGN_OR_RETURN(Continued now,
                            RenderNew(db, renderer, best ? &*best : nullptr, stored, &request));
  // What another model has said can't be verified by this one, though its tokens be the same.
  const bool kin = best && best->lineage.model_digest == request.model_digest;
  const int kept = kin ? KeptItems(*best, now, stored) : 0;
  Place place;
  TurnDraft& draft = place.draft;
  draft.context = request.context->digest;
  draft.base_items = kept;
  draft.base_tokens = kept > 0 ? best->lineage.items[kept - 1].end : 0;
  draft.base = kept > 0 ? best->lineage.item_points[kept - 1] : Point{};
  FillDraft(request.history, now, kept, draft.base_tokens - now.begin, &draft);
  draft.bodies = BodiesOf(draft, best ? &best->lineage : nullptr);
  draft.name = HistoryName(LineageRoot(request.context->lineage));
  CallNumbers calls;
  for (const ItemIdentity& id : request.history.identities) draft.name.Add(id, &calls);
  place.prompt.assign(stored.begin(), stored.begin() + draft.base_tokens);
  place.prompt.insert(place.prompt.end(), draft.tokens.begin(), draft.tokens.end());
  if (!best) return place;

  place.branch = best->branch;
  HOLDFAST_ASSIGN_OR_RETURN(place.miss,
                            MissOf(db, tree.session.sid, *best, now, kept, request));
  if (place.miss) {
    place.miss->at_token = draft.base_tokens;
    if (place.miss->message >= 0) place.miss->message = best->match.SentAs(place.miss->message);
  }
  place.lineage = std::move(best->lineage);
  return place;
}

}  // namespace holdfast
