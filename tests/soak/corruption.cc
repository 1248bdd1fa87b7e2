// corruption [--cases N] [--seed S]: damaged page records and bundles, half of the cases each.
//
// Pages: two tenants talk to one data folder. In each case a page file is damaged: a bit, a stretch
// of zeros or of noise, a file cut off, or a record (all of it, or its header or its payload alone)
// in the place of another one, of another session or tenant. Then every page is asked for that
// could be concerned: the bytes that come are the right ones, or none come. From time to time a
// whole Runtime is opened on the damaged folder: its next answers are those of a sound one.
//
// Bundles: damaged ones are refused; forged ones, with right checksums and sections swapped in from
// another tenant's bundle, are refused or give their tokens alone. A sound one goes on as at home.
//
// Exit 0: all held.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "api/chat_stream.h"
#include "api/upkeep.h"
#include "engine/store/page_record.h"
#include "tests/api/bundle_forger.h"
#include "tests/engine/base/hook_env.h"
#include "tests/engine/store/fault_index_env.h"
#include "tests/engine/store/fault_vfs.h"
#include "tests/soak/load.h"

namespace holdfast::soak {
namespace {

constexpr char kKey[] = "a key of enough bytes", kOtherKey[] = "another key of enough bytes";
constexpr int kRuntimeEvery = 1000;  // cases of pages between two Runtimes on damage
constexpr int kLookEvery = 50;       // forged bundles that were taken, between two that go on
const std::string kLong = "What is in the folder? List all of it, one name to a line, please. ";

// A Runtime whose disk does not sync.
class House {
 public:
  House(const std::string& model, std::string data) : model_(model), data_(std::move(data)) {
    Open();
  }
  void Open() {
    RuntimeOptions options = Load::OptionsFor(model_, data_);
    options.database_vfs = vfs_.name();
    options.env = &env_;
    options.index_env = index_.env();
    auto opened = Runtime::Open(options);
    if (!opened.ok()) Fail("open " + data_ + ": " + opened.status().ToString());
    runtime_ = std::move(opened).value();
  }
  void Close() { runtime_.reset(); }
  Runtime& runtime() { return *runtime_; }
  const std::string& data() const { return data_; }
  Env* env() { return &env_; }
  rocksdb::Env* index_env() { return index_.env(); }

  // A greedy answer to what is appended to a session.
  std::vector<TokenId> Say(const std::string& tenant, const std::string& session,
                           const std::string& text) {
    ChatMessage m;
    m.role = "user";
    m.text = text;
    m.raw_json = "{\"role\":\"user\",\"content\":\"" + text + "\"}";
    ChatRequest r;
    r.tenant = tenant;
    r.session.id = session;
    r.append = true;
    r.messages = {m};
    r.sampling.temperature = 0;
    r.max_tokens = 12;
    auto stream = runtime_->Chat(std::move(r));
    if (!stream.ok()) Fail("say: " + stream.status().ToString());
    std::optional<ChatDone> done;
    while (auto event = (*stream)->Next(-1)) {
      if (event->done) done = std::move(event->done);
    }
    if (!done || !done->status.ok()) Fail("an answer ended badly");
    return done->completion_tokens;
  }

 private:
  testing::DiskHook none_;
  testing::FaultVfs vfs_{&none_};
  testing::HookEnv env_{&none_};
  testing::FaultIndexEnv index_{&none_};
  const std::string model_, data_;
  std::unique_ptr<Runtime> runtime_;
};

struct Record {
  uint64_t offset = 0;
  PageHeader page;
  std::vector<Bytes> payloads;
  uint64_t length = 0;
};

class Campaign {
 public:
  Campaign(uint64_t seed, int cases) : seed_(seed), cases_(cases), random_(seed) {
    folder_ = (std::filesystem::temp_directory_path() / "corruption-XXXXXX").string();
    if (mkdtemp(folder_.data()) == nullptr) Fail("no temporary folder");
    model_ = Load::WriteModel(folder_);
  }

  int Main() {
    std::printf("corruption: seed %llu, %d cases, in %s\n", static_cast<unsigned long long>(seed_),
                cases_, folder_.c_str());
    Pages(cases_ / 2);
    Bundles(cases_ - cases_ / 2);
    std::filesystem::remove_all(folder_);
    std::printf("corruption: %d damaged page files (%llu pages asked for: %llu refused, the others "
                "whole; %d Runtimes on them answered as sound ones), %d bundles (%d gave tokens "
                "alone, the others were refused)\n",
                cases_ / 2, static_cast<unsigned long long>(asked_),
                static_cast<unsigned long long>(refused_), runtimes_, cases_ - cases_ / 2, taken_);
    return 0;
  }

 private:
  size_t Pick(size_t n) { return n == 0 ? 0 : random_() % n; }

  // ---- pages

