// Prometheus' text format (version 0.0.4), written directly: a few dozen numbers read from Stats
// need no registry of their own.
#include <cstdio>
#include <span>
#include <string_view>
#include <vector>

#include "api/server.h"

namespace holdfast {
namespace {

class Page {
 public:
  explicit Page(const std::string& model) {
    for (char c : model) label_ += c == '"' || c == '\\' || c == '\n' ? '_' : c;
  }
  void Counter(const char* name, const char* help, double v) { Add(name, help, "counter", v); }
  void Gauge(const char* name, const char* help, double v) { Add(name, help, "gauge", v); }
  // One gauge for each value of a label.
  struct Labelled {
    std::string_view value;
    double number;
  };
  void Gauges(const char* name, const char* help, const char* label,
              std::span<const Labelled> values) {
    AddHead(name, help, "gauge");
    for (const Labelled& v : values) {
      AddSample(name, std::string(",") + label + "=\"" + std::string(v.value) + "\"", v.number);
    }
  }
  std::string Take() { return std::move(text_); }

 private:
  void Add(const char* name, const char* help, const char* type, double value) {
    AddHead(name, help, type);
    AddSample(name, "", value);
  }
  void AddHead(const char* name, const char* help, const char* type) {
    text_ += std::string("# HELP holdfast_") + name + " " + help + "\n# TYPE holdfast_" + name +
             " " + type + "\n";
  }
  void AddSample(const char* name, const std::string& labels, double value) {
    char number[64];
    std::snprintf(number, sizeof(number), "%.17g", value);
    text_ += std::string("holdfast_") + name + "{model=\"" + label_ + "\"" + labels + "} " +
             number + "\n";
  }
  std::string label_, text_;
};

double Num(uint64_t v) { return static_cast<double>(v); }

void AddEngine(Page* page, const EngineStats& e) {
  page->Counter("steps_total", "Steps of the model thread.", Num(e.steps));
  page->Counter("rows_total", "Rows computed.", Num(e.rows));
  page->Counter("prefill_rows_total", "Rows of prompts.", Num(e.prefill_rows));
  page->Counter("decode_rows_total", "Rows of generated tokens.", Num(e.decode_rows));
  page->Counter("generated_tokens_total", "Tokens generated.", Num(e.generated));
  page->Counter("drafted_tokens_total", "Tokens that speculation guessed.", Num(e.drafted));
  page->Counter("accepted_draft_tokens_total", "Guesses that were right.", Num(e.accepted));
  page->Gauge("running_sequences", "Sequences on the model thread.", e.running);
  page->Gauge("queued_requests", "Requests that wait.", e.queued);
  page->Gauge("step_seconds_max", "Longest step so far.", e.step_ms_max / 1000);
  page->Counter("busy_seconds_total", "Time that the model thread computed.", e.busy_seconds);
}

void AddPool(Page* page, const PoolStats& p) {
  page->Gauge("pool_slots", "Page slots that memory is there for.", Num(p.slots));
  page->Gauge("pool_slots_max", "Page slots at most.", Num(p.slots_max));
  page->Gauge("pool_leased_pages", "Pages in use.", Num(p.leased));
  page->Gauge("pool_cached_pages", "Sealed pages that nobody uses now.", Num(p.cached));
  page->Counter("pool_hits_total", "Pages found by key.", Num(p.hits));
  page->Counter("pool_misses_total", "Pages not found by key.", Num(p.misses));
  page->Counter("pool_evictions_total", "Pages that made room.", Num(p.evictions));
}

void AddStore(Page* page, const StoreStats& s) {
  page->Gauge("store_pages", "Pages on disk.", Num(s.pages));
  page->Gauge("store_bytes", "Bytes of pages on disk.", Num(s.bytes));
  page->Gauge("store_dead_bytes", "Bytes on disk that wait for compaction.", Num(s.dead_bytes));
  page->Counter("store_puts_total", "Pages written.", Num(s.puts));
  page->Counter("store_gets_total", "Pages read.", Num(s.gets));
  page->Counter("store_misses_total", "Pages asked for and not there.", Num(s.get_misses));
  page->Counter("store_corrupt_total", "Pages that failed verification.", Num(s.corrupt));
  page->Counter("store_io_errors_total", "Reads and writes that failed.", Num(s.io_errors));
}

void AddWriter(Page* page, const PageWriterStats& w) {
  page->Gauge("page_writer_queued_pages", "Computed pages that wait to be written to disk.",
              Num(w.queued));
  page->Counter("page_writer_written_pages_total", "Pages that the store has taken.",
                Num(w.written));
  page->Counter("page_writer_dropped_pages_total",
                "Pages not written since the queue was full; each costs a prefill later.",
                Num(w.dropped));
  page->Counter("page_writer_failed_pages_total", "Pages that the store has refused.",
                Num(w.failed));
  page->Counter("page_writer_syncs_total", "Syncs of page files and their index.", Num(w.syncs));
  page->Counter("page_writer_failed_syncs_total",
                "Syncs that failed; their pages are not trusted.", Num(w.failed_syncs));
}

void AddDatabase(Page* page, const DatabaseStats& d) {
  page->Gauge("database_queued_writes", "Writes that wait for the database.", Num(d.queued));
  page->Gauge("database_write_seconds", "Of its write or sync under way; 0 when there is none.",
              d.writing_ms / 1000);
  page->Counter("database_commits_total", "Transactions committed.", Num(d.commits));
  page->Counter("database_commit_failures_total",
                "Commits that failed; each degrades the store until a probe commits.",
                Num(d.commit_failures));
  page->Counter("database_failed_writes_total",
                "Writes undone by their own error or by a failed commit, or refused.",
                Num(d.failed_writes));
  page->Counter("database_checkpoints_total", "Copies of the log into the database.",
                Num(d.checkpoints));
  page->Gauge("database_log_bytes", "Size of the log's file, which is extended ahead of need.",
              Num(d.wal_bytes));
}

void AddHeads(Page* page, const HeadTable::Counts& counts) {
  std::vector<Page::Labelled> states;
  for (const HeadState s : {HeadState::kResident, HeadState::kWarm, HeadState::kCold,
                            HeadState::kRestoring, HeadState::kRunning, HeadState::kToolWait,
                            HeadState::kSuperseded}) {
    states.push_back({HeadStateName(s), Num(counts.by_state[static_cast<size_t>(s)])});
  }
  page->Gauges("heads", "Heads of branches that the keeper knows, by state.", "state", states);
}

void AddKeeper(Page* page, const KeeperStats& k) {
  page->Gauge("sessions", "Sessions kept.", Num(k.sessions));
  page->Counter("turns_committed_total", "Turns committed.", Num(k.turns_committed));
  page->Counter("turns_aborted_total", "Turns aborted.", Num(k.turns_aborted));
  page->Counter("turn_retries_total", "Turns asked again after an abort.", Num(k.retries));
  page->Counter("turn_replays_total", "Turns served from the log.", Num(k.replays));
  page->Gauge("running_turns", "Turns under way.", Num(k.running));
  page->Gauge("resident_timelines", "Heads that are warm.", Num(k.resident_timelines));
  page->Counter("prefetches_total", "Heads loaded ahead of their turns.", Num(k.prefetches));
  page->Counter("prefetched_pages_total", "Pages loaded so.", Num(k.pages_prefetched));
  page->Counter("given_up_pages_total", "Pages of warm heads that the disk was too slow to take.",
                Num(k.pages_given_up));
  page->Counter("kv_failures_total", "Turns of durability kv whose pages are not all on disk.",
                Num(k.kv_failures));
  page->Counter("tails_written_total", "Partial pages written to disk.", Num(k.tails_written));
  page->Counter("tails_restored_total", "Partial pages read again.", Num(k.tails_restored));
  page->Counter("gc_total", "Collections of what was deleted.", Num(k.collections));
  page->Counter("gc_pages_total", "Pages that they have deleted.", Num(k.collected_pages));
  page->Counter("hardened_branches_total", "Branches made exact again.", Num(k.hardened));
  page->Counter("verified_answers_total", "Approximate answers measured against full prefill.",
                Num(k.verified));
  page->Counter("verified_tokens_total", "Tokens in them.", Num(k.verified_tokens));
  page->Counter("verified_kl_nats_total", "Their KL against full prefill, summed over tokens.",
                k.verified_kl);
  page->Gauge("verified_kl_nats_max", "The largest of one token.", k.verified_kl_max);
  page->Counter("verify_skipped_total", "Answers that were to be measured and were not.",
                Num(k.verify_skipped));
  page->Gauge("unsynced_commits", "Commits of lazy turns that a power cut would take.",
              Num(k.unsynced));
  page->Gauge("degraded", "1 while nothing durable can be taken on.", k.degraded ? 1 : 0);
}

void AddSegments(Page* page, const SegmentStats& s) {
  page->Gauge("segments", "Segments kept.", Num(s.segments));
  page->Gauge("segment_variants", "Their variants.", Num(s.variants));
  page->Gauge("segment_kv_bytes", "Bytes of pages that variants name.", Num(s.kv_bytes));
  page->Gauge("segment_index_bytes", "Memory that finding them takes.", Num(s.index_bytes));
  page->Counter("segment_hits_total", "Runs of segments used in prompts.", Num(s.hits));
  page->Counter("segment_hit_tokens_total", "Tokens in them.", Num(s.hit_tokens));
}

}  // namespace

std::string MetricsText(const Runtime::Stats& stats, const std::string& model,
                        size_t connections) {
  Page page(model);
  page.Gauge("http_connections", "Open connections.", Num(connections));
  AddEngine(&page, stats.engine);
  AddPool(&page, stats.engine.pool);
  AddStore(&page, stats.store);
  AddWriter(&page, stats.writer);
  AddDatabase(&page, stats.database);
  AddKeeper(&page, stats.keeper);
  AddHeads(&page, stats.keeper.heads);
  AddSegments(&page, stats.segments);
  return page.Take();
}

}  // namespace holdfast
