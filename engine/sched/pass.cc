#include "engine/sched/pass.h"

#include <algorithm>
#include <cassert>

namespace holdfast {

Status Pass::Add(Sequence& sequence, int64_t rows) {
  assert(!in_flight_ && !sequence.in_pass);
  Result<std::vector<Timeline::Row>> next = sequence.timeline().NextRows(rows);
  if (!next.ok()) return next.status();
  const auto number = static_cast<int32_t>(parts_.size());
  Part& part = parts_.emplace_back(Part{&sequence, rows_, {}, {}});
  part.pages.resize(next->size() * groups_);
  for (size_t i = 0; i < next->size(); ++i) {
    const Timeline::Row& row = (*next)[i];
    part.index.push_back(row.index);
    for (size_t g = 0; g < groups_; ++g) {
      part.pages[i * groups_ + g] = row.page->payload(static_cast<int>(g));
    }
    batch_.rows.push_back({.token = row.token,
                           .position = static_cast<int32_t>(row.index),
                           .sequence = number,
                           .page = &part.pages[i * groups_],
                           .slot = row.slot,
                           .logits = sequence.WantsLogits(row.index)});
  }
  ForwardBatch::Sequence& views = batch_.sequences.emplace_back();
  views.runs.resize(groups_);
  for (size_t g = 0; g < groups_; ++g) {
    sequence.timeline().Views(next->back().index + 1, static_cast<int>(g), &views.runs[g]);
  }
  rows_ += static_cast<int64_t>(next->size());
  sequence.in_pass = true;
  sequence.starved = false;
  return {};
}

double Pass::context() const {
  double sum = 0;
  for (const Part& part : parts_) {
    for (const int64_t index : part.index) sum += static_cast<double>(index);
  }
  return rows_ == 0 ? 0 : sum / static_cast<double>(rows_);
}

double Pass::done() const {
  return static_cast<double>(layers_) / static_cast<double>(layers_ + forward_.layers_left());
}

bool Pass::is_moot() const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [](const Part& part) { return part.sequence->abandoned(); });
}

void Pass::Begin() {
  in_flight_ = true;
  layers_ = 0;
  ms_ = layer_ms_max_ = 0;
  const bool is_observed = std::any_of(parts_.begin(), parts_.end(), [](const Part& part) {
    return part.sequence->request().observe_queries != nullptr;
  });
  if (is_observed) {
    batch_.observe_queries = [this](int layer, std::span<const float> q) { ShowQueries(layer, q); };
  }
  forward_.Begin(std::move(batch_));
}

void Pass::ShowQueries(int layer, std::span<const float> q) const {
  const size_t width = q.size() / static_cast<size_t>(rows_);
  for (const Part& part : parts_) {
    const auto& observe = part.sequence->request().observe_queries;
    if (!observe) continue;
    observe(layer, part.sequence->timeline(), part.index,
            q.subspan(static_cast<size_t>(part.first_row) * width, part.index.size() * width));
  }
}

bool Pass::StepLayer() {
  const auto begin = Sequence::Clock::now();
  forward_.StepLayer();
  const double ms =
      std::chrono::duration<double, std::milli>(Sequence::Clock::now() - begin).count();
  ++layers_;
  ms_ += ms;
  layer_ms_max_ = std::max(layer_ms_max_, ms);
  return forward_.done();
}

void Pass::Complete(uint64_t step) {
  assert(in_flight_ && forward_.done());
  std::vector<const Part*> anywhere;
  for (const Part& part : parts_) {
    const GenerateRequest& request = part.sequence->request();
    if (request.observe_logits || request.constraint) {
      CompletePart(part, step);
    } else {
      anywhere.push_back(&part);
    }
  }
  backend_.ForEach(static_cast<int64_t>(anywhere.size()), [&](int64_t task) {
    CompletePart(*anywhere[static_cast<size_t>(task)], step);
  });
  Clear();
}

void Pass::CompletePart(const Part& part, uint64_t step) {
  part.sequence->in_pass = false;
  if (Status s = TakeRows(part, step); !s.ok()) {
    part.sequence->Finish(FinishReason::kError, std::move(s));
  }
}

Status Pass::TakeRows(const Part& part, uint64_t step) {
  Sequence& sequence = *part.sequence;
  const auto rows = static_cast<int64_t>(part.index.size());
  for (int64_t r = 0; r < rows; ++r) {
    if (!forward_.failed(part.first_row + r)) continue;
    if (sequence.drafts() > 0) {
      sequence.DistrustDrafts();
      return {};
    }
    return Status::Corrupt("forward: a value of the rows from token " +
                           std::to_string(part.index[r]) + " on is not finite");
  }
  if (const auto& observe = sequence.request().observe_logits) {
    const auto& observes = sequence.request().observes;
    for (int64_t r = 0; r < rows; ++r) {
      if (observes && !observes(part.index[r])) continue;
      observe(part.index[r], forward_.logits(part.first_row + r));
    }
  }
  // From the last row that is no draft on, indices are consecutive.
  const int64_t end_row = part.first_row + rows, end_index = part.index.back() + 1;
  sequence.Computed(rows, step, [&](int64_t index) {
    return forward_.logits(end_row - (end_index - index));
  });
  return {};
}

void Pass::Abandon() {
  for (const Part& part : parts_) {
    part.sequence->in_pass = false;
    part.sequence->DropDrafts();
  }
  Clear();
}

void Pass::Clear() {
  parts_.clear();
  batch_ = {};
  rows_ = 0;
  in_flight_ = false;
}

}  // namespace holdfast
