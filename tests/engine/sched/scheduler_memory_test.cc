// A pool that is too small: waiting, giving way, giving up.

#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

TEST_CASE("sequences that give way get the same bits") {
  std::vector<Answer> want;
  {
    Rig rig;
    for (int i = 0; i < 4; ++i) {
      want.push_back(rig.Run(rig.Request(SomePrompt(40, i), 150)));
      want.back().finish.timeline.reset();
    }
  }
  RigOptions options;
  options.pages = 14;  // four sequences of six pages each
  Rig rig(options);
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 9), 1));
  std::vector<std::shared_ptr<Generation>> all;
  for (int i = 0; i < 4; ++i) all.push_back(rig.Submit(rig.Request(SomePrompt(40, i), 150)));
  gate.Open();
  for (int i = 0; i < 4; ++i) {
    CAPTURE(i);
    const Answer answer = Hear(*all[i]);
    CHECK(answer.finish.reason == FinishReason::kLength);
    CHECK(answer.digests == want[i].digests);
    CHECK(answer.text == want[i].text);
  }
  Hear(*held);
  CHECK(rig.scheduler().stats().preempted > 0);
}

TEST_CASE("a lone sequence waits for memory that others hold") {
  RigOptions options;
  options.pages = 6;
  options.scheduler.starved_ms_max = 60000;
  Rig rig(options);
  Answer idle = rig.Run(rig.Request(SomePrompt(120, 1), 1));  // holds four pages
  auto generation = rig.Submit(rig.Request(SomePrompt(100, 2), 5));
  CHECK_FALSE(generation->Next(50).has_value());
  idle.finish.timeline.reset();
  const Answer answer = Hear(*generation);
  CHECK(answer.tokens.size() == 5);
}

TEST_CASE("requests that wait give their pages to one that runs") {
  // Each next turn brings the timeline of its history. There is room for one turn to run, but not
  // beside the histories of the others.
  const auto next_turn = [](Rig& rig, int i, Answer* turn) {
    GenerateRequest request = rig.Request({}, 150);
    request.timeline = std::move(turn->finish.timeline);
    request.timeline->Extend(SomePrompt(8, 10 + i));
    request.output_begin = request.timeline->size();
    return rig.Submit(std::move(request));
  };
  std::vector<Answer> want;
  {
    Rig rig;
    for (int i = 0; i < 3; ++i) {
      Answer turn = rig.Run(rig.Request(SomePrompt(90, i), 1));
      want.push_back(Hear(*next_turn(rig, i, &turn)));
      want.back().finish.timeline.reset();
    }
  }
  RigOptions options;
  options.pages = 11;  // three histories of three pages; a whole turn has eight
  options.scheduler.running_max = 1;
  options.scheduler.starved_ms_max = 20;
  Rig rig(options);
  std::vector<Answer> turns;
  for (int i = 0; i < 3; ++i) turns.push_back(rig.Run(rig.Request(SomePrompt(90, i), 1)));
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 9), 1));
  std::vector<std::shared_ptr<Generation>> all;
  for (int i = 0; i < 3; ++i) all.push_back(next_turn(rig, i, &turns[i]));
  gate.Open();
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    Answer answer = Hear(*all[i]);
    CHECK(answer.finish.reason == FinishReason::kLength);
    CHECK(answer.digests == want[i].digests);
    answer.finish.timeline.reset();
  }
  Hear(*held);
}

TEST_CASE("it gives up after a while, with what it has") {
  RigOptions options;
  options.pages = 6;
  options.scheduler.starved_ms_max = 20;
  Rig rig(options);
  Answer idle = rig.Run(rig.Request(SomePrompt(120, 1), 1));
  const Answer answer = rig.Run(rig.Request(SomePrompt(100, 2), 5));
  CHECK(answer.finish.reason == FinishReason::kError);
  CHECK(answer.finish.status.code() == Code::kExhausted);
  CHECK(answer.finish.timeline->size() == 100);
  CHECK(answer.finish.timeline->filled() == 64);
  idle.finish.timeline.reset();
}

TEST_CASE("a parked sequence gives its pages to one that runs") {
  RigOptions options;
  options.pages = 16;
  Rig rig(options);
  Answer want_parked = rig.Run(rig.Request(SomePrompt(20, 1), 400));
  want_parked.finish.timeline.reset();
  Answer want = rig.Run(rig.Request(SomePrompt(300, 2), 20));
  want.finish.timeline.reset();
  auto parked = rig.Submit(rig.Request(SomePrompt(20, 1), 400));
  while (rig.scheduler().stats().generated < 400 + 20 + Generation::kSinkEvents) {
    std::this_thread::yield();
  }
  auto older_is_parked = rig.Submit(rig.Request(SomePrompt(300, 2), 20));
  CHECK(Hear(*parked).digests == want_parked.digests);
  CHECK(Hear(*older_is_parked).digests == want.digests);
}

}  // namespace
}  // namespace holdfast
