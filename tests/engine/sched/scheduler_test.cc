// What one request gets: its tokens, whatever runs beside it, and its end.

#include "engine/sched/scheduler.h"

#include <doctest/doctest.h>

#include <atomic>
#include <map>
#include <thread>
#include <vector>

#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

using Observed = std::vector<std::pair<int64_t, uint64_t>>;  // index, digest of its logits

// Keeps a digest of every logits row.
std::function<void(int64_t, std::span<const float>)> Keep(Observed* observed) {
  return [observed](int64_t index, std::span<const float> logits) {
    const Digest d = Sha256(logits.data(), logits.size_bytes());
    observed->emplace_back(index, DigestHash()(d));
  };
}

using F16 = std::integral_constant<KvType, KvType::kF16>;  // how K is stored
using I8 = std::integral_constant<KvType, KvType::kI8>;

TEST_CASE_TEMPLATE("a sequence gets the same bits alone, in company, in any chunks and on any threads",
                   Kv, F16, I8) {
  const auto prompt = SomePrompt(90, 1);
  Observed want;
  Answer alone;
  RigOptions options;
  options.kv_type = Kv::value;
  {
    Rig rig(options);
    GenerateRequest request = rig.Request(prompt, 20);
    request.observe_logits = Keep(&want);
    alone = rig.Run(std::move(request));
    alone.finish.timeline.reset();
  }
  REQUIRE(alone.tokens.size() == 20);
  REQUIRE(want.size() == 90 + 19);
  CHECK(alone.finish.reason == FinishReason::kLength);
  CHECK(alone.finish.prefilled == 90);
  for (int threads : {1, 2}) {
    for (int chunk : {0, 1, 7, 33}) {
      CAPTURE(threads);
      CAPTURE(chunk);
      options.threads = threads;
      Rig rig(options);
      std::vector<std::shared_ptr<Generation>> others;
      for (int i = 2; i < 7; ++i) {
        others.push_back(rig.Submit(rig.Request(SomePrompt(17 * i, i), 30, i % 2 ? "a" : "b")));
      }
      Observed got;
      GenerateRequest request = rig.Request(prompt, 20);
      request.chunk = chunk;
      request.observe_logits = Keep(&got);
      const Answer answer = rig.Run(std::move(request));
      CHECK(answer.tokens == alone.tokens);
      CHECK(answer.digests == alone.digests);
      CHECK(got == want);
      for (auto& other : others) CHECK(Hear(*other).tokens.size() == 30);
    }
  }
}

TEST_CASE("a probe sees the queries of its own rows, whatever runs beside it") {
  const auto prompt = SomePrompt(70, 1);
  std::map<std::pair<int, int64_t>, uint64_t> want;  // layer and row: digest of its queries
  for (int chunk : {0, 7}) {
    for (int company : {0, 4}) {
      Rig rig;
      std::vector<std::shared_ptr<Generation>> others;
      for (int i = 0; i < company; ++i) {
        others.push_back(rig.Submit(rig.Request(SomePrompt(40 + i, i + 2), 20)));
      }
      std::map<std::pair<int, int64_t>, uint64_t> seen;
      GenerateRequest request = rig.Request(prompt, 0);
      request.chunk = chunk;
      request.observe_queries = [&](int layer, const Timeline& timeline,
                                    std::span<const int64_t> rows, std::span<const float> q) {
        CHECK(timeline.size() == 70);
        const size_t width = q.size() / rows.size();
        for (size_t i = 0; i < rows.size(); ++i) {
          const Digest d = Sha256(q.data() + i * width, width * sizeof(float));
          seen[{layer, rows[i]}] = DigestHash()(d);
        }
      };
      const Answer answer = rig.Run(std::move(request));
      CHECK(answer.finish.reason == FinishReason::kLength);
      CHECK(seen.size() == 70u * rig.model().config().layers);
      if (want.empty()) want = seen;
      CHECK(seen == want);
      for (auto& other : others) CHECK(Hear(*other).tokens.size() == 20);
    }
  }
}

