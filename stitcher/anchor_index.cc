#include "stitcher/anchor_index.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

namespace holdfast {
namespace {

struct Anchor {
  uint64_t hash;
  int64_t at;
};

// The anchors of tokens [begin, end), ascending.
std::vector<Anchor> AnchorsOf(const TokenHashes& tokens, int64_t begin, int64_t end) {
  constexpr int64_t kGram = AnchorIndex::kGram, kWindow = AnchorIndex::kWindow;
  std::vector<Anchor> out;
  const int64_t grams = end - begin - kGram + 1;
  if (grams < kWindow) return out;
  std::vector<uint64_t> hashes(static_cast<size_t>(grams));
  for (int64_t i = 0; i < grams; ++i) hashes[i] = tokens.Of(begin + i, kGram);
  int64_t least = -1;  // of the window that ends with gram i
  for (int64_t i = 0; i < grams; ++i) {
    if (least < 0 || hashes[i] <= hashes[least]) {
      least = i;
    } else if (least <= i - kWindow) {
      least = i - kWindow + 1;
      for (int64_t j = least + 1; j <= i; ++j) {
        if (hashes[j] <= hashes[least]) least = j;
      }
    }
    if (i + 1 < kWindow) continue;
    const int64_t at = begin + least;
    if (out.empty() || out.back().at != at) out.push_back({hashes[least], at});
  }
  return out;
}

}  // namespace

void AnchorIndex::Post(Entry* entry) {
  entry->serial = ++serials_;
  const auto body = entry->indexed->body();
  const TokenHashes hashes(body);
  for (const Anchor& a : AnchorsOf(hashes, 0, hashes.size())) {
    auto [first, last] = postings_.equal_range(a.hash);
    const auto own = [&](const auto& p) { return p.second.entry == entry; };
    if (std::count_if(first, last, own) >= static_cast<int64_t>(kMaxPerSegment)) continue;
    if (std::distance(first, last) >= static_cast<int64_t>(kMaxPostings)) {
      postings_.erase(std::min_element(first, last, [](const auto& p, const auto& q) {
        return p.second.entry->serial < q.second.entry->serial;
      }));
    }
    postings_.insert({a.hash, {entry, a.at}});
  }
}

void AnchorIndex::Unpost(const Entry* entry) {
  const TokenHashes hashes(entry->indexed->body());
  for (const Anchor& a : AnchorsOf(hashes, 0, hashes.size())) {
    auto [first, last] = postings_.equal_range(a.hash);
    while (first != last) {
      first = first->second.entry == entry ? postings_.erase(first) : std::next(first);
    }
  }
}

void AnchorIndex::Add(std::shared_ptr<const Variant> variant) {
  Entry& entry = entries_[variant->segment];
  tokens_ += variant->tokens.size();
  entry.variants.push_back(variant);
  if (entry.indexed != nullptr && entry.indexed->count >= variant->count) return;
  if (entry.indexed != nullptr) Unpost(&entry);
  entry.indexed = std::move(variant);
  Post(&entry);
}

void AnchorIndex::Remove(const Variant& variant) {
  const auto it = entries_.find(variant.segment);
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  const auto gone = std::find_if(entry.variants.begin(), entry.variants.end(),
                                 [&](const auto& v) { return v->row == variant.row; });
  if (gone == entry.variants.end()) return;
  tokens_ -= (*gone)->tokens.size();
  const bool indexed = *gone == entry.indexed;
  if (indexed) Unpost(&entry);
  entry.variants.erase(gone);
  if (entry.variants.empty()) {
    entries_.erase(it);
  } else if (indexed) {
    entry.indexed = *std::max_element(
        entry.variants.begin(), entry.variants.end(),
        [](const auto& a, const auto& b) { return a->count < b->count; });
    Post(&entry);
  }
}

size_t AnchorIndex::bytes() const {
  constexpr size_t kNode = sizeof(uint64_t) + sizeof(Posting) + 2 * sizeof(void*);
  return tokens_ * sizeof(TokenId) + postings_.size() * kNode +
         postings_.bucket_count() * sizeof(void*);
}

std::vector<AnchorIndex::Match> AnchorIndex::Matches(const Prompt& prompt) const {
  std::vector<Match> out;
  // How far the tokens of an entry that begins at an index of the prompt (perhaps before its first)
  // have been compared.
  std::map<std::pair<const Entry*, int64_t>, int64_t> seen;
  int64_t work = kMaxWorkPerToken * (prompt.end - prompt.begin);
  for (const Anchor& a : AnchorsOf(prompt.hashes, prompt.begin, prompt.end)) {
    const auto [first, last] = postings_.equal_range(a.hash);
    for (auto it = first; it != last && work > 0; ++it) {
      const Posting& p = it->second;
      const int64_t home = a.at - p.at;
      int64_t& reached = seen[{p.entry, home}];
      if (a.at < reached) continue;
      const auto body = p.entry->indexed->body();
      const int64_t low = std::max(prompt.begin, home);
      const int64_t high = std::min(prompt.end, home + static_cast<int64_t>(body.size()));
      int64_t from = a.at, to = a.at;
      while (to < high && prompt.tokens[to] == body[to - home]) ++to;
      while (from > low && prompt.tokens[from - 1] == body[from - 1 - home]) --from;
      reached = to;
      work -= to - from + 1;
      if (to - from < kMinSegmentTokens) continue;
      out.push_back({p.entry, from, to, from - home, {}});
    }
  }
  return out;
}

// Tokens before prompt[begin] that are the same before body()[offset] in the variant's chain.
int64_t AnchorIndex::SharedLeft(const Prompt& prompt, const Variant& v, int64_t begin,
                                int64_t offset) {
  int64_t n = 0;
  const int64_t there = v.first + offset;  // tokens before it in the covering pages
  while (n < there && n < begin && prompt.tokens[begin - 1 - n] == v.tokens[there - 1 - n]) ++n;
  if (n < there) return n;
  const int64_t home = begin - offset;  // where the variant's left chain would end in the prompt
  for (size_t i = v.left.size(); i-- > 0;) {
    const int64_t length = int64_t{1} << i;
    if (length > home || prompt.hashes.Of(home - length, length) != v.left[i]) continue;
    return std::max(n, offset + length);
  }
  return n;
}

// The best variant for prompt[begin, end) of a match, with as much of it as it covers; an empty run
// when none covers enough.
FoundRun AnchorIndex::Pick(const Prompt& prompt, const Match& of, int64_t begin, int64_t end) {
  FoundRun best;
  const int64_t offset = of.offset + begin - of.begin;
  const auto rank = [](const FoundRun& r) {
    return std::tuple(r.shared_left, -r.variant->generation, r.end, r.variant->row);
  };
  for (const auto& v : of.entry->variants) {
    FoundRun run{begin, std::min(end, begin - offset + v->count), v, offset, 0};
    if (run.end - run.begin < kMinSegmentTokens) continue;
    run.shared_left = SharedLeft(prompt, *v, begin, offset);
    if (best.variant == nullptr || rank(run) > rank(best)) best = std::move(run);
  }
  return best;
}

std::vector<FoundRun> AnchorIndex::Find(std::span<const TokenId> tokens, int64_t begin,
                                        int64_t end) const {
  std::vector<FoundRun> out;
  if (entries_.empty() || end - begin < kMinSegmentTokens) return out;
  tokens = tokens.first(static_cast<size_t>(end));
  const Prompt prompt{tokens, begin, end, TokenHashes(tokens)};
  std::vector<Match> matches = Matches(prompt);
  for (Match& m : matches) m.best = Pick(prompt, m, m.begin, m.end);
  const auto rank = [](const Match& m) {
    return std::tuple(m.end - m.begin, m.best.shared_left, -m.best.variant->generation,
                      m.best.variant->row);
  };
  std::sort(matches.begin(), matches.end(),
            [&](const Match& a, const Match& b) { return rank(a) > rank(b); });
  std::map<int64_t, int64_t> taken{{end, end}};  // begin to end, disjoint, up to a stop
  for (const Match& m : matches) {
    int64_t at = m.begin;
    while (at < m.end) {
      // The gap between what is taken before `at` and after it.
      const auto next = taken.upper_bound(at);
      if (next != taken.begin()) at = std::max(at, std::prev(next)->second);
      const int64_t stop = std::min(m.end, next->first);
      while (stop - at >= kMinSegmentTokens) {
        FoundRun run = Pick(prompt, m, at, stop);
        if (run.variant == nullptr) break;
        at = run.end;
        taken.emplace(run.begin, run.end);
        out.push_back(std::move(run));
      }
      at = next->second;
    }
  }
  std::sort(out.begin(), out.end(),
            [](const FoundRun& a, const FoundRun& b) { return a.begin < b.begin; });
  return out;
}

}  // namespace holdfast
