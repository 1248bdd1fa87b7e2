#include "api/bench/engine_bench.h"

#include <algorithm>
#include <chrono>

#include "engine/model/file_map.h"
#include "engine/model/gguf.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kForks = 300;

double Ms(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

// Takes events until the finish; calls on_token for each token. kCancelled when the engine is gone.
template <typename F>
Result<FinishEvent> Drain(Generation& generation, const F& on_token) {
  for (;;) {
    auto event = generation.Next(-1);
    if (!event.has_value()) return Status::Cancelled("bench: the engine is gone");
    if (event->token.has_value()) on_token();
    if (!event->finish.has_value()) continue;
    if (!event->finish->status.ok()) return event->finish->status;
    return std::move(*event->finish);
  }
}

}  // namespace

int64_t EngineBench::Fit(int64_t n, int64_t tokens, int64_t sequences) const {
  const auto slots = static_cast<int64_t>(engine_->pool().stats().slots_max);
  // One page each for the end, one for the page that a fork copies when it writes.
  const int64_t memory = (slots / sequences - 2) * kPageTokens - tokens;
  return std::min({n, memory, engine_->max_context() - tokens - 1});
}

Result<double> EngineBench::Prefill(int64_t n) {
  Timeline timeline = engine_->NewTimeline(TenantScope("bench"));
  timeline.Extend(Tokens(n));
  HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(std::move(timeline), 1));
  return static_cast<double>(n) / run.ms * 1000;
}

Result<double> EngineBench::Append(int64_t n) {
  HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline, Context(0, n, kAppendTokens));
  HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(std::move(timeline), 1));
  return kAppendTokens / run.ms * 1000;
}

Result<double> EngineBench::Decode(int64_t n) {
  HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline, Context(0, n, 0));
  return DecodeOn(std::move(timeline));
}

Result<double> EngineBench::DecodeOn(Timeline timeline) {
  timeline.Extend(Tokens(1));
  HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(std::move(timeline), kDecodeTokens + 1));
  return kDecodeTokens / run.decode_ms * 1000;
}

Result<Timeline> EngineBench::Fill(Timeline timeline) {
  HOLDFAST_ASSIGN_OR_RETURN(Timed run, Compute(std::move(timeline), 0));
  if (!run.timeline) return Status::Cancelled("bench: the engine is gone");
  return std::move(*run.timeline);
}

Result<double> EngineBench::Agents(int64_t sequences, int64_t n, Prompts prompts) {
  std::vector<Timeline> forks;
  for (int64_t i = 0; i < sequences; ++i) {
    const auto base = static_cast<size_t>(prompts == Prompts::kOwn ? i : 0);
    HOLDFAST_ASSIGN_OR_RETURN(Timeline fork, Context(base, n, 1));
    forks.push_back(std::move(fork));
  }
  std::vector<std::shared_ptr<Generation>> running;
  for (Timeline& fork : forks) {
    HOLDFAST_ASSIGN_OR_RETURN(auto generation, Start(std::move(fork), kDecodeTokens + 1));
    running.push_back(std::move(generation));
  }
  for (auto& generation : running) {  // until all decode together
    auto event = generation->Next(-1);
    if (!event.has_value()) return Status::Cancelled("bench: the engine is gone");
    if (event->finish.has_value()) return event->finish->status;
  }
  const auto start = Clock::now();
  int64_t tokens = 0;
  for (auto& generation : running) {
    HOLDFAST_RETURN_IF_ERROR(Drain(*generation, [&] { ++tokens; }).status());
  }
  return static_cast<double>(tokens) / Ms(Clock::now() - start) * 1000;
}

Result<double> EngineBench::ForkP99(int64_t n, int64_t length) {
  HOLDFAST_RETURN_IF_ERROR(Context(0, n, 0).status());
  std::vector<double> ms;
  for (int i = 0; i < kForks; ++i) {
    const auto start = Clock::now();
    auto fork = bases_[0].Fork(length - i % std::min<int64_t>(length, kPageTokens - 1));
    if (!fork.ok()) return fork.status();
    ms.push_back(Ms(Clock::now() - start));
  }
  return Percentile(std::move(ms), 99);
}

