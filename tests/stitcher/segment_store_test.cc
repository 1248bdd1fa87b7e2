// SegmentStore over a real database, with variants that have no pages.
#include "stitcher/segment_store.h"

#include <doctest/doctest.h>

#include <optional>
#include <random>

#include "tests/engine/base/temp_dir.h"
#include "tests/engine/kv/toy_kv.h"
#include "tests/stitcher/segment_fixture.h"

namespace holdfast {
namespace {

using Tokens = std::vector<TokenId>;
using Pin = SegmentStore::Pin;

constexpr uint64_t kPageBytes = 1000;

Digest Filled(uint8_t byte) {
  Digest d;
  d.bytes.fill(byte);
  return d;
}

struct Rig {
  explicit Rig(uint64_t budget = 1u << 20) : max_bytes(budget) { Open(); }
  void Open(uint8_t model = 1) {
    store.reset();
    db.reset();
    Database::Options o;
    o.path = folder.File("test.db");
    o.migrations = {{"sessions", 1, "CREATE TABLE session(sid INTEGER PRIMARY KEY)"}};
    for (const Migration& m : SegmentStore::Migrations()) o.migrations.push_back(m);
    auto opened = Database::Open(o);
    REQUIRE_MESSAGE(opened.ok(), opened.status().ToString());
    db = std::move(opened).value();
    SegmentStore::Options s;
    s.db = db.get();
    s.basis = {Filled(model), Filled(2), Filled(3)};
    s.page_bytes = kPageBytes;
    s.max_bytes = max_bytes;
    s.max_tokens = max_tokens;
    s.now_ms = [this] { return now_ms; };
    auto made = SegmentStore::Open(s);
    REQUIRE_MESSAGE(made.ok(), made.status().ToString());
    store = std::move(made).value();
  }
  SegmentInfo Give(const TenantScope& scope, Tokens tokens, bool pin = false) {
    auto info = store->Give(scope, {"user", std::move(tokens), {}, pin});
    REQUIRE_MESSAGE(info.ok(), info.status().ToString());
    return *info;
  }
  SegmentId Put(const TenantScope& scope, const Tokens& tokens, const Tokens& left = {},
                int64_t owner = 0) {
    Variant v = VariantAfter(left, tokens);
    v.parent = RootKey(Filled(1), scope, {});
    v.owner = owner;
    const Status s = store->Put(scope, "user", tokens, std::move(v));
    REQUIRE_MESSAGE(s.ok(), s.ToString());
    ++now_ms;
    return MakeSegmentId({Filled(1), Filled(2), Filled(3)}, scope, "user", tokens);
  }
  Status Sql(const std::string& sql) {
    return db->Write([&](Txn& txn) { return txn.Run(sql); }, WriteClass::kBackground);
  }
  int64_t Count(const std::string& sql) {
    int64_t n = -1;
    CHECK(db->Write([](Txn&) { return Status(); }, WriteClass::kBackground).ok());  // all before it
    CHECK(db->Read([&](Reader& r) {
              Rows rows = r.Query(sql);
              if (rows.Next()) n = rows.Int(0);
              return rows.status();
            }).ok());
    return n;
  }
  size_t Runs(const TenantScope& scope, const Tokens& prompt) {
    return store->Find(scope, prompt, 0, static_cast<int64_t>(prompt.size())).size();
  }

