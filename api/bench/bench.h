// Benchmarks with fixed workloads, side by side with peers in one run.
//
//   roofline             this machine with this build, 1 thread and all: reads of memory, L3 and L2
//                        (GB/s), INT8 and FP32 (Gop/s); needs no model
//   prefill@N     tok/s  N tokens from nothing, the first token drawn
//   decode@N      tok/s  one sequence, 64 tokens after N
//   append16@N    tok/s  16 new tokens on N cached ones, the first token drawn
//   agentsS@N     tok/s  S sequences of N tokens decode 64 each, together; of all (agents8@1024)
//   sharedS@N     tok/s  the same behind one context that all share (shared8@4096)
//   fork@N        ms     p99 of forking a timeline of N tokens in memory; any length, pages taken,
//                        and forks and rewinds through the keeper beside a sync
//   save@N        ms     a snapshot of a session of N tokens after a short turn, until label, pages
//                        and partial page are on disk. Peers: saving a slot (which syncs nothing)
//   commit@T      ms     of T turns (200): from the last token to the end, after the commit; beside
//                        syncs of 12 KiB, with checkpoints among them
//   written@T     x      bytes that T turns (8) of 200 tokens and more write, in their new pages
//   restore@N     ms     time to first token after a restart, N tokens on disk (page cache warm);
//                        how long pages take from page cache and disk, beside raw reads and
//                        prefill. Peers: a slot file and a restart
//   load          s      from the start of a server process until it listens, file in memory
//   rewrite       tok/s  a chat turn that writes a 120-line file again with one edit, greedily, its
//                        first token not timed; beside it without speculation, same tokens or not
//   soakS@M       tok/s  S agents (16) hold conversations for M minutes (30): median of 30 parts,
//                        memory and speed of each, how both change per hour (soak.h)
//   switchS@N     ms     S agents (8) of N tokens (3000) take turns over HTTP, 32 new tokens each,
//                        with memory for KV of two: time to first token. Peers: llama-server with a
//                        slot file per agent, and with its cache in host memory (switch_bench.h)
//   beside-save, beside-restore
//                 ms     p50 between tokens of two agents while others' pages go to disk or come
//                        back without a pause; p99; the limit is the same without (beside_bench.h)
//   sessions@N    s      N sessions (10000) on disk: a server's time until it is ready beyond
//                        loading the model; to list and open some (many_sessions.h)
//   agent-trace@T ms     three agents of T turns (40) with tools' pauses, 142 tokens read for one
//                        written, memory for two: time to first token, hits. Peers: llama-server
//                        with two slots and its cache in host memory (agent_trace.h)
//   stitch-insert@N, stitch-swap@N, stitch-replace@N
//                 ms     time to first token of an agent's history of N tokens (8000) edited near
//                        its beginning (an output inserted, two swapped, one replaced), policy
//                        fast; beside full prefill. Every model may, whatever its card says, which
//                        measures no quality. Peers: llama-server with --cache-reuse 64
//                        (stitch_bench.h)
//   stitch-plan@S ms     of stitching a prompt of S segments (100) that lie in the pool: the plan
//                        and the timeline's table
//   stitch-decode@N
//                 tok/s  as decode@N, after ten moved runs; and after an exact context
//   scale-context, scale-sequences, scale-threads
//                        time per new token against context, sequences and threads: points, fitted
//                        slope, the limit's slope; drawn by `plot`
//
// Ours and the peers' runs alternate; each figure is the median of `reps`. A peer runs llama-bench,
// for agents llama-batched-bench (-npp N -ntg 64 -npl S, of shared with -pps). A peer that lacks a
// program or a test, or fails, gets a note in the place of its figure. Where a context does not fit
// the model or the memory for KV, ours and the peers' take the largest that does ("context").
//
// `limit` is what the machine allows (limits.h) at the rates of roofline, reads measured over as
// many bytes as the pass reads, so that the share of it that a large cache holds counts alike;
// `share` is the part of it that is reached. fork: its table's bytes. save, commit: a sync.
// written: the pages. restore: the pages' bytes and a pass over what is computed. load: the file's
// bytes.
// `figures` are what else was measured; where one should be at most or at least so much it says
// whether it is.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/bench/peers.h"
#include "api/bench/plot.h"
#include "api/json.h"
#include "api/runtime.h"

namespace holdfast {

struct BenchOptions {
  EngineOptions engine;            // cpu.threads: of the peers as well; 0 = all
  std::string model_name;
  std::vector<std::string> names;  // "decode@4096", ...
  std::vector<Peer> peers;
  std::string program;             // holdfast itself, for `load` to start; "" = kInvalid there
  int reps = 5;
  std::function<void(const std::string& what, double fraction)> progress;
};

struct BenchReport {
  Json document;              // {"machine": {...}, "results": [...]}
  std::vector<Chart> charts;  // of the names that have some
};

std::vector<std::string> BenchNames();       // what `bench all` runs
std::vector<std::string> BenchScaleNames();  // what else there is: how the cost of a token grows,
std::vector<std::string> BenchLongNames();   // and what takes minutes, or half an hour
bool BenchNeedsModel(const std::string& name);
bool BenchDraws(const std::string& name);    // has a chart

// kInvalid for an unknown name, before anything runs.
Result<BenchReport> RunBench(const BenchOptions& options);

}  // namespace holdfast
