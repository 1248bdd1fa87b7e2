// The keeper against a model of it: random operations on a real keeper, database, pool and page
// store, and on lists of tokens in memory. After each step both must say the same.
//
// Turns are decoded by a stand-in for the engine: it draws tokens by chance and writes into each
// row of a page a hash of all tokens up to it, so that a row which a stitched timeline takes from
// anywhere can be told to be the right one. Held all the time: the tokens of what was touched, the
// text of each prompt, the pool's invariants, as many leases on a page at least as there are runs
// of timelines held here, and none at all once nothing is held.
//
//   HOLDFAST_STEPS=1000000 HOLDFAST_SEED=7 model_test      the long walk
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "tests/api/bundle_bench.h"
#include "tests/engine/store/fault_vfs.h"
#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

constexpr size_t kMaxSessions = 6, kMaxBranches = 6, kMaxOpenTurns = 3, kMaxTokens = 500;
constexpr int kStepsPerLine = 20'000;  // of progress
constexpr char kAnn[] = "ann", kKey[] = "the walk's bundle key";

using Tokens = std::vector<TokenId>;

// What a branch or snapshot holds.
struct Head {
  struct Item {
    std::string role, text;
    size_t end = 0;  // of its tokens
  };
  Tokens tokens;
  std::vector<Item> items;
  bool inside_item = false;  // ends in the middle of one: good for looking alone

  void CutItems(size_t n) {
    items.resize(n);
    tokens.resize(n == 0 ? 0 : items.back().end);
  }
  void CutTokens(size_t n) {
    tokens.resize(n);
    while (!items.empty() && items.back().end > n) items.pop_back();
    inside_item = n != (items.empty() ? 0 : items.back().end);
  }
};

struct Session {
  std::string id;  // "sess_..."
  std::map<std::string, Head> branches;
  std::map<std::string, Head> snapshots;  // by id
  std::string default_branch;
};

struct OpenTurn {
  std::unique_ptr<Turn> turn;
  std::optional<Timeline> timeline;
  std::string session, branch;
  Head after;  // what the branch will hold: the prompt, and the item of what was asked
};

std::vector<uint64_t> PrefixHashes(std::span<const TokenId> tokens) {
  std::vector<uint64_t> out;
  uint64_t h = 0x9e3779b97f4a7c15u;
  for (const TokenId t : tokens) {
    h = (h ^ static_cast<uint64_t>(t)) * 0xff51afd7ed558ccdu;
    h ^= h >> 29;
    out.push_back(h);
  }
  return out;
}

class Walk {
 public:
  explicit Walk(uint64_t seed) : seed_(seed), random_(seed) { gen_ = Encoded(kGen); }

  void Go(int steps) {
    for (step_ = 0; step_ < steps; ++step_) {
      Step();
      bench_.engine().pool().CheckInvariants();
      if (step_ % 64 == 63) CheckAll();
      if (step_ % 2000 == 1999) {
        Expect(bench_.keeper().CheckLog()->damaged() == 0, "the log is damaged");
      }
      if (step_ % kStepsPerLine == kStepsPerLine - 1) {
        std::printf("  %d of %d steps\n", step_ + 1, steps);
      }
    }
    CheckAll();
    CheckNothingHeld();
  }

 private:
  static constexpr char kGen[] = "<|im_start|>assistant\n";

  void Expect(bool held, const std::string& what) {
    if (!held) FAIL(what << " (seed " << seed_ << ", step " << step_ << ", " << doing_ << ")");
  }
  void ExpectOk(const Status& s) { Expect(s.ok(), s.ToString()); }
  size_t Pick(size_t n) { return n == 0 ? 0 : random_() % n; }
  Keeper& keeper() { return bench_.keeper(); }
  Tokens Encoded(const std::string& text) { return bench_.Encode(text); }

  template <typename Map>
  auto Any(Map& map) {
    auto it = map.begin();
    std::advance(it, Pick(map.size()));
    return it;
  }
  bool IsBusy(const std::string& session, const std::string& branch) const {
    return std::any_of(open_.begin(), open_.end(), [&](const OpenTurn& t) {
      return t.session == session && (branch.empty() || t.branch == branch);
    });
  }