  testing::TempDir folder;
  uint64_t max_bytes, max_tokens = 1u << 20;
  int64_t now_ms = 1000;
  std::mt19937_64 rng{1};
  std::unique_ptr<Database> db;
  std::unique_ptr<SegmentStore> store;
};

const TenantScope kAnn("ann"), kBob("bob");

TEST_CASE("a name is over tokens, model, tokenizer, template, role and tenant") {
  const Tokens tokens = {1, 2, 3};
  const SegmentBasis basis = {Filled(1), Filled(2), Filled(3)};
  const SegmentId id = MakeSegmentId(basis, kAnn, "user", tokens);
  CHECK(id == MakeSegmentId(basis, kAnn, "user", tokens));
  CHECK(SegmentId::Parse(id.Text()) == id);
  CHECK(id.Text().size() == 4 + 64);
  for (const char* bad : {"", "seg_", "seg_12", "sess_0000"}) CHECK_FALSE(SegmentId::Parse(bad));
  CHECK(id != MakeSegmentId(basis, kBob, "user", tokens));
  CHECK(id != MakeSegmentId(basis, kAnn, "tool", tokens));
  CHECK(id != MakeSegmentId(basis, kAnn, "user", Tokens{1, 2}));
  CHECK(id != MakeSegmentId({Filled(9), Filled(2), Filled(3)}, kAnn, "user", tokens));
  CHECK(id != MakeSegmentId({Filled(1), Filled(9), Filled(3)}, kAnn, "user", tokens));
  CHECK(id != MakeSegmentId({Filled(1), Filled(2), Filled(9)}, kAnn, "user", tokens));
}

TEST_CASE("what belongs to another tenant is not there") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 100, 5000);
  const SegmentId id = rig.Put(kAnn, text);
  CHECK(rig.store->Get(kAnn, id).ok());
  CHECK(rig.Runs(kAnn, text) == 1);
  CHECK(rig.Runs(kBob, text) == 0);
  const Status unknown = rig.store->Get(kBob, {Filled(77)}).status();
  const Status foreign = rig.store->Get(kBob, id).status();
  CHECK(foreign.code() == Code::kNotFound);
  CHECK(unknown.code() == Code::kNotFound);
  CHECK(rig.store->Body(kBob, id).status().code() == Code::kNotFound);
  CHECK(rig.store->SetPin(kBob, id, Pin::kOn).status().code() == Code::kNotFound);
  CHECK(rig.store->Delete(kBob, id).code() == Code::kNotFound);
  CHECK(rig.store->List(kBob, 0, 10).empty());
  CHECK(rig.store->Get(kAnn, id).ok());
  // The same text has another name there.
  CHECK(rig.Put(kBob, text) != id);
}

TEST_CASE("a restart finds segments, variants, pins and counts again") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 150, 5000), left = RandomTokens(rig.rng, 70, 5000);
  const SegmentId id = rig.Put(kAnn, text, left);
  const SegmentInfo given = rig.Give(kAnn, RandomTokens(rig.rng, 20, 5000), true);
  const auto runs = rig.store->Find(kAnn, text, 0, 150);
  REQUIRE(runs.size() == 1);
  rig.now_ms = 5000;
  rig.store->Used(kAnn, runs);
  rig.Open();
  const auto info = rig.store->Get(kAnn, id);
  REQUIRE(info.ok());
  CHECK(info->hits == 1);
  CHECK(info->hit_tokens == 150);
  CHECK(info->used_ms == 5000);
  CHECK_FALSE(info->given);
  REQUIRE(info->variants.size() == 1);
  CHECK(info->variants[0].position == 70);
  CHECK(info->variants[0].hits == 1);
  CHECK(info->kv_bytes == kPageBytes * 5);  // tokens 70..219: pages 2..6
  const auto again = rig.store->Find(kAnn, text, 0, 150);
  REQUIRE(again.size() == 1);
  const Variant &a = *runs[0].variant, &b = *again[0].variant;
  CHECK(a.tokens == b.tokens);
  CHECK(a.left == b.left);
  CHECK(a.parent == b.parent);
  CHECK(a.first == b.first);
  CHECK(a.PageKeys() == b.PageKeys());
  CHECK(rig.store->Get(kAnn, given.id)->pinned);
  CHECK(rig.store->Get(kAnn, given.id)->given);
  // New ones get numbers of their own.
  rig.Put(kAnn, RandomTokens(rig.rng, 90, 5000));
  const auto list = rig.store->List(kAnn, 0, 10);
  REQUIRE(list.size() == 3);
  CHECK(list[0].n < list[1].n);
  CHECK(list[1].n < list[2].n);
  CHECK(rig.store->List(kAnn, list[0].n, 1)[0].id == list[1].id);
}

