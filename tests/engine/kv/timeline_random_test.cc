// Random operations on many timelines over one small pool, against an oracle that keeps, for every
// timeline, the value of each row in a plain vector. The oracle knows nothing of pages or keys; where
// a key stood for other values than the pool believes, a timeline's views would differ from it.

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <vector>

#include "engine/kv/timeline.h"
#include "tests/engine/kv/toy_kv.h"

namespace holdfast {
namespace {

struct Modelled {
  Timeline timeline;
  std::vector<TokenId> tokens;
  std::vector<uint32_t> values;  // by index; meaningless while pending
  std::vector<bool> own;         // computed here, or to be
  std::vector<bool> approximate; // spliced, not what computing would give
};

class World {
 public:
  explicit World(uint32_t seed) : random_(seed), pool_(ToyGroups(), 14 * kToyPageBytes) {}

  void Step() {
    if (all_.empty() || (all_.size() < 6 && Below(4) == 0)) return Create();
    Modelled& m = all_[Below(all_.size())];
    switch (Below(10)) {
      case 0: return Fork(m);
      case 1: return Truncate(m);
      case 2: return Splice(m);
      case 3: return Reuse(m);
      case 4: return Below(4) == 0 ? Release(m) : Extend(m);
      case 5: return Below(3) == 0 ? Destroy() : Extend(m);
      case 6: return Below(6) == 0 ? pool_.DropCached() : Extend(m);
      case 7: return Draft(m);
      default: return Compute(m);
    }
  }

  void Check() {
    for (const Modelled& m : all_) {
      m.timeline.CheckInvariants();
      REQUIRE(std::equal(m.tokens.begin(), m.tokens.end(), m.timeline.tokens().begin(),
                         m.timeline.tokens().end()));
      const auto values = ToyValues(m.timeline, m.timeline.filled());
      REQUIRE(values.size() == static_cast<size_t>(m.timeline.filled()));
      REQUIRE(std::equal(values.begin(), values.end(), m.values.begin()));
      int64_t pending = 0;
      for (size_t i = m.timeline.filled(); i < m.own.size(); ++i) pending += m.own[i];
      REQUIRE(m.timeline.pending() == pending);
      CheckKeys(m);
    }
    pool_.CheckInvariants();
  }

  void Finish() {
    Check();
    all_.clear();
    REQUIRE(pool_.stats().leased == 0);
    REQUIRE(pool_.stats().token_mismatches == 0);
    pool_.CheckInvariants();
  }

  uint64_t hits() const { return pool_.stats().hits; }
  uint64_t evictions() const { return pool_.stats().evictions; }
  int exhausted() const { return exhausted_; }
  int gaps() const { return gaps_; }  // pages taken behind rows that were still pending

 private:
  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  void Create() {
    const TenantScope scope(Below(3) == 0 ? "b" : "a");
    all_.push_back({Timeline(&pool_, scope, Digest{}), {}, {}, {}, {}});
  }

  void Destroy() { all_.erase(all_.begin() + static_cast<int64_t>(Below(all_.size()))); }

  // Few different tokens, in stretches, so that timelines often begin alike.
  void Extend(Modelled& m) {
    if (m.tokens.size() > 160) return;
    const auto letter = static_cast<TokenId>(Below(2));
    const std::vector<TokenId> tokens(Below(3) == 0 ? 1 + Below(5) : 1 + Below(60), letter);
    m.timeline.Extend(tokens);
    m.tokens.insert(m.tokens.end(), tokens.begin(), tokens.end());
    m.values.resize(m.tokens.size());
    m.own.resize(m.tokens.size(), true);
    m.approximate.resize(m.tokens.size(), false);
  }

  void Compute(Modelled& m) {
    const int64_t before = m.timeline.filled();
    if (m.timeline.pending() == 0) return;
    if (!ToyCompute(m.timeline, 1 + static_cast<int64_t>(Below(50)))) ++exhausted_;
    Recompute(m, before);
  }

  // As speculation does: guesses behind the pending rows, computed with them, of which the first
  // few are right. The oracle hears of those only.
  void Draft(Modelled& m) {
    const int64_t before = m.timeline.filled(), certain = m.timeline.pending();
    if (certain == 0 || certain > 20 || m.tokens.size() > 160) return;
    const std::vector<TokenId> guess(1 + Below(40), static_cast<TokenId>(Below(2)));
    m.timeline.Extend(guess);
    const int64_t rows = ToyPass(m.timeline, certain + static_cast<int64_t>(guess.size()));
    const int64_t computed = std::max<int64_t>(0, rows - certain);
    const size_t right = Below(static_cast<size_t>(computed) + 1);
    m.timeline.Filled(std::min(rows, certain));
    for (size_t i = 0; i < right; ++i) m.timeline.Filled(1);
    const size_t length = m.tokens.size() + right;
    REQUIRE(m.timeline.Truncate(static_cast<int64_t>(length)).ok());
    m.tokens.insert(m.tokens.end(), guess.begin(), guess.begin() + static_cast<int64_t>(right));
    m.values.resize(length);
    m.own.resize(length, true);
    m.approximate.resize(length, false);
    Recompute(m, before);
  }

  // The oracle's own computation of what became filled.
  static void Recompute(Modelled& m, int64_t begin) {
    Recompute(m, begin, m.timeline.filled());
  }
  static void Recompute(Modelled& m, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!m.own[i]) continue;
      const std::vector<uint32_t> prefix(m.values.begin(), m.values.begin() + i);
      m.values[i] = ToyValue(m.tokens[i], prefix);
    }
  }

