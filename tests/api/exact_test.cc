// What is exact stays so, to the bit, with everything in the way that makes other things
// approximate: a card, segments, stitched sessions and their pages, garbage in memory; with K as F16
// and as INT8. The rungs E2, E3, E4 and E6 (stitcher/verify.h), as requests meet them. That turned K
// is within rounding (E4) and the rest of E5 and E7 are verify's alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "api/segments.h"
#include "engine/store/file_page_store.h"
#include "stitcher/card.h"
#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

constexpr int64_t kAll = int64_t{1} << 30;  // pages: more than any pool has
constexpr ReusePolicy kExactOnes[] = {ReusePolicy::kOff, ReusePolicy::kExact};
constexpr ReusePolicy kApproximate[] = {ReusePolicy::kFast, ReusePolicy::kBalanced,
                                        ReusePolicy::kQuality};
const TenantScope kAnn("ann");
using F16 = std::integral_constant<KvType, KvType::kF16>;  // how K is stored
using I8 = std::integral_constant<KvType, KvType::kI8>;

std::string Document(const std::string& about, int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += "Line " + std::to_string(i) + " of the report on " + about + " says " +
            std::to_string(i * 7919 % 1009) + ". ";
  }
  return text;
}

// A history, and the same without its second message.
Talk Before(const std::string& session) {
  Talk talk(session);
  talk.User("Read.").User(Document("whales", 5)).User(Document("bees", 18)).User("And?");
  return talk;
}
Talk After(const std::string& session) {
  Talk talk(session);
  talk.User("Read.").User(Document("bees", 18)).User("And?");
  return talk;
}

ChatRequest With(const Talk& talk, ReusePolicy policy) {
  ChatRequest r = talk.Request();
  r.reuse.policy = policy;
  return r;
}

// What a process says that has nothing but the request.
Answer Alone(const Talk& talk, KvType kv_type) {
  RuntimeBench b({.kv_type = kv_type});
  return b.Say(With(talk, ReusePolicy::kOff));
}

std::string NameOf(const char* what, ReusePolicy policy) {
  return std::string(what).append("-").append(ReusePolicyName(policy));
}

// Memory that nobody uses, filled with `fill`: pages of this tenant are not wiped for it.
void FillFree(RuntimeBench& b, int fill) {
  PagePool& pool = b.runtime().engine().pool();
  std::vector<PageLease> pages;
  for (auto page = pool.Allocate(kAnn); page.ok(); page = pool.Allocate(kAnn)) {
    for (size_t g = 0; g < pool.groups().size(); ++g) {
      std::memset(page->payload(static_cast<int>(g)), fill, pool.groups()[g].PayloadBytes());
    }
    pages.push_back(std::move(*page));
  }
  CHECK(pages.size() > 100);
}

// A process with a card, where a history was computed and then edited, under every policy.
struct World {
  RuntimeBench b;
  std::vector<Answer> answers;  // of the edited history, in order of kApproximate

  explicit World(KvType kv_type, int fill = -1) : b({.kv_type = kv_type}) {
    REQUIRE(b.runtime().engine().pool().groups()[0].k_type == kv_type);
    SetCard(0);
    Step(fill);
    b.Say(With(Before("source"), ReusePolicy::kExact));
    NewSegment add;
    add.tenant = "ann";
    add.text = Document("bees", 18);
    add.warm = true;
    REQUIRE(b.runtime().AddSegment(add).ok());
    for (const ReusePolicy policy : kApproximate) {
      Step(fill);
      answers.push_back(b.Say(With(After(NameOf("edited", policy)), policy)));
      const StitchReport& report = answers.back().done.report.start.stitch;
      CHECK_MESSAGE(report.shifted > 100, NameOf("under", policy), ": ", report.fallback);
      CHECK(report.totals.approximate > report.totals.shifted);
    }
  }
  void SetCard(double bound) {
    ModelCard card = OpenCard(b.runtime().engine().model().fingerprint());
    for (CardCell& cell : card.cells) cell.kl.bound = bound;
    b.runtime().stitcher().SetCard(std::make_shared<const ModelCard>(std::move(card)));
  }
  void Step(int fill) {
    if (fill >= 0) FillFree(b, fill);
  }
  // Everything written, nothing warm, nothing in the pool.
  void Cool() {
    b.runtime().keeper().MakeRoom(kAll);
    b.runtime().SyncPages();
    b.runtime().engine().pool().DropCached();
  }
};

