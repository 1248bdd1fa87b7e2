// Runtime: everything that Holdfast does, without HTTP. The server, the command line, the examples
// in C++ and most tests start here; `libholdfast` is this header.
//
// A chat turn: the keeper matches the history to stored tokens, the stitcher makes a timeline of
// what is already computed, the engine computes the rest and decodes, tool calls are recognised in
// the text, and the keeper commits items, tokens and the moved head in one transaction before the
// last event. Who saw ChatEvent::kDone has a durable turn (DESIGN: a turn is durable when its
// tokens are).
//
// Thread-safe. A ChatStream belongs to one consumer. The Runtime outlives its streams.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/store/page_writer.h"
#include "sessions/keeper.h"
#include "sessions/replay.h"
#include "stitcher/segment_store.h"

namespace rocksdb {
class Env;
}

namespace holdfast {

class Env;
class FilePageStore;
struct NewSegment;

struct RuntimeOptions {
  EngineOptions engine;
  std::string data_dir;       // "" = nothing is kept beyond the process (in-RAM page store, and a
                              // database in a temporary folder)
  uint64_t segment_bytes = 0; // of KV that a tenant's segments may name; 0 = as much as pages have
  size_t disk_bytes = 0;      // of pages; 0 = a quarter of what is free on the data folder's disk
  bool page_store = true;     // false: tokens are durable, pages are computed again
  int max_resident = 64;      // warm heads of sessions
  int64_t anonymous_ttl_s = 3600;
  std::map<std::string, TenantQuota> quotas;  // see KeeperOptions
  int64_t tend_every_ms = 500;  // see KeeperOptions
  int64_t gc_every_ms = 6 * 3'600'000;  // see KeeperOptions
  // Tests: whose disk it is. An sqlite3_vfs by name, an Env for page files, RocksDB's for their
  // index; "" and null = the operating system's. They outlive the Runtime.
  std::string database_vfs;
  Env* env = nullptr;
  rocksdb::Env* index_env = nullptr;
};

// What `tool_choice` said.
enum class ToolChoice : uint8_t { kAuto, kNone, kRequired, kNamed };
enum class ResponseFormat : uint8_t { kText, kJsonObject, kJsonSchema };

struct ChatRequest {
  std::string tenant;              // from the authenticated caller
  std::string request_id;          // x-request-id, ours or the client's
  SessionRef session;              // which conversation; may be empty (anonymous)
  std::string idempotency_key;     // "" = none
  std::optional<HeadTag> if_head;  // goes on there, or is refused
  OnBusy on_busy = OnBusy::kFork;
  HistoryMode history = HistoryMode::kAsSampled;
  Durability durability = Durability::kTurn;

  std::vector<ChatMessage> messages;  // the whole history, oldest first
  bool append = false;                // messages are only what is new (POST .../turns)
  std::string tools_json;             // the request's `tools`, as sent; "" = none
  std::vector<Tool> tools;            // the function tools in it
  ToolChoice tool_choice = ToolChoice::kAuto;
  std::string tool_name;              // for kNamed
  bool parallel_tool_calls = true;
  ResponseFormat format = ResponseFormat::kText;
  std::string schema_json;            // for kJsonSchema
  bool strict_schema = false;
  std::string template_kwargs_json;   // `chat_template_kwargs`, "" = none

  SamplingParams sampling;
  std::optional<uint64_t> seed;
  int64_t max_tokens = 0;             // 0 = as many as fit
  std::vector<std::string> stop;
  int top_logprobs = -1;              // -1 = no logprobs
  bool speculate = true;              // as far as the engine does; changes nothing but the time

  RetentionHints hints;               // advice to retention; decides nothing of the answer
  ReuseOptions reuse;                 // how much of the KV may be approximate: by default nothing

