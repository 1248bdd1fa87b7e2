#include "stitcher/pending.h"

#include <utility>
#include <vector>

namespace holdfast {

Status ComputePending(const Model& model, ForwardPass& pass, Timeline& timeline,
                      const PendingOptions& options) {
  const size_t groups = model.groups().size();
  while (timeline.pending() > 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const auto rows, timeline.NextRows(options.chunk));
    ForwardBatch batch;
    auto& runs = batch.sequences.emplace_back().runs;
    runs.resize(groups);
    for (size_t g = 0; g < groups; ++g) {
      timeline.Views(rows.back().index + 1, static_cast<int>(g), &runs[g]);
      if (options.reading == ShiftReading::kTurned) continue;
      for (KvRun& run : runs[g]) run.shift = 0;
    }
    std::vector<std::byte*> pages(rows.size() * groups);
    std::vector<int64_t> index;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Timeline::Row& r = rows[i];
      for (size_t g = 0; g < groups; ++g) {
        pages[i * groups + g] = r.page->payload(static_cast<int>(g));
      }
      batch.rows.push_back({.token = r.token,
                            .position = static_cast<int32_t>(r.index),
                            .page = &pages[i * groups],
                            .slot = r.slot,
                            .logits = options.on_logits && r.index >= options.logits_from});
      index.push_back(r.index);
    }
    if (options.on_queries) {
      batch.observe_queries = [&](int layer, std::span<const float> q) {
        options.on_queries(layer, timeline, index, q);
      };
    }
    pass.Begin(std::move(batch));
    pass.Run();
    for (size_t i = 0; i < rows.size() && options.on_logits; ++i) {
      if (index[i] < options.logits_from) continue;
      options.on_logits(index[i], pass.logits(static_cast<int64_t>(i)));
    }
    timeline.Filled(static_cast<int64_t>(rows.size()));
  }
  return {};
}

}  // namespace holdfast
