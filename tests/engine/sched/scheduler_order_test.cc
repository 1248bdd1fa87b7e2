// Who runs when: the queue, fairness, parking, cancelling, shutting down.

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

TEST_CASE("a cancel takes effect within two steps") {
  Rig rig;
  int after = -1;  // rows seen after the cancel, all on the model thread
  std::promise<std::shared_ptr<Generation>> promise;
  std::shared_future<std::shared_ptr<Generation>> generation = promise.get_future().share();
  GenerateRequest request = rig.Request(SomePrompt(20, 1), 1000);
  request.observe_logits = [&](int64_t index, std::span<const float>) {
    if (index == 50) generation.get()->Cancel();
    after += index > 50 || after >= 0 ? 1 : index == 50;
  };
  promise.set_value(rig.Submit(std::move(request)));
  const Answer answer = Hear(*generation.get());
  CHECK(answer.finish.reason == FinishReason::kCancelled);
  CHECK(answer.finish.status.code() == Code::kCancelled);
  CHECK(answer.finish.timeline->size() == 20 + static_cast<int64_t>(answer.tokens.size()));
  CHECK(after <= 2);
}

TEST_CASE("a cancel in the middle of a prompt leaves what is computed") {
  Rig rig;
  std::promise<std::shared_ptr<Generation>> promise;
  std::shared_future<std::shared_ptr<Generation>> generation = promise.get_future().share();
  int64_t last = 0;
  GenerateRequest request = rig.Request(SomePrompt(1000, 1), 5);
  request.chunk = 20;
  request.observe_logits = [&](int64_t index, std::span<const float>) {
    if (index == 100) generation.get()->Cancel();
    last = index;
  };
  promise.set_value(rig.Submit(std::move(request)));
  const Answer answer = Hear(*generation.get());
  CHECK(answer.finish.reason == FinishReason::kCancelled);
  CHECK(answer.tokens.empty());
  CHECK(answer.finish.timeline->size() == 1000);
  CHECK(answer.finish.timeline->filled() == last + 1);
  CHECK(last <= 100 + 2 * 20);
}

TEST_CASE("a full queue refuses and leaves the request") {
  RigOptions options;
  options.scheduler.running_max = 1;
  options.scheduler.queued_max = 2;
  Rig rig(options);
  Gate gate;
  auto a = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1));
  auto b = rig.Submit(rig.Request(SomePrompt(5, 2), 1));
  auto c = rig.Submit(rig.Request(SomePrompt(5, 3), 1));
  GenerateRequest fourth = rig.Request(SomePrompt(5, 4), 1);
  CHECK(rig.scheduler().Submit(std::move(fourth)).status().code() == Code::kExhausted);
  CHECK(fourth.timeline->size() == 5);
  CHECK(rig.scheduler().stats().queued == 2);
  b->Cancel();
  gate.Open();
  CHECK(Hear(*b).finish.reason == FinishReason::kCancelled);
  CHECK(Hear(*a).tokens.size() == 1);
  CHECK(Hear(*c).tokens.size() == 1);
  CHECK(rig.Run(std::move(fourth)).tokens.size() == 1);
}

TEST_CASE("tenants are admitted in turn, each in its own order") {
  RigOptions options;
  options.scheduler.running_max = 1;
  Rig rig(options);
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1, "a"));
  std::string order;
  std::vector<std::shared_ptr<Generation>> all;
  auto submit = [&](const std::string& tenant, char name) {
    GenerateRequest request = rig.Request(SomePrompt(5, name), 1, tenant);
    request.observe_logits = [&order, name](int64_t index, std::span<const float>) {
      if (index == 0) order += name;
    };
    all.push_back(rig.Submit(std::move(request)));
  };
  for (char name : std::string("123456")) submit("a", name);
  submit("b", 'x');
  gate.Open();
  for (auto& generation : all) Hear(*generation);
  Hear(*held);
  CHECK(order == "123456x");  // one at a time: the oldest first

  // With two places the second tenant gets the next one that is free.
  options.scheduler.running_max = 2;
  Rig wide(options);
  Gate gate2;
  held = gate2.Hold(wide, wide.Request(SomePrompt(5, 1), 3, "a"));
  order.clear();
  all.clear();
  auto submit_wide = [&](const std::string& tenant, char name) {
    GenerateRequest request = wide.Request(SomePrompt(5, name), 1, tenant);
    request.observe_logits = [&order, name](int64_t index, std::span<const float>) {
      if (index == 0) order += name;
    };
    all.push_back(wide.Submit(std::move(request)));
  };
  for (char name : std::string("1234")) submit_wide("a", name);
  submit_wide("b", 'x');
  gate2.Open();
  for (auto& generation : all) Hear(*generation);
  Hear(*held);
  CHECK(order.front() == 'x');
}

