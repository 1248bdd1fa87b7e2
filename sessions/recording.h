// Recording: a branch of the token log as a replay reads it, and what a commit writes for it beside
// tokens and items. Plain values; functions run inside the closures of Database::Read and Write.
//
// A turn of a recording is an output with the input before it: all items since the output before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sessions/basis.h"
#include "sessions/log.h"
#include "sessions/prompt.h"
#include "sessions/turn.h"

namespace holdfast {

struct RecordedItem {
  std::string role, call_id, content, raw_json;
  int64_t first = 0, count = 0;  // tokens of the branch
  int64_t header = 0, trailer = 0;
  bool sampled = false;
};

struct RecordedTurn {
  std::string id;
  int64_t begin = 0;       // its first token in the branch, input included
  int64_t output = 0;      // the first token to generate: after the generation prompt
  int64_t end = 0;         // behind its last token, or where the branch ends
  int64_t first_item = 0;  // its input
  int64_t items = 0;       // of the input; the output is the item behind them
  uint64_t seed = 0;       // as its output says
  uint64_t turn_seed = 0;  // as its turn says: the same
  bool seed_follows = true;  // some turn of this session at this index would have it
  std::string sampling, tools, kwargs;  // JSON, or ""
  std::optional<Basis> basis;           // none: of a database before version 2
  std::string finish;
  int64_t created_ms = 0, ended_ms = 0;
  TurnTiming timing;
};

// Where what the template makes of the recorded messages today parts with the recorded tokens.
struct PromptDifference {
  int64_t index = 0;
  TokenId recorded = kNoToken, rendered = kNoToken;  // kNoToken: that side ends here
};

struct Recording {
  std::string session_id, branch;
  std::vector<TokenId> tokens;
  std::vector<TokenOrigin> origins;  // one per token
  std::vector<uint64_t> digests;     // one per token; 0 where there is none to compare
  std::vector<RecordedItem> items;   // an item that the branch's end cuts is the last, shortened
  std::vector<RecordedTurn> turns;
  std::optional<PromptDifference> prompt_difference;

  // The item that holds a token; -1 when none does.
  int64_t ItemOf(int64_t token) const;
  // The turn whose tokens include that one; null for what follows the last output.
  const RecordedTurn* TurnOf(int64_t token) const;
};

Result<Recording> LoadRecording(Reader& reader, const SessionTree& tree, const BranchRow& branch);
// Renders every turn's input again, until the first difference. Only where the turn's template or
// tokenizer was another one: the same ones give the same tokens.
Status CompareWithTemplate(const PromptRenderer& renderer, const Basis& now, Recording* recording);

// The row of this basis, made where there is none.
Result<int64_t> InsertBasis(Txn& txn, const Basis& basis);
Status RecordTiming(Txn& txn, std::string_view turn, const TurnTiming& timing);

}  // namespace holdfast