TEST_CASE("where every step takes too long a prompt is computed row by row, to the same bits") {
  const auto prompt = SomePrompt(200, 3);
  std::vector<uint64_t> want;
  for (const double step_ms_max : {1e9, 1e-9}) {
    RigOptions options;
    options.scheduler.step_ms_max = step_ms_max;
    Rig rig(options);
    const Answer answer = rig.Run(rig.Request(prompt, 10));
    if (want.empty()) want = answer.digests;
    CHECK(answer.digests == want);
    const EngineStats stats = rig.scheduler().stats();
    // The first pass has 64 rows, the last 16 are a decode pass.
    CHECK((stats.steps >= 200 - 64 - 16) == (step_ms_max < 1));
  }
}

TEST_CASE("small prefill passes change nothing") {
  const auto prompt = SomePrompt(200, 3);
  std::vector<uint64_t> want;
  for (int rows : {256, 5, 1}) {
    RigOptions options;
    options.scheduler.prefill_rows_max = rows;
    Rig rig(options);
    const Answer answer = rig.Run(rig.Request(prompt, 10));
    if (want.empty()) want = answer.digests;
    CHECK(answer.digests == want);
  }
}

TEST_CASE("the timeline comes back with the tokens, the last one pending") {
  Rig rig;
  const auto prompt = SomePrompt(40, 1);
  Answer first = rig.Run(rig.Request(prompt, 6));
  Timeline& t = *first.finish.timeline;
  CHECK(t.size() == 46);
  CHECK(t.filled() == 45);
  CHECK(t.pending() == 1);
  CHECK(std::equal(first.tokens.begin(), first.tokens.end(), t.tokens().begin() + 40));

  // Going on with it gives what a longer answer would have been, and so does a fork.
  auto fork = t.Fork(46);
  REQUIRE(fork.ok());
  GenerateRequest on, forked;
  on.timeline = std::move(t);
  forked.timeline = std::move(*fork);
  on.turn_seed = forked.turn_seed = 42;
  on.max_tokens = forked.max_tokens = 10;
  on.output_begin = forked.output_begin = 40;
  const Answer rest = rig.Run(std::move(on)), rest_of_fork = rig.Run(std::move(forked));
  const Answer whole = rig.Run(rig.Request(prompt, 16));
  CHECK(rest.digests == rest_of_fork.digests);
  CHECK(std::vector(whole.digests.begin() + 6, whole.digests.end()) == rest.digests);
  CHECK(whole.finish.reused == 32);
}

TEST_CASE("a prompt that the pool has is not computed again, for its tenant") {
  Rig rig;
  const auto prompt = SomePrompt(100, 5);
  const Answer cold = rig.Run(rig.Request(prompt, 5));
  CHECK(cold.finish.reused == 0);
  const Answer warm = rig.Run(rig.Request(prompt, 5));
  CHECK(warm.finish.reused == 96);
  CHECK(warm.finish.prefilled == 4);
  CHECK(warm.digests == cold.digests);
  const Answer stranger = rig.Run(rig.Request(prompt, 5, "b"));
  CHECK(stranger.finish.reused == 0);
  CHECK(stranger.digests == cold.digests);
  GenerateRequest verify = rig.Request(prompt, 5);
  verify.chunk = 10;
  CHECK(rig.Run(std::move(verify)).finish.prefilled == 100);
}

TEST_CASE("the last row of a prompt is computed, also where the pool has all of it") {
  Rig rig;
  const Answer cold = rig.Run(rig.Request(SomePrompt(96, 5), 5));
  const Answer warm = rig.Run(rig.Request(SomePrompt(96, 5), 5));
  CHECK(warm.finish.reused == 64);
  CHECK(warm.digests == cold.digests);
}

