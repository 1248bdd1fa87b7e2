#include "engine/engine.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "engine/base/memory.h"
#include "engine/sched/scheduler.h"

namespace holdfast {
namespace {

constexpr size_t kFreeFraction = 4;             // of free memory for pages
constexpr size_t kKvBytesLeast = 64u << 20;     // what is assumed free where nothing can be read

// It follows from the level alone, and a tiny model takes longer over it than over all else of its
// opening: a process computes it once.
const NumericsDigest& NumericsOf(Backend& backend) {
  static std::mutex mutex;
  static std::map<std::string, NumericsDigest, std::less<>> known;
  const std::lock_guard lock(mutex);
  auto at = known.find(backend.name());
  if (at == known.end()) {
    at = known.emplace(backend.name(), ComputeNumericsDigest(backend)).first;
  }
  return at->second;
}

}  // namespace

struct Engine::Impl {
  std::unique_ptr<Backend> backend;
  const NumericsDigest* numerics = nullptr;
  std::unique_ptr<Model> model;
  std::unique_ptr<PagePool> pool;
  int64_t context_max = 0;
  std::unique_ptr<Scheduler> scheduler;  // last: goes first
};

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options) {
  if (options.max_running < 1 || options.max_queued < 1 || options.prefill_chunk < 1) {
    return Status::Invalid("engine: max_running, max_queued and prefill_chunk must be positive");
  }
  auto impl = std::make_unique<Impl>();
  HOLDFAST_ASSIGN_OR_RETURN(impl->backend, MakeCpuBackend(options.cpu));
  impl->numerics = &NumericsOf(*impl->backend);
  const LoadOptions load{.kv_type = options.kv_type,
                         .threads = options.cpu.threads,
                         .progress = options.progress,
                         .numerics = impl->numerics};
  HOLDFAST_ASSIGN_OR_RETURN(impl->model, Model::Load(options.model_path, *impl->backend, load));
  const size_t bytes = options.kv_bytes != 0
                           ? options.kv_bytes
                           : std::max(AvailableMemory() / kFreeFraction, kKvBytesLeast);
  impl->pool = std::make_unique<PagePool>(impl->model->groups(), bytes);
  const auto pages = static_cast<int64_t>(impl->pool->stats().slots_max);
  if (pages < 2) {
    return Status::Exhausted("engine: " + std::to_string(bytes) +
                             " bytes for KV are not two pages of " +
                             std::to_string(impl->pool->page_bytes()) +
                             ", or the system has not so much address space");
  }
  impl->context_max =
      std::min<int64_t>(impl->model->config().context_length, pages * kPageTokens);
  impl->scheduler = std::make_unique<Scheduler>(
      impl->model.get(), impl->pool.get(),
      Scheduler::Options{.running_max = options.max_running,
                         .queued_max = options.max_queued,
                         .prefill_rows_max = options.prefill_chunk,
                         .context_max = impl->context_max,
                         .speculation = options.speculate ? Scheduler::Speculation::kMeasured
                                                          : Scheduler::Speculation::kOff});
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::shared_ptr<Generation>> Engine::Submit(GenerateRequest&& request) {
  return impl_->scheduler->Submit(std::move(request));
}
void Engine::Shutdown() { impl_->scheduler->Shutdown(); }

const Model& Engine::model() const { return *impl_->model; }
const Tokenizer& Engine::tokenizer() const { return impl_->model->tokenizer(); }
PagePool& Engine::pool() { return *impl_->pool; }
int64_t Engine::max_context() const { return impl_->context_max; }
const NumericsDigest& Engine::numerics() const { return *impl_->numerics; }
std::string_view Engine::cpu_level() const { return impl_->backend->name(); }

EngineStats Engine::stats() const {
  EngineStats stats = impl_->scheduler->stats();
  stats.pool = impl_->pool->stats();
  return stats;
}

Timeline Engine::NewTimeline(const TenantScope& scope) {
  return Timeline(impl_->pool.get(), scope, impl_->model->fingerprint());
}

}  // namespace holdfast
