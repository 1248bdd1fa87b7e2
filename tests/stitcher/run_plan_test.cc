// PlanRuns and AddWindows as a table: input in, steps out.
#include "stitcher/run_plan.h"

#include <doctest/doctest.h>

#include <sstream>
#include <string>
#include <vector>

using namespace holdfast;

namespace {

std::string Show(const RunPlan& plan) {
  std::ostringstream s;
  constexpr const char* kNames[] = {"exact", "shifted", "link", "selected", "compute"};
  for (const RunStep& step : plan.steps) {
    if (s.tellp() > 0) s << " ";
    s << kNames[static_cast<int>(step.origin)] << "[" << step.begin << "," << step.end << ")";
    if (step.run >= 0) s << "#" << step.run;
  }
  return s.str();
}

// A card that knows runs of 64 tokens and more, up to three of them: links heal in context;
// isolated ones need windows too.
ModelCard Card() {
  ModelCard card;
  card.max_context = 100000;
  card.min_tokens = 64;
  card.max_runs = 3;
  auto add = [&](CardKind kind, CardSetting setting, double mean, double rows) {
    card.cells.push_back({kind, 0, 2, 0, setting,
                          {.mean = mean, .bound = 2 * mean, .rows = rows, .contexts = 8}});
  };
  add(CardKind::kInContext, {32, 0}, 0.008, 0.1);
  add(CardKind::kInContext, {128, 0}, 0.004, 0.2);
  add(CardKind::kInContext, {128, 20}, 0.002, 0.4);
  add(CardKind::kIsolated, {32, 0}, 0.02, 0.1);
  add(CardKind::kIsolated, {32, 20}, 0.004, 0.3);
  add(CardKind::kIsolated, {128, 40}, 0.001, 0.6);
  return card;
}

// A prompt of `tokens` of which the first page is there.
struct Case {
  int64_t tokens = 0;
  std::vector<RunOffer> runs;
  ReuseOptions reuse = {.policy = ReusePolicy::kBalanced};
  std::vector<int64_t> boundaries = {};
  double load_page_ms = 0, compute_ms = 0;
  bool card = true, selects = true;

  RunPlan Make() const {
    static const ModelCard kCard = Card();
    RunPlanInput in;
    in.tokens = tokens;
    in.begin = 32;
    in.runs = runs;
    in.boundaries = boundaries;
    in.reuse = reuse;
    in.card = card ? &kCard : nullptr;
    in.selects = selects;
    in.load_ms_per_page = load_page_ms;
    in.compute_ms_per_token = compute_ms;
    return PlanRuns(in);
  }
  std::string Show() const { return ::Show(Make()); }
};

RunOffer At(int64_t begin, int64_t end) { return {.begin = begin, .end = end, .shift = 40}; }
RunOffer Isolated(int64_t begin, int64_t end) {
  return {.begin = begin, .end = end, .kind = VariantKind::kIsolated, .shift = 40};
}

}  // namespace

TEST_CASE("pieces are used as they are where the prefix does not reach") {
  const auto as_is = [](int64_t begin, int64_t end) {
    return RunOffer{.begin = begin, .end = end, .as_is = true};
  };
  Case c{100, {as_is(40, 80)}, {}};
  c.card = false;
  CHECK(c.Show() == "compute[32,40) shifted[40,80)#0 compute[80,100)");
  c.runs = {as_is(0, 31), as_is(31, 80), as_is(90, 100)};
  CHECK(c.Show() == "shifted[32,80)#1 compute[80,90) shifted[90,99)#2 compute[99,100)");
}

TEST_CASE("exact, the default, uses the prefix alone") {
  Case c{1000, {At(100, 900)}};
  c.reuse.policy = ReusePolicy::kExact;
  CHECK(c.Show() == "compute[32,1000)");
  CHECK(c.Make().choices[0].reason == "exact: the prefix alone");
  CHECK(c.Make().fallback == "");
  CHECK(ReuseOptions{}.policy == ReusePolicy::kExact);
}

