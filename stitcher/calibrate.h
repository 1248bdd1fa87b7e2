// Calibration: trials over seeded contexts, what they say taken together, and the card from it.
//
// The cost of one context of each edit is that of about eight prompts of 1,000 to 3,000 tokens,
// each computed some four times over (full prefill, sources, a tenth to a half for each method):
// on two cores about a minute at 135M, six at 0.5B. Contexts come in rounds of one per edit, so a
// sweep that is stopped has measured every edit alike.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/moving_median.h"
#include "stitcher/trial.h"

namespace holdfast {

inline constexpr int kAnswerTokens = 60;
inline constexpr int64_t kMaxTrialTokens = 4096;  // of a context, answer included

struct SweepOptions {
  std::vector<ContextEdit> edits;
  std::vector<ReuseMethod> methods;
  // Of these edits the methods that measure noise and the controls are run, too: they cost whole
  // prefills.
  std::vector<ContextEdit> control_edits;
  uint64_t first_seed = 1;
  int contexts = 12;              // of each edit
  int answer_tokens = kAnswerTokens;
  std::span<const TextFile> texts;  // what contexts are made of; empty: made-up ones
  // Called after each trial and before each method; false ends the sweep, and what is done stays.
  std::function<bool(double fraction)> go_on;
  std::function<void(const Trial& trial)> on_trial;
};

// Every edit, every method that reuses, no controls: what a card needs. `is_quick`: few of both.
enum class SweepSize : uint8_t { kQuick, kWhole };
SweepOptions CardSweep(SweepSize size);
// And the controls: what QUALITY.md shows.
SweepOptions QualitySweep();

// Runs the trials, seed after seed. `other` as in TrialRunner; without one kOtherKv is left out.
// kInvalid: a model without a chat template that fits.
Status RunSweep(Model& model, Model* other, const SweepOptions& options);

// The mean of a figure of contexts with its 95 % interval, by bootstrap over contexts (2,000
// resamples of a fixed generator).
struct Interval {
  double mean = 0, low = 0, high = 0;
};
Interval BootstrapMean(std::span<const double> values);

// What 95 % of further values are expected to stay under: the 95 % prediction bound of a log-normal
// distribution, and never below the largest value but one in twenty. Values below 1e-6 count as
// that. At least two values.
double PredictionBound(std::span<const double> values);

struct Summary {
  std::string edit, method;
  int contexts = 0, tokens = 0;
  Interval kl, same_top;      // over contexts
  double median_kl = 0, largest_kl = 0;
  double first_divergence = 0;  // mean index, in answers of `tokens / contexts`
  double same_answer = 0;       // share of contexts without divergence
  double recomputed = 0, rows = 0;
};
// One per edit and method, in order of first appearance.
std::vector<Summary> Summarise(std::span<const Trial> trials);

// The card: trials of kReuse by their classes. Where a cell has too few contexts, wider ones stand
// in, labelled as the hardest of what they hold: over shifts, then over numbers of runs, then over
// lengths.
ModelCard MakeCard(const Digest& fingerprint, const std::string& name, const std::string& kv_type,
                   std::span<const Trial> trials);

}  // namespace holdfast