TEST_CASE("another model's segments are told apart from none") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 100, 5000);
  const SegmentId id = rig.Give(kAnn, text).id;
  rig.Open(2);
  CHECK(rig.Runs(kAnn, text) == 0);
  CHECK(rig.store->Body(kAnn, id).status().code() == Code::kInvalid);
  CHECK(rig.store->Body(kAnn, id).status().message().starts_with("segment_of_another_model: "));
  CHECK(rig.store->Get(kAnn, id).status().code() == Code::kNotFound);
  CHECK(rig.store->Body(kBob, id).status().code() == Code::kNotFound);
  CHECK(rig.store->Delete(kAnn, id).ok());
  CHECK(rig.store->Body(kAnn, id).status().code() == Code::kNotFound);
}

TEST_CASE("the same slice is one variant, and grows; others go by age") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 200, 5000);
  Variant part = VariantAfter({}, Tokens(text.begin(), text.begin() + 128));
  REQUIRE(rig.store->Put(kAnn, "user", text, part).ok());
  const SegmentId id = rig.store->List(kAnn, 0, 1)[0].id;
  CHECK(rig.store->Get(kAnn, id)->variants[0].tokens == 128);
  REQUIRE(rig.store->Put(kAnn, "user", text, VariantAfter({}, text)).ok());
  REQUIRE(rig.store->Put(kAnn, "user", text, part).ok());  // less than there is
  REQUIRE(rig.store->Get(kAnn, id)->variants.size() == 1);
  CHECK(rig.store->Get(kAnn, id)->variants[0].tokens == 200);
  CHECK(rig.Count("SELECT COUNT(*) FROM segment_variant") == 1);
  for (size_t i = 1; i < SegmentStore::kMaxVariants + 3; ++i) {
    rig.now_ms += 10;
    Variant v = VariantAfter(RandomTokens(rig.rng, static_cast<int64_t>(i), 50), text);
    REQUIRE(rig.store->Put(kAnn, "user", text, std::move(v)).ok());
  }
  const auto info = rig.store->Get(kAnn, id);
  CHECK(info->variants.size() == SegmentStore::kMaxVariants);
  for (const auto& v : info->variants) CHECK(v.position >= 3);
  CHECK(rig.Count("SELECT COUNT(*) FROM segment_variant") ==
        static_cast<int64_t>(SegmentStore::kMaxVariants));
  rig.Open();
  CHECK(rig.store->Get(kAnn, id)->variants.size() == SegmentStore::kMaxVariants);
}

TEST_CASE("what does not fit its pages or its segment is refused") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 100, 5000);
  const auto refused = [&](auto change) {
    Variant v = VariantAfter(Tokens(40, 3), text);
    change(v);
    return rig.store->Put(kAnn, "user", text, v).code() == Code::kInvalid;
  };
  CHECK(refused([](Variant& v) { v.generation = kMaxGeneration + 1; }));
  CHECK(refused([](Variant& v) { v.tokens[50] ^= 1; }));
  CHECK(refused([](Variant& v) { v.count = 63; }));
  CHECK(refused([](Variant& v) { v.position += 1; }));
  CHECK(refused([](Variant& v) { v.tokens.pop_back(); }));
  CHECK(refused([](Variant& v) { v.count += 1; }));
  CHECK_FALSE(refused([](Variant&) {}));
  CHECK(rig.store->Give(kAnn, {"user", {}, {}, false}).status().code() == Code::kInvalid);
  CHECK(rig.store->Give(kAnn, {"", text, {}, false}).status().code() == Code::kInvalid);
}

