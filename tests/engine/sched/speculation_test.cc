// Drafts change nothing but the time: tokens, logprobs, digests, timelines and pages are what they
// are without. The rig drafts wherever there is something to guess.

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/sched/scheduler.h"
#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

using Speculation = Scheduler::Speculation;

RigOptions With(Speculation speculation, TinyHead head = TinyHead::kSeparate) {
  RigOptions options;
  options.spec.head = head;
  options.pages = 2048;
  options.scheduler.speculation = speculation;
  return options;
}

// One random request, made anew for each rig.
struct Plan {
  std::vector<TokenId> prompt, forced;
  SamplingParams sampling;
  std::vector<std::string> stop;
  std::string regex;
  int64_t max_tokens = 0;
  uint64_t turn_seed = 0;
  int top_logprobs = -1;
  bool ignore_end = false, cancel = false;
  int64_t fork_back = -1;  // goes on from a fork so many tokens before the end of the first answer
};

Plan RandomPlan(std::mt19937& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  Plan plan;
  const std::vector<TokenId> piece = SomePrompt(3 + below(30), below(9));
  while (static_cast<int>(plan.prompt.size()) < 8 + below(90)) {
    plan.prompt.insert(plan.prompt.end(), piece.begin(), piece.end() - below(3));
  }
  plan.sampling.temperature = below(2) == 0 ? 0 : 0.1f * static_cast<float>(1 + below(10));
  if (below(3) == 0) plan.sampling.top_k = 1 + below(20);
  if (below(3) == 0) plan.sampling.top_p = 0.5f;
  if (below(4) == 0) plan.sampling.presence_penalty = 0.7f;
  if (below(4) == 0) plan.sampling.frequency_penalty = 0.3f;
  if (below(4) == 0) plan.sampling.repetition_penalty = 1.2f;
  if (below(8) == 0) plan.sampling.logit_bias = {{kTinyTurnEnd, 14.0f}};  // ends somewhere
  if (below(4) == 0) plan.stop = {std::string(1, static_cast<char>('a' + below(26))) + "e", "qu"};
  if (below(6) == 0) plan.regex = "((yes|no), because [a-c]{1,3} was there; ){2,4}";
  if (below(5) == 0) plan.forced = SomePrompt(1 + below(20), below(5));
  if (below(3) == 0) plan.top_logprobs = below(4);
  if (!plan.regex.empty()) plan.forced.clear();
  plan.max_tokens = 1 + below(90);
  plan.turn_seed = random();
  plan.ignore_end = plan.regex.empty() && below(4) == 0;
  plan.cancel = below(12) == 0;
  if (below(3) == 0) plan.fork_back = below(12);
  return plan;
}

GenerateRequest RequestOf(const Plan& plan, Timeline timeline, const ConstraintFactory& factory) {
  GenerateRequest request;
  request.timeline = std::move(timeline);
  request.output_begin = request.timeline->size();
  request.sampling = plan.sampling;
  request.max_tokens = plan.max_tokens;
  request.turn_seed = plan.turn_seed;
  request.stop = plan.stop;
  request.top_logprobs = plan.top_logprobs;
  request.ignore_end = plan.ignore_end;
  request.forced = plan.forced;
  if (!plan.regex.empty()) {
    auto compiled = factory.CompileRegex(plan.regex);
    REQUIRE(compiled.ok());
    request.constraint = std::move(compiled->constraint);
  }
  return request;
}

// All that others may see of a timeline: tokens, how far it is filled, what its pages hold.
std::string Trace(const Timeline& t, const PagePool& pool) {
  std::string trace(reinterpret_cast<const char*>(t.tokens().data()), t.tokens().size_bytes());
  trace += "|" + std::to_string(t.filled()) + "|" + std::to_string(t.pending());
  for (const Run& run : t.runs()) {
    trace += "|" + std::to_string(run.begin) + "+" + std::to_string(run.count);
    trace += run.page ? run.page.sealed() ? "sealed" : "open" : "none";
    if (!run.page || !run.page.sealed()) continue;
    trace.append(reinterpret_cast<const char*>(run.page.key().bytes.data()),
                 run.page.key().bytes.size());
    trace.append(reinterpret_cast<const char*>(run.page.payload()),
                 pool.groups()[0].PayloadBytes());
  }
  return trace;
}

