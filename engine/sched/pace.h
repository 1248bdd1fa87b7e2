// How many rows go into a pass, and when a prefill pass waits for a decode step, so that running
// decodes keep their pace: from measured times. Pure.
//
// Between two decode steps come as many layers of the prefill pass as fit into 3/4 of a step's
// time, at least one; while others decode a pass has so few rows that one layer fits. So a decode
// keeps more than half of its pace, and a prefill 3/7 of its own. What a row takes grows with the
// tokens that it sees.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace holdfast {

// Time of a decode pass by its number of rows, as measured: an average per power of two, straight
// lines between them. Before anything is known a further row costs a tenth of the first.
class PassCost {
 public:
  void Measured(int64_t rows, double ms);
  double ms(int64_t rows) const;  // 1 when nothing was measured

 private:
  struct Point {
    double rows = 0, ms = 0;  // rows 0: none
  };
  std::array<Point, 16> points_{};
};

// Time of a row in one layer of a prefill pass, by the tokens that it sees on average. Between
// measurements as if attention over kAlike tokens took as long as all the rest.
class RowCost {
 public:
  static constexpr double kAlike = 2000;

  void Measured(double context, double ms);
  double ms(double context) const;  // 0 when nothing was measured

 private:
  static size_t Class(double context);
  std::array<double, 12> ms_per_token_{};  // by powers of two of the context; 0: never measured
};

// How many rows a step may have so that it lasts at most `step_ms_max`: measured, one row at least.
class RowLimit {
 public:
  RowLimit(int64_t rows_max, double step_ms_max)
      : rows_max_(rows_max), step_ms_max_(step_ms_max), rows_(std::min<int64_t>(rows_max, 64)) {}
  int64_t rows() const { return rows_; }
  // A step of `rows` rows took `ms`. Shrinks at once; grows to at most double, and only after a
  // step that used the limit.
  void Measured(int64_t rows, double ms);

 private:
  int64_t rows_max_;
  double step_ms_max_;
  int64_t rows_;
};

class Pace {
 public:
  struct Options {
    int64_t prefill_rows_max = 0, decode_rows_max = 0;  // of a pass
    double step_ms_max = 0;                             // of a decode pass, a layer of a prefill
  };
  explicit Pace(const Options& options)
      : step_ms_max_(options.step_ms_max),
        prefill_limit_(options.prefill_rows_max, options.step_ms_max),
        decode_limit_(options.decode_rows_max, options.step_ms_max) {}

  // Fewer would read the weights for too little.
  static constexpr int64_t kPrefillRowsLeast = 16;

  int64_t DecodeRows() const { return decode_limit_.rows(); }
  // Rows that see `context` tokens on average. A layer of them takes at most step_ms_max, by what
  // rows took before.
  int64_t PrefillRows(double context) const;
  // Whether a layer that takes `layer_ms` (0: unknown) comes before the next decode step.
  bool MayGoOn(double layer_ms) const;
  // Whether a pass of `rows` rows, whose first layers took `layer_ms` each, should begin anew with
  // fewer.
  bool IsTooLong(int64_t rows, double layer_ms) const;
  const PassCost& decode_cost() const { return decode_cost_; }

  void Decoded(int64_t rows, double ms);  // a decode pass; 0 rows: nobody decodes
  void Layer(double ms) { since_decode_ms_ += ms; }
  // A prefill pass, to its end or not.
  void Prefilled(int64_t rows, double context, double layer_ms_max);

 private:
  double Budget() const;  // for layers between two decode steps

  double step_ms_max_;
  RowLimit prefill_limit_, decode_limit_;
  PassCost decode_cost_;
  RowCost row_cost_;
  bool decodes_run_ = false;
  double decode_ms_ = 0;        // that a decode step like the last one takes
  double since_decode_ms_ = 0;  // layers since then
};

}  // namespace holdfast