TEST_CASE("an observer gets the rows that it asks for, with the same bits") {
  Rig rig;
  std::map<int64_t, uint64_t> all, some;
  for (auto* seen : {&all, &some}) {
    GenerateRequest request = rig.Request(SomePrompt(150, 5), 0);
    if (seen == &some) request.observes = [](int64_t index) { return index % 7 == 3; };
    request.observe_logits = [seen](int64_t index, std::span<const float> row) {
      (*seen)[index] = LogitsDigest(row);
    };
    rig.Run(std::move(request));
  }
  CHECK(all.size() == 150);
  CHECK(some.size() == 21);
  for (const auto& [index, digest] : some) CHECK(all.at(index) == digest);
}

TEST_CASE("a draw depends on logits, tokens, seed and index alone") {
  Rig rig;
  const auto prompt = SomePrompt(20, 3);
  std::vector<std::vector<float>> logits;
  GenerateRequest request = rig.Request(prompt, 30);
  request.sampling.temperature = 1.5f;
  request.sampling.presence_penalty = 1.0f;
  const SamplingParams sampling = request.sampling;
  request.observe_logits = [&](int64_t, std::span<const float> row) {
    logits.emplace_back(row.begin(), row.end());
  };
  const Answer answer = rig.Run(std::move(request));
  const std::span<const TokenId> tokens = answer.finish.timeline->tokens();
  for (size_t i = 20; i < 50; ++i) {
    auto sample = SampleToken(sampling, {.logits = logits[i - 1],
                                         .history = tokens.first(i),
                                         .output_begin = 20,
                                         .mask = {},
                                         .turn_seed = 42,
                                         .position = static_cast<int64_t>(i),
                                         .top_logprobs = 0});
    REQUIRE(sample.ok());
    CHECK(sample->token == tokens[i]);
  }
}

TEST_CASE("without max_tokens a request only computes") {
  Rig rig;
  const Answer answer = rig.Run(rig.Request(SomePrompt(64, 5), 0));
  CHECK(answer.tokens.empty());
  CHECK(answer.finish.reason == FinishReason::kLength);
  CHECK(answer.finish.timeline->filled() == 64);
  CHECK(answer.finish.prefilled == 64);
  const Answer again = rig.Run(rig.Request(SomePrompt(64, 5), 0));
  CHECK(again.finish.timeline->filled() == 64);
  CHECK(again.finish.reused == 64);  // nothing was left to compute
}

TEST_CASE("a stop string that tokens share cuts text and timeline") {
  Rig rig;
  const auto prompt = SomePrompt(30, 2);
  auto greedy = [&] {  // printable: a byte is a character
    GenerateRequest request = rig.Request(prompt, 60);
    request.sampling.temperature = 0;
    return request;
  };
  const Answer free = rig.Run(greedy());
  REQUIRE(free.text.size() > 20);
  for (size_t at : {size_t{0}, size_t{1}, size_t{9}, size_t{15}}) {
    for (size_t length : {1, 2, 5}) {
      CAPTURE(at);
      CAPTURE(length);
      const std::string stop = free.text.substr(at, length);
      GenerateRequest request = greedy();
      request.stop = {"never in it", stop};
      const Answer answer = rig.Run(std::move(request));
      CHECK(answer.finish.reason == FinishReason::kStopString);
      CHECK(answer.text == free.text.substr(0, free.text.find(stop)));
      // The tokens that came are those of the free run that lie before it, and so is the timeline.
      CHECK(std::equal(answer.tokens.begin(), answer.tokens.end(), free.tokens.begin()));
      CHECK(answer.finish.timeline->size() == 30 + static_cast<int64_t>(answer.tokens.size()));
      std::string kept, next;
      for (size_t i = 0; i <= answer.tokens.size(); ++i) {
        next = kept;
        next += rig.tokenizer().TokenText(free.tokens[i]);
        if (i < answer.tokens.size()) kept = next;
      }
      CHECK(kept.size() <= answer.text.size());
      CHECK(next.size() > answer.text.size());
    }
  }
}

