// What the session keeper's own work costs: branches, commits, saving. Each of these opens a
// Runtime over a folder that goes away.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/bench/limits.h"
#include "api/runtime.h"

namespace holdfast {

// A committed turn whose answer nobody has computed: in the log it is as any other, and it has no
// KV. The answer: `answer_tokens` ordinary tokens that follow from `seed`.
struct UncomputedTurn {
  std::string session;
  std::vector<ChatMessage> messages;
  int64_t answer_tokens = 16;
  uint64_t seed = 0;
};
// Appends the answer to turn->messages.
Status CommitUncomputed(Runtime& runtime, UncomputedTurn* turn);

// The tenant of all of them, that of a server without keys.
inline constexpr const char* kBenchTenant = "default";

struct ForkFigures {
  int64_t tokens = 0;                  // of the context: n, or as many as fit
  std::vector<double> p99_ms;          // of forking all of it in memory, one per repetition
  struct Point {
    int64_t tokens = 0;
    double p99_ms = 0;
  };
  std::vector<Point> points;           // of going back to a part of it
  int64_t pages_taken = 0;             // by a fork until it has a token of its own, at most
  double page_bytes = 0;
  std::vector<double> durable_ms;      // forks and rewinds through the keeper, of 10 sessions
  std::vector<double> sync_ms;         // a RewriteProbe after each of them
};
Result<ForkFigures> MeasureFork(const EngineOptions& engine, int64_t n, int reps);

struct CommitFigures {
  std::vector<double> ack_ms;          // of a turn, from its last token to its end
  std::vector<double> sync_ms;         // a RewriteProbe after each of them
  uint64_t checkpoints = 0;            // of the database's log, meanwhile
};
Result<CommitFigures> MeasureCommit(const EngineOptions& engine, int64_t turns);

struct SaveFigures {
  std::vector<double> ms;              // of a snapshot after a short turn
  double first_ms = 0;                 // of the one after the first turn, of n tokens
  double sync_ms = 0;                  // median of a RewriteProbe after each
  int64_t tokens = 0;                  // of the session at the end
  std::string text;                    // the first message
};
// Snapshots of a session of n tokens: label, pages and partial page are on the disk afterwards.
Result<SaveFigures> MeasureSave(const EngineOptions& engine, int64_t n, int reps);

struct WrittenFigures {
  int64_t turns = 0, tokens = 0;       // tokens: new ones, of all turns
  double page_bytes = 0;               // of the pages that became full
  double written_bytes = 0;            // by this process, until pages are synced and the database's
                                       // log is copied
  bool on_disk = false;                // as the system counts what goes to a disk, else by calls
};
// Turns of at least 200 new tokens.
Result<WrittenFigures> MeasureWritten(const EngineOptions& engine, int64_t turns);

}  // namespace holdfast
