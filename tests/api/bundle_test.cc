// Sessions that go on elsewhere, and bundles that are not what they should be.
#include "sessions/bundle.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "engine/backend/cpu/levels.h"
#include "sessions/bundle_rows.h"
#include "tests/api/bundle_forger.h"
#include "tests/api/runtime_bench.h"
#include "tests/engine/base/format_example.h"
#include "tests/engine/store/fault_vfs.h"

namespace holdfast {
namespace {

const std::string kKey = "a key of enough bytes", kOtherKey = "another key of enough bytes";
const std::string kShorter = "Shorter.";
const std::string kLong = "What is in the folder? List all of it, one name to a line, please.";

// A conversation with a branch, a snapshot and two turns, and the one who holds it.
struct Home {
  RuntimeBench bench;
  Talk talk{"chat"};
  std::string snapshot;

  Home() {
    talk.User(kLong + kLong);
    talk.Keep(bench.Say(talk.Request()));
    MakeBranch side;
    side.name = "side";
    side.at_item = 1;
    REQUIRE(keeper().Branch("ann", "chat", side).ok());
    const auto taken = keeper().Snapshot("ann", "chat", "", "here");
    REQUIRE(taken.ok());
    snapshot = taken->id;
    talk.User("Shorter.");
    talk.Keep(bench.Say(talk.Request()));
  }
  Keeper& keeper() { return bench.runtime().keeper(); }
  Bytes Export(const ExportOptions& options = {.key = kKey}) {
    auto bytes = ExportBytes(keeper(), "ann", "chat", options);
    REQUIRE_MESSAGE(bytes.ok(), bytes.status().ToString());
    return std::move(*bytes);
  }
};

// The next two turns: a greedy one and one that the session's seed decides.
std::vector<Answer> GoOn(RuntimeBench& bench, Talk talk, const std::string& tenant,
                         const std::string& id) {
  std::vector<Answer> answers;
  for (const float temperature : {0.0f, 1.0f}) {
    talk.User("And what does the second one do?");
    ChatRequest r = talk.Request();
    r.tenant = tenant;
    r.session.id = id;
    r.sampling.temperature = temperature;
    answers.push_back(bench.Say(r));
    talk.Keep(answers.back());
  }
  return answers;
}

TEST_CASE("a session goes on elsewhere to the bit, and its pages are used where the key fits") {
  Home home;
  const Bytes bundle = home.Export();
  const std::vector<Answer> want = GoOn(home.bench, home.talk, "ann", "chat");
  struct Case {
    std::string tenant, key, cpu, why;
  };
  for (const Case& c : {Case{"ann", kKey, "", ""}, Case{"bob", kKey, "portable", ""},
                        Case{"bob", "", "", "no key was given"},
                        Case{"ann", kOtherKey, "", "the signature is not of this key"}}) {
    CAPTURE(c.tenant);
    CAPTURE(c.key);
    RuntimeBench away({.cpu = c.cpu});
    const auto report =
        ImportBytes(away.runtime().keeper(), c.tenant, bundle, {.key = c.key, .as = ""});
    REQUIRE_MESSAGE(report.ok(), report.status().ToString());
    const bool trusted = c.key == kKey;
    CHECK(report->is_signed);
    CHECK(report->authentic == trusted);
    CHECK(report->pages > 3);
    CHECK(report->pages_taken == (trusted ? report->pages : 0));
    CHECK(report->pages_left_why == c.why);
    CHECK(report->session.external_id == "chat");
    CHECK(report->session.id == report->bundle_id);
    const std::vector<Answer> got = GoOn(away, home.talk, c.tenant, "chat");
    CHECK(got == want);
    CHECK(got[0].done.report.start.stitch.from_warm == 0);
    CHECK((got[0].done.report.start.stitch.from_store > 0) == trusted);
    // All whole pages but for the rows that are always computed.
    if (trusted) CHECK(got[0].done.report.start.stitch.from_store / 32 == report->pages);
    CHECK(got[0].done.report.start.branch == "main");
    CHECK_FALSE(got[0].done.report.start.miss);
  }
}

TEST_CASE("a bundle of one instruction set goes on under the others") {
  for (const CpuLevel& row : CpuLevels()) {
    const std::string level(row.name);
    CAPTURE(level);
    if (!row.present()) continue;
    Home home;  // the best one
    const Bytes bundle = home.Export();
    RuntimeBench away({.cpu = level});
    REQUIRE(ImportBytes(away.runtime().keeper(), "ann", bundle, {.key = kKey, .as = ""}).ok());
    CHECK(GoOn(away, home.talk, "ann", "chat") == GoOn(home.bench, home.talk, "ann", "chat"));
    CHECK(away.runtime().engine().cpu_level() == level);
  }
}

TEST_CASE("branches, snapshots, items and events come along") {
  Home home;
  RuntimeBench away;
  REQUIRE(ImportBytes(away.runtime().keeper(), "bob", home.Export(), {}).ok());
  Keeper& k = away.runtime().keeper();
  const auto branches = k.Branches("bob", "chat"), before = home.keeper().Branches("ann", "chat");
  REQUIRE(branches->size() == before->size());
  for (size_t i = 0; i < before->size(); ++i) {
    const BranchInfo &a = (*before)[i], &b = (*branches)[i];
    CHECK(a.name == b.name);
    CHECK(a.tokens == b.tokens);
    CHECK(a.items == b.items);
    CHECK(a.is_default == b.is_default);
    CHECK(a.generation == b.generation);
    CHECK(*k.Tokens("bob", "chat", b.name) == *home.keeper().Tokens("ann", "chat", a.name));
    CHECK(k.Items("bob", "chat", b.name, {})->rows.back().raw_json ==
          home.keeper().Items("ann", "chat", a.name, {})->rows.back().raw_json);
  }
  CHECK(k.Snapshots("bob", "chat")->front().id == home.snapshot);
  CHECK(k.Events("bob", "chat", {})->rows.size() ==
        home.keeper().Events("ann", "chat", {})->rows.size() + 1);
  CHECK(k.Events("bob", "chat", {})->rows.back().kind == "session_imported");
  MakeBranch back;
  back.snapshot = home.snapshot;
  CHECK(k.Branch("bob", "chat", back).ok());
  CHECK(k.CheckLog()->damaged() == 0);
}

TEST_CASE("a bundle that ends at a snapshot goes on there as the session did") {
  Home home;
  Talk then("chat");  // as it was when the snapshot was taken
  then.User(kLong + kLong);
  RuntimeBench first;
  then.Keep(first.Say(then.Request()));
  const Bytes bundle = home.Export({.key = kKey, .snapshot = home.snapshot});
  CHECK(std::search(bundle.begin(), bundle.end(), kShorter.begin(), kShorter.end(),
                    [](std::byte a, char b) { return a == std::byte(b); }) == bundle.end());
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  const auto report = ImportBytes(k, "bob", bundle, {.key = kKey, .as = ""});
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->pages_taken == report->pages);
  CHECK(report->pages > 3);
  CHECK(report->session.turns == 1);
  CHECK(report->session.branches == 1);
  CHECK(report->session.tokens == home.keeper().Snapshots("ann", "chat")->front().tokens);
  CHECK(k.Snapshots("bob", "chat")->size() == 1);
  CHECK(k.CheckLog()->damaged() == 0);
  then.User("Shorter.");  // what came next at home comes next here
  ChatRequest r = then.Request();
  r.tenant = "bob";
  const Answer next = away.Say(r);
  CHECK(next.done.report.start.branch == "main");
  CHECK(next.done.content == home.talk.messages().back().text);
}

TEST_CASE("a snapshot inside a message takes nothing of what stands behind it along") {
  Home home;
  MakeBranch inside;
  inside.name = "inside";
  inside.at_token = 40;
  REQUIRE(home.keeper().Branch("ann", "chat", inside).ok());
  const auto snapshot = home.keeper().Snapshot("ann", "chat", "inside", "");
  REQUIRE(snapshot.ok());
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  const auto report =
      ImportBytes(k, "bob", home.Export({.key = kKey, .snapshot = snapshot->id}),
                  {.key = kKey, .as = ""});
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->session.default_branch == "inside");
  CHECK(report->session.tokens == 40);
  CHECK(report->session.items == 0);
  int64_t tokens = 0;
  REQUIRE(away.runtime()
              .database()
              .Read([&](Reader& reader) {
                Rows rows = reader.Query("SELECT SUM(length(tokens)) / 4 FROM node");
                if (rows.Next()) tokens = rows.Int(0);
                return rows.status();
              })
              .ok());
  CHECK(tokens == 40);
  CHECK(k.CheckLog()->damaged() == 0);
  CHECK(home.keeper()
            .Export("ann", "chat", {.key = kKey, .snapshot = "snap_none"})
            .status()
            .code() == Code::kNotFound);
}

