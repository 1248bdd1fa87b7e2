#include "tests/engine/sched/sched_rig.h"

#include <doctest/doctest.h>

namespace holdfast {

Answer::~Answer() { finish.status.IgnoreError(); }

Answer Hear(Generation& generation) {
  Answer answer;
  for (;;) {
    std::optional<Generation::Event> event = generation.Next(-1);
    REQUIRE(event.has_value());
    if (event->finish.has_value()) {
      answer.finish = std::move(*event->finish);
      answer.text += answer.finish.text;
      return answer;
    }
    REQUIRE(event->token.has_value());
    answer.tokens.push_back(event->token->sample.token);
    answer.digests.push_back(event->token->sample.logits_digest);
    answer.forced.push_back(event->token->forced);
    answer.text += event->token->text;
    answer.samples.push_back(std::move(event->token->sample));
  }
}

Rig::Rig(RigOptions options) {
  auto backend = MakeCpuBackend({.threads = options.threads, .level = ""});
  REQUIRE(backend.ok());
  backend_ = std::move(*backend);
  REQUIRE(WriteTinyModel(options.spec, dir_.File("tiny.gguf")).ok());
  const NumericsDigest none;
  auto model = Model::Load(dir_.File("tiny.gguf"), *backend_,
                           {.kv_type = options.kv_type, .threads = 1, .progress = {},
                            .numerics = &none});
  REQUIRE_MESSAGE(model.ok(), model.status().ToString());
  model_ = std::move(*model);
  size_t page = 0;
  for (const LayerGroup& group : model_->groups()) page += group.SlotStride();
  pool_ = std::make_unique<PagePool>(model_->groups(), static_cast<size_t>(options.pages) * page);
  REQUIRE(pool_->stats().slots_max == static_cast<uint64_t>(options.pages));
  if (options.scheduler.speculation == Scheduler::Speculation::kMeasured) {
    options.scheduler.speculation = Scheduler::Speculation::kAlways;  // time decides nothing here
  }
  if (options.scheduler.context_max == 0) {
    options.scheduler.context_max = model_->config().context_length;
  }
  scheduler_ = std::make_unique<Scheduler>(model_.get(), pool_.get(), options.scheduler);
}

Rig::~Rig() {
  scheduler_.reset();
  CHECK(pool_->stats().leased == 0);
  CHECK(pool_->stats().token_mismatches == 0);
  pool_->CheckInvariants();
}

Timeline Rig::NewTimeline(const std::string& tenant) {
  return Timeline(pool_.get(), TenantScope(tenant), model_->fingerprint());
}

GenerateRequest Rig::Request(std::span<const TokenId> prompt, int64_t max_tokens,
                             const std::string& tenant) {
  GenerateRequest request;
  request.timeline = NewTimeline(tenant);
  request.timeline->Extend(prompt);
  request.max_tokens = max_tokens;
  request.output_begin = request.timeline->size();
  request.turn_seed = 42;
  return request;
}

std::shared_ptr<Generation> Rig::Submit(GenerateRequest request) {
  auto generation = scheduler_->Submit(std::move(request));
  REQUIRE_MESSAGE(generation.ok(), generation.status().ToString());
  return std::move(*generation);
}

std::shared_ptr<Generation> Gate::Hold(Rig& rig, GenerateRequest request) {
  request.observe_logits = Hook();
  auto generation = rig.Submit(std::move(request));
  AwaitClosed();
  return generation;
}

std::function<void(int64_t, std::span<const float>)> Gate::Hook() {
  return [this, closed = false](int64_t, std::span<const float>) mutable {
    if (closed) return;
    closed = true;
    entered_.set_value();
    opened_.get_future().wait();
  };
}

std::vector<TokenId> SomePrompt(int count, int seed) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(TinyByteToken(static_cast<uint8_t>('a' + (i * 7 + i * i * seed + seed) % 26)));
  }
  return tokens;
}

}  // namespace holdfast
