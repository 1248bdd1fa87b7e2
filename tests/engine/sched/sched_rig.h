// A scheduler over a tiny model, and the vocabulary of its tests.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/sched/scheduler.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {

// What came of a request.
struct Answer {
  std::vector<TokenId> tokens;
  std::vector<uint64_t> digests;
  std::vector<bool> forced;
  std::vector<Sample> samples;
  std::string text;  // of tokens and finish
  FinishEvent finish;

  Answer() = default;
  Answer(Answer&&) = default;
  Answer& operator=(Answer&&) = default;
  ~Answer();  // not every test looks at the status
};

// Takes events until the last one.
Answer Hear(Generation& generation);

struct RigOptions {
  // A head of its own: with a tied one a random model says its last token again, for ever.
  TinyModelSpec spec{.head = TinyHead::kSeparate, .rope_freqs = {}};
  int threads = 1;
  KvType kv_type = KvType::kF16;
  int64_t pages = 256;
  Scheduler::Options scheduler;
};

class Rig {
 public:
  explicit Rig(RigOptions options = {});
  ~Rig();  // checks that no page is leased any more

  Timeline NewTimeline(const std::string& tenant = "a");
  GenerateRequest Request(std::span<const TokenId> prompt, int64_t max_tokens,
                          const std::string& tenant = "a");
  std::shared_ptr<Generation> Submit(GenerateRequest request);
  Answer Run(GenerateRequest request) { return Hear(*Submit(std::move(request))); }

  Model& model() { return *model_; }
  PagePool& pool() { return *pool_; }
  Scheduler& scheduler() { return *scheduler_; }
  const Tokenizer& tokenizer() const { return model_->tokenizer(); }

 private:
  testing::TempDir dir_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<PagePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
};

// Holds the model thread between two steps: the request that carries Hook() blocks it when its first
// row is there, until Open().
class Gate {
 public:
  std::function<void(int64_t, std::span<const float>)> Hook();
  void AwaitClosed() { entered_.get_future().wait(); }  // the model thread stands at it
  // Submits the request with Hook() and awaits that.
  std::shared_ptr<Generation> Hold(Rig& rig, GenerateRequest request);
  void Open() { opened_.set_value(); }

 private:
  std::promise<void> entered_, opened_;
};

// `count` tokens of letters, different for each `seed`.
std::vector<TokenId> SomePrompt(int count, int seed);

}  // namespace holdfast