TEST_CASE("a branch with a name that no header can carry is not taken") {
  Home home;
  std::vector<RawSection> sections = SectionsOf(home.Export());
  for (RawSection& s : sections) {
    if (s.kind != BundleSection::kBranch) continue;
    auto branch = DecodeRow<BundleBranch>(s.payload);
    REQUIRE(branch.ok());
    if (branch->name == "side") branch->name = "side\r\nx: y";
    s.payload = EncodeRow(*branch);
  }
  RuntimeBench away;
  const auto report =
      ImportBytes(away.runtime().keeper(), "bob", Framed(sections, kKey),
                  {.key = kKey, .as = ""});
  CHECK(report.status().code() == Code::kCorrupt);
  CHECK(report.status().message().find("control characters") != std::string::npos);
  CHECK(away.runtime().keeper().List("bob", {})->rows.empty());
}

TEST_CASE("an aborted turn is taken up again elsewhere, with the same tokens") {
  Home home;
  ChatRequest r = Talk(home.talk).User("And now?").Request();
  r.sampling.temperature = 1;
  r.max_tokens = 200;
  {
    std::unique_ptr<ChatStream> stream;
    REQUIRE(home.bench.Start(r, &stream).ok());
    for (size_t seen = 0; seen < 3;) seen += stream->Next(-1)->tokens.size();
  }
  const Bytes bundle = home.Export();
  RuntimeBench away;
  REQUIRE(ImportBytes(away.runtime().keeper(), "ann", bundle, {}).ok());
  const Answer got = away.Say(r), want = home.bench.Say(r);
  CHECK(got.done.report.start.retry);
  CHECK(got == want);
}