  void Pages(int cases) {
    Talk();
    for (int i = 0; i < cases; ++i) {
      Case(i);
      if (i % kRuntimeEvery == kRuntimeEvery / 2) AnswersOnDamage();
    }
  }

  // Two tenants, two sessions each; what they would say next, on a sound folder.
  void Talk() {
    House house(model_, folder_ + "/sound");
    for (const char* tenant : {"ann", "bob"}) {
      for (const char* session : {"one", "two"}) {
        house.Say(tenant, session, kLong + kLong + session);
        house.Say(tenant, session, "And then?");
      }
    }
    house.Close();
    std::filesystem::copy(folder_ + "/sound", folder_ + "/next",
                          std::filesystem::copy_options::recursive);
    House next(model_, folder_ + "/next");
    for (const char* tenant : {"ann", "bob"}) {
      for (const char* session : {"one", "two"}) {
        want_[{tenant, session}] = next.Say(tenant, session, "Go on.");
      }
    }
    std::ifstream in(PageFile(folder_ + "/sound"), std::ios::binary);
    file_.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    ReadRecords();
    if (records_.size() < 8) Fail("too few pages to damage: " + std::to_string(records_.size()));
  }

  static std::string PageFile(const std::string& data) { return data + "/pages/pages-000001.hf"; }

  void ReadRecords() {
    const auto bytes = std::as_bytes(std::span(file_));
    for (uint64_t at = 0; at + kRecordHeaderBytes <= bytes.size();) {
      const auto header = DecodeRecordHeader(bytes.subspan(at));
      if (!header.ok() || header->record_bytes > bytes.size() - at) {
        at += kRecordAlign;
        continue;
      }
      const auto record = DecodeRecord(bytes.subspan(at, header->record_bytes));
      if (!record.ok()) Fail("a sound page file holds a record that is not");
      Record r{at, record->header.page, {}, header->record_bytes};
      for (const auto& p : record->payloads) r.payloads.emplace_back(p.begin(), p.end());
      records_.push_back(std::move(r));
      at += header->record_bytes;
    }
  }

  // Damages `bytes`, the page file; false when that left it as it was.
  bool Damage(std::vector<char>* bytes) {
    const Record &a = records_[Pick(records_.size())], &b = records_[Pick(records_.size())];
    char* at = bytes->data() + a.offset;
    const char* from = file_.data() + b.offset;
    const size_t whole = std::min(a.length, b.length);
    switch (Pick(8)) {
      case 0: at[Pick(a.length)] ^= static_cast<char>(1 << Pick(8)); break;
      case 1: at[Pick(512)] ^= static_cast<char>(1 << Pick(8)); break;  // the used part of a header
      case 2: bytes->resize(Pick(bytes->size())); break;
      case 3: std::memset(at + Pick(a.length / 2), 0, 1 + Pick(a.length / 2)); break;
      case 4: {
        char* noise = at + Pick(a.length / 2);
        for (size_t n = 1 + Pick(a.length / 2); n > 0; --n) *noise++ = static_cast<char>(random_());
        break;
      }
      case 5: std::memcpy(at, from, whole); break;
      case 6: std::memcpy(at, from, kRecordHeaderBytes); break;
      case 7:
        std::memcpy(at + kRecordHeaderBytes, from + kRecordHeaderBytes, whole - kRecordHeaderBytes);
        break;
    }
    return *bytes != file_;
  }