TEST_CASE("a full budget drops what was unused the longest, never what is pinned") {
  Rig rig(kPageBytes * 40);
  std::vector<SegmentId> ids;
  std::vector<Tokens> texts;
  for (int i = 0; i < 8; ++i) {  // four pages each
    texts.push_back(RandomTokens(rig.rng, 128, 5000));
    ids.push_back(rig.Put(kAnn, texts.back()));
  }
  REQUIRE(rig.store->SetPin(kAnn, ids[0], Pin::kOn).ok());
  const auto runs = rig.store->Find(kAnn, texts[1], 0, 128);
  rig.store->Used(kAnn, runs);
  for (int i = 0; i < 4; ++i) rig.Put(kAnn, RandomTokens(rig.rng, 128, 5000));
  CHECK(rig.store->Get(kAnn, ids[0]).ok());
  CHECK(rig.store->Get(kAnn, ids[1]).ok());
  CHECK(rig.store->Get(kAnn, ids[2]).status().code() == Code::kNotFound);
  CHECK(rig.Runs(kAnn, texts[2]) == 0);
  CHECK(rig.store->stats().kv_bytes <= kPageBytes * 40);
  CHECK(rig.store->stats().dropped > 0);
  const auto segments = static_cast<int64_t>(rig.store->stats().segments);
  CHECK(rig.Count("SELECT COUNT(*) FROM segment") == segments);
  CHECK(rig.store->Get(kBob, ids[0]).status().code() == Code::kNotFound);
  rig.Put(kBob, texts[2]);  // a budget of his own
  CHECK(rig.store->Get(kAnn, ids[1]).ok());

  // All pinned: nothing goes, and nothing more comes.
  for (const SegmentInfo& s : rig.store->List(kAnn, 0, 100)) {
    REQUIRE(rig.store->SetPin(kAnn, s.id, Pin::kOn).ok());
  }
  const uint64_t before = rig.store->stats().segments;
  const Tokens large = RandomTokens(rig.rng, 1280, 5000);
  const Status full = rig.store->Put(kAnn, "user", large, VariantAfter({}, large));
  CHECK(full.code() == Code::kExhausted);
  CHECK(full.message().starts_with("quota_exceeded: "));
  CHECK(rig.store->stats().segments == before);
  REQUIRE(rig.store->SetPin(kAnn, ids[1], Pin::kOff).ok());
  rig.max_bytes = kPageBytes * 8;
  rig.Open();  // a smaller budget: pinned ones stay
  CHECK(rig.store->Get(kAnn, ids[0]).ok());
}

TEST_CASE("tokens in memory have a budget too") {
  Rig rig;
  rig.max_tokens = 2000;
  rig.Open();
  for (int i = 0; i < 30; ++i) rig.Give(kAnn, RandomTokens(rig.rng, 190, 5000));
  CHECK(rig.store->stats().tokens <= 2000);
  CHECK(rig.store->Give(kAnn, {"user", RandomTokens(rig.rng, 3000, 50), {}, false}).status().code() ==
        Code::kExhausted);
}

TEST_CASE("a segment that is deleted while in use stays with who uses it") {
  Rig rig;
  const Tokens text = RandomTokens(rig.rng, 100, 5000);
  const SegmentId id = rig.Put(kAnn, text);
  const auto runs = rig.store->Find(kAnn, text, 0, 100);
  REQUIRE(runs.size() == 1);
  REQUIRE(rig.store->Delete(kAnn, id).ok());
  CHECK(rig.Runs(kAnn, text) == 0);
  CHECK(rig.store->Delete(kAnn, id).code() == Code::kNotFound);
  const auto body = runs[0].variant->body();
  CHECK(std::equal(body.begin(), body.end(), text.begin(), text.end()));
  rig.store->Used(kAnn, runs);  // counts for nobody
  CHECK(rig.Count("SELECT COUNT(*) FROM segment_variant") == 0);
  rig.Open();
  CHECK(rig.Runs(kAnn, text) == 0);
}