TEST_CASE("ids that are there already") {
  Home home;
  const Bytes bundle = home.Export();
  const Status there = ImportBytes(home.keeper(), "ann", bundle, {}).status();
  CHECK(there.code() == Code::kConflict);
  CHECK(there.message().find("--as") != std::string::npos);
  const auto copy = ImportBytes(home.keeper(), "ann", bundle, {.key = kKey, .as = "copy"});
  REQUIRE_MESSAGE(copy.ok(), copy.status().ToString());
  CHECK(copy->session.id != copy->bundle_id);
  CHECK(copy->session.external_id == "copy");
  CHECK(home.keeper().Snapshots("ann", "copy")->front().id != home.snapshot);
  CHECK(home.keeper().List("ann", {})->rows.size() == 2);
  CHECK(ImportBytes(home.keeper(), "ann", bundle, {.key = "", .as = "sess_x"}).status().code() ==
        Code::kInvalid);
  CHECK(ImportBytes(home.keeper(), "ann", bundle, {.key = "short", .as = "x"}).status().code() ==
        Code::kInvalid);
  // The copy and the original are two sessions.
  CHECK(GoOn(home.bench, home.talk, "ann", "copy") == GoOn(home.bench, home.talk, "ann", "chat"));
}

TEST_CASE("what another model said comes in, and its messages in this one's tokens") {
  Home home;
  for (const int vocab : {320, 400}) {  // the same tokenizer, and another
    CAPTURE(vocab);
    RuntimeBench other({.model_seed = 2, .vocab = vocab});
    Keeper& k = other.runtime().keeper();
    const auto report = ImportBytes(k, "ann", home.Export(), {.key = kKey, .as = ""});
    REQUIRE_MESSAGE(report.ok(), report.status().ToString());
    REQUIRE(report->miss);
    CHECK(report->miss->reason == "model_changed");
    CHECK(report->pages > 0);
    CHECK(report->pages_taken == 0);
    CHECK(report->pages_left_why.find("another model") != std::string::npos);
    CHECK(report->session.default_branch != "main");
    // What was recorded is as it was.
    CHECK(*k.Tokens("ann", "chat", "main") == *home.keeper().Tokens("ann", "chat", "main"));
    const auto anew = k.Items("ann", "chat", "", {}), was = home.keeper().Items("ann", "chat", "", {});
    REQUIRE(anew->rows.size() == was->rows.size());
    for (size_t i = 0; i < was->rows.size(); ++i) {
      CHECK(anew->rows[i].raw_json == was->rows[i].raw_json);
    }
    CHECK(report->miss->at_token <= report->session.tokens);
    // It goes on like a session that has had this history from the beginning.
    Talk talk = home.talk;
    talk.User("And what does the second one do?");
    const Answer got = other.Say(talk.Request());
    CHECK(got.done.report.start.branch == report->session.default_branch);
    CHECK_FALSE(got.done.report.start.miss);
    ChatRequest fresh = talk.Request();
    fresh.session.id = "fresh";
    CHECK(got == other.Say(fresh));
    CHECK(k.Get("ann", "chat")->turns == 3);
    CHECK(k.CheckLog()->damaged() == 0);
  }
}

