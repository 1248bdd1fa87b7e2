#include "engine/store/page_writer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>

#include "engine/kv/memory_page_store.h"

namespace holdfast {
namespace {

const TenantScope kTenant("t");

LayerGroup SmallGroup() {
  LayerGroup g;
  g.layers = g.heads = g.k_dim = g.v_dim = 1;
  return g;
}

// A page store in memory that can be made to wait and to fail.
class GatedStore : public PageStore {
 public:
  void Close() { SetOpen(false); }
  void OpenGate() { SetOpen(true); }
  void FailPuts(Code code) { put_code_ = code; }
  void FailSyncs(Code code) { sync_code_ = code; }
  void WaitForPut() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }
  int syncs() const { return syncs_; }

  Status Put(const PageHeader& header,
             std::span<const std::span<const std::byte>> payload) override {
    {
      std::unique_lock lock(mu_);
      ++waiting_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return open_; });
      --waiting_;
    }
    if (put_code_ != Code::kOk) return Status(put_code_, "put");
    return store_->Put(header, payload);
  }
  Status Sync() override {
    ++syncs_;
    return sync_code_ == Code::kOk ? store_->Sync() : Status(sync_code_, "sync");
  }
  Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) override {
    return store_->Get(expect, payload);
  }
  bool Contains(const PageKey& key) override { return store_->Contains(key); }
  Status Delete(const PageKey& key) override { return store_->Delete(key); }
  Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) override {
    return store_->Collect(keep);
  }
  void Renew(std::span<const PageKey> keys) override { store_->Renew(keys); }
  StoreStats stats() override { return store_->stats(); }

 private:
  void SetOpen(bool open) {
    std::lock_guard lock(mu_);
    open_ = open;
    changed_.notify_all();
  }
  std::unique_ptr<PageStore> store_ = MakeMemoryPageStore(0);
  std::mutex mu_;
  std::condition_variable changed_;
  bool open_ = true;
  int waiting_ = 0;
  std::atomic<Code> put_code_{Code::kOk}, sync_code_{Code::kOk};
  std::atomic<int> syncs_{0};
};

struct Fixture {
  Fixture() {
    options.fp.bytes.fill(5);
    options.groups = pool.groups();
    options.sync_interval = std::chrono::hours(1);  // nothing happens by the clock
  }
  void Start() { writer = std::make_unique<PageWriter>(&store, options); }

  // Seals page n of a chain; its payload is all n.
  SealedPage Seal(uint8_t n) {
    Result<PageLease> page = pool.Allocate(kTenant);
    REQUIRE(page.ok());
    for (size_t g = 0; g < pool.groups().size(); ++g) {
      std::memset(page->payload(static_cast<int>(g)), n, pool.groups()[g].PayloadBytes());
    }
    return {pool.Seal(std::move(page).value(), KeyOf(n), KeyOf(static_cast<uint8_t>(n - 1)),
                      TokensOf(n), PageSource::kComputed),
            KeyOf(static_cast<uint8_t>(n - 1))};
  }
  static PageKey KeyOf(uint8_t n) {
    PageKey key;
    key.bytes.fill(n);
    return key;
  }
  static std::vector<TokenId> TokensOf(uint8_t n) {
    return std::vector<TokenId>(kPageTokens, TokenId{n});
  }
  PageHeader HeaderOf(uint8_t n) const {
    return {PageKind::kPage, options.fp, KeyOf(n), KeyOf(static_cast<uint8_t>(n - 1)), TokensOf(n)};
  }
  // The store has page n, byte for byte.
  bool Has(uint8_t n) {
    std::vector<std::vector<std::byte>> got;
    for (const LayerGroup& g : pool.groups()) got.emplace_back(g.PayloadBytes());
    const std::vector<std::span<std::byte>> spans(got.begin(), got.end());
    if (!store.Get(HeaderOf(n), spans).ok()) return false;
    for (const auto& bytes : got) {
      for (std::byte b : bytes) if (b != std::byte{n}) return false;
    }
    return true;
  }

