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

// Sampled outputs that can be used again count most, then matched messages, then whether the
// history goes on from the branch's very head; the default branch and the older one break ties.
auto Rank(const Scored& s, int64_t default_branch) {
  return std::make_tuple(s.same_context ? s.match.resume : 0, s.match.matched,
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
    s.match = MatchHistory(s.lineage.items, request.history->identities);
    s.same_context = s.lineage.tokens == 0 || s.lineage.template_digest == request.context;
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

Result<Continued> RenderNew(const PromptRenderer& renderer, const PlaceRequest& request,
                            const Scored* best, std::span<const TokenId> stored) {
  const PromptArgs args{request.history->messages, request.tools_json, request.kwargs_json,
                        request.now_ms / 1000};
  Continued out;
  if (best != nullptr && best->same_context && best->match.resume > 0 &&
      request.mode == HistoryMode::kAsSampled) {
    const int64_t begin = best->lineage.items[best->match.resume - 1].end;
    HOLDFAST_ASSIGN_OR_RETURN(auto after,
                              renderer.After(args, best->match.resume, stored[begin - 1]));
    if (after) {
      out.tokens = std::move(*after);
      out.resume = best->match.resume;
      out.begin = begin;
      return out;
    }
    out.unstable = true;
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

Digest ContextDigest(const Keeper::Impl& keeper, std::string_view tools_json,
                     std::string_view kwargs_json) {
  return Hasher("context-1")
      .Add(keeper.renderer->digest())
      .Add(keeper.options.model_digest)
      .Text(tools_json)
      .Text(kwargs_json)
      .Finish();
}

Status CheckLength(const Place& place, int64_t max_context) {
  const auto prompt = static_cast<int64_t>(place.prompt.size());
  if (prompt < max_context) return Status();
  return Status::Invalid("context_length_exceeded: the messages take " + std::to_string(prompt) +
                         " tokens, this model's context holds " + std::to_string(max_context));
}

Result<Place> FindPlace(Database& db, const PromptRenderer& renderer, const SessionTree& tree,
                        std::span<const BranchRow* const> candidates, const PlaceRequest& request) {
  std::optional<Scored> best = BestBranch(tree, candidates, request);
  std::vector<TokenId> stored;
  Place place;
  if (best && best->lineage.tokens > 0) {
    HOLDFAST_RETURN_IF_ERROR(db.Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(stored, LoadTokens(reader, best->lineage));
      const auto& miss = best->match.miss;
      if (!miss || miss->field != "content") return Status();
      HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts,
                                LoadItemTexts(reader, best->lineage.rows[miss->message]->id));
      best->match.miss->at_char =
          FirstDifference(texts.content, request.history->messages[miss->message].text);
      return Status();
    }));
  }
  HOLDFAST_ASSIGN_OR_RETURN(Continued now,
                            RenderNew(renderer, request, best ? &*best : nullptr, stored));
  // What another model has said can't be verified by this one, though its tokens be the same.
  const bool kin = best && best->lineage.model_digest == request.model_digest;
  const int kept = kin ? KeptItems(*best, now, stored) : 0;
  TurnDraft& draft = place.draft;
  draft.context = request.context;
  draft.base_items = kept;
  draft.base_tokens = kept > 0 ? best->lineage.items[kept - 1].end : 0;
  draft.base = kept > 0 ? best->lineage.item_points[kept - 1] : Point{};
  FillDraft(*request.history, now, kept, draft.base_tokens - now.begin, &draft);
  draft.bodies = BodiesOf(draft, best ? &best->lineage : nullptr);
  draft.hash = LineageRoot(request.context);
  for (const ItemIdentity& id : request.history->identities) {
    draft.hash = LineageNext(draft.hash, id);
  }
  place.prompt.assign(stored.begin(), stored.begin() + draft.base_tokens);
  place.prompt.insert(place.prompt.end(), draft.tokens.begin(), draft.tokens.end());
  if (!best) return place;

  place.branch = best->branch;
  place.miss = std::move(best->match.miss);
  if (!best->same_context) {
    Miss miss;
    const bool model = best->lineage.model_digest != request.model_digest;
    miss.reason = model ? "model_changed" : "tools_changed";
    miss.field = model ? "model" : "tools";
    place.miss = std::move(miss);
  } else if (now.unstable || (request.mode == HistoryMode::kAsSent &&
                              draft.base_tokens < best->lineage.tokens && !place.miss)) {
    Miss miss;
    miss.reason = now.unstable ? "template_unstable" : "history_as_sent";
    miss.message = kept;
    place.miss = std::move(miss);
  }
  if (place.miss) place.miss->at_token = draft.base_tokens;
  place.lineage = std::move(best->lineage);
  return place;
}

}  // namespace holdfast