struct Outcome {
  std::vector<Answer> answers;
  std::vector<std::string> traces;
  EngineStats stats;
  PoolStats pool;
};

void Keep(Answer answer, const PagePool& pool, Outcome* out) {
  out->traces.push_back(Trace(*answer.finish.timeline, pool));
  answer.finish.timeline.reset();
  out->answers.push_back(std::move(answer));
}

// Five at a time; then the forks of those five.
Outcome RunAll(const std::vector<Plan>& plans, const RigOptions& options) {
  constexpr size_t kTogether = 5;
  Rig rig(options);
  auto factory = ConstraintFactory::Create(rig.tokenizer());
  Outcome out;
  for (size_t begin = 0; begin < plans.size(); begin += kTogether) {
    std::vector<std::shared_ptr<Generation>> running, forks;
    for (size_t i = begin; i < begin + kTogether; ++i) {
      Timeline timeline = rig.NewTimeline();
      timeline.Extend(plans[i].prompt);
      running.push_back(rig.Submit(RequestOf(plans[i], std::move(timeline), *factory)));
      if (plans[i].cancel) running.back()->Cancel();
    }
    for (size_t i = 0; i < kTogether; ++i) {
      const Plan& plan = plans[begin + i];
      Answer answer = Hear(*running[i]);
      const Timeline& all = *answer.finish.timeline;
      const int64_t length = std::max<int64_t>(1, all.size() - plan.fork_back);
      if (plan.fork_back >= 0 && !plan.cancel) {
        auto fork = all.Fork(length);
        REQUIRE(fork.ok());
        if (fork->pending() == 0) fork->Extend(SomePrompt(1, 3));
        forks.push_back(rig.Submit(RequestOf(plan, std::move(*fork), *factory)));
      }
      if (plan.cancel) {
        out.answers.push_back(std::move(answer));
        out.answers.back().finish.timeline.reset();
        out.traces.emplace_back();
      } else {
        Keep(std::move(answer), rig.pool(), &out);
      }
    }
    for (auto& fork : forks) Keep(Hear(*fork), rig.pool(), &out);
  }
  out.stats = rig.scheduler().stats();
  out.pool = rig.pool().stats();
  return out;
}

void CheckSame(const Answer& with, const Answer& without) {
  CHECK(with.tokens == without.tokens);
  CHECK(with.digests == without.digests);
  CHECK(with.forced == without.forced);
  CHECK(with.text == without.text);
  CHECK(with.finish.reason == without.finish.reason);
  CHECK(with.finish.prefilled + with.finish.reused ==  // found or computed: a matter of time
        without.finish.prefilled + without.finish.reused);
  REQUIRE(with.samples.size() == without.samples.size());
  for (size_t i = 0; i < with.samples.size(); ++i) {
    const Sample &a = with.samples[i], &b = without.samples[i];
    CHECK(std::memcmp(&a.logprob, &b.logprob, sizeof(float)) == 0);
    REQUIRE(a.top.size() == b.top.size());
    for (size_t k = 0; k < a.top.size(); ++k) {
      CHECK(a.top[k].token == b.top[k].token);
      CHECK(std::memcmp(&a.top[k].logprob, &b.top[k].logprob, sizeof(float)) == 0);
    }
  }
}

TEST_CASE("500 random requests get the same with and without drafts") {
  for (const TinyHead head : {TinyHead::kSeparate, TinyHead::kTied}) {
    std::mt19937 random(head == TinyHead::kTied ? 2 : 1);
    std::vector<Plan> plans;
    for (int i = 0; i < 250; ++i) plans.push_back(RandomPlan(random));
    const Outcome with = RunAll(plans, With(Speculation::kAlways, head));
    const Outcome without = RunAll(plans, With(Speculation::kOff, head));
    REQUIRE(with.answers.size() == without.answers.size());
    bool no_cancels = true;
    for (size_t i = 0; i < with.answers.size(); ++i) {
      CAPTURE(i);
      const Answer &a = with.answers[i], &b = without.answers[i];
      if (a.finish.reason == FinishReason::kCancelled ||
          b.finish.reason == FinishReason::kCancelled) {
        no_cancels = false;
        const size_t n = std::min(a.tokens.size(), b.tokens.size());
        CHECK(std::equal(a.tokens.begin(), a.tokens.begin() + n, b.tokens.begin()));
        continue;
      }
      CheckSame(a, b);
      CHECK(with.traces[i] == without.traces[i]);
    }
    CHECK_FALSE(no_cancels);
    CHECK(without.stats.drafted == 0);
    CHECK(with.stats.accepted > 500);
    CHECK(with.stats.drafted > with.stats.accepted + 500);  // many are refused too
    MESSAGE("drafted " << with.stats.drafted << ", accepted " << with.stats.accepted << ", steps "
                       << with.stats.steps << " instead of " << without.stats.steps);
  }
}