TEST_CASE("a run is linked at its beginning and used behind it") {
  CHECK(Case{1000, {At(100, 900)}}.Show() ==
        "compute[32,100) link[100,228)#0 shifted[228,900)#0 compute[900,1000)");
  Case fast{1000, {At(100, 900)}, {.policy = ReusePolicy::kFast}};
  CHECK(fast.Show() ==
        "compute[32,100) link[100,132)#0 shifted[132,900)#0 compute[900,1000)");
  const RunPlan plan = fast.Make();
  CHECK(plan.choices[0].used);
  CHECK(plan.choices[0].link == 32);
  CHECK(plan.choices[0].reason == "LINK-32, expected KL 0.008 nats a token");
  CHECK(plan.expected_kl == 0.008);
  CHECK(plan.kl_bound == 0.016);
  CHECK(plan.select == 0);
  CHECK(plan.cost_ms == 200);  // rows, while nothing is measured
  CHECK(plan.full_ms == 968);
  CHECK(plan.TokensOf(KvOrigin::kLink) == 32);
  CHECK(plan.TokensOf(KvOrigin::kFresh) == 168);
}

TEST_CASE("a link ends with the sentence where that is near") {
  Case c{1000, {At(100, 900)}, {.policy = ReusePolicy::kFast}};
  const auto link_end = [&](std::vector<int64_t> boundaries) {
    c.boundaries = std::move(boundaries);
    return 100 + c.Make().choices[0].link;
  };
  CHECK(link_end({}) == 132);
  CHECK(link_end({131}) == 132);
  CHECK(link_end({132}) == 132);
  CHECK(link_end({120, 148}) == 148);
  CHECK(link_end({120, 149}) == 132);
}

TEST_CASE("the exact prefix cuts a run, the last token is always computed") {
  CHECK(Case{600, {At(0, 600)}, {.policy = ReusePolicy::kFast}}.Show() ==
        "link[32,64)#0 shifted[64,599)#0 compute[599,600)");
  CHECK(Case{600, {At(0, 32)}}.Make().choices[0].reason == "the exact prefix covers it");
}

TEST_CASE("short runs are computed whole") {
  CHECK(Case{1000, {At(100, 163)}}.Make().choices[0].reason == "shorter than 64 tokens");
  CHECK(Case{1000, {At(100, 355)}}.Make().choices[0].reason ==
        "shorter than the 256 tokens that LINK-128 is worth");
  CHECK(Case{400, {At(100, 164)}, {.policy = ReusePolicy::kFast}}.Make().choices[0].reason ==
        "not worth it: 91.3 % of full prefill");
}

TEST_CASE("isolated runs: fast refuses them, balanced wants windows") {
  Case c{1000, {Isolated(100, 900)}};
  CHECK(c.Show() ==
        "compute[32,100) link[100,132)#0 shifted[132,900)#0 compute[900,1000)");
  CHECK(c.Make().select == 160);
  CHECK(c.Make().choices[0].reason ==
        "LINK-32 and windows of 20 %, expected KL 0.004 nats a token");
  c.selects = false;
  CHECK(c.Make().choices[0].reason == "nobody is there to choose the windows that it needs");
  c.reuse.policy = ReusePolicy::kFast;
  CHECK(c.Make().choices[0].reason == "isolated: fast refuses it");
  CHECK(c.Show() == "compute[32,1000)");
}

TEST_CASE("quality computes more, verify as much as balanced") {
  Case c{1000, {At(100, 900)}, {.policy = ReusePolicy::kQuality}};
  CHECK(c.Make().choices[0].link == 128);
  CHECK(c.Make().select == 160);
  c.runs = {Isolated(100, 900)};
  CHECK(c.Make().select == 320);
  c.reuse.policy = ReusePolicy::kVerify;
  CHECK(c.Make().select == 160);
}

TEST_CASE("windows are put into used runs alone") {
  const RunPlan plan = AddWindows(Case{1000, {Isolated(100, 500), Isolated(600, 900)}}.Make(),
                               std::vector<TokenRange>{{0, 10}, {90, 140}, {480, 520}, {640, 672}});
  CHECK(Show(plan) ==
        "compute[32,100) link[100,132)#0 selected[132,140)#0 shifted[140,480)#0 "
        "selected[480,500)#0 compute[500,600) link[600,632)#1 shifted[632,640)#1 "
        "selected[640,672)#1 shifted[672,900)#1 compute[900,1000)");
  CHECK(plan.select == 0);
  CHECK(plan.TokensOf(KvOrigin::kSelected) == 60);
}