  void Step() {
    const size_t chance = Pick(1000);
    if (sessions_.empty() || (chance < 60 && sessions_.size() < kMaxSessions)) return NewSession();
    if (chance < 420) return Begin();
    if (chance < 700) return Commit();
    if (chance < 760) return Abort();
    if (chance < 850) return Branch(MakeBranch::Default::kKeep);
    if (chance < 890) return Branch(MakeBranch::Default::kMove);
    if (chance < 915) return Edit();
    if (chance < 935) return Snapshot();
    if (chance < 955) return Delete();
    if (chance < 975) return Evict();
    if (chance < 980) return DropCached();
    if (chance < 983) return ExportImport();
    if (chance == 983 && Pick(4) == 0) return Reopen();
    CheckOne(Any(sessions_)->first);
  }

  // ---- turns

  void NewSession() {
    doing_ = "create";
    const std::string name = "s" + std::to_string(next_name_++);
    CreateSession create;
    create.external_id = name;
    const auto made = keeper().Create(kAnn, create);
    ExpectOk(made.status());
    Session s;
    s.id = made->id;
    s.default_branch = made->default_branch;
    s.branches[made->default_branch];
    sessions_[name] = std::move(s);
  }

  std::string TextOf(const Head& head) const {
    std::string text;
    for (const auto& item : head.items) {
      text += "<|im_start|>" + item.role + "\n" + item.text + "<|im_end|>\n";
    }
    return text;
  }

  void Begin() {
    doing_ = "begin";
    if (open_.size() >= kMaxOpenTurns) return Commit();
    const auto [name, session] = *Any(sessions_);
    const auto [branch, head] = *Any(session.branches);
    if (head.inside_item || head.tokens.size() > kMaxTokens) return;
    static constexpr const char* kWords[] = {"read it", "what is in the folder of the second one",
                                             "no", "list all of it, one name to a line, please"};
    const std::string said = kWords[Pick(std::size(kWords))];
    std::vector<ChatMessage> messages;
    TurnRequest r;
    r.append = Pick(2) == 0;
    if (!r.append) {
      for (const auto& item : head.items) {
        messages.push_back(item.role == "user" ? User(item.text) : Assistant(item.text));
      }
    }
    messages.push_back(User(said));
    r.tenant = kAnn;
    r.session = {name, branch};
    r.messages = messages;
    r.params_digest.bytes[0] = static_cast<uint8_t>(Pick(3));
    const bool busy = IsBusy(name, branch);
    r.on_busy = busy && Pick(2) == 0 ? OnBusy::kReject : OnBusy::kFork;
    if (busy && r.on_busy == OnBusy::kFork && session.branches.size() >= kMaxBranches) return;
    auto turn = keeper().Begin(r);
    if (busy && r.on_busy == OnBusy::kReject) {
      Expect(turn.status().code() == Code::kConflict, "a busy head was not refused");
      return;
    }
    ExpectOk(turn.status());
    OpenTurn t;
    t.turn = std::move(turn).value();
    t.session = name;
    t.branch = t.turn->start().branch;
    if (t.branch != branch) {
      Expect(busy, "another branch than was asked for: " + t.branch);
      sessions_[name].branches[t.branch] = head;
    }
    const auto prompt = t.turn->prompt();
    t.after = head;
    Expect(prompt.size() >= head.tokens.size() &&
               std::equal(head.tokens.begin(), head.tokens.end(), prompt.begin()),
           "the prompt does not begin with the head's tokens");
    t.after.tokens.assign(prompt.begin(), prompt.end());
    t.after.items.push_back({"user", said, prompt.size() - gen_.size()});
    const std::string text = bench_.Decode(prompt);
    Expect(text == TextOf(t.after) + kGen, "the prompt is '" + text + "'");
    t.timeline = t.turn->TakeTimeline();
    CheckRows(*t.timeline);
    FillAllBut(&*t.timeline, 0);
    open_.push_back(std::move(t));
  }

  // The engine's part: all pending rows but the last `rest`.
  void FillAllBut(Timeline* timeline, int64_t rest) {
    const std::vector<uint64_t> hashes = PrefixHashes(timeline->tokens());
    while (timeline->pending() > rest) {
      auto rows = timeline->NextRows(timeline->pending() - rest);
      ExpectOk(rows.status());
      for (const Timeline::Row& row : *rows) {
        std::memcpy(row.page->payload() + row.slot * sizeof(uint64_t), &hashes[row.index],
                    sizeof(uint64_t));
      }
      timeline->Filled(static_cast<int64_t>(rows->size()));
    }
    timeline->CheckInvariants();
    CheckRows(*timeline);
  }

