#include "sessions/warm.h"

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

// Until rates are measured.
constexpr double kLoadMsPerPage = 1, kComputeMsPerToken = 5;

int64_t CommonTokens(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

std::optional<WarmHeads::Head> WarmHeads::Take(int64_t sid, int64_t branch,
                                               std::span<const TokenId> tokens) {
  std::lock_guard lock(mu_);
  auto best = heads_.end();
  int64_t most = 0;
  for (auto it = heads_.begin(); it != heads_.end(); ++it) {
    if (it->sid != sid) continue;
    const int64_t common =
        std::min(CommonTokens(it->timeline.tokens(), tokens), it->timeline.filled());
    if (common > most || (common == most && common > 0 && it->branch == branch)) {
      best = it;
      most = common;
    }
  }
  if (best == heads_.end()) return std::nullopt;
  Head head = std::move(*best);
  heads_.erase(best);
  return head;
}

std::optional<Timeline> WarmHeads::ForkOf(int64_t branch, int64_t length) const {
  std::lock_guard lock(mu_);
  for (const Head& h : heads_) {
    if (h.branch != branch || h.timeline.filled() < length) continue;
    auto fork = h.timeline.Fork(length);
    if (fork.ok()) return std::move(fork).value();
  }
  return std::nullopt;
}

void WarmHeads::Put(Head head) {
  std::list<Head> gone;
  {
    std::lock_guard lock(mu_);
    // An older head of the branch is superseded: its rows are all in the new one or of no use.
    for (auto it = heads_.begin(); it != heads_.end();) {
      const auto here = it++;
      if (here->branch != head.branch) continue;
      std::list<Head> superseded;
      superseded.splice(superseded.end(), heads_, here);
    }
    heads_.push_front(std::move(head));
    if (static_cast<int>(heads_.size()) > options_.max_heads) {
      for (const Leaver& l : LineLocked()) {
        if (static_cast<int>(heads_.size()) <= options_.max_heads) break;
        gone.splice(gone.end(), heads_, l.head);
      }
    }
  }
  LetGo(&gone);
}

void WarmHeads::Return(Head head) {
  {
    std::lock_guard lock(mu_);
    for (const Head& h : heads_) {
      if (h.branch == head.branch) return;
    }
  }
  Put(std::move(head));
}

int64_t WarmHeads::MissingInPool(int64_t pages) const {
  const PoolStats pool = options_.pool->stats();
  return pages - static_cast<int64_t>(pool.slots_max - pool.leased);
}

void WarmHeads::MakeRoom(int64_t pages) {
  LetGoWhile([&] { return MissingInPool(pages); }, nullptr);
}

void WarmHeads::WriteAhead(int64_t pages) {
  if (options_.store == nullptr) return;
  std::vector<Unsaved> unsaved;
  {
    std::lock_guard lock(mu_);
    int64_t missing = MissingInPool(pages);
    int more = static_cast<int>(heads_.size()) + 1 - options_.max_heads;
    if (missing <= 0 && more <= 0) return;
    for (const Leaver& l : LineLocked()) {
      if (missing <= 0 && more <= 0) break;
      missing -= l.pages;
      --more;
      if (auto head = UnsavedOf(*l.head, TailOwner::kBranch)) unsaved.push_back(std::move(*head));
    }
  }
  Save(std::move(unsaved), HeadSaver::Wait::kWhileWorthIt);
}

void WarmHeads::MakeRoomOf(const TenantScope& scope, const std::function<int64_t()>& missing) {
  LetGoWhile(missing, &scope);
}

// Lets go of heads, of one tenant or of all, until no page is missing.
void WarmHeads::LetGoWhile(const std::function<int64_t()>& missing, const TenantScope* of) {
  while (true) {
    int64_t pages = missing();
    if (pages <= 0) return;
    Heads gone;
    {
      std::lock_guard lock(mu_);
      for (const Leaver& l : LineLocked()) {
        if (pages <= 0) break;
        if (of != nullptr && l.head->timeline.scope() != *of) continue;
        pages -= l.pages;
        gone.splice(gone.end(), heads_, l.head);
      }
    }
    if (gone.empty()) return;
    LetGo(&gone);
  }
}

// Whole pages that go from memory's use when the head does.
std::vector<PageKey> WarmHeads::OwnPages(const Head& head) const {
  std::vector<PageKey> own;
  const std::vector<PageKey> keys = head.timeline.ExactKeys();
  for (size_t i = 0; i < keys.size(); ++i) {
    if (head.timeline.runs()[i].page.leases() == 1) own.push_back(keys[i]);
  }
  return own;
}

// All heads, the one to go first at the front. One continues another when the other's last whole
// page is in its chain.
std::vector<WarmHeads::Leaver> WarmHeads::LineLocked() {
  std::vector<Leaver> leavers;
  std::vector<Candidate> candidates;
  std::unordered_map<PageKey, int, DigestHash> by_last_page;
  const auto blocks_of = [](const Head& h) { return h.timeline.filled() / kPageTokens; };
  for (auto it = heads_.begin(); it != heads_.end(); ++it) {
    const std::vector<PageKey> own = OwnPages(*it);
    const int64_t pages = static_cast<int64_t>(own.size()) + 1;  // and the partial one
    Candidate c;
    c.facts = options_.table->FactsOf(it->branch);
    c.seconds = SecondsToHave(own);
    c.bytes = pages * static_cast<int64_t>(options_.pool->page_bytes());
    const int index = static_cast<int>(candidates.size());
    if (blocks_of(*it) > 0) by_last_page.try_emplace(it->timeline.chain_key(blocks_of(*it)), index);
    candidates.push_back(std::move(c));
    leavers.push_back({it, pages});
  }
  for (int i = 0; i < static_cast<int>(leavers.size()); ++i) {
    const Head& head = *leavers[i].head;
    for (int64_t b = blocks_of(head); b > 0 && candidates[i].parent < 0; --b) {
      const auto found = by_last_page.find(head.timeline.chain_key(b));
      if (found != by_last_page.end() && found->second != i) candidates[i].parent = found->second;
    }
  }
  std::vector<Leaver> line;
  for (const size_t i : DropOrder(candidates, options_.now_ms())) line.push_back(leavers[i]);
  return line;
}

double WarmHeads::ComputeMsPerToken() const {
  const double measured = options_.stitcher->rates().compute_ms_per_token;
  return measured > 0 ? measured : kComputeMsPerToken;
}

double WarmHeads::SecondsToHave(std::span<const PageKey> keys) const {
  const StitchRates rates = options_.stitcher->rates();
  const double load = rates.load_ms_per_page > 0 ? rates.load_ms_per_page : kLoadMsPerPage;
  const double compute = kPageTokens * ComputeMsPerToken();
  double ms = 0;
  for (const PageKey& key : keys) {
    const bool stored = options_.store != nullptr && options_.store->Contains(key);
    ms += stored ? std::min(load, compute) : compute;
  }
  return ms / 1000;
}

// Written first, released then, so that those let go first are the first to leave the pool.
void WarmHeads::LetGo(Heads* gone, HeadSaver::Wait wait) {
  std::vector<Unsaved> unsaved;
  for (const Head& h : *gone) {
    if (auto head = UnsavedOf(h, TailOwner::kBranch)) unsaved.push_back(std::move(*head));
  }
  Save(std::move(unsaved), wait);
  for (; !gone->empty(); gone->pop_front()) {
    options_.table->LetGo(gone->front().branch, gone->front().timeline.ExactKeys());
  }
}

void WarmHeads::Drop(int64_t sid) {
  std::lock_guard lock(mu_);
  heads_.remove_if([sid](const Head& h) { return h.sid == sid; });
}

void WarmHeads::LetGoOfAll() {
  std::list<Head> gone;
  {
    std::lock_guard lock(mu_);
    for (const Leaver& l : LineLocked()) gone.splice(gone.end(), heads_, l.head);
  }
  LetGo(&gone, HeadSaver::Wait::kToTheEnd);
}

bool WarmHeads::IsWarm(int64_t branch) const {
  std::lock_guard lock(mu_);
  return std::any_of(heads_.begin(), heads_.end(),
                     [branch](const Head& h) { return h.branch == branch; });
}

int64_t WarmHeads::Filled(int64_t branch) const {
  std::lock_guard lock(mu_);
  const auto it = std::find_if(heads_.begin(), heads_.end(),
                               [branch](const Head& h) { return h.branch == branch; });
  return it == heads_.end() ? 0 : it->timeline.filled();
}

WarmHeads::Stats WarmHeads::stats() const {
  const HeadSaver::Stats saved = saver_.stats();
  std::lock_guard lock(mu_);
  return {heads_.size(), saved.tails, tails_restored_, saved.given_up};
}

// Nothing where it is all there, or cannot be kept. A snapshot's tail is written again: it is to
// stay when the branch's own goes.
std::optional<WarmHeads::Unsaved> WarmHeads::UnsavedOf(const Head& head, TailOwner owner) const {
  if (options_.store == nullptr || !head.timeline.taint().IsZero()) return std::nullopt;
  Unsaved out{head.sid, head.branch, owner, UnsavedPages(head.timeline), std::nullopt};
  Timeline::Tail tail = head.timeline.tail();
  if (tail.page && tail.rows > 0 &&
      (owner == TailOwner::kSnapshot || !options_.store->Contains(tail.key))) {
    PageHeader header;
    header.kind = PageKind::kTail;
    header.fp = options_.fp;
    header.key = tail.key;
    header.parent = tail.parent;
    header.tokens.assign(tail.tokens.begin(), tail.tokens.end());
    out.tail = HeadSaver::Record{std::move(header), std::move(tail.page)};
  }
  if (out.pages.empty() && !out.tail) return std::nullopt;
  return out;
}

std::vector<HeadSaver::Record> WarmHeads::UnsavedPages(const Timeline& timeline) const {
  std::vector<HeadSaver::Record> unsaved;
  const std::vector<PageKey> keys = timeline.ExactKeys();
  PageHeader header;
  header.fp = options_.fp;
  header.parent = RootKey(options_.fp, timeline.scope(), Digest{});
  size_t block = 0;
  for (const Run& run : timeline.runs()) {
    if (block >= keys.size()) break;
    if (!run.page || !run.page.sealed() || run.page.key() != keys[block]) continue;
    header.key = keys[block];
    if (!options_.store->Contains(header.key)) {
      const auto tokens = run.page.tokens();
      header.tokens.assign(tokens.begin(), tokens.end());
      unsaved.push_back({header, run.page.Share()});
    }
    header.parent = header.key;
    ++block;
  }
  return unsaved;
}

void WarmHeads::Save(std::vector<Unsaved> heads, HeadSaver::Wait wait) {
  saver_.Save(std::move(heads), ComputeMsPerToken(), wait);
}

void WarmHeads::WriteSnapshotTail(int64_t sid, int64_t branch) {
  std::vector<Unsaved> unsaved;
  {
    std::lock_guard lock(mu_);
    const auto it = std::find_if(heads_.begin(), heads_.end(),
                                 [branch](const Head& h) { return h.branch == branch; });
    if (it == heads_.end() || it->sid != sid) return;
    if (auto head = UnsavedOf(*it, TailOwner::kSnapshot)) unsaved.push_back(std::move(*head));
  }
  Save(std::move(unsaved), HeadSaver::Wait::kWhileWorthIt);
}

int64_t WarmHeads::StoredTail(const PageKey& parent, std::span<const TokenId> tokens) const {
  if (options_.store == nullptr) return 0;
  auto rows = static_cast<int64_t>(std::min<size_t>(kPageTokens - 1, tokens.size()));
  while (rows > 0 && !options_.store->Contains(TailKey(parent, tokens.first(rows), Digest{}))) {
    --rows;
  }
  return rows;
}

void WarmHeads::RestoreTail(Timeline* timeline, StitchReport* report) {
  const int64_t filled = timeline->filled();
  if (options_.store == nullptr || filled % kPageTokens != 0 || !timeline->taint().IsZero()) return;
  if (timeline->pending() != timeline->size() - filled) return;  // something is there behind it
  const auto start = std::chrono::steady_clock::now();
  PageHeader header;
  header.kind = PageKind::kTail;
  header.fp = options_.fp;
  header.parent = timeline->chain_key(filled / kPageTokens);
  const auto rest = timeline->tokens().subspan(filled);
  const int64_t rows = StoredTail(header.parent, rest.first(rest.size() - 1));
  if (rows <= 0) return;
  header.key = TailKey(header.parent, rest.first(rows), Digest{});
  const std::vector<TokenId> tokens(rest.begin(), rest.end());
  header.tokens.assign(tokens.begin(), tokens.begin() + rows);
  auto page = options_.stitcher->ReadTail(timeline->scope(), header);
  if (!page.ok()) return;
  // The prompt ends after the tail: its tokens are put again behind the adopted page.
  if (!timeline->Truncate(filled).ok()) return;
  const bool adopted = timeline->AdoptTail(std::move(page).value(), header.tokens).ok();
  timeline->Extend(std::span(tokens).subspan(adopted ? rows : 0));
  if (!adopted) return;
  report->from_store += rows;
  report->to_compute -= rows;
  report->totals.restored += rows;
  report->totals.fresh -= rows;
  report->bytes_loaded += options_.pool->page_bytes();
  report->restore_ms += MsSince(start);
  std::lock_guard lock(mu_);
  ++tails_restored_;
}

}  // namespace holdfast
