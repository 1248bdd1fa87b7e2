// Retention, the states of heads, residency and prefetch, over a tiny model that really decodes.
#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "api/segments.h"
#include "engine/base/env.h"
#include "engine/store/file_page_store.h"
#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

constexpr int64_t kAll = int64_t{1} << 30;  // pages: more than any pool has

std::string LongQuestion(const std::string& about) {
  std::string text = "Tell me all about " + about + ".";
  for (int i = 0; i < 12; ++i) text += " It matters much, and " + about + " is why we are here.";
  return text;
}

ResidencyInfo Where(RuntimeBench& b, const std::string& session, const std::string& branch = "") {
  auto r = b.runtime().keeper().Residency("ann", session, branch);
  REQUIRE_MESSAGE(r.ok(), r.status().ToString());
  CHECK(r->pool.tokens + r->disk.tokens + r->missing.tokens == r->tokens);
  return *r;
}

PrefetchInfo Prefetch(RuntimeBench& b, const std::string& session, PrefetchRequest request = {}) {
  auto p = b.runtime().keeper().Prefetch("ann", session, request);
  REQUIRE_MESSAGE(p.ok(), p.status().ToString());
  return *p;
}

PrefetchRequest WakeAt(int64_t ms) {
  PrefetchRequest request;
  request.wake_at_ms = ms;
  return request;
}

RetentionHints Pin() {
  RetentionHints hints;
  hints.pin = true;
  return hints;
}

// gcc 12 warns of an overlap in Named("s", i) that is not there.
std::string Named(std::string name, int i) { return name.append(std::to_string(i)); }

// A session of one turn; the talk with the answer kept.
Talk Converse(RuntimeBench& b, const std::string& session, RetentionHints hints = {}) {
  Talk talk(session);
  ChatRequest r = talk.User(LongQuestion(session)).Request();
  r.hints = hints;
  talk.Keep(b.Say(r));
  return talk;
}

// Everything written, nothing warm, nothing in the pool.
void Cool(RuntimeBench& b) {
  b.runtime().keeper().MakeRoom(kAll);
  b.runtime().SyncPages();
  b.runtime().engine().pool().DropCached();
}

TEST_CASE("a head is resident, warm, cold, restoring, warm again; the answer stays the same") {
  RuntimeBench b({.tend_every_ms = 0}), other;
  Talk talk = Converse(b, "chat");
  Talk same = Converse(other, "chat");
  const ResidencyInfo resident = Where(b, "chat");
  CHECK(resident.state == "resident");
  CHECK(resident.tokens > 100);
  CHECK(resident.pool.tokens == resident.tokens - 1);  // the last one has no KV yet
  CHECK(resident.disk.tokens == 0);
  CHECK(resident.missing.tokens == 1);
  CHECK(Prefetch(b, "chat").pages == 0);

  const int64_t page_bytes = static_cast<int64_t>(b.runtime().engine().pool().page_bytes());
  const int64_t whole = (resident.tokens - 1) / 32 * 32;
  b.runtime().keeper().MakeRoom(kAll);
  b.runtime().SyncPages();
  const ResidencyInfo warm = Where(b, "chat");
  CHECK(warm.state == "warm");
  CHECK(warm.pool.tokens == whole);
  CHECK(warm.pool.bytes == whole / 32 * page_bytes);
  CHECK(warm.disk.tokens == resident.tokens - 1 - whole);  // the partial page
  CHECK(warm.missing.tokens == 1);

  b.runtime().engine().pool().DropCached();
  const ResidencyInfo cold = Where(b, "chat");
  CHECK(cold.state == "cold");
  CHECK(cold.pool.tokens == 0);
  CHECK(cold.disk.tokens == resident.tokens - 1);
  REQUIRE(cold.prefill_ms);
  CHECK(*cold.prefill_ms > 0);

  const PrefetchInfo started = Prefetch(b, "chat");
  CHECK(started.before.state == "cold");
  CHECK(started.pages == whole / 32);
  CHECK(started.bytes == started.pages * page_bytes);
  CHECK(Where(b, "chat").state == "restoring");
  CHECK(Prefetch(b, "chat").pages == 0);  // it is under way
  b.runtime().keeper().Tend();
  const ResidencyInfo again = Where(b, "chat");
  CHECK(again.state == "warm");
  CHECK(again.pool.tokens == whole);
  REQUIRE(again.restore_ms);
  CHECK(b.runtime().stats().keeper.pages_prefetched == static_cast<uint64_t>(whole / 32));
  CHECK(Prefetch(b, "chat").pages == 0);  // it is done

  const Answer next = b.Say(talk.User("Shorter.").Request());
  CHECK(next == other.Say(same.User("Shorter.").Request()));
  CHECK(next.done.report.start.stitch.from_pool == whole);
  CHECK(next.done.report.start.stitch.from_store == resident.tokens - 1 - whole);
}

