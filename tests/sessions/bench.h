// A keeper over a tiny model, without decoding: tests say what was generated. Its database and
// model lie in a temporary folder that goes with it. Restart() is a new process over the same data.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/kv/memory_page_store.h"
#include "sessions/keeper.h"
#include "stitcher/stitcher.h"

namespace holdfast {

struct SessionBenchOptions {
  size_t kv_bytes = 32u << 20;
  std::string vfs = {};  // of the database; "" = the default one
  std::string chat_template = {};  // "" = the model's own
  std::map<std::string, TenantQuota> quotas = {};
  decltype(KeeperOptions::find_runs) find_runs = {};
  int64_t gc_every_ms = 0;
};

class SessionBench {
 public:
  explicit SessionBench(SessionBenchOptions options = {},
                        std::unique_ptr<PageStore> store = MakeMemoryPageStore(0));
  ~SessionBench();

  void Restart();
  Keeper& keeper() { return *keeper_; }
  Engine& engine() { return *engine_; }
  PageStore& store() { return *store_; }
  Stitcher& stitcher() { return *stitcher_; }
  Database& db() { return *db_; }
  // Computes what is pending, on the engine. `digests`: of the rows' logits, by index; may be null.
  Result<Timeline> Compute(Timeline timeline, std::map<int64_t, uint64_t>* digests);
  Result<Timeline> Compute(Timeline timeline, const ComputeOptions& options);
  int64_t now_ms = 1'000'000;  // the keeper's clock
  std::function<void()> while_computing;  // called as the stitcher's computing begins; or null
  std::function<void()> when_computed;    // the same as it has ended

  // A turn that is answered with `answer` and the template's end token. Empty on error.
  std::unique_ptr<Turn> Begin(const TurnRequest& request);
  void Answer(std::unique_ptr<Turn> turn, std::string_view answer);
  // Begin and Answer.
  TurnStart Say(const TurnRequest& request, std::string_view answer);

  std::vector<TokenId> Encode(std::string_view text) const;
  std::string Decode(std::span<const TokenId> tokens) const;

 private:
  void Open();

  const SessionBenchOptions options_;
  std::filesystem::path folder_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ChatTemplate> template_;
  std::unique_ptr<Database> db_;
  std::unique_ptr<Stitcher> stitcher_;
  std::unique_ptr<Keeper> keeper_;
};

// Messages as the API would read them.
ChatMessage System(std::string text);
ChatMessage User(std::string text);
ChatMessage Assistant(std::string text, std::vector<ToolCall> calls = {});
ChatMessage ToolResult(std::string call_id, std::string text);

// A request of tenant "ann"; `session` "" = anonymous. The messages are borrowed.
TurnRequest Ask(std::string session, std::span<const ChatMessage> messages);

}  // namespace holdfast