TEST_CASE("an end token ends, unless it is to be ignored") {
  Rig rig;
  const auto prompt = SomePrompt(10, 2);
  auto with_bias = [&](bool ignore) {
    GenerateRequest request = rig.Request(prompt, 5);
    request.sampling.logit_bias = {{kTinyTurnEnd, 100.0f}};
    request.ignore_end = ignore;
    return rig.Run(std::move(request));
  };
  const Answer ended = with_bias(false);
  CHECK(ended.finish.reason == FinishReason::kEnd);
  CHECK(ended.tokens == std::vector<TokenId>{kTinyTurnEnd});
  CHECK(ended.text.empty());
  CHECK(ended.finish.timeline->size() == 11);
  CHECK(with_bias(true).tokens == std::vector<TokenId>(5, kTinyTurnEnd));
}

TEST_CASE("forced tokens come first, and the rest as if they had been drawn") {
  Rig rig;
  const auto prompt = SomePrompt(40, 4);
  const Answer free = rig.Run(rig.Request(prompt, 30));
  for (int top : {-1, 2}) {
    GenerateRequest request = rig.Request(prompt, 30);
    request.forced.assign(free.tokens.begin(), free.tokens.begin() + 20);
    request.top_logprobs = top;
    const Answer answer = rig.Run(std::move(request));
    CHECK(answer.tokens == free.tokens);
    CHECK(answer.text == free.text);
    CHECK(answer.digests[20] == free.digests[20]);
    CHECK(answer.digests[10] == (top < 0 ? 0 : free.digests[10]));
    CHECK(answer.samples[10].top.size() == (top < 0 ? 0 : 2));
    CHECK(answer.forced == std::vector<bool>(30, false));
  }
  GenerateRequest other = rig.Request(prompt, 30);
  other.forced = {TinyByteToken('Z'), TinyByteToken('Z')};
  const Answer forced = rig.Run(std::move(other));
  auto extended = prompt;
  extended.insert(extended.end(), 2, TinyByteToken('Z'));
  GenerateRequest same = rig.Request(extended, 28);
  same.output_begin = 40;
  CHECK(std::vector(forced.digests.begin() + 2, forced.digests.end()) ==
        rig.Run(std::move(same)).digests);
}

TEST_CASE("a constraint holds, and jumps ahead where there is no choice") {
  Rig rig;
  auto factory = ConstraintFactory::Create(rig.tokenizer());
  for (int top : {-1, 0}) {
    auto compiled = factory->CompileRegex("(yes|no): [a-c]{3} because of that");
    REQUIRE(compiled.ok());
    GenerateRequest request = rig.Request(SomePrompt(20, 1), 80);
    request.constraint = std::move(compiled->constraint);
    request.top_logprobs = top;
    const Answer answer = rig.Run(std::move(request));
    CHECK(answer.finish.reason == FinishReason::kEnd);
    const bool yes = answer.text.rfind("yes", 0) == 0;
    REQUIRE(answer.text.size() == (yes ? 8u : 7u) + 16);
    CHECK(answer.text.substr(answer.text.size() - 16) == " because of that");
    CHECK(answer.finish.timeline->size() == 20 + static_cast<int64_t>(answer.tokens.size()));
    int forced = 0;
    for (size_t i = 0; i < answer.tokens.size(); ++i) {
      forced += answer.forced[i];
      CHECK((answer.digests[i] == 0) == (answer.forced[i] && top < 0));
    }
    CHECK(forced > 5);
    if (top < 0) CHECK(rig.scheduler().stats().steps < answer.tokens.size());
  }
}