TEST_CASE("the pool has the same pages with and without drafts") {
  std::vector<PoolStats> stats;
  std::vector<std::string> traces;
  for (const Speculation speculation : {Speculation::kAlways, Speculation::kOff}) {
    Rig rig(With(speculation, TinyHead::kTied));
    std::string trace;
    std::vector<Timeline> kept;
    for (int i = 0; i < 8; ++i) {
      Answer answer = rig.Run(rig.Request(SomePrompt(20 + 13 * i, i), 40 + 5 * i));
      trace += Trace(*answer.finish.timeline, rig.pool());
      if (i % 2 == 0) kept.push_back(std::move(*answer.finish.timeline));
    }
    traces.push_back(trace);
    stats.push_back(rig.pool().stats());
    if (speculation == Speculation::kAlways) CHECK(rig.scheduler().stats().accepted > 100);
  }
  CHECK(traces[0] == traces[1]);
  CHECK(stats[0].leased == stats[1].leased);
  CHECK(stats[0].cached == stats[1].cached);
}

TEST_CASE("a draft whose values are not finite harms nobody") {
  // A page that says that the poisoned token came after "xy", without having computed it.
  const TokenId poisoned = TinyByteToken('!');
  std::vector<TokenId> page_tokens = SomePrompt(kPageTokens, 2), rest = SomePrompt(9, 5);
  for (size_t at : {size_t{10}, rest.size() - 2}) {
    auto& tokens = at == 10 ? page_tokens : rest;
    tokens[at] = TinyByteToken('x');
    tokens[at + 1] = TinyByteToken('y');
  }
  page_tokens[12] = poisoned;
  std::vector<Answer> answers;
  for (const Speculation speculation : {Speculation::kAlways, Speculation::kOff}) {
    RigOptions options = With(speculation);
    options.spec.poisoned = poisoned;
    Rig rig(options);
    auto page = rig.pool().Allocate(TenantScope("a"));
    REQUIRE(page.ok());
    std::memset(page->payload(), 0, rig.pool().groups()[0].PayloadBytes());
    PageKey key;
    key.bytes[0] = 1;
    GenerateRequest request = rig.Request({}, 20);
    request.timeline = rig.NewTimeline();
    REQUIRE(request.timeline
                ->Splice(rig.pool().Seal(std::move(*page), key, PageKey{}, page_tokens,
                                         PageSource::kComputed),
                         0, kPageTokens, 0)
                .ok());
    request.timeline->Extend(rest);
    request.output_begin = request.timeline->size();
    answers.push_back(rig.Run(std::move(request)));
    CHECK(answers.back().finish.reason == FinishReason::kLength);
    answers.back().finish.timeline.reset();
  }
  CheckSame(answers[0], answers[1]);
}

TEST_CASE("a request can go without drafts, and learns how many it had") {
  Rig rig(With(Speculation::kAlways, TinyHead::kTied));
  GenerateRequest request = rig.Request(SomePrompt(30, 1), 60);
  request.speculate = false;
  Answer answer = rig.Run(std::move(request));
  CHECK(answer.finish.drafts.drafted == 0);
  answer = rig.Run(rig.Request(SomePrompt(30, 1), 60));
  CHECK(answer.finish.drafts.accepted > 30);
  CHECK(answer.finish.drafts.drafted >= answer.finish.drafts.accepted);
  const EngineStats stats = rig.scheduler().stats();
  CHECK(stats.drafted == static_cast<uint64_t>(answer.finish.drafts.drafted));
  CHECK(stats.accepted == static_cast<uint64_t>(answer.finish.drafts.accepted));
}

}  // namespace
}  // namespace holdfast
