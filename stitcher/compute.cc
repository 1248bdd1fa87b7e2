#include "stitcher/compute.h"

#include <memory>
#include <utility>

namespace holdfast {
namespace {

constexpr int kLookForStopMs = 20;

}  // namespace

GenerateRequest ComputeRequest(Timeline timeline, const ComputeOptions& options) {
  GenerateRequest request;
  request.output_begin = timeline.size();
  request.timeline = std::move(timeline);
  if (!options.on_logits) return request;
  request.observe_logits = options.on_logits;
  request.observes = [from = options.logits_from](int64_t index) { return index >= from; };
  return request;
}

Result<Timeline> ComputeOn(Engine& engine, GenerateRequest request,
                           const std::function<bool()>& stop) {
  if (request.timeline->pending() == 0) return std::move(*request.timeline);
  HOLDFAST_ASSIGN_OR_RETURN(const std::shared_ptr<Generation> generation,
                            engine.Submit(std::move(request)));
  while (true) {
    auto event = generation->Next(stop ? kLookForStopMs : -1);
    if (!event && !stop) return Status::Cancelled("compute: the engine is gone");
    if (!event && stop()) generation->Cancel();
    if (!event || !event->finish) continue;
    HOLDFAST_RETURN_IF_ERROR(event->finish->status);
    return std::move(*event->finish->timeline);
  }
}

}  // namespace holdfast