TEST_CASE_TEMPLATE("exact requests have the bits of full prefill: cold, warm, forked, from disk, restarted",
                   Kv, F16, I8) {
  const Answer want = Alone(After(""), Kv::value);
  for (const ReusePolicy policy : kExactOnes) {
    World w(Kv::value);
    CHECK_FALSE(w.answers[0] == want);  // what it is an approximation of
    const std::string cold = NameOf("cold", policy);
    const auto same = [&](const std::string& session) {
      const Answer got = w.b.Say(With(After(session), policy));
      CHECK(got.done.report.start.stitch.totals.approximate == 0);
      return got == want;
    };
    CHECK(same(cold));
    for (const ReusePolicy p : kApproximate) CHECK(same(NameOf("edited", p)));  // tainted heads
    MakeBranch fork;
    fork.at_item = 2;
    fork.name = "fork";
    REQUIRE(w.b.runtime().keeper().Branch("ann", cold, fork).ok());
    ChatRequest on_fork = With(Talk(cold).User("And?"), policy);
    on_fork.session.branch = "fork";
    on_fork.append = true;
    CHECK(w.b.Say(on_fork) == want);
    w.Cool();
    CHECK(same(NameOf("from-disk", policy)));
    w.b.Restart();
    w.SetCard(0);
    CHECK(same(NameOf("restarted", policy)));
    CHECK(same(NameOf("edited", ReusePolicy::kFast)));
  }
}

TEST_CASE_TEMPLATE("a turn behind an approximate one is exact where it asks for it", Kv, F16, I8) {
  for (const ReusePolicy before : kApproximate) {
    World w(Kv::value);
    Talk talk = After(NameOf("edited", before));
    talk.Keep(w.answers[static_cast<size_t>(std::find(std::begin(kApproximate),
                                                      std::end(kApproximate), before) -
                                            std::begin(kApproximate))]);
    talk.User("Go on.");
    const Answer exact = w.b.Say(With(talk, ReusePolicy::kExact));
    const Answer off = w.b.Say(With(talk, ReusePolicy::kOff));  // all of it computed anew
    CHECK(off.done.report.start.stitch.to_compute == off.done.report.start.prompt_tokens);
    CHECK(off.done.prompt_tokens == exact.done.prompt_tokens);
    CHECK(exact == off);
  }
}

TEST_CASE_TEMPLATE("exact requests in a batch with approximate ones", Kv, F16, I8) {
  const Answer want = Alone(After(""), Kv::value);
  World w(Kv::value);
  std::vector<Answer> exact(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < exact.size(); ++i) {
    threads.emplace_back([&, i] {
      exact[i] = w.b.Say(With(After("exact" + std::to_string(i)), kExactOnes[i % 2]));
    });
    threads.emplace_back([&, i] {
      Talk other("other" + std::to_string(i));
      other.User("Look.").User(Document("bees", 18)).User("How many, " + std::to_string(i) + "?");
      w.b.Say(With(other, kApproximate[i % 3]));
    });
  }
  for (std::thread& t : threads) t.join();
  for (const Answer& a : exact) CHECK(a == want);
}

// Loses the first page of the history, on disk as in memory.
void LoseFirstPage(World& w) {
  w.Cool();
  const auto tokens = w.b.runtime().keeper().Tokens("ann", "source", "");
  REQUIRE(tokens.ok());
  const PageKey root = RootKey(w.b.runtime().engine().model().fingerprint(), kAnn, Digest{});
  const PageKey first = NextKey(root, std::span(*tokens).first(kPageTokens), Digest{});
  REQUIRE(w.b.runtime().page_store()->Delete(first).ok());
}

