#include "engine/kv/pool.h"

#include <doctest/doctest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "tests/engine/kv/toy_kv.h"

namespace holdfast {
namespace {

const TenantScope kA("a"), kB("b");

PageKey Key(uint8_t byte) {
  PageKey key;
  key.bytes.fill(byte);
  return key;
}

PagePool ToyPool(int pages) { return PagePool(ToyGroups(), pages * kToyPageBytes); }

PageLease New(PagePool& pool, const TenantScope& scope = kA) {
  auto page = pool.Allocate(scope);
  REQUIRE(page.ok());
  return std::move(page).value();
}

PageLease NewSealed(PagePool& pool, uint8_t name, const TenantScope& scope = kA) {
  return pool.Seal(New(pool, scope), Key(name), Key(0), ToyTokens(32, name), PageSource::kComputed);
}

PageLease FindNamed(PagePool& pool, uint8_t name) { return pool.Find(Key(name), ToyTokens(32, name)); }

TEST_CASE("payloads are aligned, apart, and of a stride that is an odd multiple of 4 KiB") {
  PagePool pool = ToyPool(4);
  CHECK(pool.page_bytes() == kToyPageBytes);
  CHECK(pool.stats().slots_max == 4);
  PageLease a = New(pool), b = New(pool);
  CHECK(reinterpret_cast<uintptr_t>(a.payload(1)) % 4096 == 0);
  CHECK(std::abs(a.payload(1) - a.payload(0)) == 4096);
  CHECK(std::abs(a.payload(0) - b.payload(0)) % kToyPageBytes == 0);
  CHECK(a.payload(0) != b.payload(0));
}

TEST_CASE("a pool without room for a page has none") {
  PagePool pool(ToyGroups(), 100);
  CHECK(pool.Allocate(kA).status().code() == Code::kExhausted);
}

TEST_CASE("private pages return to the pool, sealed ones stay until needed, oldest release first") {
  PagePool pool = ToyPool(3);
  { PageLease gone = New(pool); }
  CHECK(pool.stats().leased == 0);
  CHECK(pool.stats().cached == 0);
  PageLease p1 = NewSealed(pool, 1), p2 = NewSealed(pool, 2), p3 = NewSealed(pool, 3);
  CHECK(pool.Allocate(kA).status().code() == Code::kExhausted);
  p2.Release();
  p1.Release();
  p3.Release();
  CHECK(pool.stats().cached == 3);
  PageLease again = FindNamed(pool, 2);  // a hit takes it out of the line
  CHECK(again.key() == Key(2));
  PageLease x = New(pool);
  CHECK_FALSE(pool.Contains(Key(1)));
  PageLease y = New(pool);
  CHECK_FALSE(pool.Contains(Key(3)));
  CHECK(pool.Contains(Key(2)));
  CHECK(pool.Allocate(kA).status().code() == Code::kExhausted);
  CHECK(pool.stats().evictions == 2);
  pool.CheckInvariants();
}

TEST_CASE("renewed pages go last, in the order in which they were named") {
  PagePool pool = ToyPool(4);
  for (uint8_t name = 1; name <= 4; ++name) NewSealed(pool, name).Release();
  PageLease held = FindNamed(pool, 4);
  const std::vector<PageKey> line = {Key(2), Key(9), Key(1), Key(4)};
  CHECK(pool.Renew(line) == 2);  // 9 is not there: the gap
  CHECK(pool.Renew(std::span(line).first(2)) == 0);  // and 2 is the very last now
  pool.CheckInvariants();
  std::vector<PageLease> taken;
  std::string left;
  for (int i = 0; i < 3; ++i) {
    taken.push_back(New(pool));
    for (uint8_t name = 1; name <= 4; ++name) left += pool.Contains(Key(name)) ? '0' + name : '-';
    left += ' ';
  }
  CHECK(left == "12-4 -2-4 ---4 ");
}

TEST_CASE("a lease counts and shares") {
  PagePool pool = ToyPool(2);
  PageLease a = New(pool);
  CHECK(a.leases() == 1);
  PageLease b = a.Share();
  CHECK(a.leases() == 2);
  CHECK(a == b);
  PageLease c = std::move(b);
  CHECK_FALSE(static_cast<bool>(b));
  CHECK(pool.stats().leased == 1);
  a.Release();
  CHECK(c.leases() == 1);
  c = New(pool);  // assignment releases what was held
  CHECK(pool.stats().leased == 1);
}

TEST_CASE("leased pages are counted by tenant, each once") {
  PagePool pool = ToyPool(4);
  PageLease a = NewSealed(pool, 1), b = New(pool, kB), shared = a.Share();
  CHECK(pool.leased_by(kA) == 1);
  CHECK(pool.leased_by(kB) == 1);
  pool.CheckInvariants();
  a.Release();
  CHECK(pool.leased_by(kA) == 1);
  shared.Release();
  CHECK(pool.leased_by(kA) == 0);  // cached pages are nobody's burden
  a = FindNamed(pool, 1);
  CHECK(pool.leased_by(kA) == 1);
  b.Release();
  CHECK(pool.leased_by(kB) == 0);
  pool.CheckInvariants();
}

TEST_CASE("Seal of a key that is there gives the page that is there") {
  PagePool pool = ToyPool(3);
  PageLease first = NewSealed(pool, 1);
  PageLease second = NewSealed(pool, 1);
  CHECK(first == second);
  CHECK(pool.stats().leased == 1);
  first.Release();
  second.Release();
  PageLease third = NewSealed(pool, 1);  // also when it is only cached
  CHECK(third.leases() == 1);
  CHECK(pool.stats().cached == 0);
  pool.CheckInvariants();
}

TEST_CASE("a key with other tokens is no hit") {
  PagePool pool = ToyPool(3);
  PageLease page = NewSealed(pool, 1);
  CHECK_FALSE(static_cast<bool>(pool.Find(Key(1), ToyTokens(32, 2))));
  CHECK(pool.stats().token_mismatches == 1);
  PageLease other = pool.Seal(New(pool), Key(1), Key(0), ToyTokens(32, 2), PageSource::kComputed);
  CHECK_FALSE(other.sealed());
  CHECK(pool.stats().token_mismatches == 2);
  CHECK(pool.stats().hits == 0);
}

TEST_CASE("a slot is zeroed when it passes to another tenant") {
  PagePool pool = ToyPool(1);
  {
    PageLease page = New(pool, kA);
    ToyWrite(page.payload(0), 3, 0x5EC2E7);
    ToyWrite(page.payload(1), 3, 0x5EC2E7);
  }
  PageLease page = New(pool, kB);
  for (int group = 0; group < 2; ++group) {
    for (size_t i = 0; i < ToyGroup().PayloadBytes(); ++i) {
      REQUIRE(page.payload(group)[i] == std::byte{0});
    }
  }
}

TEST_CASE("an evicted page of another tenant is zeroed too") {
  PagePool pool = ToyPool(1);
  {
    PageLease page = New(pool, kA);
    ToyWrite(page.payload(0), 3, 0x5EC2E7);
    pool.Seal(std::move(page), Key(1), Key(0), ToyTokens(32), PageSource::kComputed);
  }
  PageLease page = New(pool, kB);
  CHECK(ToyRead(page.payload(0), 3) == 0);
}

TEST_CASE("the observer sees each page computed here once, and may keep it") {
  PagePool pool = ToyPool(4);
  std::vector<SealedPage> seen;
  pool.SetSealObserver(
      [](void* context, SealedPage page) {
        static_cast<std::vector<SealedPage>*>(context)->push_back(std::move(page));
      },
      &seen);
  NewSealed(pool, 1).Release();
  NewSealed(pool, 1).Release();
  pool.Seal(New(pool), Key(2), Key(0), ToyTokens(32, 2), PageSource::kDisk).Release();
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].lease.key() == Key(1));
  CHECK(seen[0].parent == Key(0));
  CHECK(pool.stats().cached == 1);
  CHECK(FindNamed(pool, 2).source() == PageSource::kDisk);
  seen.clear();
}