  PagePool pool{{SmallGroup(), SmallGroup()}, 64 << 20};
  GatedStore store;
  PageWriter::Options options;
  std::unique_ptr<PageWriter> writer;  // goes first
};

TEST_CASE("sealed pages reach the store, with their identity") {
  Fixture f;
  f.Start();
  f.pool.SetSealObserver(&PageWriter::Observe, f.writer.get());
  for (uint8_t n = 1; n <= 50; ++n) f.Seal(n);
  const Status s = f.writer->Flush();
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  for (uint8_t n = 1; n <= 50; ++n) CHECK(f.Has(n));
  CHECK(f.writer->stats().written == 50);
  CHECK(f.writer->stats().queued == 0);
  CHECK(f.store.syncs() == 1);
  CHECK(f.pool.stats().leased == 0);
}

TEST_CASE("a full queue drops and counts, and never waits for the store") {
  Fixture f;
  f.options.queue_capacity = 4;
  f.options.threads = 1;
  f.Start();
  f.store.Close();
  REQUIRE(f.writer->Offer(f.Seal(1)));
  f.store.WaitForPut();  // page 1 is being written, the queue is empty
  for (uint8_t n = 2; n <= 5; ++n) CHECK(f.writer->Offer(f.Seal(n)));
  for (uint8_t n = 6; n <= 8; ++n) CHECK_FALSE(f.writer->Offer(f.Seal(n)));
  CHECK(f.writer->stats().dropped == 3);
  CHECK(f.writer->stats().queued == 4);
  CHECK(f.pool.stats().leased == 5);
  f.store.OpenGate();
  CHECK(f.writer->Flush().ok());
  for (uint8_t n = 1; n <= 5; ++n) CHECK(f.Has(n));
  for (uint8_t n = 6; n <= 8; ++n) CHECK_FALSE(f.Has(n));
}