TEST_CASE_TEMPLATE("E2: runs that lie at home are no approximation, whatever the policy",
                   Kv, F16, I8) {
  const Answer want = Alone(Before("again"), Kv::value);
  for (const ReusePolicy policy : kApproximate) {
    World w(Kv::value);
    for (const bool is_covered : {true, false}) {  // by the exact prefix
      if (!is_covered) LoseFirstPage(w);
      const Answer got = w.b.Say(With(Before(is_covered ? "covered" : "behind"), policy));
      const StitchReport& report = got.done.report.start.stitch;
      CHECK(got == want);
      CHECK(report.shifted == 0);
      CHECK(report.totals.approximate == 0);
      CHECK(report.totals.exact + report.totals.restored > 100);
    }
  }
}

TEST_CASE_TEMPLATE("E3: where a contract lets nothing be used, all of it is computed: the same bits",
                   Kv, F16, I8) {
  const Answer want = Alone(After(""), Kv::value);
  World w(Kv::value);
  w.SetCard(0.02);
  for (const ReusePolicy policy : kApproximate) {
    ChatRequest request = With(After(NameOf("contract", policy)), policy);
    request.reuse.max_kl = 0.001;
    const Answer got = w.b.Say(request);
    CHECK(got == want);
    CHECK(got.done.report.start.stitch.totals.approximate == 0);
  }
}

TEST_CASE_TEMPLATE("E3, E6: garbage in pages that are not written yet changes no bit of any answer",
                   Kv, F16, I8) {
  const Answer want = Alone(After(""), Kv::value);
  World clean(Kv::value, 0), poisoned(Kv::value, 0xff);  // every float of it is a NaN
  CHECK(clean.answers == poisoned.answers);
  for (const ReusePolicy policy : kExactOnes) {
    FillFree(poisoned.b, 0xff);
    CHECK(poisoned.b.Say(With(After(NameOf("exact", policy)), policy)) == want);
  }
}

TEST_CASE_TEMPLATE("E4: V of the first layer is the same where a run stands as where it was computed",
                   Kv, F16, I8) {
  World w(Kv::value);
  const std::vector<TokenId>& prompt = w.answers[0].done.prompt_tokens;
  const auto n = static_cast<int64_t>(prompt.size());
  const auto runs = w.b.runtime().segments().Find(kAnn, prompt, 0, n);
  w.b.Say(With(After("exact"), ReusePolicy::kExact));
  PagePool& pool = w.b.runtime().engine().pool();
  const LayerGroup& group = pool.groups()[0];
  std::vector<PageLease> fresh;
  PageKey key = RootKey(w.b.runtime().engine().model().fingerprint(), kAnn, Digest{});
  for (int64_t at = 0; at + kPageTokens < n; at += kPageTokens) {
    const auto tokens = std::span(prompt).subspan(at, kPageTokens);
    key = NextKey(key, tokens, Digest{});
    fresh.push_back(pool.Find(key, tokens));
    REQUIRE(fresh.back());
  }
  const auto v_of = [&](const PageLease& page, int64_t slot, int head) {
    const size_t row = static_cast<size_t>(group.v_dim) * KvTypeBytes(group.v_type);
    const std::byte* at = page.payload(0) + group.HeadOffset(0, head) + group.KBytes();
    return std::span(at + static_cast<size_t>(slot) * row, row);
  };
  int64_t compared = 0;
  for (const FoundRun& run : runs) {
    if (run.shift() == 0) continue;
    const std::vector<PageKey> keys = run.variant->PageKeys();
    for (int64_t i = run.begin; i < run.end && i / kPageTokens < std::ssize(fresh); ++i) {
      const int64_t from = run.variant->first + run.offset + i - run.begin;
      const PageLease source = pool.Find(
          keys[from / kPageTokens],
          std::span(run.variant->tokens).subspan(from / kPageTokens * kPageTokens, kPageTokens));
      REQUIRE(source);
      for (int head = 0; head < group.heads; ++head) {
        const auto want = v_of(fresh[i / kPageTokens], i % kPageTokens, head);
        const auto got = v_of(source, from % kPageTokens, head);
        REQUIRE(std::equal(want.begin(), want.end(), got.begin()));
      }
      ++compared;
    }
  }
  CHECK(compared > 100);
}

}  // namespace
}  // namespace holdfast