TEST_CASE("answers over approximate KV go elsewhere as tokens, their KV is made anew there") {
  RuntimeBench home, away;
  home.GiveCard();
  away.GiveCard();
  Talk before("chat"), after("chat");
  const std::string text = kLong + kLong + kLong + kLong;
  ChatRequest first = before.User("Forget this: " + kLong).User(text).Request();
  home.Say(first);
  ChatRequest edited = after.User(text).Request();
  edited.reuse.policy = ReusePolicy::kFast;
  const Answer approximate = home.Say(edited);
  REQUIRE(approximate.done.report.start.stitch.totals.approximate > 0);
  const std::string branch = approximate.done.report.start.branch;
  const auto bundle = ExportBytes(home.runtime().keeper(), "ann", "chat", {.key = kKey});
  REQUIRE(bundle.ok());
  Keeper& k = away.runtime().keeper();
  const auto report = ImportBytes(k, "ann", *bundle, {.key = kKey, .as = ""});
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->approximate_turns == 1);
  CHECK(*k.Tokens("ann", "chat", branch) ==
        *home.runtime().keeper().Tokens("ann", "chat", branch));
  const auto map = k.Provenance("ann", "chat", branch);
  CHECK(map->hardened);
  CHECK(map->policy == ReusePolicy::kFast);
  CHECK(TotalsOf(map->spans).approximate == 0);
  CHECK(TotalsOf(k.Provenance("ann", "chat", "main")->spans).restored > 0);
  // A replay takes its tokens as given; what follows is exact, as a session's that never reused.
  const auto verify = [&](RuntimeBench& b) {
    ReplayRequest request;
    request.tenant = "ann";
    request.session = "chat";
    request.branch = branch;
    auto replay = b.runtime().StartReplay(std::move(request));
    REQUIRE(replay.ok());
    for (;;) {
      auto next = (*replay)->Next(-1);
      REQUIRE(next.ok());
      if ((*next)->report) return !(*next)->report->divergence;
    }
  };
  CHECK(verify(away));
  after.Keep(approximate).User("And now?");
  const ChatRequest on = after.Request();  // exact
  const Answer there = away.Say(on);
  CHECK(there.done.report.start.branch == branch);
  CHECK(there.done.report.start.stitch.totals.approximate == 0);
  CHECK(there == home.Say(on));
  CHECK(verify(away));
  // It goes out again as it came.
  const auto again = ExportBytes(k, "ann", "chat", {});
  RuntimeBench third;
  const auto taken = ImportBytes(third.runtime().keeper(), "ann", *again, {});
  REQUIRE_MESSAGE(taken.ok(), taken.status().ToString());
  CHECK(taken->approximate_turns == 1);
}