  // Each row is that of these tokens, wherever it came from.
  void CheckRows(const Timeline& timeline) {
    const std::vector<uint64_t> hashes = PrefixHashes(timeline.tokens());
    for (const Run& run : timeline.runs()) {
      for (int32_t i = 0; i < run.count && run.begin + i < timeline.filled(); ++i) {
        uint64_t got = 0;
        std::memcpy(&got, run.page.payload() + (run.first + i) * sizeof(got), sizeof(got));
        Expect(got == hashes[run.begin + i],
               "row " + std::to_string(run.begin + i) + " is of other tokens");
      }
    }
  }

  OpenTurn TakeOpen() {
    std::swap(open_[Pick(open_.size())], open_.back());
    OpenTurn t = std::move(open_.back());
    open_.pop_back();
    return t;
  }

  // Draws an answer into the turn's timeline.
  TurnOutcome Decode(OpenTurn* t, bool whole) {
    TurnOutcome outcome;
    Tokens drawn;
    for (size_t n = 1 + Pick(Pick(4) == 0 ? 60 : 12); n > 0; --n) {
      drawn.push_back(TinyByteToken(static_cast<uint8_t>('a' + Pick(2))));
    }
    std::string text = bench_.Decode(drawn);
    outcome.finish = "length";
    if (whole && Pick(3) > 0) {
      drawn.push_back(kTinyTurnEnd);
      outcome.finish = "stop";
    }
    for (const TokenId token : drawn) outcome.generated.push_back({token, 7, false});
    t->timeline->Extend(drawn);
    FillAllBut(&*t->timeline, 1);
    t->after.tokens.insert(t->after.tokens.end(), drawn.begin(), drawn.end());
    outcome.message = Assistant(text);
    outcome.response = text;
    t->after.items.push_back({"assistant", std::move(text), t->after.tokens.size()});
    outcome.timeline = std::move(t->timeline);
    return outcome;
  }

  void Commit() {
    doing_ = "commit";
    if (open_.empty()) return;
    OpenTurn t = TakeOpen();
    TurnOutcome outcome = Decode(&t, true);
    const CommitResult result = keeper().Commit(std::move(t.turn), std::move(outcome));
    Expect(result.durable, result.status.ToString());
    sessions_[t.session].branches[t.branch] = std::move(t.after);
    CheckOne(t.session);
  }

  void Abort() {
    doing_ = "abort";
    if (open_.empty()) return;
    OpenTurn t = TakeOpen();
    if (Pick(2) == 0) {
      TurnOutcome outcome = Decode(&t, false);
      keeper().Abort(std::move(t.turn), std::move(outcome));
    }
    t.turn.reset();
    CheckOne(t.session);
  }

  // ---- the tree

  void Branch(MakeBranch::Default which) {
    doing_ = "branch";
    auto& [name, session] = *Any(sessions_);
    if (session.branches.size() >= kMaxBranches) return;
    MakeBranch make;
    make.default_branch = which;
    Head head;
    if (!session.snapshots.empty() && Pick(4) == 0) {
      const auto it = Any(session.snapshots);
      make.snapshot = it->first;
      head = it->second;
    } else {
      const auto it = Any(session.branches);
      make.from = it->first;
      head = it->second;
      const size_t how = Pick(4);
      if (how < 2) {
        make.at_item = static_cast<int64_t>(Pick(head.items.size() + 1));
        head.CutItems(static_cast<size_t>(*make.at_item));
        head.inside_item = false;
      } else if (how == 2) {
        make.at_token = static_cast<int64_t>(Pick(head.tokens.size() + 1));
        head.CutTokens(static_cast<size_t>(*make.at_token));
      }
    }
    // Names like those that the keeper gives, so that they meet.
    if (Pick(2) == 0) make.name = "b" + std::to_string(Pick(12));
    const auto made = keeper().Branch(kAnn, name, make);
    if (session.branches.contains(make.name)) {
      Expect(made.status().code() == Code::kConflict, "a name was given twice");
      return;
    }
    ExpectOk(made.status());
    if (which == MakeBranch::Default::kMove) session.default_branch = made->name;
    session.branches[made->name] = std::move(head);
    CheckOne(name);
  }