TEST_CASE("what a session left goes with it") {
  Rig rig;
  REQUIRE(rig.Sql("INSERT INTO session VALUES(7), (8)").ok());
  const Tokens one = RandomTokens(rig.rng, 100, 5000), both = RandomTokens(rig.rng, 100, 5000);
  const Tokens given = RandomTokens(rig.rng, 100, 5000);
  const SegmentId id = rig.Put(kAnn, one, {}, 7);
  rig.Put(kAnn, both, {1}, 7);
  rig.Put(kAnn, both, {1, 2}, 8);
  rig.Give(kAnn, given);
  rig.Put(kAnn, given, {}, 7);
  CHECK(rig.Count("SELECT COUNT(*) FROM segment_variant") == 4);
  REQUIRE(rig.Sql("DELETE FROM session WHERE sid = 7").ok());
  rig.store->Forget(7);
  for (int pass = 0; pass < 2; ++pass) {
    CHECK(rig.store->Get(kAnn, id).status().code() == Code::kNotFound);
    CHECK(rig.Runs(kAnn, one) == 0);
    CHECK(rig.Runs(kAnn, both) == 1);
    CHECK(rig.store->stats().segments == 2);  // `given` stays without variants
    CHECK(rig.store->stats().variants == 1);
    CHECK(rig.store->stats().corrupt == 0);
    rig.Open();
  }
  CHECK(rig.Count("SELECT COUNT(*) FROM segment") == 2);
}

TEST_CASE("damaged rows are dropped and counted, the others stand") {
  Rig rig;
  const Tokens bad = RandomTokens(rig.rng, 100, 5000), good = RandomTokens(rig.rng, 100, 5000);
  const SegmentId id = rig.Put(kAnn, bad);
  const SegmentId sound = rig.Put(kAnn, good);
  CHECK(rig.Count("SELECT COUNT(*) FROM segment") == 2);
  const std::string of_bad = " WHERE n = (SELECT MIN(n) FROM segment)";
  const std::string of_its = " WHERE id = (SELECT MIN(id) FROM segment_variant)";
  struct Case {
    const char* name;
    std::string sql;
    bool segment;  // damaged, not only its variant
  };
  const Case cases[] = {
      {"a token", "UPDATE segment SET tokens = x'00000000' || substr(tokens, 5)" + of_bad, true},
      {"cut tokens", "UPDATE segment SET tokens = substr(tokens, 1, 7)" + of_bad, true},
      {"no tokens", "UPDATE segment SET tokens = x''" + of_bad, true},
      {"tenant", "UPDATE segment SET tenant = 'eve'" + of_bad, true},
      {"role", "UPDATE segment SET role = 7" + of_bad, true},
      {"text for tokens", "UPDATE segment SET tokens = 'tokens'" + of_bad, true},
      {"position", "UPDATE segment_variant SET position = 5" + of_its, false},
      {"negative position", "UPDATE segment_variant SET position = -32" + of_its, false},
      {"count", "UPDATE segment_variant SET count = 1000" + of_its, false},
      {"few", "UPDATE segment_variant SET count = 3" + of_its, false},
      {"parent", "UPDATE segment_variant SET parent = x'00'" + of_its, false},
      {"rest", "UPDATE segment_variant SET rest = x'00000000'" + of_its, false},
      {"kind", "UPDATE segment_variant SET kind = 2" + of_its, false},
      {"isolated", "UPDATE segment_variant SET kind = 1, position = 32" + of_its, false},
      {"generation", "UPDATE segment_variant SET generation = 9" + of_its, false},
      {"left", "UPDATE segment_variant SET left_hashes = zeroblob(800)" + of_its, false},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    REQUIRE(rig.Sql("UPDATE segment SET given = 1" + of_bad).ok());
    const Status broken = rig.Sql(c.sql);
    REQUIRE_MESSAGE(broken.ok(), broken.ToString());
    rig.Open();
    CHECK(rig.store->stats().corrupt == 1);
    CHECK(rig.Runs(kAnn, bad) == 0);
    CHECK(rig.store->Get(kAnn, id).ok() != c.segment);
    CHECK(rig.Runs(kAnn, good) == 1);
    CHECK(rig.store->Get(kAnn, sound).ok());
    rig.Open();  // the damaged row is gone
    CHECK(rig.store->stats().corrupt == 0);
    // It comes again, before the sound one for the next case.
    REQUIRE(rig.store->Delete(kAnn, sound).ok());
    if (!c.segment) REQUIRE(rig.store->Delete(kAnn, id).ok());
    rig.Put(kAnn, bad);
    rig.Put(kAnn, good);
    CHECK(rig.Count("SELECT COUNT(*) FROM segment_variant") == 2);
  }
}