TEST_CASE("a bundle of version 1 is read; recipes in the wrong place are not") {
  Home home;
  Bytes old = home.Export({});
  CHECK(old[8] == std::byte{2});
  old[8] = std::byte{1};  // the header is in no section
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  REQUIRE(ImportBytes(k, "ann", old, {}).ok());
  REQUIRE(k.Delete("ann", "chat").ok());
  old[8] = std::byte{3};
  CHECK(ImportBytes(k, "ann", old, {}).status().code() == Code::kInvalid);

  const std::vector<RawSection> sections = SectionsOf(home.Export({}));
  const auto with = [&](size_t at, int64_t policy) {
    std::vector<RawSection> forged = sections;
    forged.insert(forged.begin() + static_cast<int64_t>(at),
                  {BundleSection::kRecipe, EncodeRow(BundleRecipe{policy})});
    return ImportBytes(k, "ann", Framed(forged, ""), {}).status();
  };
  size_t input = 0, output = 0;  // behind the first nodes of each kind and their items
  for (size_t i = 0; i < sections.size() && output == 0; ++i) {
    if (sections[i].kind != BundleSection::kNode) continue;
    const bool is_output = DecodeRow<BundleNode>(sections[i].payload)->kind == 1;
    size_t end = i + 1;
    while (sections[end].kind == BundleSection::kItem) ++end;
    (is_output ? output : input) = end;
  }
  REQUIRE(input * output > 0);
  CHECK(with(input, 2).code() == Code::kCorrupt);
  for (const int64_t policy : {-1, 0, 1, 6}) CHECK(with(output, policy).code() == Code::kCorrupt);
  CHECK(with(1, 2).code() == Code::kCorrupt);
  CHECK(with(output, 2).ok());
}

TEST_CASE("no pages go out without a key") {
  Home home;
  RuntimeBench away;
  for (const ExportOptions& o : {ExportOptions{.key = ""}, {.key = kKey, .pages = false}}) {
    const auto report = ImportBytes(away.runtime().keeper(), "t" + o.key, home.Export(o), {});
    REQUIRE(report.ok());
    CHECK(report->pages == 0);
    CHECK(report->is_signed == !o.key.empty());
  }
}

TEST_CASE("an import that fails at any write is there in whole or not at all") {
  Home home;
  const Bytes bundle = home.Export();
  testing::FaultVfs vfs;
  RuntimeBench away({.vfs = vfs.name()});
  const auto rows = [&] {
    int64_t n = -1;
    const Status s = away.runtime().database().Read([&](Reader& reader) {
      Rows r = reader.Query("SELECT (SELECT COUNT(*) FROM session) + (SELECT COUNT(*) FROM node)");
      if (r.Next()) n = r.Int(0);
      return r.status();
    });
    REQUIRE(s.ok());
    return n;
  };
  int n = 1, whole = 0;
  for (;; ++n) {
    REQUIRE(n < 500);
    vfs.FailAt(n, testing::FaultVfs::Fault::kDiskFull, testing::FaultVfs::Repeat::kFromThenOn);
    const Status s = ImportBytes(away.runtime().keeper(), "ann", bundle, {}).status();
    if (!s.ok()) REQUIRE(away.runtime().keeper().List("ann", {})->rows.empty());
    vfs.Heal();
    if (s.ok()) break;
    away.Restart();  // as after a crash: nothing could be cleaned up
    Keeper& k = away.runtime().keeper();
    if (k.List("ann", {})->rows.empty()) {
      REQUIRE(away.runtime().stats().keeper.sessions == 0);
      REQUIRE(rows() == 0);
    } else {  // the last commit was on the disk when its sync failed
      ++whole;
      REQUIRE(k.CheckLog()->damaged() == 0);
      REQUIRE(*k.Tokens("ann", "chat", "") == *home.keeper().Tokens("ann", "chat", ""));
      REQUIRE(k.Delete("ann", "chat").ok());
    }
  }
  CHECK(n > 4);
  CHECK(whole < n / 2);
  CHECK(GoOn(away, home.talk, "ann", "chat") == GoOn(home.bench, home.talk, "ann", "chat"));
}

// ---- damage ------------------------------------------------------------------------------------