  // One item is taken out, changed or put in. What comes behind it is tokenised anew.
  void Edit() {
    doing_ = "edit";
    auto& [name, session] = *Any(sessions_);
    const auto [branch, source] = *Any(session.branches);
    if (session.branches.size() >= kMaxBranches || source.items.empty()) return;
    Head head = source;
    MakeBranch make;
    make.from = branch;
    ItemEdit& edit = make.edits.emplace_back();
    edit.item = static_cast<int64_t>(Pick(head.items.size()));
    const auto at = head.items.begin() + edit.item;
    const size_t stands = edit.item == 0 ? 0 : (at - 1)->end;
    switch (Pick(3)) {
      case 0:
        head.items.erase(at);
        break;
      case 1:
        edit.op = ItemEdit::Op::kReplace;
        at->text = "never mind";
        edit.change = [assistant = at->role == "assistant"](ChatMessage* m) {
          *m = assistant ? Assistant("never mind") : User("never mind");
        };
        break;
      default:
        edit.op = ItemEdit::Op::kInsert;
        edit.message = User("by the way");
        head.items.insert(at, {"user", "by the way", 0});
    }
    const auto made = keeper().Branch(kAnn, name, make);
    ExpectOk(made.status());
    const auto tokens = keeper().Tokens(kAnn, name, made->name);
    ExpectOk(tokens.status());
    Expect(made->parent_tokens == static_cast<int64_t>(stands), "it leaves elsewhere");
    Expect(tokens->size() >= stands &&
               std::equal(tokens->begin(), tokens->begin() + stands, head.tokens.begin()),
           "what stands has other tokens");
    head.tokens = *tokens;
    head.inside_item = false;
    // The end marker of an answer that stands last comes with the next turn.
    const std::string text = bench_.Decode(head.tokens), want = TextOf(head);
    Expect(want.starts_with(text) && text.size() + std::strlen("<|im_end|>\n") >= want.size(),
           "the branch is '" + text + "'");
    const auto items = keeper().Items(kAnn, name, made->name, {.after = "", .limit = 1000});
    ExpectOk(items.status());
    Expect(items->rows.size() == head.items.size(), "another number of items");
    for (size_t i = 0; i < head.items.size(); ++i) {
      const ItemInfo& item = items->rows[i];
      Expect(item.role == head.items[i].role, "an item's role");
      head.items[i].end = static_cast<size_t>(item.first + item.count);
    }
    session.branches[made->name] = std::move(head);
    CheckOne(name);
  }

  void Snapshot() {
    doing_ = "snapshot";
    auto& [name, session] = *Any(sessions_);
    if (session.snapshots.size() >= 3) return;
    const auto it = Any(session.branches);
    const auto taken = keeper().Snapshot(kAnn, name, it->first, "");
    ExpectOk(taken.status());
    Expect(taken->tokens == static_cast<int64_t>(it->second.tokens.size()), "snapshot's tokens");
    session.snapshots[taken->id] = it->second;
  }

  void Delete() {
    doing_ = "delete";
    const auto it = Any(sessions_);
    const Status s = keeper().Delete(kAnn, it->first);
    if (IsBusy(it->first, "")) {
      Expect(s.code() == Code::kConflict, "a session was deleted under a turn");
      return;
    }
    ExpectOk(s);
    Expect(keeper().Get(kAnn, it->second.id).status().code() == Code::kNotFound, "still there");
    sessions_.erase(it);
  }

  // ---- tiers

  void Evict() {
    doing_ = "evict";
    keeper().MakeRoom(INT64_MAX);
    Expect(keeper().stats().resident_timelines == 0, "heads are warm after the eviction of all");
    CheckLeases();
  }

  void DropCached() {
    doing_ = "drop";
    bench_.engine().pool().DropCached();
  }

