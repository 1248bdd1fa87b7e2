// What a tainted timeline is made of: for each token how its KV came to be (provenance), and all
// that it takes to make it again, bit for bit, when its pages are gone (recipe).
//
// A timeline's bits follow from its tokens and from its shifted runs: which slices of which chains
// stand where. Every other row is computed alone and follows from what stands before it. So a
// recipe is the spans, and for each run its source's chain; the tokens of the timeline itself are
// in the token log. Where a source's pages are gone too, they are computed again from the tokens of
// its whole left chain; where these are not known, the timeline is computed in full (*hardened*)
// and says so.
//
// Plain values. Thread-safe as such.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/store/database.h"
#include "stitcher/run_plan.h"

namespace holdfast {

// Where KV was when it was wanted. The values are stored.
enum class KvTier : uint8_t { kComputed = 0, kWarm = 1, kPool = 2, kStore = 3 };
const char* KvTierName(KvTier tier);  // "computed", "warm", "pool", "disk"

struct ProvenanceSpan {
  int64_t begin = 0, end = 0;          // token indices [begin, end)
  KvOrigin origin = KvOrigin::kFresh;
  KvTier tier = KvTier::kComputed;
  int32_t source = -1;                 // kShifted, kLink, kSelected: index into Recipe::sources
  int64_t shift = 0;                   // kShifted: index here minus index where it was computed
  int32_t generation = 0;              // approximate ancestors; 0 = the bits of full prefill
  bool operator==(const ProvenanceSpan&) const = default;
};
// "exact", "restored" (exact, from disk), "shifted", "link", "selected", "fresh".
const char* OriginName(const ProvenanceSpan& span);

// Run-length map from index 0 on, without gaps.
using Provenance = std::vector<ProvenanceSpan>;

// Appends, joining the span to the last one where they differ in nothing but their place.
void AddSpan(Provenance* map, const ProvenanceSpan& span);
// The map of the first `length` tokens.
Provenance FirstOf(const Provenance& map, int64_t length);

struct ProvenanceTotals {              // tokens; their sum is the context
  int64_t exact = 0, restored = 0, shifted = 0, link = 0, selected = 0, fresh = 0;
  int64_t approximate = 0;             // of all of these, with a generation above 0
  int64_t sum() const { return exact + restored + shifted + link + selected + fresh; }
};
ProvenanceTotals TotalsOf(const Provenance& map);

// A slice of an exact chain that runs were taken from.
struct RecipeSource {
  SegmentId segment;
  int64_t variant = 0;                 // its row in the segment store
  VariantKind kind = VariantKind::kInContext;
  PageKey parent;                      // the chain's key before the first of `tokens`
  int64_t home = 0;                    // index of tokens[0] in its chain, a multiple of kPageTokens
  std::vector<TokenId> tokens;         // of whole pages
  std::vector<TokenId> left;           // the chain's first `home` tokens, or none: not known
  bool operator==(const RecipeSource&) const = default;
};

struct Recipe {
  ReuseOptions reuse;                  // that it was planned under
  double expected_kl = 0, kl_bound = 0;
  bool hardened = false;               // was tainted once; all exact now
  std::vector<RecipeSource> sources;
  Provenance spans;
  int64_t size() const { return spans.empty() ? 0 : spans.back().end; }
  // Of shifted spans: where the first begins and the last ends; 0 where there is none.
  int64_t exact_length() const;
  int64_t approximate_end() const;
  bool operator==(const Recipe&) const = default;
};

// An answer that was given over approximate KV, measured against full prefill.
struct ShadowKl {
  int64_t tokens = 0;                // of the answer that were compared
  double mean = 0, largest = 0;      // KL(full prefill || as served), nats a token
  double same_top = 0;               // share of tokens with the same likeliest continuation
  bool operator==(const ShadowKl&) const = default;
};

// Whether KV made so may serve a request: no less care was taken, no more KL is to be expected.
bool Serves(const Recipe& recipe, const ReuseOptions& reuse);

std::vector<std::byte> EncodeRecipe(const Recipe& recipe);
// kCorrupt: not one, or not of this version. Safe on any bytes.
Result<Recipe> DecodeRecipe(std::span<const std::byte> bytes);

// Table `recipe`: one row for each node of the token log whose KV is not exact.
std::vector<Migration> RecipeMigrations();
Status PutRecipe(Txn& txn, int64_t node, const Recipe& recipe);
Status DeleteRecipe(Txn& txn, int64_t node);
// kNotFound: the node has none, its KV is exact.
Result<Recipe> GetRecipe(Reader& reader, int64_t node);
// Beside it: what the node's answer was measured to have cost (policy verify); none until then.
Status PutShadowKl(Txn& txn, int64_t node, const ShadowKl& kl);
Result<std::optional<ShadowKl>> GetShadowKl(Reader& reader, int64_t node);

}  // namespace holdfast