Result<int64_t> EngineBench::PagesOfFork(int64_t length) {
  HOLDFAST_ASSIGN_OR_RETURN(Timeline fork, Context(0, length, 1));
  const auto before = static_cast<int64_t>(engine_->pool().stats().leased);
  HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(std::move(fork), 0));
  return static_cast<int64_t>(engine_->pool().stats().leased) - before;
}

std::vector<TokenId> EngineBench::Tokens(int64_t n) {
  std::vector<TokenId> out;
  while (static_cast<int64_t>(out.size()) < n) {
    const PhiloxBlock b = Philox(42, counter_++, 0);
    const auto id = static_cast<TokenId>(b.v[0] % engine_->tokenizer().vocab_size());
    if (!engine_->tokenizer().IsSpecial(id)) out.push_back(id);
  }
  return out;
}

Result<Timeline> EngineBench::Context(size_t base, int64_t n, int64_t pending) {
  while (bases_.size() <= base) bases_.push_back(engine_->NewTimeline(TenantScope("bench")));
  if (bases_[base].size() < n) {
    bases_[base].Extend(Tokens(n - bases_[base].size()));
    HOLDFAST_ASSIGN_OR_RETURN(Timed run, Compute(std::move(bases_[base]), 0));
    bases_[base] = std::move(*run.timeline);
  }
  HOLDFAST_ASSIGN_OR_RETURN(Timeline fork, bases_[base].Fork(n));
  fork.Extend(Tokens(pending));
  return fork;
}

Result<std::shared_ptr<Generation>> EngineBench::Start(Timeline timeline, int64_t max_tokens) {
  GenerateRequest request;
  request.output_begin = timeline.size();
  request.timeline = std::move(timeline);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  request.ignore_end = true;
  request.speculate = false;  // what random tokens go on with repeats itself: no agent's text
  return engine_->Submit(std::move(request));
}

Result<EngineBench::Timed> EngineBench::Compute(Timeline timeline, int64_t max_tokens) {
  const auto start = Clock::now();
  HOLDFAST_ASSIGN_OR_RETURN(auto generation, Start(std::move(timeline), max_tokens));
  std::optional<Clock::time_point> first;
  Clock::time_point last;
  HOLDFAST_ASSIGN_OR_RETURN(FinishEvent finish, Drain(*generation, [&] {
                              last = Clock::now();
                              if (!first.has_value()) first = last;
                            }));
  Timed timed;
  timed.ms = Ms(Clock::now() - start);
  if (first.has_value()) timed.decode_ms = Ms(last - *first);
  timed.timeline = std::move(finish.timeline);
  return timed;
}

Result<ModelCost> CostOf(const std::string& model_path, const Model& model) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto file, FileMap::Open(model_path));
  HOLDFAST_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::Parse(file->bytes()));
  const bool tied = gguf.FindTensor("output.weight") == nullptr;
  ModelCost cost;
  for (const GgufTensor& t : gguf.tensors()) {
    const bool embedding = t.name == "token_embd.weight";
    if (t.dims < 2 || (embedding && !tied)) continue;
    double elements = 1;
    for (const uint64_t dim : t.dim) elements *= static_cast<double>(dim);
    const bool int8 = NeedsQuantized(static_cast<WeightType>(t.type));
    const bool head = embedding || t.name == "output.weight";
    cost.weight_bytes += static_cast<double>(t.data.size());
    (head ? (int8 ? cost.int8_head : cost.fp32_head)
          : (int8 ? cost.int8_elements : cost.fp32_elements)) += elements;
  }
  for (const LayerGroup& g : model.groups()) {
    const double heads = model.config().heads;
    cost.groups.push_back({.layers = g.layers,
                           .window = g.window,
                           .kv_bytes = static_cast<double>(g.LayerBytes()) / kPageTokens,
                           .qk_ops = 2 * heads * g.k_dim,
                           .pv_ops = 2 * heads * g.v_dim,
                           .int8_keys = g.KBytes() < size_t{2} * g.k_dim * kPageTokens});
  }
  return cost;
}

}  // namespace holdfast
