#include "engine/sched/pace.h"

#include <bit>

namespace holdfast {
namespace {

constexpr double kFirstRowShare = 0.1;  // of the first row's time, for a row never measured
constexpr double kCostWeight = 0.25;    // of a new measurement
constexpr double kOutlier = 2;          // what took longer than this was interrupted
constexpr double kPrefillShare = 0.75;  // of a decode step's time, for prefill after it
constexpr double kTooLong = 2;          // times the budget: a pass begins anew

}  // namespace

void PassCost::Measured(int64_t rows, double ms) {
  if (rows <= 0 || ms <= 0) return;
  const auto n = static_cast<uint64_t>(rows - 1);
  Point& point = points_[std::min<size_t>(std::bit_width(n), points_.size() - 1)];
  const auto r = static_cast<double>(rows);
  if (point.rows == 0) {
    point = {r, ms};
    return;
  }
  const double counted = std::min(ms, kOutlier * point.ms);
  point.rows += kCostWeight * (r - point.rows);
  point.ms += kCostWeight * (counted - point.ms);
}

double PassCost::ms(int64_t rows) const {
  const auto r = static_cast<double>(rows);
  Point before, last;  // the two known ones up to `rows`, or the last two
  for (Point point : points_) {
    if (point.rows == 0) continue;
    point.ms = std::max(point.ms, last.ms);  // more rows never take less
    before = last;
    last = point;
    if (r <= last.rows) break;
  }
  if (last.rows == 0) last = {1, 1};
  if (before.rows == 0) {
    const double row = last.ms / (1 / kFirstRowShare - 1 + last.rows);
    return last.ms + row * (r - last.rows);
  }
  return before.ms + (last.ms - before.ms) * (r - before.rows) / (last.rows - before.rows);
}

size_t RowCost::Class(double context) {
  const auto n = static_cast<uint64_t>(std::max(context, 0.0)) / 256;
  return std::min<size_t>(std::bit_width(n), 11);
}

void RowCost::Measured(double context, double ms) {
  if (ms <= 0) return;
  double& known = ms_per_token_[Class(context)];
  const double measured = ms / (kAlike + context);
  if (known == 0 || measured > known) {
    known = known == 0 ? measured : std::min(measured, kOutlier * known);  // more at once
  } else {
    known += kCostWeight * (measured - known);
  }
}

double RowCost::ms(double context) const {
  const auto wanted = static_cast<int>(Class(context));
  const auto all = static_cast<int>(ms_per_token_.size());
  for (int away = 0; away < all; ++away) {
    for (const int at : {wanted - away, wanted + away}) {
      if (at < 0 || at >= all || ms_per_token_[static_cast<size_t>(at)] == 0) continue;
      return ms_per_token_[static_cast<size_t>(at)] * (kAlike + context);
    }
  }
  return 0;
}

void RowLimit::Measured(int64_t rows, double ms) {
  if (rows <= 0 || ms <= 0) return;
  const double fit = static_cast<double>(rows) * step_ms_max_ / ms;
  if (ms > step_ms_max_) {
    rows_ = std::max<int64_t>(1, static_cast<int64_t>(std::min(fit, 1e9)));
  } else if (rows >= rows_) {
    const double grown = std::min({fit, 2.0 * static_cast<double>(rows_), 1e9});
    rows_ = std::clamp<int64_t>(static_cast<int64_t>(grown), rows_, rows_max_);
  }
}

double Pace::Budget() const { return kPrefillShare * decode_ms_; }

int64_t Pace::PrefillRows(double context) const {
  int64_t most = prefill_limit_.rows();  // which knows of the last passes' contexts only
  const double row_ms = row_cost_.ms(context);
  if (row_ms > 0 && static_cast<double>(most) * row_ms > step_ms_max_) {
    most = std::max<int64_t>(1, static_cast<int64_t>(step_ms_max_ / row_ms));
  }
  if (!decodes_run_) return most;
  const double fit = row_ms > 0 ? std::min(Budget() / row_ms, static_cast<double>(most)) : 0;
  return std::min(most, std::max(kPrefillRowsLeast, static_cast<int64_t>(fit)));
}

bool Pace::MayGoOn(double layer_ms) const {
  return since_decode_ms_ == 0 || since_decode_ms_ + layer_ms <= Budget();
}

bool Pace::IsTooLong(int64_t rows, double layer_ms) const {
  const double budget = decodes_run_ ? Budget() : step_ms_max_;
  return rows > kPrefillRowsLeast && layer_ms > kTooLong * budget;
}

void Pace::Decoded(int64_t rows, double ms) {
  decodes_run_ = rows > 0;
  if (!decodes_run_) return;
  since_decode_ms_ = 0;
  decode_limit_.Measured(rows, ms);
  decode_cost_.Measured(rows, ms);
  decode_ms_ = decode_cost_.ms(rows);
}

void Pace::Prefilled(int64_t rows, double context, double layer_ms_max) {
  prefill_limit_.Measured(rows, layer_ms_max);
  row_cost_.Measured(context, layer_ms_max / static_cast<double>(rows));
}

}  // namespace holdfast