TEST_CASE("a value that is not finite ends its sequence alone") {
  RigOptions options;
  options.spec.head = TinyHead::kSeparate;
  options.spec.poisoned = TinyByteToken('X');
  Rig rig(options);
  const auto healthy = SomePrompt(50, 1);
  const Answer want = rig.Run(rig.Request(healthy, 20));
  rig.pool().DropCached();
  auto poisoned = SomePrompt(50, 2);
  poisoned[40] = TinyByteToken('X');
  Gate gate;
  auto held = gate.Hold(rig, rig.Request(SomePrompt(5, 9), 1));
  auto bad = rig.Submit(rig.Request(poisoned, 20));
  auto good = rig.Submit(rig.Request(healthy, 20));
  gate.Open();
  Answer failed = Hear(*bad);
  CHECK(failed.finish.reason == FinishReason::kError);
  CHECK(failed.finish.status.code() == Code::kCorrupt);
  CHECK(failed.finish.timeline->filled() <= 40);
  CHECK(failed.tokens.empty());
  CHECK(Hear(*good).digests == want.digests);
  Hear(*held);
  CHECK(rig.scheduler().stats().failed == 1);
}

TEST_CASE("requests that can't run are refused and left as they are") {
  RigOptions options;
  options.scheduler.context_max = 64;
  Rig rig(options);
  auto refuse = [&](auto change) {
    GenerateRequest request = rig.Request(SomePrompt(20, 1), 5);
    change(request);
    auto result = rig.scheduler().Submit(std::move(request));
    CHECK(result.status().code() == Code::kInvalid);
    if (request.timeline) CHECK(request.timeline->size() >= 20);
  };
  refuse([](GenerateRequest& r) { r.timeline.reset(); });
  refuse([](GenerateRequest& r) { r.max_tokens = -1; });
  refuse([](GenerateRequest& r) { r.top_logprobs = 21; });
  refuse([](GenerateRequest& r) { r.sampling.temperature = -1; });
  refuse([](GenerateRequest& r) { r.stop = {""}; });
  refuse([](GenerateRequest& r) { r.stop = std::vector<std::string>(17, "x"); });
  refuse([](GenerateRequest& r) { r.stop = {std::string(257, 'x')}; });
  refuse([](GenerateRequest& r) { r.output_begin = 21; });
  refuse([](GenerateRequest& r) { r.chunk = -1; });
  refuse([](GenerateRequest& r) { r.forced = {100000}; });
  refuse([](GenerateRequest& r) { r.timeline->Extend(std::vector<TokenId>{-5}); });
  refuse([](GenerateRequest& r) { r.timeline->Extend(SomePrompt(44, 1)); });
  const Answer full = rig.Run(rig.Request(SomePrompt(60, 1), 50));
  CHECK(full.finish.reason == FinishReason::kLength);  // the context is full
  CHECK(full.tokens.size() == 4);
}

TEST_CASE("many threads submit, listen and cancel") {
  RigOptions options;
  options.scheduler.running_max = 8;
  Rig rig(options);
  const Answer want = rig.Run(rig.Request(SomePrompt(33, 7), 12));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 12; ++i) {
        auto generation =
            rig.scheduler().Submit(rig.Request(SomePrompt(33, 7), 12, t % 2 ? "a" : "b"));
        if (!generation.ok()) {
          ++wrong;
          continue;
        }
        if (i % 4 == 3) (*generation)->Cancel();
        if (i % 4 == 2) continue;  // dropped
        std::vector<TokenId> tokens;
        std::optional<FinishReason> reason;
        while (auto event = (*generation)->Next(-1)) {
          if (event->token) tokens.push_back(event->token->sample.token);
          if (!event->finish) continue;
          reason = event->finish->reason;
          if (event->finish->status.ok() != (reason == FinishReason::kLength)) ++wrong;
        }
        if (!reason) ++wrong;
        if (reason == FinishReason::kLength && tokens != want.tokens) ++wrong;
        if (i % 4 < 2 && reason != FinishReason::kLength) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace holdfast
