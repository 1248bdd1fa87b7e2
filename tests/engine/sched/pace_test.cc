// Running decodes keep their pace beside a prefill: what is measured, and a machine that is none.

#include "engine/sched/pace.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace holdfast {
namespace {

TEST_CASE("the cost of a pass lies on lines between measurements") {
  PassCost cost;
  CHECK(cost.ms(1) == doctest::Approx(1));
  CHECK(cost.ms(11) == doctest::Approx(2));
  cost.Measured(1, 10);
  CHECK(cost.ms(1) == doctest::Approx(10));
  CHECK(cost.ms(11) == doctest::Approx(20));
  cost.Measured(8, 24);
  CHECK(cost.ms(4) == doctest::Approx(16));
  CHECK(cost.ms(15) == doctest::Approx(38));
  cost.Measured(16, 20);  // noise: more rows never take less
  CHECK(cost.ms(16) == doctest::Approx(24));
  for (int i = 0; i < 40; ++i) cost.Measured(1, i == 20 ? 1000 : 12);  // one was interrupted
  CHECK(cost.ms(1) == doctest::Approx(12).epsilon(0.01));
  PassCost many;
  many.Measured(16, 50);
  CHECK(many.ms(1) == doctest::Approx(20));
}

TEST_CASE("RowLimit follows what steps take") {
  RowLimit limit(256, 200);
  CHECK(limit.rows() == 64);
  limit.Measured(32, 1);  // the limit was not used: nothing to learn
  CHECK(limit.rows() == 64);
  limit.Measured(64, 10);
  CHECK(limit.rows() == 128);
  limit.Measured(128, 150);  // 170 would fit
  CHECK(limit.rows() == 170);
  limit.Measured(170, 400);
  CHECK(limit.rows() == 85);
  limit.Measured(10, 100000);
  CHECK(limit.rows() == 1);
  limit.Measured(1, 500);  // one row at least
  CHECK(limit.rows() == 1);
  for (int i = 0; i < 20; ++i) limit.Measured(limit.rows(), 1);
  CHECK(limit.rows() == 256);
  CHECK(RowLimit(16, 200).rows() == 16);
}

TEST_CASE("what a row costs grows with the tokens that it sees") {
  RowCost cost;
  CHECK(cost.ms(100) == 0);
  cost.Measured(0, 1);
  CHECK(cost.ms(0) == doctest::Approx(1));
  CHECK(cost.ms(RowCost::kAlike) == doctest::Approx(2));  // never measured there
  cost.Measured(6000, 12);
  CHECK(cost.ms(7000) == doctest::Approx(13.5));  // the nearest measurement counts
  CHECK(cost.ms(100) == doctest::Approx(1.05));
  for (int i = 0; i < 30; ++i) cost.Measured(0, 0.5);
  CHECK(cost.ms(0) == doctest::Approx(0.5).epsilon(0.01));
  cost.Measured(0, 0.7);  // more counts at once
  CHECK(cost.ms(0) == doctest::Approx(0.7));
  cost.Measured(0, 100);  // but this was interrupted
  CHECK(cost.ms(0) == doctest::Approx(1.4));
}

constexpr Pace::Options kOptions{.prefill_rows_max = 256, .decode_rows_max = 1024,
                                 .step_ms_max = 200};

TEST_CASE("a prefill alone has all the rows that a step allows") {
  Pace pace(kOptions);
  CHECK(pace.PrefillRows(0) == 64);
  pace.Prefilled(64, 32, 10);
  CHECK(pace.PrefillRows(64) == 128);
  CHECK_FALSE(pace.IsTooLong(64, 400));
  CHECK(pace.IsTooLong(64, 401));
}

TEST_CASE("beside decodes a layer fits into three quarters of a step") {
  Pace pace(kOptions);
  pace.Decoded(4, 20);
  CHECK(pace.PrefillRows(0) == Pace::kPrefillRowsLeast);  // of an unknown cost
  pace.Prefilled(16, 0, 4.8);
  CHECK(pace.PrefillRows(0) == 50);
  CHECK(pace.PrefillRows(2000) == 25);
  CHECK(pace.PrefillRows(20000) == Pace::kPrefillRowsLeast);
  CHECK(pace.PrefillRows(100000) == 13);  // by what a step may take
  CHECK(pace.MayGoOn(1000));  // one at least
  pace.Layer(8);
  CHECK(pace.MayGoOn(7));
  CHECK_FALSE(pace.MayGoOn(8));
  CHECK(pace.IsTooLong(64, 31));
  CHECK_FALSE(pace.IsTooLong(64, 29));
  CHECK_FALSE(pace.IsTooLong(Pace::kPrefillRowsLeast, 31));
  pace.Decoded(0, 0);
  CHECK(pace.PrefillRows(0) == 64);
}

// A machine whose times are known: `agents` decode while a prompt of `rows` is computed behind
// `context` tokens, as Scheduler does it.
struct Machine {
  int layers = 24;
  double decode_ms = 20;             // of a step
  double row_ms = 0.1;               // of a layer, with no context
  double alike = 2000;               // context with which it takes twice as long
  double noise = 0;                  // times are up to so much longer
  std::mt19937 random{1};

  struct Run {
    std::vector<double> gaps;        // between two decode steps' ends
    double prefill_ms = 0, all_ms = 0;
    int restarts = 0;
  };

