// Replays as jobs: states, order, limits, and what is kept of them.
#include "api/replay_jobs.h"

#include <doctest/doctest.h>

#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

using State = ReplayJobState;

// Two answers, the first to a prompt of some 1,500 tokens: several segments of a replay.
void Converse(RuntimeBench& b) {
  std::string text;
  for (int i = 0; i < 300; ++i) {
    text.append("w").append(std::to_string(i * 7919 % 1000)).append(" ");
  }
  Talk talk("chat");
  talk.User(text);
  talk.Keep(b.Say(talk.Request()));
  b.Say(talk.User("go on").Request());
}

ReplayRequest Ask(ReplayMode mode, int top_k = 0) {
  ReplayRequest r;
  r.mode = mode;
  r.tenant = "ann";
  r.session = "chat";
  r.top_k = top_k;
  return r;
}

// Waits until the job has come so far, or has ended.
ReplayJobInfo Await(ReplayJobs& jobs, const std::string& id, State state) {
  for (;;) {
    const uint64_t seen = jobs.WaitForChange(0, 0);
    const auto job = jobs.Get("ann", id);
    REQUIRE_MESSAGE(job.ok(), job.status().ToString());
    if (job->state == state || job->ended_ms != 0) return *job;
    jobs.WaitForChange(seen, 1000);
  }
}

TEST_CASE("jobs run in their order, and what came of them stays") {
  RuntimeBench b;
  Converse(b);
  ReplayJobs jobs(&b.runtime(), {});
  const auto made = jobs.Create(Ask(ReplayMode::kForced, 3), "rep_1");
  REQUIRE(made.ok());
  CHECK(made->state == State::kQueued);
  CHECK(made->session_id == "chat");
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_2").ok());
  REQUIRE(jobs.Create(Ask(ReplayMode::kFree), "rep_3").ok());
  for (const char* id : {"rep_3", "rep_2", "rep_1"}) {
    const ReplayJobInfo job = Await(jobs, id, State::kDone);
    CHECK(job.state == State::kDone);
    CHECK(job.done == job.total);
    CHECK(job.total > 1000);
    CHECK_FALSE(job.result["diverged"].get<bool>());
    CHECK(job.error.is_null());
    CHECK(job.ended_ms >= job.started_ms);
  }
  // The later one began when the earlier one had ended.
  CHECK(jobs.Get("ann", "rep_2")->started_ms >= jobs.Get("ann", "rep_1")->ended_ms);
  CHECK(jobs.Get("ann", "rep_2")->steps == 0);
  const int64_t steps = jobs.Get("ann", "rep_1")->steps;
  CHECK(steps > 20);
  int64_t seen = 0;
  ListRange range{.after = "", .limit = 7};
  do {
    const auto page = jobs.Steps("ann", "rep_1", range);
    seen += static_cast<int64_t>(page->rows.size());
    CHECK(page->rows[0].find("\"rank\"") != std::string::npos);
    range.after = page->next;
  } while (!range.after.empty());
  CHECK(seen == steps);
  range.after = std::to_string(steps + 5);
  CHECK(jobs.Steps("ann", "rep_1", range)->rows.empty());
  CHECK(b.runtime().keeper().Branches("ann", "chat")->size() == 2);  // of the free one

  auto page = jobs.List("ann", {.after = "", .limit = 2});
  CHECK(page->rows.size() == 2);
  page = jobs.List("ann", {.after = page->next, .limit = 2});
  CHECK(page->rows.size() == 1);
  CHECK(page->rows[0].id == "rep_3");
  CHECK(page->next.empty());
  CHECK(jobs.Cancel("ann", "rep_1")->state == State::kDone);
  CHECK(jobs.Delete("ann", "rep_1").ok());
  CHECK(jobs.Get("ann", "rep_1").status().code() == Code::kNotFound);
}

TEST_CASE("jobs of another tenant are not there") {
  RuntimeBench b;
  ReplayJobs jobs(&b.runtime(), {.running = 0});
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_1").ok());
  CHECK(jobs.List("bob", {})->rows.empty());
  CHECK(jobs.Get("bob", "rep_1").status().code() == Code::kNotFound);
  CHECK(jobs.Cancel("bob", "rep_1").status().code() == Code::kNotFound);
  CHECK(jobs.Steps("bob", "rep_1", {}).status().code() == Code::kNotFound);
  CHECK(jobs.Delete("bob", "rep_1").code() == Code::kNotFound);
  CHECK(jobs.Get("ann", "rep_1").ok());
}

