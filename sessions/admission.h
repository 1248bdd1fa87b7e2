// Inside sessions: where a request goes on in a session's tree, before anything is leased or
// written.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/store/database.h"
#include "sessions/context.h"
#include "sessions/keeper_impl.h"

namespace holdfast {

struct PlaceRequest {
  History history;  // with kAsSampled, what the log has of earlier turns takes their place
  HistoryMode mode = HistoryMode::kAsSampled;
  const PromptContext* context = nullptr;
  Digest model_digest;
  int64_t now_ms = 0;
};

// Where a request's turn begins: after `draft.base_tokens` tokens of `lineage`.
struct Place {
  const BranchRow* branch = nullptr;  // whose lineage was matched; null: the session has none
  Lineage lineage;
  std::vector<TokenId> prompt;        // all tokens of the context
  TurnDraft draft;
  std::optional<Miss> miss;
  bool at_head() const { return branch == nullptr || branch->head == draft.base; }
};

// The whole items of a lineage, as messages.
Result<History> LoadHistory(Reader& reader, const Lineage& lineage);
// kInvalid "context_length_exceeded: ...": the prompt leaves no room for an answer.
Status CheckLength(const Place& place, int64_t max_context);

// Chooses the branch whose history matches best among `candidates` (of `tree`), then renders and
// tokenises what is new. `reader` loads token blobs.
Result<Place> FindPlace(Database& db, const PromptRenderer& renderer, const SessionTree& tree,
                        std::span<const BranchRow* const> candidates, PlaceRequest request);

}  // namespace holdfast