  // Of a free replay: the turn's own seed, and tokens that the answer begins with, not drawn.
  std::optional<uint64_t> turn_seed;
  std::vector<TokenId> forced;
};

struct ChatTokenLogprob {
  std::string text;                   // bytes of the token
  Sample sample;
  std::vector<std::string> top_texts; // of sample.top, in order
};

enum class ChatFinish : uint8_t { kStop, kLength, kToolCalls, kCancelled, kError };

struct ChatDone {
  ChatFinish finish = ChatFinish::kStop;
  Status status;                     // kError, kCancelled: why
  std::string content;               // the whole text; "" when there were only tool calls
  std::string warning;               // what a relaxed schema gave up, or ""
  std::vector<ToolCall> tool_calls;
  std::vector<TokenId> prompt_tokens, completion_tokens;
  DraftCounts drafts;                // of speculation
  TurnReport report;                 // the `keeper` object of responses
};

// One step of an answer, in order. Text and tool-call pieces are whole UTF-8.
struct ChatEvent {
  enum class Kind : uint8_t {
    kStarted,    // decoding is about to begin: `started` is set
    kText,       // `text`
    kToolCall,   // a new call: `index`, `call.id`, `call.name`
    kToolArgs,   // `index`, `text`: more of its arguments
    kTokens,     // only `tokens` (and `logprobs`): text is withheld for now
    kDone,       // `done`; nothing follows. The turn is committed (or aborted) by now
  };
  Kind kind = Kind::kText;
  std::string text;
  int index = 0;
  ToolCall call;
  std::vector<TokenId> tokens;               // generated since the event before
  std::vector<ChatTokenLogprob> logprobs;    // one per token, when asked for
  std::optional<TurnStart> started;
  std::optional<ChatDone> done;
};

class ChatStream {
 public:
  virtual ~ChatStream() = default;   // cancels when it has not ended
  // The next event, waiting up to `timeout_ms`; nullopt at the time-out (time for a ping).
  virtual std::optional<ChatEvent> Next(int timeout_ms) = 0;
  virtual void Cancel() = 0;
};

// See sessions/replay.h for the modes.
struct ReplayEdit {
  int64_t item = 0;      // of the branch; of an input
  std::string content;   // in the place of its own
};
struct ReplayRequest {
  ReplayMode mode = ReplayMode::kVerify;
  std::string tenant, session, branch;  // branch: "" = the default one
  std::string snapshot;                 // instead of a branch: the way to it
  // verify, forced: tokens that are compared or shown. free: the point to go on from, in an answer
  // or before it; `to` says nothing; 0 = the last answer, or that of the edits, from its beginning.
  int64_t from = 0, to = -1;
  std::optional<int64_t> from_item, to_item;  // instead: their first tokens
  int top_k = 0;                        // alternatives of each step, 0..20
  // verify: as if these had been recorded. free: instead of what was recorded.
  std::optional<uint64_t> seed;
  std::string sampling_json;            // fields as SamplingText writes them; "" = none
  std::vector<ReplayEdit> edits;        // free
  std::string name;                     // free: of the new branch; "" = chosen
};

class Runtime {
 public:
  static Result<std::unique_ptr<Runtime>> Open(const RuntimeOptions& options);
  ~Runtime();  // Shutdown

  // Starts a turn; blocks until its tokens are matched and what can be restored is. kInvalid: bad
  // messages, schema, sampling; "context_length_exceeded: ..." with both counts. kNotFound: unknown
  // session or branch. kConflict: busy head with OnBusy::kReject, or an idempotency key used for
  // another request. kExhausted: queue full; "store_degraded: ..." when nothing durable can be
  // taken on (507). kUnavailable: shutting down.
  Result<std::unique_ptr<ChatStream>> Chat(ChatRequest request);

  // Begins to replay a recorded branch. Errors as Chat's; kInvalid names the field. verify and
  // forced write nothing; free makes a branch and commits a turn on it.
  Result<std::unique_ptr<Replay>> StartReplay(ReplayRequest request);

  // See api/segments.h.
  Result<SegmentInfo> AddSegment(const NewSegment& request);

  Keeper& keeper();   // sessions, branches, items, snapshots
  SegmentStore& segments();
  Stitcher& stitcher();  // its card, its rates
  Engine& engine();
  Database& database();
  void SyncPages();              // waits until the pages that are computed are in the store
  FilePageStore* page_store();  // null where pages are not kept on disk
  const std::string& data_path() const;  // the folder, a temporary one where none was given
  // Stops new turns (kUnavailable), lets running ones end within `grace_ms`, writes tails, closes.
  void Shutdown(int grace_ms);
  struct Stats {
    EngineStats engine;
    StoreStats store;
    PageWriterStats writer;
    DatabaseStats database;
    KeeperStats keeper;
    SegmentStats segments;
  };
  Stats stats();

 private:
  struct Impl;
  explicit Runtime(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