  double Noisy(double ms) {
    return ms * std::uniform_real_distribution<double>(1, 1 + noise)(random);
  }
  Run Beside(Pace& pace, int64_t agents, int64_t context, int64_t prompt, int64_t rows_now = 0) {
    Run run;
    const int64_t end = context + prompt;
    int64_t rows = rows_now;  // of the pass in flight
    int layer = 0;
    double gap = 0, sum = 0, longest = 0;
    while (context < end) {
      if (rows == 0 || !pace.MayGoOn(layer == 0 ? 0 : sum / layer)) {
        const double ms = Noisy(decode_ms);
        pace.Decoded(agents, ms);
        if (gap > 0) run.gaps.push_back(gap + ms);
        gap = 0;
        run.all_ms += ms;
      }
      if (layer > 0 && 4 * layer <= layers && pace.IsTooLong(rows, sum / layer)) {
        pace.Prefilled(rows, static_cast<double>(context), longest);
        rows = 0;
        ++run.restarts;
      }
      if (rows == 0) {
        rows = std::min(end - context, pace.PrefillRows(static_cast<double>(context)));
        layer = 0;
        sum = longest = 0;
      }
      const double middle = static_cast<double>(context) + static_cast<double>(rows) / 2;
      const double ms = Noisy(static_cast<double>(rows) * row_ms * (1 + middle / alike));
      pace.Layer(ms);
      gap += ms;
      sum += ms;
      run.all_ms += ms;
      run.prefill_ms += ms;
      longest = std::max(longest, ms);
      if (++layer < layers) continue;
      pace.Prefilled(rows, middle, longest);
      context += rows;
      rows = 0;
    }
    return run;
  }
};

double Percentile(std::vector<double> values, double p) {
  REQUIRE_FALSE(values.empty());
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1))];
}

TEST_CASE("decodes keep half of their pace beside a prefill of 8,000 tokens, whatever it costs") {
  for (const double row_ms : {0.02, 0.1, 0.4}) {
    for (const double alike : {700.0, 2000.0, 8000.0}) {
      for (const double noise : {0.0, 0.3}) {
        CAPTURE(row_ms);
        CAPTURE(alike);
        CAPTURE(noise);
        Machine machine{.row_ms = row_ms, .alike = alike, .noise = noise};
        Pace pace(kOptions);
        // What nobody measured; a second one; a third behind a long context, a fourth behind none.
        for (const int64_t context : {0, 0, 12000, 0}) {
          CAPTURE(context);
          const Machine::Run run = machine.Beside(pace, 4, context, 8000);
          // Where the fewest rows take longer than that, nothing can be done here.
          const double least = static_cast<double>(Pace::kPrefillRowsLeast) * row_ms *
                               (1 + static_cast<double>(context + 8000) / alike);
          const double alone = machine.decode_ms * (1 + noise);
          CHECK(Percentile(run.gaps, 0.99) <= alone + std::max(0.95 * alone, least * (1 + noise)));
          CHECK(run.prefill_ms > 0.3 * run.all_ms);  // and the prefill its own
        }
      }
    }
  }
}

// A prompt behind `context` tokens, while nobody decodes: the longest layer but those of passes that
// began anew, of passes with more than one row.
double LongestLayer(Pace& pace, const Machine& machine, int64_t context, int64_t prompt) {
  double longest = 0;
  for (const int64_t end = context + prompt; context < end;) {
    const auto row = [&](int64_t rows) {
      return static_cast<double>(context) + static_cast<double>(rows - 1) / 2;
    };
    int64_t rows = std::min(end - context, Pace::kPrefillRowsLeast);
    rows = std::min(end - context, pace.PrefillRows(row(rows)));
    const double ms = static_cast<double>(rows) * machine.row_ms * (1 + row(rows) / machine.alike);
    pace.Prefilled(rows, row(rows), ms);
    if (pace.IsTooLong(rows, ms) && pace.PrefillRows(row(rows)) < rows) continue;
    if (rows > 1) longest = std::max(longest, ms);
    context += rows;
  }
  return longest;
}

TEST_CASE("a layer of a prefill lasts no longer than a step may, on machines of any speed") {
  for (const double row_ms : {0.02, 0.1, 0.7, 3.0, 10.0, 50.0, 300.0}) {
    for (const double alike : {700.0, RowCost::kAlike, 8000.0}) {
      CAPTURE(row_ms);
      CAPTURE(alike);
      const Machine machine{.row_ms = row_ms, .alike = alike};
      Pace pace(kOptions);
      // Nothing is known yet, and 64 rows go in: up to twice as long a pass does not begin anew.
      CHECK(LongestLayer(pace, machine, 0, 500) <= 2 * kOptions.step_ms_max);
      for (const bool was_there : {false, true}) {
        // Predictions are right where times grow as RowCost takes them to (but they are of a pass's
        // first rows); else an estimate at a context that is new, and an average once measured.
        const double factor = alike == RowCost::kAlike ? 1.05 : was_there ? 1.15 : 1.6;
        for (const int64_t context : {500, 30000, 0, 12000, 100000, 0}) {
          CAPTURE(context);
          CHECK(LongestLayer(pace, machine, context, 1000) <=
                kOptions.step_ms_max * factor);
        }
      }
    }
  }
}

TEST_CASE("a pass that began while nobody decoded begins anew with fewer rows") {
  Machine machine{.row_ms = 0.5};
  Pace pace(kOptions);
  for (int i = 0; i < 3; ++i) pace.Prefilled(pace.PrefillRows(0), 0, 0.5 * 64);
  CHECK(pace.PrefillRows(0) == 256);
  const Machine::Run run = machine.Beside(pace, 1, 0, 1000, 256);
  CHECK(run.restarts == 1);
  CHECK(std::count_if(run.gaps.begin(), run.gaps.end(), [](double ms) { return ms > 40; }) <= 1);
}

}  // namespace
}  // namespace holdfast
