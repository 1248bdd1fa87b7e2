// MakePlan as a table: input in, steps out.
#include "stitcher/plan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

using namespace holdfast;

namespace {

std::string Show(const Plan& plan) {
  std::ostringstream s;
  for (const PlanStep& step : plan.steps) {
    s << PlanActionName(step.action) << "[" << step.begin << "," << step.end << ") ";
  }
  s << plan.miss;
  return s.str();
}

constexpr PageTier kP = PageTier::kPool, kS = PageTier::kStore, kN = PageTier::kNone;

std::string PlanOf(int64_t tokens, std::vector<PageTier> pages, int64_t base = 0,
                   double load_page = 0, double load_fixed = 0, double compute = 0) {
  PlanInput in;
  in.tokens = tokens;
  in.pages = pages;
  in.base_filled = base;
  in.load_ms_per_page = load_page;
  in.load_ms_fixed = load_fixed;
  in.compute_ms_per_token = compute;
  return Show(MakePlan(in));
}

}  // namespace

TEST_CASE("nothing known: all is computed") {
  CHECK(PlanOf(0, {}) == "");
  CHECK(PlanOf(1, {}) == "compute[0,1) ");
  CHECK(PlanOf(100, {}) == "compute[0,100) absent");
}

TEST_CASE("the exact prefix comes from the pool, then from the store") {
  CHECK(PlanOf(100, {kP, kP, kP}) == "exact[0,96) compute[96,100) ");
  CHECK(PlanOf(100, {kP, kS, kP}) == "exact[0,32) load[32,64) exact[64,96) compute[96,100) ");
  CHECK(PlanOf(100, {kP, kN, kP}) == "exact[0,32) compute[32,100) absent");
}

TEST_CASE("the last token is always computed") {
  CHECK(PlanOf(64, {kP, kP}) == "exact[0,32) compute[32,64) ");
  CHECK(PlanOf(65, {kP, kP}) == "exact[0,64) compute[64,65) ");
  CHECK(PlanOf(64, {}, 64) == "exact[0,63) compute[63,64) ");
}

TEST_CASE("a warm timeline reaches into a partial page") {
  CHECK(PlanOf(100, {}, 70) == "exact[0,70) compute[70,100) absent");
  CHECK(PlanOf(100, {kN, kN, kN}, 97) == "exact[0,97) compute[97,100) ");
  CHECK(PlanOf(100, {kP, kP, kP}, 40) == "exact[0,96) compute[96,100) ");
}

TEST_CASE("a load that is dearer than computing is not made") {
  CHECK(PlanOf(100, {kS, kS, kS}, 0, 1.0, 5.0, 1.0) == "load[0,96) compute[96,100) ");
  CHECK(PlanOf(100, {kS, kS, kS}, 0, 40.0, 70.0, 1.0) ==
        "compute[0,100) cheaper_to_compute");
  CHECK(PlanOf(100, {kP, kS, kP}, 0, 1.0, 500.0, 1.0) ==
        "exact[0,32) compute[32,100) cheaper_to_compute");
}

TEST_CASE("loads and the prefill race where neither is quick") {
  CHECK(PlanOf(100, {kS, kS, kS}, 0, 40.0, 0.0, 1.0) == "race[0,96) compute[96,100) ");
  // From the first page that is on disk to the last that is anywhere.
  CHECK(PlanOf(200, {kP, kS, kP, kS, kS, kN}, 0, 20.0, 0.0, 1.0) ==
        "exact[0,32) race[32,160) compute[160,200) absent");
}

TEST_CASE("how long a partial page is waited for") {
  struct Case {
    const char* what;
    int64_t rows;
    double load, compute_token, patience;
  };
  const Case cases[] = {
      {"nothing is known", 31, 0, 0, kPatienceUnknownMs},
      {"loading is not known", 31, 0, 1, kPatienceMs},
      {"computing takes a while", 20, 5, 50, 1000},
      {"so short that nobody notices", 1, 20, 1, kPatienceMs},
      {"sooner computed", 20, 30, 1, 0},
      {"a slow disk, and a slower model", 20, 300, 50, 1000},
      {"a slower disk", 20, 1001, 50, 0},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    PlanInput in;
    in.load_ms_per_page = c.load;
    in.compute_ms_per_token = c.compute_token;
    CHECK(TailPatienceMs(in, c.rows) == c.patience);
  }
}

TEST_CASE("how pages come from the store, by what that costs") {
  struct Case {
    const char* what;
    int64_t pages;
    double load_page, load_fixed, compute_token;
    PlanAction action;
    int64_t load_pages;
    double ms, wait_ms_max;
  };
  const PlanAction load = PlanAction::kLoad, race = PlanAction::kRace,
                   compute = PlanAction::kCompute;
  const Case cases[] = {
      {"nothing is known", 100, 0, 0, 0, load, 100, 0, kPatienceUnknownMs},
      {"computing is not known", 100, 50, 0, 0, load, 100, 5000, kPatienceUnknownMs},
      {"loading is not known", 100, 0, 0, 1, load, 100, 0, 320},
      {"the usual case: a hundred times quicker", 100, 1, 0, 3.125, load, 100, 100, 1000},
      {"a tenth of computing", 100, 10, 0, 3.125, load, 100, 1000, 1000},
      {"a little more", 100, 11, 0, 3.125, race, 90, 1000, 1000},
      {"alike", 100, 100, 0, 3.125, race, 50, 5000, 1000},
      {"alike, after a while", 100, 100, 2000, 3.125, race, 40, 6000, 1000},
      {"four times slower", 100, 400, 0, 3.125, race, 20, 8000, 1000},
      {"hopelessly slow", 100, 20000, 0, 3.125, compute, 0, 10000, 1000},
      {"too late for a single page", 100, 1, 9950, 3.125, compute, 0, 10000, 1000},
      {"so short that nobody notices", 2, 12, 0, 0.5, load, 2, 24, kPatienceMs},
      {"not worth a race", 2, 12, 0, 0.3, compute, 0, 19.2, kPatienceMs},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    PlanInput in;
    in.load_ms_per_page = c.load_page;
    in.load_ms_fixed = c.load_fixed;
    in.compute_ms_per_token = c.compute_token;
    const Loading got = SplitLoading(in, c.pages);
    CHECK(PlanActionName(got.action) == PlanActionName(c.action));
    CHECK(got.load_pages == c.load_pages);
    CHECK(got.ms == doctest::Approx(c.ms));
    CHECK(got.wait_ms_max == doctest::Approx(c.wait_ms_max));
    // Never slower than computing by more than a tenth, or a moment.
    const double all = c.compute_token * 32 * static_cast<double>(c.pages);
    if (all > 0) CHECK(got.ms <= std::max(1.1 * all, all + kUnnoticedMs));
  }
}