TEST_CASE("a Flush waits for the page that is just being written") {
  Fixture f;
  f.Start();
  f.store.Close();
  REQUIRE(f.writer->Offer(f.Seal(1)));
  f.store.WaitForPut();
  std::future<Status> flush = std::async(std::launch::async, [&] { return f.writer->Flush(); });
  CHECK(flush.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  CHECK(f.store.syncs() == 0);
  f.store.OpenGate();
  CHECK(flush.get().ok());
  CHECK(f.Has(1));
  CHECK(f.store.syncs() == 1);
}

TEST_CASE("a Drain waits until nothing is held any more, or for as long as it is told") {
  Fixture f;
  f.Start();
  f.store.Close();
  REQUIRE(f.writer->Offer(f.Seal(1)));
  f.store.WaitForPut();
  f.writer->Drain(std::chrono::milliseconds(50));
  CHECK(f.pool.stats().leased == 1);
  std::future<void> drain = std::async(std::launch::async,
                                       [&] { f.writer->Drain(std::chrono::hours(1)); });
  CHECK(drain.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  f.store.OpenGate();
  drain.get();
  CHECK(f.pool.stats().leased == 0);
  CHECK(f.store.syncs() == 0);
}

TEST_CASE("failed writes and syncs are told once, by the next Flush") {
  Fixture f;
  f.Start();
  f.store.FailPuts(Code::kExhausted);
  REQUIRE(f.writer->Offer(f.Seal(1)));
  CHECK(f.writer->Flush().code() == Code::kExhausted);
  CHECK(f.writer->Flush().ok());
  CHECK(f.writer->stats().failed == 1);
  f.store.FailPuts(Code::kOk);
  f.store.FailSyncs(Code::kIo);
  REQUIRE(f.writer->Offer(f.Seal(2)));
  CHECK(f.writer->Flush().code() == Code::kIo);
  f.store.FailSyncs(Code::kOk);
  CHECK(f.writer->Flush().ok());
  CHECK(f.writer->stats().failed_syncs == 1);
}

TEST_CASE("a sync comes by itself, soon after a write") {
  Fixture f;
  f.options.sync_interval = std::chrono::milliseconds(1);
  f.Start();
  REQUIRE(f.writer->Offer(f.Seal(1)));
  while (f.store.syncs() == 0) std::this_thread::yield();
  CHECK(f.Has(1));
}

TEST_CASE("destroying the writer writes what is queued") {
  Fixture f;
  f.Start();
  for (uint8_t n = 1; n <= 20; ++n) REQUIRE(f.writer->Offer(f.Seal(n)));
  f.writer.reset();
  for (uint8_t n = 1; n <= 20; ++n) CHECK(f.Has(n));
  CHECK(f.store.syncs() >= 1);
}

TEST_CASE("tails are written on the caller's thread and durable after a Flush") {
  Fixture f;
  f.Start();
  PageHeader header = f.HeaderOf(9);
  header.kind = PageKind::kTail;
  header.tokens.resize(3);
  std::vector<std::byte> bytes(128, std::byte{9});
  const std::vector<std::span<const std::byte>> payload = {bytes};
  CHECK(f.writer->WriteTail(header, payload).ok());
  CHECK(f.writer->Flush().ok());
  const std::vector<std::span<std::byte>> out = {bytes};
  CHECK(f.store.Get(header, out).ok());
}

TEST_CASE("idle time is used, one call at a time") {
  Fixture f;
  std::atomic<int> calls{0}, inside{0}, together{0};
  f.options.sync_interval = std::chrono::milliseconds(1);
  f.options.when_idle = [&] {
    if (++inside > 1) ++together;
    ++calls;
    --inside;
  };
  f.Start();
  while (calls < 3) std::this_thread::yield();
  REQUIRE(f.writer->Offer(f.Seal(1)));
  CHECK(f.writer->Flush().ok());
  CHECK(together == 0);
}

TEST_CASE("few pages are written one at a time with a rest, many or flushed ones without") {
  Fixture f;
  f.options.queue_capacity = 40;
  f.options.rest = 1'000'000'000;  // after the first page, for ever
  f.Start();
  const auto written = [&] { return f.writer->stats().written; };
  REQUIRE(f.writer->Offer(f.Seal(1)));
  while (written() < 1) std::this_thread::yield();
  for (uint8_t n = 2; n <= 10; ++n) REQUIRE(f.writer->Offer(f.Seal(n)));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(written() == 1);
  SUBCASE("a quarter of the queue") {
    REQUIRE(f.writer->Offer(f.Seal(11)));
    while (written() < 2) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(written() == 2);
  }
  SUBCASE("a flush") {
    CHECK(f.writer->Flush().ok());
    CHECK(written() == 10);
  }
  SUBCASE("the end") {
    f.writer.reset();
    for (uint8_t n = 1; n <= 10; ++n) CHECK(f.Has(n));
  }
}

TEST_CASE("many threads offer and flush at once") {
  Fixture f;
  f.options.queue_capacity = 1000;
  f.Start();
  std::vector<SealedPage> pages;
  for (int n = 1; n <= 200; ++n) pages.push_back(f.Seal(static_cast<uint8_t>(n)));
  std::vector<std::thread> threads;
  std::atomic<int> missing{0};
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t * 50; i < t * 50 + 50; ++i) {
        if (!f.writer->Offer(std::move(pages[i]))) ++missing;
        if (i % 10 == 9 && !f.writer->Flush().ok()) ++missing;
        if (i % 10 == 9 && !f.store.Contains(Fixture::KeyOf(static_cast<uint8_t>(i + 1)))) {
          ++missing;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  CHECK(missing == 0);
  CHECK(f.writer->stats().written == 200);
}

}  // namespace
}  // namespace holdfast