TEST_CASE("the keeper's thread loads what was asked for") {
  RuntimeBench b({.tend_every_ms = 20});
  Talk talk = Converse(b, "chat");
  Cool(b);
  CHECK(Prefetch(b, "chat").pages > 0);
  while (b.runtime().stats().keeper.prefetches == 0) std::this_thread::yield();
  CHECK(Where(b, "chat").state == "warm");
}

TEST_CASE("after a turn what is wanted is loaded at once; the line waits for its round") {
  RuntimeBench b({.kv_bytes = 1200u << 10, .tend_every_ms = 3'600'000});
  PagePool& pool = b.runtime().engine().pool();
  Converse(b, "old");
  Converse(b, "wanted");
  Cool(b);
  std::vector<PageLease> taken;  // so that the pool counts as full
  while (pool.stats().leased * 100 < pool.stats().slots_max * 78) {
    auto page = pool.Allocate(TenantScope("bob"));
    REQUIRE(page.ok());
    taken.push_back(std::move(*page));
  }
  const auto cold = [&] {
    return b.runtime().stats().keeper.heads.by_state[static_cast<int>(HeadState::kCold)];
  };
  Converse(b, "new");
  CHECK(Prefetch(b, "wanted").pages > 0);
  while (b.runtime().stats().keeper.prefetches == 0) std::this_thread::yield();
  const uint64_t before = cold();
  b.runtime().keeper().Tend();
  // Nobody had looked before what is left of `old`; `new` may have been let go as well by then.
  CHECK(cold() > before);
}