TEST_CASE("a sink that nobody drains parks its sequence alone") {
  Rig rig;
  const Answer want = rig.Run(rig.Request(SomePrompt(10, 1), 600));
  const uint64_t before = rig.scheduler().stats().generated;
  auto slow = rig.Submit(rig.Request(SomePrompt(10, 1), 600));
  uint64_t others = 0;
  uint64_t parked_at = 0;
  // Others run on until the slow one makes nothing more.
  for (;;) {
    others += rig.Run(rig.Request(SomePrompt(10, 2), 50)).tokens.size();
    const uint64_t slow_tokens = rig.scheduler().stats().generated - before - others;
    if (slow_tokens == parked_at && slow_tokens > 0) break;
    parked_at = slow_tokens;
  }
  CHECK(parked_at >= Generation::kSinkEvents);
  CHECK(parked_at <= Generation::kSinkEvents + 2);
  const Answer answer = Hear(*slow);  // draining wakes it
  CHECK(answer.digests == want.digests);
}

TEST_CASE("a dropped generation ends") {
  Rig rig;
  rig.Submit(rig.Request(SomePrompt(10, 1), 100000)).reset();
  rig.Run(rig.Request(SomePrompt(10, 2), 5));
  CHECK(rig.scheduler().stats().running == 0);
  CHECK(rig.scheduler().stats().finished == 2);
}

TEST_CASE("Next gives up at its time-out and after the end") {
  Rig rig;
  Gate gate;
  auto generation = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1));
  CHECK_FALSE(generation->Next(1).has_value());
  CHECK_FALSE(generation->Next(0).has_value());
  gate.Open();
  Hear(*generation);
  CHECK_FALSE(generation->Next(-1).has_value());
}

TEST_CASE("decoding goes on between the layers of a long prompt") {
  RigOptions options;
  options.spec.layers = 8;
  Rig rig(options);
  std::atomic<int> decoded{0};
  int at_submit = 0, at_end = 0;
  Gate gate;
  auto hook = gate.Hook();
  GenerateRequest decoding = rig.Request(SomePrompt(5, 1), 2000);
  decoding.observe_logits = [&](int64_t index, std::span<const float> logits) {
    ++decoded;
    if (index == 10) hook(index, logits);
  };
  auto decoder = rig.Submit(std::move(decoding));
  gate.AwaitClosed();
  at_submit = decoded;
  GenerateRequest prompt = rig.Request(SomePrompt(200, 2), 1);
  prompt.chunk = 64;
  prompt.observe_logits = [&](int64_t index, std::span<const float>) {
    if (index == 0) at_end = decoded;
  };
  auto prefill = rig.Submit(std::move(prompt));
  gate.Open();
  Hear(*prefill);
  decoder->Cancel();
  Hear(*decoder);
  CHECK(at_end - at_submit >= 3);  // once before the pass begins; the others inside it
}

// Notes when a row was computed, by the rows of prompts that were computed in passes before.
std::function<void(int64_t, std::span<const float>)> NoteRows(Rig& rig, int64_t row,
                                                              uint64_t* rows) {
  return [&rig, row, rows](int64_t index, std::span<const float>) {
    if (index == row) *rows = rig.scheduler().stats().prefill_rows;
  };
}

TEST_CASE("a short request behind a long prompt starts at once") {
  struct Case {
    int prompt;
    const char* tenant;
    uint64_t passes;  // of 64 rows, before its first token
  };
  for (const Case& c : {Case{8, "a", 1}, Case{8, "b", 1}, Case{100, "a", 4}, Case{100, "b", 4}}) {
    CAPTURE(c.prompt);
    CAPTURE(c.tenant);
    RigOptions options;
    options.scheduler.prefill_rows_max = 64;
    Rig rig(options);
    Gate gate;
    auto long_one = gate.Hold(rig, rig.Request(SomePrompt(1800, 1), 1));  // in the middle of the prompt
    const uint64_t before = rig.scheduler().stats().prefill_rows;
    uint64_t rows = 0;
    GenerateRequest request = rig.Request(SomePrompt(c.prompt, 2), 1, c.tenant);
    request.observe_logits = NoteRows(rig, c.prompt - 1, &rows);
    auto short_one = rig.Submit(std::move(request));
    gate.Open();
    Hear(*short_one);
    // A few rows do not even wait for the pass that is under way.
    if (c.prompt <= kShortRows) CHECK(rig.scheduler().stats().decode_rows >= 8);
    CHECK(rows - before <= 64 * c.passes);
    CHECK(Hear(*long_one).finish.prefilled == 1800);
  }
}

