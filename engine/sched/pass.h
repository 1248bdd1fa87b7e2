// A batch of rows of several sequences on its way through one ForwardPass. The scheduler has two:
// one for prefill chunks, advanced a layer at a time, and one for decode steps, run at once.
//
// While rows are in flight their sequences' timelines must not be touched (Sequence::in_pass).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/model.h"
#include "engine/sched/sequence.h"

namespace holdfast {

class Pass {
 public:
  explicit Pass(Model& model)
      : backend_(model.backend()), groups_(model.groups().size()), forward_(model) {}

  // Adds the next rows of `sequence`, at most `rows`. kExhausted: the pool has no page for any of
  // them.
  Status Add(Sequence& sequence, int64_t rows);
  int64_t rows() const { return rows_; }
  double context() const;  // tokens before a row, on average
  bool in_flight() const { return in_flight_; }
  // Everybody in it has been abandoned.
  bool is_moot() const;

  void Begin();
  // The next layer; true when it was the last. Adds to layer_ms_max.
  bool StepLayer();
  double ms() const { return ms_; }                    // in layers so far
  double layer_ms_max() const { return layer_ms_max_; }
  double layer_ms() const { return layers_ == 0 ? 0 : ms_ / layers_; }  // on average
  double done() const;  // part of the layers

  // After the last layer: hands each sequence what came of its rows, and is empty again. Sequences
  // that no observer or constraint ties to this thread draw their tokens at once on all threads.
  void Complete(uint64_t step);
  void Abandon();  // in the middle; the rows stay pending

 private:
  struct Part {
    Sequence* sequence;
    int64_t first_row;           // in the batch
    std::vector<int64_t> index;  // of each row in its timeline
    std::vector<std::byte*> pages;  // [rows][groups]
  };
  void ShowQueries(int layer, std::span<const float> q) const;
  void CompletePart(const Part& part, uint64_t step);
  Status TakeRows(const Part& part, uint64_t step);
  void Clear();

  Backend& backend_;
  const size_t groups_;
  ForwardPass forward_;
  ForwardBatch batch_;
  std::vector<Part> parts_;
  int64_t rows_ = 0;
  bool in_flight_ = false;
  int layers_ = 0;  // done
  double ms_ = 0, layer_ms_max_ = 0;
};

}  // namespace holdfast
