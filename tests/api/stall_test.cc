// A disk that stalls: what goes on meanwhile, and that all goes on afterwards.
#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <vector>

#include "tests/api/runtime_bench.h"
#include "tests/engine/base/hook_env.h"
#include "tests/engine/base/stall_disk.h"
#include "tests/engine/store/fault_index_env.h"
#include "tests/engine/store/fault_vfs.h"

namespace holdfast {
namespace {

using testing::DiskOp;

// The page files and their index, and the database with its log, by what is in their paths.
constexpr char kPageFiles[] = "/pages/", kDatabase[] = ".db";

std::string Words(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) (text += "word ") += std::to_string(i % 10);
  return text;
}

struct Bench {
  testing::StallDisk disk;
  testing::FaultVfs vfs{&disk};
  testing::HookEnv env{&disk};
  testing::FaultIndexEnv index{&disk};
  RuntimeBench b;

  explicit Bench(RuntimeBenchOptions options = {}) : b(Over(std::move(options))) {}
  ~Bench() {
    CHECK_FALSE(disk.gave_up());  // nothing waited for the stall that should not have
    disk.End();
  }
  RuntimeBenchOptions Over(RuntimeBenchOptions options) {
    options.vfs = vfs.name();
    options.env = &env;
    options.index_env = index.env();
    return options;
  }
  void StallPageWrites() {
    disk.Begin({DiskOp::kCreate, DiskOp::kWrite, DiskOp::kSync, DiskOp::kSyncFolder,
                DiskOp::kPunch, DiskOp::kRemove},
               kPageFiles);
  }
  // No head is warm; partial pages are on disk, whole ones too.
  void LetGoOfAll() {
    b.runtime().keeper().MakeRoom(INT64_MAX);
    b.runtime().SyncPages();
  }
  Answer Say(Talk* talk, const std::string& text) {
    talk->User(text);
    Answer a = b.Say(talk->Request());
    talk->Keep(a);
    return a;
  }
};

// The second answer of a conversation that nothing disturbs.
Answer Undisturbed() {
  Bench calm;
  Talk talk("s");
  calm.Say(&talk, Words(40));
  return calm.Say(&talk, "And now?");
}

TEST_CASE("turns go on while pages can't be written, and what waits to be written is bounded") {
  Bench c({.kv_bytes = 1u << 20});
  Runtime& r = c.b.runtime();
  SUBCASE("not even the first file can be made") {}
  SUBCASE("a write stalls") {
    Talk first("first");
    c.Say(&first, Words(40));
    r.SyncPages();
  }
  c.StallPageWrites();
  const uint64_t slots = r.stats().engine.pool.slots_max;
  for (int i = 0; r.stats().writer.dropped == 0; ++i) {
    REQUIRE(i < 100);
    Talk talk(std::to_string(i));
    CHECK(c.Say(&talk, std::to_string(i) + Words(40)).done.report.durable);
    CHECK(c.Say(&talk, "And now?").done.report.durable);
  }
  CHECK(c.disk.Stalls());
  CHECK(r.stats().writer.queued <= slots / 8);
  CHECK(r.stats().store.io_errors == 0);
  Talk kv("kv");  // and who wants its pages to be durable waits for them
  ChatRequest request = kv.User(Words(20)).Request();
  request.durability = Durability::kKv;
  std::unique_ptr<ChatStream> stream;
  REQUIRE(c.b.Start(request, &stream).ok());
  std::future<Answer> answer =
      std::async(std::launch::async, [&] { return RuntimeBench::Drain(stream.get()); });
  CHECK(answer.wait_for(std::chrono::milliseconds(300)) == std::future_status::timeout);
  c.disk.End();
  CHECK(answer.get().done.report.durable);
  r.SyncPages();
  CHECK(r.stats().writer.queued == 0);
  CHECK(r.stats().store.pages > 0);
}

TEST_CASE("a turn is admitted though the heads that make room for it can't be written") {
  Bench c({.kv_bytes = 1u << 20, .tend_every_ms = 0});
  Runtime& r = c.b.runtime();
  c.StallPageWrites();
  for (int i = 0; r.stats().keeper.pages_given_up == 0; ++i) {
    REQUIRE(i < 100);
    Talk talk(std::to_string(i));
    CHECK(c.Say(&talk, std::to_string(i) + Words(40)).done.report.durable);
  }
  CHECK(c.disk.Stalls());
  c.disk.End();
  for (int i = 0; r.stats().keeper.tails_written == 0; ++i) {  // soon they are written again
    REQUIRE(i < 100);
    Talk talk(std::to_string(1000 + i));
    c.Say(&talk, Words(10));
    c.LetGoOfAll();
  }
}

TEST_CASE("pages that stall on their way from the disk are computed") {
  const Answer want = Undisturbed();
  Bench c;
  Talk talk("s");
  c.Say(&talk, Words(40));
  c.LetGoOfAll();
  bool tail_alone = false;
  SUBCASE("all of them") { c.b.runtime().engine().pool().DropCached(); }
  SUBCASE("the partial one alone") { tail_alone = true; }
  c.disk.Begin({DiskOp::kRead}, kPageFiles);
  const Answer got = c.Say(&talk, "And now?");
  CHECK(c.disk.Stalls());
  c.disk.End();
  CHECK(got == want);
  const StitchReport& stitch = got.done.report.start.stitch;
  CHECK(stitch.from_store == 0);
  CHECK((stitch.from_pool > 0) == tail_alone);
  if (!tail_alone) CHECK(stitch.miss == "slow_store");
  CHECK(c.Say(&talk, "And then?").done.report.durable);
}

TEST_CASE("a commit that stalls holds up what must be durable, and nobody else") {
  Bench c;
  Runtime& r = c.b.runtime();
  Talk bob("chat", "bob");
  const Answer before = c.Say(&bob, Words(40));
  // A turn that decodes when the stall begins.
  Talk decoding("decoding");
  ChatRequest request = decoding.User(Words(4)).Request();
  std::unique_ptr<ChatStream> stream;
  REQUIRE(c.b.Start(request, &stream).ok());
  c.disk.Begin({DiskOp::kSync}, kDatabase);
  std::atomic<int64_t> tokens{0};
  std::future<ChatDone> done = std::async(std::launch::async, [&] {
    while (true) {
      auto event = stream->Next(-1);
      if (event->done) return std::move(*event->done);
      tokens += static_cast<int64_t>(event->tokens.size());
    }
  });
  // And turns that come in it.
  constexpr int kComing = 8;
  std::vector<std::future<Answer>> coming;
  for (int i = 0; i < kComing; ++i) {
    coming.push_back(std::async(std::launch::async, [&c, i] {
      return c.b.Say(Talk(std::to_string(i)).User("Hello.").Request());
    }));
  }
  while (tokens < request.max_tokens && !c.disk.gave_up()) std::this_thread::yield();
  CHECK(c.disk.Stalls());
  CHECK(done.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  Keeper& k = r.keeper();
  CHECK(k.List("bob", {})->rows.size() == 1);
  CHECK(k.Items("bob", "chat", "", {})->rows.size() == 2);
  CHECK(k.Residency("bob", "chat", "")->tokens > 0);
  CHECK_FALSE(k.stats().degraded);
  CHECK(r.stats().database.queued <= kComing + 4);  // and what the keeper itself writes
  CHECK(r.stats().database.writing_ms > 0);
  c.disk.End();
  CHECK(done.get().report.durable);
  for (auto& answer : coming) CHECK(answer.get().done.report.durable);
  stream.reset();
  c.b.Restart();
  Keeper& again = c.b.runtime().keeper();
  CHECK(again.List("ann", {})->rows.size() == kComing + 1);
  CHECK(again.Tokens("ann", "decoding", "")->size() > static_cast<size_t>(request.max_tokens));
  const auto there = again.Tokens("bob", "chat", "");
  CHECK(there->size() >= before.done.prompt_tokens.size() + before.done.completion_tokens.size());
}

}  // namespace
}  // namespace holdfast