TEST_CASE("small requests pass one that finds no pages, but not for ever") {
  RigOptions options;
  options.pages = 44;
  Rig rig(options);
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(600, 1), 600));  // 19 pages, then 38
  std::string order;
  std::vector<std::shared_ptr<Generation>> all;
  const auto submit = [&](int prompt, int seed, char name) {
    GenerateRequest request = rig.Request(SomePrompt(prompt, seed), 1);
    request.observe_logits = [&order, name](int64_t index, std::span<const float>) {
      if (index == 0) order += name;
    };
    all.push_back(rig.Submit(std::move(request)));
  };
  submit(1000, 2, 'L');
  for (int i = 0; i < 20; ++i) submit(20, 3 + i, 's');
  gate.Open();
  Hear(*held);
  for (auto& generation : all) Hear(*generation);
  CHECK(order.find('L') == kPassedOverMax);
  CHECK(order.size() == 21);
  CHECK(rig.scheduler().stats().preempted == 0);
}

TEST_CASE("prompts that do not fit together come one after the other") {
  RigOptions options;
  options.pages = 44;  // of 26 and 26
  Rig rig(options);
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1));
  auto a = rig.Submit(rig.Request(SomePrompt(800, 2), 1));
  auto b = rig.Submit(rig.Request(SomePrompt(800, 3), 1, "b"));
  gate.Open();
  for (auto* generation : {&held, &a, &b}) Hear(**generation);
  CHECK(rig.scheduler().stats().preempted == 0);
}

TEST_CASE("64 sequences decode in one pass") {
  RigOptions options;
  options.spec.context_length = 256;
  options.pages = 300;
  options.scheduler.speculation = Scheduler::Speculation::kOff;
  Rig rig(options);
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1));
  std::vector<std::shared_ptr<Generation>> all;
  for (int i = 0; i < 63; ++i) all.push_back(rig.Submit(rig.Request(SomePrompt(5, 2 + i), 40)));
  const uint64_t before = rig.scheduler().stats().steps;
  gate.Open();
  Hear(*held);
  for (auto& generation : all) CHECK(Hear(*generation).tokens.size() == 40);
  // Five rows of each at first: a limit of rows that begins with 64 doubles until all fit.
  CHECK(rig.scheduler().stats().steps - before <= 1 + 40 + 5);
}

TEST_CASE("requests with one beginning compute it once") {
  Rig rig;
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 1));
  std::vector<std::shared_ptr<Generation>> all;
  for (int i = 0; i < 5; ++i) {
    auto prompt = SomePrompt(320, 6);
    const auto own = SomePrompt(20, 10 + i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    all.push_back(rig.Submit(rig.Request(prompt, 3)));
  }
  gate.Open();
  int64_t prefilled = 0;
  for (auto& generation : all) prefilled += Hear(*generation).finish.prefilled;
  Hear(*held);
  CHECK(prefilled == 320 + 5 * 20);
}

TEST_CASE("shutting down ends what runs and what waits, and refuses what comes") {
  RigOptions options;
  options.scheduler.running_max = 1;
  Rig rig(options);
  Gate gate;
  auto running = gate.Hold(rig, rig.Request(SomePrompt(5, 1), 100));
  auto waiting = rig.Submit(rig.Request(SomePrompt(5, 2), 100));
  std::thread closer([&] { rig.scheduler().Shutdown(); });
  GenerateRequest late = rig.Request(SomePrompt(5, 3), 1);
  while (rig.scheduler().Submit(rig.Request(SomePrompt(5, 3), 1)).status().code() !=
         Code::kUnavailable) {
    std::this_thread::yield();
  }
  CHECK(rig.scheduler().Submit(std::move(late)).status().code() == Code::kUnavailable);
  CHECK(late.timeline->size() == 5);
  gate.Open();
  closer.join();
  rig.scheduler().Shutdown();  // again: nothing
  for (auto* generation : {&running, &waiting}) {
    const Answer answer = Hear(**generation);
    CHECK(answer.finish.reason == FinishReason::kCancelled);
    CHECK(answer.finish.status.code() == Code::kUnavailable);
    CHECK(answer.finish.timeline.has_value());
  }
  CHECK(rig.scheduler().stats().running == 0);
  CHECK(rig.scheduler().stats().queued == 0);
}

}  // namespace
}  // namespace holdfast
