#include "sessions/retention.h"

#include <doctest/doctest.h>

#include <string>

namespace holdfast {
namespace {

constexpr int64_t kNow = 100'000'000, kMinute = 60'000, kHour = 3'600'000;

HeadFacts Idle(int64_t for_ms, HeadState state = HeadState::kResident) {
  return {.state = state, .last_use_ms = kNow - for_ms};
}
HeadFacts Expected(int64_t idle_ms, int64_t in_ms, HeadState state = HeadState::kToolWait) {
  return {.state = state, .last_use_ms = kNow - idle_ms, .expected_ms = kNow + in_ms};
}
HeadFacts Ttl(int64_t idle_ms, int64_t ends_in_ms) {
  return {.state = HeadState::kWarm, .last_use_ms = kNow - idle_ms,
          .keep_until_ms = kNow + ends_in_ms};
}
HeadFacts Pinned(HeadFacts facts) {
  facts.pinned = true;
  return facts;
}

TEST_CASE("the chance that a head is resumed soon") {
  struct Case {
    const char* what;
    HeadFacts facts;
    double chance;
  };
  const Case cases[] = {
      {"running", Idle(kHour, HeadState::kRunning), 1},
      {"restoring", Idle(kHour, HeadState::kRestoring), 1},
      {"closed", Idle(0, HeadState::kClosed), 0},
      {"used now", Idle(0), 1},
      {"a clock that went back", Idle(-kMinute), 1},
      {"a half-life ago", Idle(10 * kMinute), 0.5},
      {"cold, an hour ago", Idle(kHour, HeadState::kCold), 1.0 / 64},
      {"its ttl lasts", Ttl(kHour, kMinute), 0.5},
      {"its ttl lasts, used now", Ttl(0, kMinute), 1},
      {"its ttl has ended", Ttl(10 * kMinute, -1), 0.125},
      {"a tool runs", Expected(10 * kMinute, kMinute / 2), 0.9},
      {"a tool that is late", Expected(10 * kMinute, -kMinute), 0.9},
      {"a tool that is late by as long as it took before", Expected(20 * kMinute, -10 * kMinute),
       0.9},
      {"a tool that does not end", Expected(12 * kMinute, -11 * kMinute), 0.45},
      {"wakes tomorrow", Expected(kHour, 24 * kHour, HeadState::kCold), 1.0 / 64},
      {"wakes in ten minutes", Expected(kHour, 10 * kMinute, HeadState::kCold), 0.09},
      {"wakes in a moment", Expected(24 * kHour, kMinute, HeadState::kCold), 0.9},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    CHECK(ResumeChance(c.facts, kNow) == doctest::Approx(c.chance).epsilon(0.01));
  }
}

TEST_CASE("what goes first") {
  struct Case {
    const char* what;
    std::vector<Candidate> heads;
    std::string order;  // indices
  };
  const auto kCold = HeadState::kCold, kOld = HeadState::kSuperseded;
  const Case cases[] = {
      {"nothing", {}, ""},
      {"the one used longest ago", {{Idle(5), 1, 9}, {Idle(9000), 1, 9}, {Idle(700), 1, 9}}, "120"},
      {"what is cheap to have again", {{Idle(0), 60, 9}, {Idle(0), 1, 9}}, "10"},
      {"what frees more", {{Idle(0), 1, 9}, {Idle(0), 1, 900}}, "10"},
      {"an old one that is dear stays before a new one that is cheap",
       {{Idle(10 * kMinute), 4, 9}, {Idle(0), 1, 9}}, "10"},
      {"superseded before all, whatever it costs", {{Idle(kHour, kCold), 1, 9},
       {Idle(0, kOld), 900, 9}, {Idle(0, HeadState::kClosed), 900, 9}}, "210"},
      {"a tool's end is awaited", {{Idle(2 * kMinute), 1, 9}, {Expected(3 * kMinute, 9), 1, 9}},
       "01"},
      {"pinned last", {{Pinned(Idle(24 * kHour)), 1, 9}, {Idle(0), 900, 9}}, "10"},
      {"pinned, though superseded", {{Pinned(Idle(kHour, kOld)), 1, 9}, {Idle(0), 900, 9}}, "10"},
      {"in use after pinned", {{Idle(0, HeadState::kRunning), 1, 9}, {Pinned(Idle(0)), 1, 9}},
       "10"},
      {"no ancestor before its descendants",
       {{Idle(24 * kHour), 1, 9, -1}, {Idle(0), 1, 9, 0}, {Idle(kHour), 1, 9, 0}}, "210"},
      {"descendants first, tail first, where all are alike",
       {{Idle(0), 1, 9, -1}, {Idle(0), 1, 9, 0}, {Idle(0), 1, 9, 1}}, "210"},
      {"an ancestor of a pinned one is kept with it",
       {{Idle(24 * kHour, kOld), 1, 9, -1}, {Pinned(Idle(0)), 1, 9, 0}, {Idle(0), 1, 9, -1}},
       "210"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    std::string order;
    for (size_t i : DropOrder(c.heads, kNow)) order += static_cast<char>('0' + i);
    CHECK(order == c.order);
  }
}

TEST_CASE("a branch is superseded by one that left most of it behind and went on") {
  const BranchUse main{"main", "", 1000, 0, 50};
  CHECK(IsSuperseded(main, {"b1", "main", 1200, 900, 60}));
  CHECK_FALSE(IsSuperseded(main, {"b1", "main", 1200, 1000, 60}));  // a fork of its head
  CHECK_FALSE(IsSuperseded(main, {"b1", "main", 1200, 500, 60}));   // shares a beginning only
  CHECK_FALSE(IsSuperseded(main, {"b1", "main", 1200, 900, 40}));   // main was used since
  CHECK_FALSE(IsSuperseded(main, {"b1", "other", 1200, 900, 60}));
}

TEST_CASE("of a session's branches those are superseded that any other one supersedes") {
  const auto of = [](std::vector<BranchUse> branches) {
    std::string names;
    for (size_t i : Superseded(branches)) names += std::string(branches[i].name) + " ";
    return names;
  };
  const BranchUse main{"main", "", 1000, 0, 50}, b1{"b1", "main", 1200, 900, 60},
      b2{"b2", "main", 1100, 950, 70}, b3{"b3", "b1", 1300, 1100, 80};
  CHECK(of({}) == "");
  CHECK(of({main}) == "");
  CHECK(of({main, b1, b2}) == "main ");
  CHECK(of({b3, b2, b1, main}) == "b1 main ");
  CHECK(of({b1, b3}) == "b1 ");  // its parent is of another model
  CHECK(of({main, {"b1", "main", 1200, 400, 60}}) == "");
  // Many tries of one answer, each from the one before.
  std::vector<BranchUse> many;
  std::vector<std::string> names;
  for (int i = 0; i <= 20'000; ++i) names.push_back(std::to_string(i));
  for (int i = 0; i < 20'000; ++i) many.push_back({names[i + 1], names[i], 1000, 900, i + 1});
  CHECK(Superseded(many).size() == 19'999);
}

}  // namespace
}  // namespace holdfast