TEST_CASE("FORMAT.md's worked example is what the writer makes") {
  const BundleEvent event{.at_ms = 1'700'000'000'000, .kind = "rewind", .branch = "main",
                          .turn = "", .detail = "{}"};
  const Bytes bytes = Framed({{BundleSection::kEvent, EncodeRow(event)}}, "0123456789abcdef");
  CHECK(testing::HexLines(bytes) ==
        testing::HexBlockOf(HOLDFAST_SOURCE_DIR "/sessions/FORMAT.md"));
}

TEST_CASE("20000 damaged bundles are refused, every one") {
  Home home;
  const Bytes good = home.Export();
  Forger forger(SectionsOf(good), SectionsOf(good), kOtherKey, 5);
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  for (int i = 0; i < 20'000; ++i) {
    CAPTURE(i);
    const Bytes bad = forger.Damaged(good, i);
    const Status s = ImportBytes(k, "ann", bad, {.key = kKey, .as = ""}).status();
    if (s.code() == Code::kCorrupt || s.code() == Code::kInvalid) continue;
    FAIL(s.ToString());
  }
  CHECK(k.List("ann", {})->rows.empty());
}

TEST_CASE("tokens that the model does not have are refused") {
  Home home;
  std::vector<RawSection> sections = SectionsOf(home.Export());
  const auto node = std::find_if(sections.begin(), sections.end(), [](const RawSection& s) {
    return s.kind == BundleSection::kNode;
  });
  const BundleNode original = *DecodeRow<BundleNode>(node->payload);
  BundleNode row = original;
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  const auto import = [&](TokenId token) {
    row.tokens[3] = token;
    node->payload = EncodeRow(row);
    return ImportBytes(k, "ann", Framed(sections, ""), {}).status();
  };
  for (const TokenId t : {-1, 320, INT32_MAX, INT32_MIN}) {
    CHECK(import(t).code() == Code::kCorrupt);
  }
  // A node that says that another model made it may hold them; the engine computes none of them.
  row.model_digest = {};
  REQUIRE(import(320).ok());
  ChatRequest r = Talk(home.talk).User("go on").Request();
  std::unique_ptr<ChatStream> stream;
  CHECK(away.Start(r, &stream).code() == Code::kInvalid);
  REQUIRE(k.Delete("ann", "chat").ok());
  row = original;
  CHECK(import(original.tokens[3]).ok());
}

TEST_CASE("4000 forged bundles are refused or bring tokens alone") {
  Home home, second;
  Forger forger(SectionsOf(home.Export()), SectionsOf(second.Export()), kOtherKey, 6);
  RuntimeBench away;
  Keeper& k = away.runtime().keeper();
  int taken = 0;
  for (int i = 0; i < 4'000; ++i) {
    CAPTURE(i);
    const auto report = ImportBytes(k, "ann", forger.Next(), {.key = kKey, .as = "forged"});
    if (!report.ok()) {
      const Code code = report.status().code();
      if (code == Code::kCorrupt || code == Code::kInvalid || code == Code::kConflict) continue;
      FAIL(report.status().ToString());
    }
    ++taken;
    REQUIRE_FALSE(report->authentic);
    REQUIRE(report->pages_taken == 0);
    // What was taken can be looked at and gone on with.
    REQUIRE(k.CheckLog()->damaged() == 0);
    const auto branches = k.Branches("ann", "forged");
    REQUIRE(branches.ok());
    for (const BranchInfo& b : *branches) {
      REQUIRE(k.Tokens("ann", "forged", b.name).ok());
      REQUIRE(k.Items("ann", "forged", b.name, {}).ok());
    }
    if (taken % 20 == 0) {
      ChatRequest r = Talk(home.talk).User("go on").Request();
      r.session.id = "forged";
      std::unique_ptr<ChatStream> stream;
      const Status begun = away.Start(r, &stream);
      if (begun.ok()) RuntimeBench::Drain(stream.get());
    }
    REQUIRE(k.Delete("ann", "forged").ok());
  }
  CHECK(taken > 50);
  CHECK(away.runtime().stats().store.pages < 40);  // those of the turns here
}

}  // namespace
}  // namespace holdfast
