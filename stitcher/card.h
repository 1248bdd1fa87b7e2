// The model card: what reuse costs in quality, as measured on one model (`holdfast calibrate`,
// calibrate.h), and the lookup by which a planner keeps a contract (`max_kl`).
//
// A card belongs to one Model::fingerprint(): weights, KV type, numerics and tokenizer together.
// Without a card for the running model only `exact` is offered. Plain values; JSON is api/'s.
//
// Unit of every KL: nats per generated token, KL(full prefill || stitched) over the whole
// vocabulary on the full prefill's own greedy answer, averaged over a context's answer. "Of
// contexts" speaks of that average: a promise about a request is a promise about it.
//
// A cell is one measured combination of classes and setting. ExpectedKl answers with the nearest
// cell that is no easier than what is asked for, and with nothing where the card has none: then the
// planner falls back to `exact` and says so.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/hash.h"

namespace holdfast {

// How a run's KV was computed, against where it is used.
enum class CardKind : uint8_t {
  kInContext,  // behind a left context much like the one here (an edited history)
  kIsolated,   // behind a fixed prefix of its role (a document chunk)
};
const char* CardKindName(CardKind kind);  // "in_context", "isolated"

// Classes: value v is in the last class whose bound is <= v.
inline constexpr std::array<int64_t, 4> kCardTokens = {64, 192, 384, 768};  // of a run
inline constexpr std::array<int64_t, 4> kCardRuns = {1, 3, 6, 11};          // in one prompt
inline constexpr std::array<int64_t, 3> kCardShift = {0, 256, 1024};        // |shift|

// What is recomputed of the reused runs.
struct CardSetting {
  int link = 0;        // first tokens of each run; 0 = none
  int windows = 0;     // per cent of the runs' tokens in windows chosen by the question; 0 = none
  bool operator==(const CardSetting&) const = default;
};

struct CardKl {
  double mean = 0;         // of contexts
  double mean_upper = 0;   // upper end of its 95 % interval (bootstrap over contexts)
  double median = 0;
  double bound = 0;        // what 95 % of further contexts are expected to stay under
  double top1 = 0;         // share of tokens with the same likeliest continuation
  double recomputed = 0;   // share of the runs' tokens that was computed after all
  double rows = 0;         // rows computed, probe included, against those of full prefill (both
                           // counted behind the exact prefix): what time follows
  int contexts = 0;
};

struct CardCell {
  CardKind kind = CardKind::kInContext;
  int tokens = 0, runs = 0, shift = 0;  // classes: indices into the arrays above
  CardSetting setting;
  CardKl kl;
};

struct ModelCard {
  static constexpr int kVersion = 1;
  Digest model;              // Model::fingerprint()
  std::string name;          // of the model, for people
  std::string kv_type;       // "f16" or "i8"
  uint64_t seed = 0;         // of the contexts
  int contexts = 0;          // of each setting
  double noise = 0;          // mean KL of F16 KV against F32 KV over the same answers; 0: unknown
  // What was measured; outside it the card promises nothing.
  int64_t max_context = 0;   // tokens of the longest context
  int64_t min_tokens = 0;    // of the shortest run
  int max_runs = 0;
  int max_generation = 1;    // reuses of reused KV
  std::vector<CardCell> cells;
};

// Cells with fewer contexts than this are not used.
inline constexpr int kCardMinContexts = 4;

// A card by which every plan is allowed, measured by nobody: for benchmarks of speed, and for
// tests. Every cell says `kl`.
ModelCard OpenCard(const Digest& model, CardKl kl = {.contexts = kCardMinContexts});

// What a plan would do with the runs of one kind. A prompt with runs of both kinds asks for each
// with the number of all runs and takes the worse answer.
struct CardChoice {
  CardKind kind = CardKind::kInContext;
  int64_t tokens = 0;      // of the shortest run
  int runs = 1;            // in the prompt, exact prefix not counted
  int64_t shift = 0;       // the largest |shift|
  int64_t context = 0;     // tokens of the prompt
  int generation = 1;      // 1: the runs' own KV rests on no reuse
  CardSetting setting;
};

// nullopt: outside what the card measured. Rules, in this order: the choice is within the card's
// limits; of the settings that recompute no more than the choice's, in link and in windows alike,
// the one with most windows, then most link; there, of the cells whose class of tokens is not
// larger and whose class of runs is not smaller, the nearest in tokens, then in runs, then in
// shift (of two shifts equally near, the larger).
std::optional<CardKl> ExpectedKl(const ModelCard& card, const CardChoice& choice);

// Settings that the card has for a kind, the cheapest first (by `rows`, averaged over cells):
// the order in which a planner tries them against max_kl (compare `bound`).
std::vector<CardSetting> CardSettings(const ModelCard& card, CardKind kind);

// The first of CardSettings whose `bound` for `choice` (its setting is not read) is at most
// `max_kl`; nullopt where the card has none.
std::optional<CardSetting> CheapestUnder(const ModelCard& card, const CardChoice& choice,
                                         double max_kl);

// Class of `value` (see above); 0 where it is below every bound.
template <size_t n>
constexpr int CardClass(const std::array<int64_t, n>& bounds, int64_t value) {
  int c = 0;
  for (size_t i = 1; i < n; ++i) c = value >= bounds[i] ? static_cast<int>(i) : c;
  return c;
}

}  // namespace holdfast