TEST_CASE("max_kl: the cheapest that the card knows to keep it") {
  Case c{1000, {At(100, 900)}};
  const auto link = [&](double max_kl) {
    c.reuse.max_kl = max_kl;
    const RunPlan plan = c.Make();
    return plan.choices[0].used ? std::to_string(plan.choices[0].link) + "+" +
                                      std::to_string(plan.select)
                                : plan.choices[0].reason;
  };
  CHECK(link(0.02) == "32+0");    // the bound counts, not the mean
  CHECK(link(0.01) == "128+0");
  CHECK(link(0.005) == "128+160");
  CHECK(link(0.001) == "nothing that the card knows keeps its KL below 0.001");
  c.selects = false;
  CHECK(link(0.005) == "nobody is there to choose the windows that it needs");
}

TEST_CASE("budget: fewer windows, never less of a link, and not against the contract") {
  Case c{1000, {Isolated(100, 900)}};
  c.reuse.budget = 0.1;
  CHECK(c.Make().select == 48);  // of 80, less the link's 32
  c.reuse.budget = 0;
  CHECK(c.Make().select == 0);
  CHECK(c.Make().choices[0].link == 32);
  c.reuse.max_kl = 0.01;
  CHECK(c.Make().select == 160);
}

TEST_CASE("without a card, or beyond it, there is no reuse, and it is said") {
  Case c{1000, {At(100, 500), At(500, 900)}};
  c.card = false;
  CHECK(c.Show() == "compute[32,1000)");
  CHECK(c.Make().fallback ==
        "no model card: only exact reuse is offered (holdfast calibrate makes one)");
  Case many{2000, {At(100, 500), At(500, 900), At(900, 1190), At(1200, 1600)}};
  const RunPlan plan = many.Make();
  CHECK_FALSE(plan.choices[2].used);  // the shortest goes
  CHECK(plan.choices[2].reason == "more runs than the 3 that the card covers");
  CHECK(plan.choices[3].used);
  Case huge{100001, {At(100, 90000)}};
  CHECK(huge.Make().choices[0].reason == "the card says nothing of such a run with LINK-128");
}

TEST_CASE("what can't serve is refused") {
  Case c{1000, {At(100, 900)}};
  c.runs[0].tier = PageTier::kNone;
  CHECK(c.Make().choices[0].reason == "its pages are gone");
  CHECK(c.Make().fallback == "its pages are gone");
  Case two{1000, {At(100, 200), At(200, 900)}};  // what speaks against the longest is told
  two.runs[0].tier = PageTier::kNone;
  two.runs[1].generation = 1;
  CHECK(two.Make().fallback == "it rests on approximate KV itself");
  two.runs[1].generation = 0;
  CHECK(two.Make().fallback == "");
  CHECK(Case{1000, {At(0, 30)}}.Make().fallback == "");  // the exact prefix has it
  c.runs[0].tier = PageTier::kPool;
  c.runs[0].generation = 1;
  CHECK(c.Make().choices[0].reason == "it rests on approximate KV itself");
}

TEST_CASE("a run from the store must be quicker loaded than computed") {
  Case c{1000, {At(100, 900)}, {.policy = ReusePolicy::kFast}};
  c.runs[0].tier = PageTier::kStore;
  c.runs[0].pages_to_load = 25;
  c.load_page_ms = c.compute_ms = 1;
  CHECK(c.Make().choices[0].used);
  CHECK(c.Make().cost_ms == 225);
  c.load_page_ms = 40;
  CHECK(c.Make().choices[0].reason == "quicker computed than loaded");
}

TEST_CASE("a plan that saves less than a fifth is full prefill") {
  const auto fallback = [](int64_t run_end) {
    return Case{1032, {At(532, run_end)}, {.policy = ReusePolicy::kFast}}.Make().fallback;
  };
  CHECK(fallback(532 + 32 + 201) == "");
  CHECK(fallback(532 + 32 + 200) == "not worth it: 80 % of full prefill");
  CHECK(Case{1032, {At(532, 700)}, {.policy = ReusePolicy::kFast}}.Show() ==
        "compute[32,1032)");
}
