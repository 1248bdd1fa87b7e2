// MakePlan as a table: input in, steps out.
#include "stitcher/plan.h"

#include <doctest/doctest.h>

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
  CHECK(PlanOf(100, {kS, kS, kS}, 0, 40.0, 0.0, 1.0) ==
        "compute[0,100) cheaper_to_compute");
  CHECK(PlanOf(100, {kP, kS, kP}, 0, 1.0, 500.0, 1.0) ==
        "exact[0,32) compute[32,100) cheaper_to_compute");
}