TEST_CASE("DropCached forgets what nobody holds") {
  PagePool pool = ToyPool(4);
  PageLease held = NewSealed(pool, 1);
  NewSealed(pool, 2).Release();
  pool.DropCached();
  CHECK(pool.Contains(Key(1)));
  CHECK_FALSE(pool.Contains(Key(2)));
  pool.CheckInvariants();
}

TEST_CASE("memory is touched ahead, up to the bound") {
  PagePool pool = ToyPool(64);
  std::vector<PageLease> pages;
  for (int i = 0; i < 64; ++i) pages.push_back(New(pool));  // outruns the toucher or not: all come
  CHECK(pool.Allocate(kA).status().code() == Code::kExhausted);
  CHECK(pool.stats().slots == 64);
  CHECK(pool.stats().leased == 64);
  pool.CheckInvariants();
}

TEST_CASE("threads share one pool") {
  PagePool pool = ToyPool(24);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        const auto name = static_cast<uint8_t>(1 + (i * 7 + t) % 16);
        PageLease page = FindNamed(pool, name);
        if (!page) {
          auto fresh = pool.Allocate(kA);
          if (!fresh.ok()) continue;
          for (int s = 0; s < 32; ++s) ToyWrite(fresh->payload(0), s, name);
          page = pool.Seal(std::move(*fresh), Key(name), Key(0), ToyTokens(32, name),
                           PageSource::kComputed);
        }
        PageLease share = page.Share();
        page.Release();
        wrong[t] += ToyRead(share.payload(0), i % 32) != name;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
  CHECK(pool.stats().leased == 0);
  CHECK(pool.stats().token_mismatches == 0);
  pool.CheckInvariants();
}

}  // namespace
}  // namespace holdfast