  void CheckLeases() {
    std::map<const std::byte*, uint32_t> held;
    for (const OpenTurn& t : open_) {
      for (const Run& run : t.timeline->runs()) held[run.page.payload()] += 1;
    }
    for (const OpenTurn& t : open_) {
      for (const Run& run : t.timeline->runs()) {
        Expect(run.page.leases() >= held[run.page.payload()], "a page lacks leases");
      }
    }
    const uint64_t leased = bench_.engine().pool().stats().leased;
    Expect(leased >= held.size(), "pages that are held are not leased");
    if (open_.empty() && keeper().stats().resident_timelines == 0) {
      Expect(leased == 0, std::to_string(leased) + " pages are leased by nobody");
    }
  }

  void CheckNothingHeld() {
    while (!open_.empty()) open_.pop_back();
    Evict();
  }

  void ExportImport() {
    doing_ = "export";
    const auto [name, session] = *Any(sessions_);
    const auto bytes = ExportBytes(keeper(), kAnn, name, {.key = kKey});
    ExpectOk(bytes.status());
    if (sessions_.size() > kMaxSessions) return;
    const std::string copy = "s" + std::to_string(next_name_++);
    const auto taken = ImportBytes(keeper(), kAnn, *bytes, {.key = kKey, .as = copy});
    ExpectOk(taken.status());
    Session s = session;
    s.id = taken->session.id;
    s.snapshots.clear();  // they have new ids
    sessions_[copy] = std::move(s);
    CheckOne(copy, Snapshots::kUnknown);
  }

  void Reopen() {
    doing_ = "reopen";
    open_.clear();
    bench_.Restart();
    CheckAll();
  }

  // ---- what both say

  enum class Snapshots { kKnown, kUnknown };
  void CheckOne(const std::string& name, Snapshots snapshots = Snapshots::kKnown) {
    const Session& session = sessions_.at(name);
    const auto info = keeper().Get(kAnn, name);
    ExpectOk(info.status());
    Expect(info->id == session.id, "another session's id");
    Expect(info->default_branch == session.default_branch, "default is " + info->default_branch);
    const auto branches = keeper().Branches(kAnn, name);
    ExpectOk(branches.status());
    Expect(branches->size() == session.branches.size(), "another number of branches");
    for (const BranchInfo& b : *branches) {
      const auto it = session.branches.find(b.name);
      Expect(it != session.branches.end(), "a branch that nobody made: " + b.name);
      Expect(b.items == static_cast<int64_t>(it->second.items.size()), "items of " + b.name);
      Expect(b.busy == IsBusy(name, b.name), "busy says " + std::to_string(b.busy));
      const auto tokens = keeper().Tokens(kAnn, name, b.name);
      ExpectOk(tokens.status());
      Expect(*tokens == it->second.tokens, "tokens of " + name + ", " + b.name);
    }
    if (snapshots == Snapshots::kUnknown) return;
    const auto listed = keeper().Snapshots(kAnn, name);
    ExpectOk(listed.status());
    for (const auto& [id, head] : session.snapshots) {
      const auto it = std::find_if(listed->begin(), listed->end(),
                                   [&, want = id](const SnapshotInfo& s) { return s.id == want; });
      Expect(it != listed->end(), "snapshot " + id + " is lost");
      Expect(it->tokens == static_cast<int64_t>(head.tokens.size()), "tokens of a snapshot");
    }
  }

  void CheckAll() {
    for (const auto& [name, session] : sessions_) CheckOne(name);
    const auto listed = keeper().List(kAnn, {});
    ExpectOk(listed.status());
    Expect(listed->rows.size() == sessions_.size(), "another number of sessions");
    Expect(keeper().stats().running == open_.size(), "another number of running turns");
    CheckLeases();
  }

  const uint64_t seed_;
  std::mt19937_64 random_;
  testing::FaultVfs vfs_;  // does not sync: nothing here cuts the power
  SessionBench bench_{{.kv_bytes = 4u << 20, .vfs = vfs_.name()}};
  std::map<std::string, Session> sessions_;
  std::vector<OpenTurn> open_;  // goes before the bench
  Tokens gen_;
  int step_ = 0, next_name_ = 0;
  std::string doing_;
};

uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST_CASE("a random walk agrees with lists of tokens") {
  const uint64_t seed = Setting("HOLDFAST_SEED", std::random_device{}());
  const uint64_t steps = Setting("HOLDFAST_STEPS", 3000);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  MESSAGE("seed ", seed, ", ", steps, " steps");
  Walk(seed).Go(static_cast<int>(steps));
}

}  // namespace
}  // namespace holdfast