  void Fork(Modelled& m) {
    if (all_.size() >= 8) return;
    const size_t length = Below(m.tokens.size() + 1);
    auto fork = m.timeline.Fork(static_cast<int64_t>(length));
    REQUIRE(fork.ok());
    Modelled copy{std::move(fork).value(), m.tokens, m.values, m.own, m.approximate};
    Resize(copy, length);
    all_.push_back(std::move(copy));
  }

  void Truncate(Modelled& m) {
    const size_t length = m.tokens.size() - Below(std::min<size_t>(m.tokens.size(), 60) + 1);
    REQUIRE(m.timeline.Truncate(static_cast<int64_t>(length)).ok());
    Resize(m, length);
  }

  static void Resize(Modelled& m, size_t length) {
    m.tokens.resize(length);
    m.values.resize(length);
    m.own.resize(length);
    m.approximate.resize(length);
  }

  // A slice of a sealed page of some timeline of this tenant, where a random shift puts it.
  void Splice(Modelled& m) {
    if (m.tokens.size() > 160) return;
    const Modelled& source = all_[Below(all_.size())];
    std::vector<const Run*> sealed;
    for (const Run& run : source.timeline.runs()) {
      if (run.page && run.page.sealed()) sealed.push_back(&run);
    }
    if (sealed.empty() || !(source.timeline.scope() == m.timeline.scope())) return;
    const Run& run = *sealed[Below(sealed.size())];
    const int from = static_cast<int>(Below(run.count));
    const int count = 1 + static_cast<int>(Below(run.count - from));
    const auto at = static_cast<int64_t>(m.tokens.size());
    const int64_t index = run.begin + from;  // in the source
    const auto shift = static_cast<int32_t>(at - index + run.shift);
    const std::vector<TokenId> tokens(source.tokens.begin() + index,
                                      source.tokens.begin() + index + count);
    const std::vector<uint32_t> values(source.values.begin() + index,
                                       source.values.begin() + index + count);
    REQUIRE(m.timeline.Splice(run.page.Share(), run.first + from, count, shift).ok());
    m.tokens.insert(m.tokens.end(), tokens.begin(), tokens.end());
    m.values.insert(m.values.end(), values.begin(), values.end());
    m.own.resize(m.tokens.size(), false);
    m.approximate.resize(m.tokens.size(),
                         m.timeline.runs().back().origin == KvOrigin::kShifted);
  }

  void Reuse(Modelled& m) {
    const int64_t before = m.timeline.filled();
    const int64_t reused = m.timeline.Reuse(static_cast<int64_t>(m.tokens.size()));
    // What was reused must be what computing it, and all before it, would have given.
    int64_t end = before;
    for (const Run& run : m.timeline.runs()) {
      if (run.begin >= before && run.page && run.page.sealed()) end = run.end();
    }
    Recompute(m, before, end);
    int64_t taken = 0;
    for (const Run& run : m.timeline.runs()) {
      if (run.begin < before || !run.page || !run.page.sealed()) continue;
      for (int64_t i = run.begin; i < run.end(); ++i) {
        taken += m.own[i];
        m.own[i] = false;
      }
    }
    REQUIRE(taken == reused);
    gaps_ += end > m.timeline.filled();
  }

  void Release(Modelled& m) {
    m.timeline.ReleaseKv();
    size_t keep = 0;
    for (size_t i = 0; i < m.approximate.size(); ++i) keep = m.approximate[i] ? i + 1 : keep;
    for (size_t i = keep; i < m.own.size(); ++i) m.own[i] = true;
  }

  // One key, one content, for ever; and no exact chain holds an approximation.
  void CheckKeys(const Modelled& m) {
    int64_t exact = 0;
    for (size_t b = 0; b < m.timeline.ExactKeys().size(); ++b) exact += kPageTokens;
    REQUIRE(exact <= m.timeline.filled());
    const std::vector<uint32_t> want =
        ToyExact(std::span<const TokenId>(m.tokens).first(static_cast<size_t>(exact)));
    REQUIRE(std::equal(want.begin(), want.end(), m.values.begin()));
    for (const Run& run : m.timeline.runs()) {
      if (!run.page || !run.page.sealed()) continue;
      std::vector<uint32_t> content;
      for (int s = 0; s < kPageTokens; ++s) content.push_back(ToyRead(run.page.payload(), s));
      const auto [it, fresh] = content_.try_emplace(run.page.key(), content);
      REQUIRE(it->second == content);
    }
  }

  std::mt19937 random_;
  PagePool pool_;
  std::vector<Modelled> all_;
  std::map<PageKey, std::vector<uint32_t>> content_;
  int exhausted_ = 0;
  int gaps_ = 0;
};

TEST_CASE("random timelines equal the oracle and leak nothing") {
  uint64_t hits = 0, evictions = 0;
  int exhausted = 0, gaps = 0;
  for (uint32_t seed = 0; seed < 90; ++seed) {
    CAPTURE(seed);
    World world(seed);
    for (int i = 0; i < 400; ++i) {
      CAPTURE(i);
      world.Step();
      if (i % 4 == 0) world.Check();
    }
    world.Finish();
    hits += world.hits();
    evictions += world.evictions();
    exhausted += world.exhausted();
    gaps += world.gaps();
  }
  CHECK(hits > 100);  // else the walk does not reach what it is to test
  CHECK(evictions > 100);
  CHECK(exhausted > 10);
  CHECK(gaps > 10);
}

}  // namespace
}  // namespace holdfast