TEST_CASE("a head that wakes soon is loaded before, also after a restart") {
  RuntimeBench b({.tend_every_ms = 0});
  Converse(b, "late");
  Converse(b, "soon");
  const int64_t now = RealEnv().WallMicros() / 1000;
  CHECK(Prefetch(b, "late", WakeAt(now + 3'600'000)).pages == 0);
  CHECK(Prefetch(b, "soon", WakeAt(now + 1'000)).pages == 0);
  SUBCASE("in one process") { Cool(b); }
  SUBCASE("after a restart") { b.Restart(); }
  CHECK(Where(b, "soon").pool.tokens == 0);
  b.runtime().keeper().Tend();
  CHECK(Where(b, "soon").state == "warm");
  CHECK(Where(b, "soon").pool.tokens > 0);
  CHECK(Where(b, "late").pool.tokens == 0);
}

TEST_CASE("a head that called a tool waits for it") {
  RuntimeBench b({.tend_every_ms = 0});
  Talk talk("chat");
  ChatRequest r = talk.User("read a").Request();
  r.tools = {{"read_file", R"({"type":"object","properties":{"path":{"enum":["a","b"]}},)"
                           R"("required":["path"],"additionalProperties":false})"}};
  r.tools_json = R"([{"type":"function","function":{"name":"read_file"}}])";
  r.tool_choice = ToolChoice::kRequired;
  r.parallel_tool_calls = false;
  r.max_tokens = 200;
  const Answer call = b.Say(r);
  REQUIRE(call.done.tool_calls.size() == 1);
  CHECK(Where(b, "chat").state == "tool-wait");
  talk.Keep(call).Tool(call.done.tool_calls[0].id, "the content");
  ChatRequest next = talk.Request();
  next.tools = r.tools;
  next.tools_json = r.tools_json;
  b.Say(next);
  CHECK(Where(b, "chat").state == "resident");
}

TEST_CASE("an answer asked for again supersedes the old one, in memory and after a restart") {
  RuntimeBench b({.tend_every_ms = 0});
  Talk talk = Converse(b, "chat");
  ChatRequest again = Talk("chat").User(LongQuestion("chat")).Request();
  CHECK(b.Say(again).done.report.start.branch == "b1");
  CHECK(Where(b, "chat", "main").state == "superseded");
  CHECK(Where(b, "chat", "b1").state == "resident");
  b.Restart();
  CHECK(Where(b, "chat", "main").state == "superseded");
  CHECK(Where(b, "chat", "b1").state == "cold");
  b.Say(talk.User("Go on.").Request());  // on main, which is of use again
  CHECK(Where(b, "chat", "main").state == "resident");
  CHECK(Where(b, "chat", "b1").state == "cold");
}

TEST_CASE("what leaves the pool first: superseded, then what was used longest ago; pinned last") {
  RuntimeBench b({.kv_bytes = 1200u << 10, .tend_every_ms = 0});
  PagePool& pool = b.runtime().engine().pool();
  Converse(b, "pinned", Pin());
  Converse(b, "old");
  Converse(b, "new");
  // Its beginning is shared by both branches; the old answer is long.
  ChatRequest first = Talk("twice").User(LongQuestion("twice")).Request();
  first.max_tokens = 100;
  b.Say(first);
  ChatRequest again = Talk("twice").User(LongQuestion("twice")).Request();
  CHECK(b.Say(again).done.report.start.branch == "b1");
  b.runtime().keeper().MakeRoom(kAll);
  b.runtime().SyncPages();

  const auto in_pool = [&](const char* session, const char* branch) {
    return Where(b, session, branch).pool.tokens;
  };
  // Whoever is not there at all any more, in the order in which that came about.
  struct {
    const char *session, *branch;
    int64_t had = 0;
  } heads[] = {{"pinned", ""}, {"old", ""}, {"new", ""}, {"twice", "main"}};
  for (auto& h : heads) h.had = in_pool(h.session, h.branch);
  std::string order;
  std::vector<PageLease> taken;
  while (order.size() < 4) {
    b.runtime().keeper().Tend();
    auto page = pool.Allocate(TenantScope("bob"));
    REQUIRE(page.ok());
    taken.push_back(std::move(*page));
    for (auto& h : heads) {
      if (h.had == 0) continue;
      const int64_t has = in_pool(h.session, h.branch);
      // Of what is superseded, what it shares with the other branch stays.
      const bool gone = h.session == std::string("twice") ? has < h.had : has == 0;
      if (gone) order += h.session[0], h.had = 0;
    }
  }
  CHECK(order == "tonp");
}

uint64_t SessionBytesOnDisk() {
  RuntimeBench probe;
  Converse(probe, "old");
  Cool(probe);
  return probe.runtime().stats().store.bytes;
}

TEST_CASE("what leaves the disk first, when that is full") {
  RuntimeBench b({.disk_bytes = 6 * SessionBytesOnDisk(), .tend_every_ms = 0});
  Converse(b, "pinned", Pin());
  Converse(b, "old");
  Talk gone = Converse(b, "gone");
  Converse(b, "new");
  REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
  Cool(b);
  FilePageStore& store = *b.runtime().page_store();
  const auto on_disk = [&](const char* session) { return Where(b, session).disk.tokens; };
  const int64_t all = on_disk("pinned");
  REQUIRE(all > 0);
  REQUIRE(on_disk("new") > 0);
  std::string order;
  for (int i = 0; order.size() < 2 && i < 100; ++i) {
    Converse(b, Named("more", i));
    Cool(b);
    b.runtime().keeper().Tend();
    const StoreStats stats = store.stats();
    CHECK(stats.bytes <= stats.bytes_max);
    if (on_disk("old") == 0 && order.find('o') == std::string::npos) order += 'o';
    if (on_disk("new") == 0 && order.find('n') == std::string::npos) order += 'n';
    REQUIRE(Where(b, "pinned").disk.tokens == all);
  }
  CHECK(order == "on");
}

TEST_CASE("what a pinned snapshot holds leaves the disk after what was used later") {
  RuntimeBench b({.disk_bytes = 6 * SessionBytesOnDisk(), .tend_every_ms = 0});
  Keeper& keeper = b.runtime().keeper();
  Converse(b, "kept");
  const auto snapshot = keeper.Snapshot("ann", "kept", "", "");
  REQUIRE(keeper.PinSnapshot("ann", "kept", snapshot->id, SnapshotPin::kOn).ok());
  Converse(b, "old");
  Converse(b, "new");
  Cool(b);
  const int64_t all = Where(b, "kept").disk.tokens;
  REQUIRE(all > 0);
  for (int i = 0; Where(b, "new").disk.tokens > 0; ++i) {
    REQUIRE(i < 100);
    Converse(b, Named("more", i));
    Cool(b);
    keeper.Tend();
    REQUIRE(Where(b, "kept").disk.tokens == all);
  }
  CHECK(Where(b, "old").disk.tokens == 0);
}

// The pages of a segment that is computed alone.
std::vector<PageKey> AddWarm(RuntimeBench& b, const std::string& about, bool pin) {
  NewSegment add;
  add.tenant = "ann";
  add.text = LongQuestion(about);
  add.warm = true;
  add.pin = pin;
  const auto made = b.runtime().AddSegment(add);
  REQUIRE_MESSAGE(made.ok(), made.status().ToString());
  const auto tokens = b.runtime().engine().tokenizer().EncodePlain(add.text);
  const auto runs = b.runtime().segments().Find(TenantScope("ann"), *tokens, 0,
                                                static_cast<int64_t>(tokens->size()));
  REQUIRE(runs.size() == 1);
  return runs[0].variant->PageKeys();
}

TEST_CASE("pinned segments leave the pool last, unpinned ones first") {
  RuntimeBench b({.kv_bytes = 1200u << 10, .tend_every_ms = 0});
  PagePool& pool = b.runtime().engine().pool();
  struct {
    char name;
    std::vector<PageKey> keys;
  } segments[] = {{'p', AddWarm(b, "pins", true)}, {'u', AddWarm(b, "needles", false)}};
  Converse(b, "head", Pin());
  b.runtime().keeper().MakeRoom(kAll);
  b.runtime().SyncPages();
  std::string order;
  bool head = true;
  std::vector<PageLease> taken;
  while (order.size() < 3) {
    b.runtime().keeper().Tend();
    auto page = pool.Allocate(TenantScope("bob"));
    REQUIRE(page.ok());
    taken.push_back(std::move(*page));
    for (auto& s : segments) {
      std::erase_if(s.keys, [&](const PageKey& key) { return !pool.Contains(key); });
      if (s.keys.empty() && order.find(s.name) == std::string::npos) order += s.name;
    }
    if (head && Where(b, "head").pool.tokens == 0) order += 'h', head = false;
  }
  CHECK(order == "uhp");
}

TEST_CASE("pinned segments stay on a full disk, also after a restart") {
  RuntimeBench b({.disk_bytes = 6 * SessionBytesOnDisk(), .tend_every_ms = 0});
  const std::vector<PageKey> pinned = AddWarm(b, "pins", true);
  const std::vector<PageKey> other = AddWarm(b, "needles", false);
  b.Restart();
  const auto there = [&](const std::vector<PageKey>& keys) {
    return std::count_if(keys.begin(), keys.end(), [&](const PageKey& key) {
      return b.runtime().page_store()->Contains(key);
    });
  };
  REQUIRE(there(pinned) == static_cast<int64_t>(pinned.size()));
  for (int i = 0; there(other) > 0 && i < 12; ++i) {
    Converse(b, Named("more", i));
    Cool(b);
    b.runtime().keeper().Tend();
    CHECK(there(pinned) == static_cast<int64_t>(pinned.size()));
  }
  CHECK(there(other) == 0);
}

TEST_CASE("pinned segments hold no more than half of the pool") {
  RuntimeBench b({.kv_bytes = 1200u << 10, .tend_every_ms = 0});
  const std::vector<PageKey> first = AddWarm(b, "pins", true);
  const std::vector<PageKey> last = AddWarm(b, "tacks", true);
  SegmentStore& segments = b.runtime().segments();
  CHECK(segments.PinnedPages(1000).size() == first.size() + last.size());
  std::vector<PageKey> want(last.rbegin(), last.rend());
  CHECK(segments.PinnedPages(last.size() + first.size() - 1) == want);
  CHECK(segments.PinnedPages(last.size() - 1).empty());
}

TEST_CASE("heads are let go before the pool is full") {
  RuntimeBench b({.kv_bytes = 1200u << 10, .tend_every_ms = 0});
  const auto free = [&] {
    b.runtime().SyncPages();  // what waits to be written is held too
    const PoolStats s = b.runtime().engine().pool().stats();
    return static_cast<double>(s.slots_max - s.leased) / static_cast<double>(s.slots_max);
  };
  for (int i = 0; free() > 1.0 / 16 && i < 100; ++i) Converse(b, Named("s", i));
  CHECK(free() < 1.0 / 8);
  b.runtime().keeper().Tend();
  CHECK(free() >= 1.0 / 8);
  CHECK(Where(b, "s0").state == "warm");
  CHECK(b.runtime().stats().keeper.resident_timelines > 0);
}

// ---- quotas --------------------------------------------------------------------------------

Status Refused(RuntimeBench& b, ChatRequest r) { return b.runtime().Chat(std::move(r)).status(); }

TEST_CASE("a tenant has as many sessions as its quota says") {
  RuntimeBench b({.quotas = {{"ann", {.sessions = 2}}}, .tend_every_ms = 0});
  Converse(b, "one");
  REQUIRE(b.runtime().keeper().Create("ann", {}).ok());
  const Status more = b.runtime().keeper().Create("ann", {}).status();
  CHECK(more.code() == Code::kExhausted);
  CHECK(more.message().starts_with("quota_exceeded: "));
  CHECK(Refused(b, Talk("three").User("hi").Request()).message() == more.message());
  CHECK(Refused(b, Talk("").User("hi").Request()).message() == more.message());
  Converse(b, "one");                                             // one that is there goes on
  CHECK(b.Say(Talk("x", "bob").User("hi").Request()).done.status.ok());  // others have no limit
  REQUIRE(b.runtime().keeper().Delete("ann", "one").ok());
  Converse(b, "three");
}

TEST_CASE("a tenant's warm heads go for its own turns, and a turn that needs more is refused") {
  RuntimeBench free;
  const auto page_bytes = static_cast<int64_t>(free.runtime().engine().pool().page_bytes());
  Converse(free, "s0");
  const int64_t tokens = Where(free, "s0").tokens;
  const int64_t limit = (2 * tokens / 32 + 3) * page_bytes;
  RuntimeBench b({.quotas = {{"*", {.host_bytes = limit}}}, .tend_every_ms = 0});
  PagePool& pool = b.runtime().engine().pool();
  for (int i = 0; i < 12; ++i) {
    const std::string id = Named("s", i);
    const ChatRequest r = Talk(id).User(LongQuestion(id)).Request();
    CHECK(b.Say(r) == free.Say(r));
    CHECK(static_cast<int64_t>(pool.leased_by(TenantScope("ann"))) * page_bytes <= limit);
  }
  CHECK(b.runtime().stats().keeper.resident_timelines > 0);
  CHECK(b.runtime().stats().keeper.resident_timelines < 12);
  ChatRequest huge = Talk("huge").User("hi").Request();
  huge.max_tokens = 0;  // as many as fit: room is made for 1,024
  const Status s = Refused(b, huge);
  CHECK(s.code() == Code::kExhausted);
  CHECK(s.message().starts_with("quota_exceeded: "));
  CHECK(pool.leased_by(TenantScope("ann")) == 0);  // nothing stays behind but cache
}

TEST_CASE("a tenant over its disk quota reads and deletes, but begins no turn") {
  RuntimeBench b({.quotas = {{"ann", {.disk_bytes = 1}}}, .tend_every_ms = 0});
  Talk talk("one");
  talk.User(LongQuestion("one"));
  talk.Keep(b.Say(talk.Request()));  // it had nothing yet
  talk.User("more");
  const auto check = [&] {
    const Status s = Refused(b, talk.Request());
    CHECK(s.code() == Code::kExhausted);
    CHECK(s.message().starts_with("insufficient_storage: "));
  };
  check();
  b.Restart();
  check();
  CHECK(b.runtime().keeper().Items("ann", "one", "", {}).ok());
  REQUIRE(b.runtime().keeper().Delete("ann", "one").ok());
  Converse(b, "two");
}

}  // namespace
}  // namespace holdfast
