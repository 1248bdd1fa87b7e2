// A Runtime over a tiny model in a temporary folder, and conversations with it. Restart() is a new
// process over the same data, as far as one process can be.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/runtime.h"
#include "tests/engine/base/temp_dir.h"

namespace holdfast {

struct RuntimeBenchOptions {
  bool page_store = true;
  size_t kv_bytes = 32u << 20;
  KvType kv_type = KvType::kF16;
  int max_resident = 64;
  std::string vfs = {};      // these three as RuntimeOptions'
  Env* env = nullptr;
  rocksdb::Env* index_env = nullptr;
  std::string cpu = {};      // instruction set; "" = the best
  uint64_t model_seed = 1;
  int vocab = 320;           // another one is another tokenizer
  size_t disk_bytes = 256u << 20;
  std::map<std::string, TenantQuota> quotas = {};
  int64_t tend_every_ms = 500;  // 0: tests call Tend themselves
  int64_t gc_every_ms = 0;
};

// An answer, as a client keeps it.
struct Answer {
  ChatDone done;
  std::vector<uint64_t> digests;  // of the logits of each generated token
  std::string streamed;           // all text pieces
  int calls = 0;
  bool operator==(const Answer& other) const {  // the same bits
    return done.completion_tokens == other.done.completion_tokens && digests == other.digests &&
           done.content == other.done.content;
  }
};

class RuntimeBench {
 public:
  explicit RuntimeBench(const RuntimeBenchOptions& options = {});

  void Restart();
  void Close() { runtime_.reset(); }
  void ChangeModel(uint64_t seed, int vocab);  // over the same data
  void GiveCard();  // by which every policy uses what it finds; restarts
  Runtime& runtime() { return *runtime_; }
  std::string File(const std::string& name) const { return folder_.File(name); }
  Status Start(ChatRequest request, std::unique_ptr<ChatStream>* stream);
  Answer Say(ChatRequest request);              // to its end
  static Answer Drain(ChatStream* stream);

 private:
  void WriteModel();
  void Open();
  testing::TempDir folder_;
  RuntimeBenchOptions options_;
  std::unique_ptr<Runtime> runtime_;
};

// A conversation as an agent holds it: it sends all of it each time.
class Talk {
 public:
  explicit Talk(std::string session, std::string tenant = "ann")
      : session_(std::move(session)), tenant_(std::move(tenant)) {}
  Talk& User(const std::string& text);
  Talk& Tool(const std::string& call_id, const std::string& text);
  Talk& Keep(const Answer& answer);  // appends the assistant's message
  // Greedy, 24 tokens.
  ChatRequest Request() const;
  const std::vector<ChatMessage>& messages() const { return messages_; }

 private:
  std::string session_, tenant_;
  std::vector<ChatMessage> messages_;
};

}  // namespace holdfast
