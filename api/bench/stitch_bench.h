// What it costs in time to go on behind an edit: a long history whose beginning is changed, as a
// client sends it, and what the stitcher's own work is in that.
//
// Quality is not measured here, so the model needs no card: one that allows everything (OpenCard)
// stands in its place. What reuse costs in quality says stitcher/QUALITY.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "api/bench/engine_bench.h"
#include "api/bench/peers.h"
#include "stitcher/card.h"

namespace holdfast {

enum class HistoryEdit : uint8_t {
  kInsert,   // a call and its output come in before all others
  kSwap,     // two outputs change places
  kReplace,  // the first output says something else
};

struct StitchOptions {
  EngineOptions engine;
  std::vector<Peer> peers;
  HistoryEdit edit = HistoryEdit::kInsert;
  int64_t tokens = 8000;    // of the edited prompt, about
  int reps = 5;
  std::function<void(double fraction)> progress;
};
struct StitchFigures {
  int64_t tokens = 0;       // of the edited prompt
  int64_t computed = 0;     // of them, rows that were computed; of the last run, as what follows
  int64_t behind = 0;       // tokens that follow what was edited
  int runs = 0;             // that were used
  int64_t fresh = 0;        // computed and in no run: what is new, and the template's tokens
  std::vector<double> fast_ms, full_ms;  // to the first token; full: with policy off
  int64_t extra_pages = 0;  // taken beyond those that hold a computed row
  double stitch_ms = 0;     // of fast_ms, spent in Stitch
  // By name: "llama.cpp cache-reuse", ms; and what went wrong with one.
  std::map<std::string, std::vector<double>> peers;
  std::map<std::string, std::string> notes;
};
// The history is computed once; then it comes edited, otherwise in each run, under policy fast and
// (as another tenant) under policy off. A peer's llama-server (--cache-reuse 64, one slot) gets the
// same tokens: the history, then an edited one, which is timed.
Result<StitchFigures> MeasureStitch(const StitchOptions& options);

struct StitchPlanFigures {
  std::vector<double> plan_ms;  // of Stitch: plan, pins, the timeline's table
  int64_t tokens = 0;           // of the prompt
  double find_ms = 0;           // of finding the runs, per 1000 tokens
};
// A prompt of `segments` segments that all lie in the pool, each elsewhere.
Result<StitchPlanFigures> MeasureStitchPlan(Engine& engine, int64_t segments, int reps);

struct StitchDecodeFigures {
  std::vector<double> exact, stitched;  // tokens per second after as many tokens
  int64_t tokens = 0;
  int runs = 0;
};
// Decoding after `n` tokens: computed where they stand, or in ten runs moved by an odd number of
// tokens, each linked.
Result<StitchDecodeFigures> MeasureStitchDecode(Engine& engine, EngineBench& bench, int64_t n,
                                                int reps);

}  // namespace holdfast