TEST_CASE("a job is cancelled while it waits, while it runs, and by the end") {
  RuntimeBench b;
  Converse(b);
  ReplayJobs jobs(&b.runtime(), {});
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_1").ok());
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_2").ok());
  CHECK(jobs.Cancel("ann", "rep_2")->state == State::kCancelled);
  Await(jobs, "rep_1", State::kRunning);
  REQUIRE(jobs.Cancel("ann", "rep_1").ok());
  const ReplayJobInfo cancelled = Await(jobs, "rep_1", State::kCancelled);
  CHECK(cancelled.state == State::kCancelled);
  CHECK(cancelled.result.is_null());
  CHECK(jobs.Get("ann", "rep_2")->started_ms == 0);
  // One that is deleted makes way for the next.
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_3").ok());
  REQUIRE(jobs.Create(Ask(ReplayMode::kVerify), "rep_4").ok());
  Await(jobs, "rep_3", State::kRunning);
  REQUIRE(jobs.Delete("ann", "rep_3").ok());
  Await(jobs, "rep_4", State::kRunning);
  jobs.Stop();
  CHECK(jobs.Get("ann", "rep_4")->ended_ms != 0);
  CHECK(jobs.Create(Ask(ReplayMode::kVerify), "rep_5").status().code() == Code::kUnavailable);
}

TEST_CASE("what cannot be replayed fails by name") {
  RuntimeBench b;
  Converse(b);
  ReplayJobs jobs(&b.runtime(), {.step_bytes = 1000});
  ReplayRequest nobody = Ask(ReplayMode::kVerify), far = nobody;
  nobody.session = "sess_nobody";
  far.to = 1 << 20;
  REQUIRE(jobs.Create(nobody, "rep_1").ok());
  REQUIRE(jobs.Create(far, "rep_2").ok());
  REQUIRE(jobs.Create(Ask(ReplayMode::kForced, 5), "rep_3").ok());
  const auto says = [&](const char* id, const char* field) {
    return Await(jobs, id, State::kFailed).error[field].get<std::string>();
  };
  CHECK(says("rep_1", "code") == "not_found");
  CHECK(says("rep_2", "param") == "from");
  const ReplayJobInfo large = Await(jobs, "rep_3", State::kFailed);
  CHECK(large.state == State::kFailed);
  CHECK(large.error["message"].get<std::string>().find("1000 bytes") != std::string::npos);
  CHECK(large.steps > 0);
}

TEST_CASE("jobs are bounded in number, bytes and time") {
  RuntimeBench b;
  Converse(b);
  ReplayJobs waiting(&b.runtime(), {.running = 0, .queued = 2});
  REQUIRE(waiting.Create(Ask(ReplayMode::kVerify), "rep_1").ok());
  REQUIRE(waiting.Create(Ask(ReplayMode::kVerify), "rep_2").ok());
  CHECK(waiting.Create(Ask(ReplayMode::kVerify), "rep_3").status().code() == Code::kExhausted);
  REQUIRE(waiting.Cancel("ann", "rep_1").ok());
  CHECK(waiting.Create(Ask(ReplayMode::kVerify), "rep_3").ok());

  const auto left = [&](const ReplayJobs::Limits& limits) {
    ReplayJobs jobs(&b.runtime(), limits);
    for (int i = 0; i < 4; ++i) {
      const std::string id = std::string("rep_").append(std::to_string(i));
      REQUIRE(jobs.Create(Ask(ReplayMode::kForced, 2), id).ok());
    }
    for (uint64_t seen = 0;;) {
      const auto list = jobs.List("ann", {});
      int open = 0;
      for (const ReplayJobInfo& job : list->rows) open += job.ended_ms == 0;
      if (open == 0) return list->rows.size();
      seen = jobs.WaitForChange(seen, 1000);
    }
  };
  CHECK(left({}) == 4);
  CHECK(left({.ended = 2}) == 2);
  CHECK(left({.all_step_bytes = 1}) == 0);
  CHECK(left({.keep_ms = 0}) == 0);
}

}  // namespace
}  // namespace holdfast