TEST_CASE("lists come in pages and pins last") {
  Rig rig;
  for (int i = 0; i < 5; ++i) rig.Give(kAnn, RandomTokens(rig.rng, 10, 5000), i == 2);
  const auto page = rig.store->List(kAnn, 0, 3);
  REQUIRE(page.size() == 3);
  CHECK(page[2].pinned);
  CHECK(rig.store->List(kAnn, page[2].n, 3).size() == 2);
  CHECK(rig.store->List(kAnn, page[2].n + 100, 3).empty());
  // The same from the newest on.
  constexpr auto kDown = ListOrder::kDescending;
  const auto newest = rig.store->List(kAnn, page[2].n + 100, 2, kDown);
  REQUIRE(newest.size() == 2);
  CHECK(newest[0].n > newest[1].n);
  CHECK(newest[1].n > page[2].n);
  CHECK(rig.store->List(kAnn, newest[1].n, 3, kDown)[0].id == page[2].id);
  CHECK(rig.store->List(kAnn, page[0].n, 3, kDown).empty());
  // Asked for again without a pin it stays pinned; its text stays as it was given.
  const auto again = rig.Give(kAnn, rig.store->Body(kAnn, page[2].id)->tokens);
  CHECK(again.id == page[2].id);
  CHECK(again.pinned);
}

TEST_CASE("of a tainted timeline only what is exact is learnt") {
  Rig rig;
  PagePool pool(ToyGroups(), 64 * kToyPageBytes);
  const auto computed = [&](std::vector<TokenId> tokens) {
    Timeline t(&pool, kAnn, Filled(1));
    t.Extend(tokens);
    ToyComputeAll(t);
    return t;
  };
  // Six pages, of which the fourth comes from elsewhere: what lies behind it rests on that.
  const Timeline source = computed(ToyTokens(5 * kPageTokens, 5000));
  Timeline t(&pool, kAnn, Filled(1));
  t.Extend(ToyTokens(3 * kPageTokens));
  REQUIRE(t.Splice(source.runs()[4].page.Share(), 0, kPageTokens, -kPageTokens).ok());
  t.Extend(ToyTokens(2 * kPageTokens, 900));
  ToyComputeAll(t);
  REQUIRE_FALSE(t.taint().IsZero());
  const auto n = [](int pages) { return int64_t{pages} * kPageTokens; };
  const std::vector<BodySpan> bodies = {
      {n(0) + 8, n(3), "user"}, {n(3), n(6), "tool"}, {n(4), n(6), "user"}, {n(1), n(6), "tool"}};
  rig.store->Learn(t, bodies, 1);
  const auto list = rig.store->List(kAnn, 0, 10);
  REQUIRE(list.size() == 2);  // the first, and of the last what lies before the fourth page
  CHECK(list[0].variants[0].tokens == n(3) - 8);
  CHECK(list[1].variants[0].tokens == n(2));
  for (const SegmentInfo& info : list) CHECK(info.variants[0].generation == 0);
  // The same tokens, all exact.
  const auto tokens = t.tokens();
  rig.store->Learn(computed({tokens.begin(), tokens.end()}), bodies, 2);
  CHECK(rig.store->List(kAnn, 0, 10).size() == 4);
}

}  // namespace
}  // namespace holdfast
