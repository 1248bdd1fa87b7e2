#include "engine/kv/timeline.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/engine/kv/toy_kv.h"

namespace holdfast {
namespace {

const TenantScope kA("a"), kB("b");

struct Fixture {
  explicit Fixture(int pages = 64) : pool(ToyGroups(), pages * kToyPageBytes) {}
  ~Fixture() {
    CHECK(pool.stats().leased == 0);
    CHECK(pool.stats().token_mismatches == 0);
    pool.CheckInvariants();
  }
  Timeline Empty(const TenantScope& scope = kA) { return Timeline(&pool, scope, Digest{}); }
  Timeline Computed(std::span<const TokenId> tokens, const TenantScope& scope = kA) {
    Timeline t = Empty(scope);
    t.Extend(tokens);
    ToyComputeAll(t);
    return t;
  }
  PagePool pool;
};

bool IsExact(const Timeline& t) {
  return t.filled() == t.size() && ToyValues(t, t.size()) == ToyExact(t.tokens());
}

TEST_CASE_FIXTURE(Fixture, "rows are named in order and pages sealed when full") {
  Timeline t = Empty();
  t.Extend(ToyTokens(70));
  CHECK(t.pending() == 70);
  CHECK(pool.stats().leased == 0);  // a waiting timeline holds nothing
  auto rows = t.NextRows(40);
  REQUIRE(rows.ok());
  REQUIRE(rows->size() == 40);
  CHECK((*rows)[39].index == 39);
  CHECK((*rows)[39].slot == 7);
  CHECK((*rows)[39].token == 139);
  CHECK(pool.stats().leased == 2);
  t.Filled(33);
  CHECK(t.filled() == 33);
  CHECK(t.pending() == 37);
  CHECK(t.ExactKeys().size() == 1);
  CHECK(t.ExactKeys()[0] == NextKey(RootKey(Digest{}, kA, Digest{}), ToyTokens(32), Digest{}));
}

TEST_CASE_FIXTURE(Fixture, "a private timeline seals nothing and takes nobody's page") {
  const auto tokens = ToyTokens(100);
  const Timeline theirs = Computed(tokens);
  Timeline t = Empty();
  t.KeepPrivate();
  t.Extend(tokens);
  ToyComputeAll(t);
  CHECK(IsExact(t));
  CHECK(t.ExactKeys().empty());
  CHECK(t.chain_key(3) == theirs.chain_key(3));
  for (const Run& run : t.runs()) CHECK_FALSE(run.page.sealed());
  auto fork = t.Fork(64);
  REQUIRE(fork.ok());
  fork->Extend(ToyTokens(32));
  ToyComputeAll(*fork);
  CHECK(fork->ExactKeys().empty());
}

TEST_CASE_FIXTURE(Fixture, "any chunking gives the same values") {
  const auto tokens = ToyTokens(100);
  for (int chunk : {1, 7, 32, 100}) {
    pool.DropCached();
    Timeline t = Empty();
    t.Extend(tokens);
    while (t.pending() > 0) REQUIRE(ToyCompute(t, chunk));
    CHECK(IsExact(t));
    CHECK(t.ExactKeys().size() == 3);
    CHECK(t.tail().rows == 4);
  }
}

TEST_CASE_FIXTURE(Fixture, "views join neighbours and cut at the end") {
  Timeline t = Computed(ToyTokens(70));
  std::vector<KvRun> runs;
  t.Views(69, 1, &runs);
  REQUIRE(runs.size() == 3);
  CHECK(runs[2].count == 5);
  CHECK(runs[2].first == 0);
}

TEST_CASE_FIXTURE(Fixture, "a whole page at home is exact, whoever computed it") {
  Timeline source = Computed(ToyTokens(64));
  Timeline t = Empty();
  for (const PageKey& key : source.ExactKeys()) {
    const auto tokens = ToyTokens(32, 100 + static_cast<TokenId>(t.size()));
    REQUIRE(t.Splice(pool.Find(key, tokens), 0, 32, 0).ok());
  }
  CHECK(t.taint().IsZero());
  CHECK(t.runs()[1].origin == KvOrigin::kExact);
  CHECK(t.filled() == 64);
  t.Extend(ToyTokens(40, 500));
  ToyComputeAll(t);
  CHECK(IsExact(t));
  CHECK(t.ExactKeys().size() == 3);
}

TEST_CASE_FIXTURE(Fixture, "part of a page at home is exact and is copied to go on") {
  Timeline source = Computed(ToyTokens(32));
  Timeline t = Empty();
  REQUIRE(t.Splice(source.runs()[0].page.Share(), 0, 20, 0).ok());
  CHECK(t.taint().IsZero());
  t.Extend(ToyTokens(30, 500));
  ToyComputeAll(t);
  CHECK(IsExact(t));
  CHECK(t.ExactKeys().size() == 1);
  CHECK(IsExact(source));
}

TEST_CASE_FIXTURE(Fixture, "part of a page at home, before which rows are still to be computed") {
  const auto tokens = ToyTokens(100);
  const Timeline source = Computed(tokens);
  for (int chunk : {1, 7, 70, 100}) {
    Timeline t = Empty();
    t.Extend(std::span(tokens).first(64));
    REQUIRE(t.Splice(source.runs()[2].page.Share(), 0, 12, 0).ok());
    t.Extend(std::span(tokens).subspan(76));
    CHECK(t.pending() == 64 + 24);
    while (t.pending() > 0) {
      const int64_t before = t.pending();
      REQUIRE(ToyCompute(t, chunk));
      CHECK(t.pending() == std::max<int64_t>(0, before - chunk));
    }
    CHECK(t.taint().IsZero());
    CHECK(IsExact(t));
  }
}

TEST_CASE_FIXTURE(Fixture, "the end of a page at home is exact after its own beginning only") {
  Timeline source = Computed(ToyTokens(32));
  const auto beginning = ToyTokens(10);
  Timeline t = Computed(beginning);
  REQUIRE(t.Splice(source.runs()[0].page.Share(), 10, 22, 0).ok());
  CHECK(t.taint().IsZero());
  CHECK(IsExact(t));
  Timeline other = Computed(ToyTokens(10, 900));
  REQUIRE(other.Splice(source.runs()[0].page.Share(), 10, 22, 0).ok());
  CHECK_FALSE(other.taint().IsZero());
  CHECK(other.runs()[1].origin == KvOrigin::kShifted);
}

TEST_CASE_FIXTURE(Fixture, "a shifted run is used where it lies, at any misalignment") {
  Timeline source = Computed(ToyTokens(96, 500));
  const auto values = ToyValues(source, 96);
  for (int at : {1, 31, 32, 33, 50}) {
    for (int first : {0, 5, 31}) {
      Timeline t = Computed(ToyTokens(at));
      const int shift = at - (32 + first), count = 32 - first;
      REQUIRE(t.Splice(source.runs()[1].page.Share(), first, count, shift).ok());
      CHECK(t.size() == at + count);
      CHECK(t.filled() == t.size());
      CHECK_FALSE(t.taint().IsZero());
      const auto got = ToyValues(t, t.size());
      CHECK(std::equal(got.begin() + at, got.end(), values.begin() + 32 + first));
      std::vector<KvRun> runs;
      t.Views(t.size(), 0, &runs);
      CHECK(runs.back().shift == shift);
      CHECK(runs.back().count == count);  // one run for the kernel, whatever it crosses
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "taint names its sources and never meets an exact key") {
  Timeline source = Computed(ToyTokens(64, 500));
  const auto head = ToyTokens(32), rest = ToyTokens(64, 700);
  auto spliced = [&](int first, int count) {
    Timeline t = Computed(head);
    REQUIRE(t.Splice(source.runs()[1].page.Share(), first, count, 32 - 32 - first).ok());
    t.Extend(rest);
    ToyComputeAll(t);
    return t;
  };
  Timeline one = spliced(0, 32), two = spliced(4, 28);
  Timeline same = spliced(0, 32);
  CHECK(one.taint() == same.taint());
  CHECK(one.taint() != two.taint());
  // The same tokens, computed: equal ids, other keys, other values.
  Timeline exact = Computed(one.tokens());
  CHECK(one.ExactKeys().size() == 1);
  CHECK(exact.ExactKeys().size() == 4);
  for (int block : {2, 3}) {
    CHECK(one.runs()[block].page.sealed());
    CHECK(one.runs()[block].page.key() != exact.runs()[block].page.key());
    CHECK(one.runs()[block].page == same.runs()[block].page);  // tainted pages are shared alike
  }
  CHECK(ToyValues(one, one.size()) != ToyValues(exact, exact.size()));
  CHECK(IsExact(exact));
}

TEST_CASE_FIXTURE(Fixture, "pages with a seam stay private, those after it are keyed") {
  Timeline source = Computed(ToyTokens(64, 500));
  Timeline t = Empty();
  t.Extend(ToyTokens(10));
  REQUIRE(t.Splice(source.runs()[0].page.Share(), 0, 12, 10).ok());
  t.Extend(ToyTokens(50, 800));
  CHECK(t.filled() == 0);
  ToyComputeAll(t);
  CHECK(t.filled() == 72);
  CHECK(t.runs()[0].page == t.runs()[2].page);  // both sides of the seam in one page
  CHECK_FALSE(t.runs()[0].page.sealed());
  CHECK(t.runs()[3].page.sealed());
  CHECK(t.tail().rows == 8);
}

TEST_CASE_FIXTURE(Fixture, "a page of the right place but of other tokens before is no beginning of ours") {
  Timeline source = Computed(ToyTokens(64, 500));
  Timeline t = Computed(ToyTokens(32));
  REQUIRE(t.Splice(source.runs()[1].page.Share(), 0, 20, 0).ok());
  CHECK(t.runs()[1].origin == KvOrigin::kShifted);
  t.Extend(ToyTokens(12, 700));
  ToyComputeAll(t);
  REQUIRE(t.runs().size() == 3);  // not copied together and keyed
  CHECK(t.runs()[1].page == source.runs()[1].page);
  CHECK_FALSE(t.runs()[2].page.sealed());
  CHECK(t.tail().rows == 0);
}

TEST_CASE_FIXTURE(Fixture, "a fork has the taint of what it shares") {
  Timeline source = Computed(ToyTokens(64, 500));
  Timeline t = Computed(ToyTokens(40));
  REQUIRE(t.Splice(source.runs()[0].page.Share(), 0, 24, 40).ok());  // ends with a page
  const Digest taint = t.taint();
  REQUIRE(t.Splice(source.runs()[1].page.Share(), 0, 8, 32).ok());
  CHECK(t.Fork(40)->taint().IsZero());
  CHECK(t.Fork(64)->taint() == taint);
  CHECK(t.Fork(72)->taint() == t.taint());
  CHECK(t.Fork(71)->taint() != t.taint());
}

TEST_CASE_FIXTURE(Fixture, "what can't be spliced is refused") {
  Timeline source = Computed(ToyTokens(40, 500));
  Timeline t = Computed(ToyTokens(40));
  auto page = [&] { return source.runs()[0].page.Share(); };
  CHECK(t.Splice(page(), 0, 33, 40).code() == Code::kInvalid);
  CHECK(t.Splice(page(), -1, 3, 40).code() == Code::kInvalid);
  CHECK(t.Splice(page(), 30, 3, 10).code() == Code::kInvalid);
  CHECK(t.Splice(page(), 0, 0, 40).code() == Code::kInvalid);
  CHECK(t.Splice(page(), 0, 4, 41).code() == Code::kInvalid);  // home would be -1
  CHECK(t.Splice(page(), 0, 4, 39).code() == Code::kInvalid);  // home would be slot 1
  CHECK(t.Splice(source.runs()[1].page.Share(), 0, 4, 40).code() == Code::kInvalid);  // private
  CHECK(t.size() == 40);
}

TEST_CASE_FIXTURE(Fixture, "a fork shares every page and copies only what it writes") {
  Timeline t = Computed(ToyTokens(70));
  for (int length : {0, 1, 31, 32, 33, 50, 64, 65, 70}) {
    const uint64_t before = pool.stats().leased;
    auto fork = t.Fork(length);
    REQUIRE(fork.ok());
    CHECK(pool.stats().leased == before);
    CHECK(IsExact(*fork));
    fork->Extend(ToyTokens(40, 900));
    ToyComputeAll(*fork);
    CHECK(IsExact(*fork));
    CHECK(fork->ExactKeys().size() == static_cast<size_t>(length + 40) / 32);
    CHECK(IsExact(t));
  }
  auto fork = t.Fork(70);
  REQUIRE(fork.ok());
  t.Extend(ToyTokens(40, 300));  // the original writes first
  ToyComputeAll(t);
  CHECK(IsExact(t));
  CHECK(IsExact(*fork));
  CHECK(t.Fork(111).status().code() == Code::kInvalid);
}

TEST_CASE_FIXTURE(Fixture, "a fork of a half-computed timeline has the same rows pending") {
  Timeline t = Empty();
  t.Extend(ToyTokens(50));
  REQUIRE(ToyCompute(t, 37));
  auto fork = t.Fork(45);
  REQUIRE(fork.ok());
  CHECK(fork->filled() == 37);
  CHECK(fork->pending() == 8);
  ToyComputeAll(*fork);
  ToyComputeAll(t);
  CHECK(IsExact(*fork));
  CHECK(IsExact(t));
}

TEST_CASE_FIXTURE(Fixture, "truncation takes back rows, chain and taint") {
  Timeline source = Computed(ToyTokens(32, 500));
  for (int length : {0, 5, 32, 35, 40, 60, 72, 80, 100}) {
    Timeline t = Computed(ToyTokens(40));
    REQUIRE(t.Splice(source.runs()[0].page.Share(), 0, 32, 40).ok());
    t.Extend(ToyTokens(28, 600));
    ToyComputeAll(t);
    REQUIRE(t.Truncate(length).ok());
    CHECK(t.size() == length);
    CHECK(t.filled() == length);
    CHECK(t.taint().IsZero() == (length <= 40));
    // Building the shorter one directly gives the same taint and keys.
    Timeline direct = Computed(ToyTokens(std::min(length, 40)));
    if (length > 40) {
      REQUIRE(direct.Splice(source.runs()[0].page.Share(), 0, std::min(32, length - 40), 40).ok());
    }
    if (length > 72) direct.Extend(ToyTokens(length - 72, 600));
    ToyComputeAll(direct);
    CHECK(t.taint() == direct.taint());
    CHECK(t.chain_key(length / 32) == direct.chain_key(length / 32));
    t.Extend(ToyTokens(70, 800));
    direct.Extend(ToyTokens(70, 800));
    ToyComputeAll(t);
    ToyComputeAll(direct);
    CHECK(ToyValues(t, t.size()) == ToyValues(direct, direct.size()));
    CHECK(t.Truncate(t.size() + 1).code() == Code::kInvalid);
  }
}

TEST_CASE_FIXTURE(Fixture, "the tail is a page of its own that another timeline can take over") {
  Timeline t = Computed(ToyTokens(45));
  Timeline::Tail tail = t.tail();
  REQUIRE(tail.rows == 13);
  CHECK(tail.parent == t.chain_key(1));
  CHECK(tail.key == TailKey(tail.parent, ToyTokens(13, 132), Digest{}));
  auto page = pool.Allocate(kA);
  REQUIRE(page.ok());
  for (int g = 0; g < 2; ++g) std::memcpy(page->payload(g), tail.page.payload(g), 256);
  // While a writer holds the tail, the timeline goes on in a copy.
  t.Extend(ToyTokens(1, 7));
  ToyComputeAll(t);
  CHECK_FALSE(t.tail().page == tail.page);
  Timeline restored = Empty();
  REQUIRE(restored.Splice(t.runs()[0].page.Share(), 0, 32, 0).ok());
  REQUIRE(restored.AdoptTail(std::move(*page), tail.tokens).ok());
  CHECK(restored.filled() == 45);
  CHECK(restored.AdoptTail({}, ToyTokens(3)).code() == Code::kInvalid);
  restored.Extend(ToyTokens(30, 900));
  ToyComputeAll(restored);
  CHECK(IsExact(restored));
  CHECK(restored.ExactKeys().size() == 2);
}

TEST_CASE_FIXTURE(Fixture, "reuse takes what the pool has and leaves the last rows") {
  Timeline source = Computed(ToyTokens(100));
  Timeline t = Empty();
  t.Extend(ToyTokens(96));
  CHECK(t.NextBlockKey() == source.ExactKeys()[0]);
  CHECK(t.Reuse(95) == 64);
  CHECK(t.pending() == 32);
  CHECK(t.NextBlockKey() == source.ExactKeys()[2]);
  CHECK(t.Reuse(96) == 32);
  CHECK(IsExact(t));
  CHECK(t.NextBlockKey().IsZero());
  Timeline other = Empty(kB);
  other.Extend(ToyTokens(96));
  CHECK(other.Reuse(96) == 0);  // another tenant's pages are never found
}

TEST_CASE_FIXTURE(Fixture, "reuse takes pages behind rows that are still to be computed") {
  std::vector<PageLease> kept;  // blocks 1 and 3, the others gone
  {
    Timeline source = Computed(ToyTokens(160));
    for (const int block : {1, 3}) kept.push_back(source.runs()[block].page.Share());
  }
  pool.DropCached();
  Timeline t = Empty();
  t.Extend(ToyTokens(150));
  REQUIRE(ToyCompute(t, 10));
  CHECK(t.Reuse(149) == 64);
  CHECK(t.filled() == 10);
  CHECK(t.pending() == 150 - 10 - 64);
  CHECK(t.Reuse(149) == 0);
  REQUIRE(ToyCompute(t, 30));  // 22 of block 0, 8 of block 2
  CHECK(t.filled() == 72);
  Timeline fork = std::move(t.Fork(120)).value();
  CHECK(fork.pending() == 24);
  ToyComputeAll(t);
  ToyComputeAll(fork);
  CHECK(IsExact(t));
  CHECK(IsExact(fork));
  CHECK(t.ExactKeys().size() == 4);
}

TEST_CASE_FIXTURE(Fixture, "released KV is computed or found again, with the same values") {
  Timeline t = Computed(ToyTokens(90));
  t.ReleaseKv();
  CHECK(t.pending() == 90);
  CHECK(pool.stats().leased == 0);
  CHECK(t.Reuse(89) == 64);
  ToyComputeAll(t);
  CHECK(IsExact(t));
  Timeline source = Computed(ToyTokens(32, 500));
  REQUIRE(t.Splice(source.runs()[0].page.Share(), 0, 32, 90).ok());
  t.Extend(ToyTokens(40, 600));
  ToyComputeAll(t);
  const auto values = ToyValues(t, t.size());
  t.ReleaseKv();  // only what lies after the approximation can be made again from tokens
  CHECK(t.filled() == 122);
  ToyComputeAll(t);
  CHECK(ToyValues(t, t.size()) == values);
}

TEST_CASE("an exhausted pool loses nothing") {
  Fixture f(3);
  Timeline a = f.Computed(ToyTokens(40));
  Timeline b = f.Empty();
  b.Extend(ToyTokens(64, 500));
  auto rows = b.NextRows(64);
  REQUIRE(rows.ok());
  CHECK(rows->size() == 32);  // as far as the pool goes
  REQUIRE(ToyCompute(b, 64));
  CHECK(b.NextRows(64).status().code() == Code::kExhausted);
  CHECK(b.pending() == 32);
  { Timeline gone = std::move(a); }
  ToyComputeAll(b);
  CHECK(IsExact(b));
}

TEST_CASE_FIXTURE(Fixture, "a fork goes on while its original is gone") {
  auto t = std::make_unique<Timeline>(Computed(ToyTokens(45)));
  auto fork = t->Fork(45);
  REQUIRE(fork.ok());
  t.reset();
  fork->Extend(ToyTokens(30, 700));
  ToyComputeAll(*fork);
  CHECK(IsExact(*fork));
}

TEST_CASE_FIXTURE(Fixture, "equal tokens end in equal pages") {
  Timeline a = Computed(ToyTokens(64)), b = Computed(ToyTokens(64));
  CHECK(a.runs()[0].page == b.runs()[0].page);
  CHECK(a.runs()[1].page == b.runs()[1].page);
  Timeline c = Computed(ToyTokens(64), kB);
  CHECK_FALSE(a.runs()[0].page == c.runs()[0].page);
  CHECK(pool.stats().leased == 4);
}

}  // namespace
}  // namespace holdfast