  void WritePageFile(const std::string& data, const std::vector<char>& bytes) {
    std::ofstream(PageFile(data), std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  void Case(int i) {
    std::vector<char> bytes = file_;
    if (!Damage(&bytes)) return;
    if (store_ == nullptr) {
      std::filesystem::remove_all(folder_ + "/damaged");
      std::filesystem::copy(folder_ + "/sound", folder_ + "/damaged",
                            std::filesystem::copy_options::recursive);
      FilePageStore::Options o;
      o.path = folder_ + "/damaged/pages";
      o.env = &env_;
      o.index_env = index_.env();
      auto opened = FilePageStore::Open(o);
      if (!opened.ok()) Fail("case " + std::to_string(i) + ": " + opened.status().ToString());
      store_ = std::move(opened).value();
    }
    WritePageFile(folder_ + "/damaged", bytes);
    for (const Record& r : records_) Ask(r, bytes, i);
    damaged_ = std::move(bytes);
    // What was refused is forgotten; most of the pages stay, and are asked for again.
    if (store_->stats().pages < records_.size() / 2) store_.reset();
  }

  void Ask(const Record& r, const std::vector<char>& bytes, int i) {
    std::vector<Bytes> got;
    for (const Bytes& p : r.payloads) got.emplace_back(p.size());
    const std::vector<std::span<std::byte>> parts(got.begin(), got.end());
    const bool there = store_->Contains(r.page.key);
    const Status s = store_->Get(r.page, parts);
    ++asked_;
    refused_ += !s.ok() && there;
    const bool sound = bytes.size() >= r.offset + r.length &&
                       std::memcmp(bytes.data() + r.offset, file_.data() + r.offset, r.length) == 0;
    const std::string where = "case " + std::to_string(i) + ", page " + r.page.key.Hex();
    if (s.ok() && (!sound || got != r.payloads)) Fail(where + ": wrong bytes were taken");
    if (!s.ok() && there && sound) Fail(where + ": a sound page was refused: " + s.ToString());
    if (!s.ok() && s.code() != Code::kCorrupt && s.code() != Code::kNotFound) {
      Fail(where + ": " + s.ToString());
    }
  }

  void AnswersOnDamage() {
    const std::string data = folder_ + "/answers";
    std::filesystem::copy(folder_ + "/sound", data, std::filesystem::copy_options::recursive);
    if (!damaged_.empty()) WritePageFile(data, damaged_);
    {
      House house(model_, data);
      for (const auto& [who, tokens] : want_) {
        if (house.Say(who.first, who.second, "Go on.") != tokens) {
          Fail("another answer to " + who.first + " on damaged pages");
        }
      }
      const auto report = Fsck(house.runtime(), FilePageStore::Repair::kRepair);
      if (!report.ok() || report->log.damaged() != 0) Fail("fsck on damaged pages");
    }
    ++runtimes_;
    std::filesystem::remove_all(data);
  }

  // ---- bundles

  void Bundles(int cases) {
    House house(model_, folder_ + "/sound"), away(model_, folder_ + "/away");
    const auto good = ExportBytes(house.runtime().keeper(), "ann", "one", {.key = kKey});
    const auto other = ExportBytes(house.runtime().keeper(), "bob", "two", {.key = kKey});
    if (!good.ok() || !other.ok()) Fail("a sound session is not exported");
    Forger forger(SectionsOf(*good), SectionsOf(*other), kOtherKey, seed_);
    for (int i = 0; i < cases; ++i) {
      const bool damage = i % 4 != 0;
      Import(away, damage ? forger.Damaged(*good, static_cast<int>(Pick(3))) : forger.Next(),
             damage, i);
    }
    Keeper& keeper = away.runtime().keeper();
    if (!keeper.List("ann", {})->rows.empty()) Fail("something stayed of refused bundles");
    const auto last = ImportBytes(keeper, "ann", *good, {.key = kKey, .as = ""});
    if (!last.ok() || last->pages_taken != last->pages) Fail("a sound bundle is not taken");
    if (away.Say("ann", "one", "Go on.") != want_[{"ann", "one"}]) {
      Fail("the sound bundle goes on otherwise than at home");
    }
  }

  void Import(House& away, const Bytes& bytes, bool damage, int i) {
    Keeper& keeper = away.runtime().keeper();
    const std::string where = "bundle " + std::to_string(i) + ": ";
    const auto report = ImportBytes(keeper, "ann", bytes, {.key = kKey, .as = "forged"});
    if (!report.ok()) {
      const Code code = report.status().code();
      if (code == Code::kCorrupt || code == Code::kInvalid || code == Code::kConflict) return;
      Fail(where + report.status().ToString());
    }
    if (damage) Fail(where + "a damaged one was taken");
    if (report->authentic || report->pages_taken != 0) Fail(where + "a forged one was trusted");
    if (taken_++ % kLookEvery == 0) {
      if (keeper.CheckLog()->damaged() != 0) Fail(where + "it damaged the log");
      const auto branches = keeper.Branches("ann", "forged");
      if (!branches.ok()) Fail(where + branches.status().ToString());
      for (const BranchInfo& b : *branches) {
        const Status s = keeper.Tokens("ann", "forged", b.name).status();
        if (!s.ok()) Fail(where + s.ToString());
      }
    }
    const Status gone = keeper.Delete("ann", "forged");
    if (!gone.ok()) Fail(where + gone.ToString());
  }

  const uint64_t seed_;
  const int cases_;
  std::mt19937_64 random_;
  std::string folder_, model_;
  std::map<std::pair<std::string, std::string>, std::vector<TokenId>> want_;
  std::vector<char> file_, damaged_;  // the page file, and as it was damaged last
  std::vector<Record> records_;
  testing::DiskHook none_;
  testing::HookEnv env_{&none_};
  testing::FaultIndexEnv index_{&none_};
  std::unique_ptr<FilePageStore> store_;
  uint64_t asked_ = 0, refused_ = 0;
  int runtimes_ = 0, taken_ = 0;
};

}  // namespace
}  // namespace holdfast::soak

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int cases = 4000;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 < argc && std::strcmp(argv[i], "--cases") == 0) {
      cases = std::atoi(argv[i + 1]);
    } else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: corruption [--cases N] [--seed S]\n");
      return 2;
    }
  }
  return holdfast::soak::Campaign(seed, cases).Main();
}
