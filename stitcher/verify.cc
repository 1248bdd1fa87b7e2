// Design. Most rungs work on raw pages (RawSequence) and ForwardPass, below pool and scheduler, so
// that a rung can put NaN wherever it likes. E1, E2 and E7 go through Stitcher and Timeline, the
// way that requests go. "The same bits" compares every row's logits by LogitsDigest; only the KL
// rungs keep logits. The prompts are made from the model's own vocabulary by a fixed generator: the
// laws do not care for meaning, and tokens at random reach more of the weights.
#include "stitcher/verify.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <system_error>

#include "engine/backend/half.h"
#include "engine/model/softmax.h"
#include "engine/store/file_page_store.h"
#include "stitcher/pending.h"
#include "stitcher/stitcher.h"

namespace holdfast {
namespace {

// E5, in nats. f16 K and 8-bit activations gave up to 0.004 on prompts of random tokens; a query
// turned by one position too many gives more than 0.1.
constexpr double kNoiseKl = 1e-2;
constexpr double kNoiseTimes = 2;  // E5: of what storing KV in its type costs
constexpr int kNoisePrompts = 2;
constexpr int64_t kNoiseRows = 48;  // of each prompt, from its end
constexpr int kE7Cases = 2;

using RowDigests = std::vector<uint64_t>;  // one per row, in order of index

// Token ids of a fixed generator (SplitMix64), never special ones.
std::vector<TokenId> MakePrompt(const Tokenizer& tokenizer, int n, uint64_t seed) {
  std::vector<TokenId> out;
  if (tokenizer.add_bos()) out.push_back(tokenizer.bos());  // without it some models are all noise
  uint64_t x = seed * 0x9E3779B97F4A7C15ull + 1;
  while (static_cast<int>(out.size()) < n) {
    uint64_t z = (x += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    const auto id = static_cast<TokenId>((z ^ (z >> 31)) % tokenizer.vocab_size());
    if (!tokenizer.IsSpecial(id) && !tokenizer.TokenText(id).empty()) out.push_back(id);
  }
  return out;
}

// The KV of one sequence in pages of its own, where row i lies in slot i mod 32.
class RawSequence {
 public:
  RawSequence(const std::vector<LayerGroup>& groups, std::vector<TokenId> tokens, std::byte fill)
      : groups_(groups), tokens_(std::move(tokens)) {
    const size_t pages = (tokens_.size() + kPageTokens - 1) / kPageTokens;
    for (const LayerGroup& g : groups_) {
      bytes_.emplace_back(pages * g.PayloadBytes() + 64, fill);
    }
    for (size_t p = 0; p < pages; ++p) {
      auto& payloads = pages_.emplace_back();
      for (size_t g = 0; g < groups_.size(); ++g) payloads.push_back(Payload(p, g));
    }
  }

  const std::vector<TokenId>& tokens() const { return tokens_; }
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  std::byte* const* page(int32_t index) const { return pages_[index / kPageTokens].data(); }

  // K or V of one token at one layer of group 0, head after head, as fp32.
  std::vector<float> Read(int layer, int32_t index, char what) const {
    const LayerGroup& g = groups_[0];
    const int dims = what == 'k' ? g.k_dim : g.v_dim, slot = index % kPageTokens;
    const KvType type = what == 'k' ? g.k_type : g.v_type;
    std::vector<float> out;
    for (int h = 0; h < g.heads; ++h) {
      const std::byte* base =
          page(index)[0] + g.HeadOffset(layer, h) + (what == 'k' ? 0 : g.KBytes());
      for (int d = 0; d < dims; ++d) {
        const size_t at = what == 'k' ? g.KOffset(d, slot)
                                      : (static_cast<size_t>(slot) * dims + d) * KvTypeBytes(type);
        float scale = 1;
        if (type == KvType::kI8) std::memcpy(&scale, base + g.KScaleOffset(slot), 4);
        out.push_back(ReadNumber(base + at, type) * scale);
      }
      if (type == KvType::kI8) Unmix(std::span(out).last(dims));
    }
    return out;
  }

  // Half a code of such a K, INT8: the most by which a mixed number of that head may be off.
  double HalfCode(int layer, int32_t index, int head) const {
    const LayerGroup& g = groups_[0];
    float scale;
    std::memcpy(&scale, page(index)[0] + g.HeadOffset(layer, head) +
                            g.KScaleOffset(index % kPageTokens), sizeof(scale));
    return 0.5 * scale;
  }

  // Fills every slot from `index` on, in all layers, with `fill`.
  void FillFrom(int32_t index, std::byte fill) {
    for (size_t p = 0; p < pages_.size(); ++p) {
      for (int slot = 0; slot < kPageTokens; ++slot) {
        if (static_cast<int32_t>(p) * kPageTokens + slot >= index) FillSlot(p, slot, fill);
      }
    }
  }

  std::vector<std::vector<KvRun>> Runs(int32_t shift) const {
    std::vector<std::vector<KvRun>> runs(groups_.size());
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (int32_t at = 0; at < size(); at += kPageTokens) {
        runs[g].push_back({page(at)[g], 0, std::min(kPageTokens, size() - at), shift});
      }
    }
    return runs;
  }

 private:
  std::byte* Payload(size_t page, size_t group) {
    auto base = reinterpret_cast<uintptr_t>(bytes_[group].data());
    base = (base + 63) / 64 * 64;
    return reinterpret_cast<std::byte*>(base) + page * groups_[group].PayloadBytes();
  }
  // Undoes what NUMERICS.md section 7 calls mixing.
  static void Unmix(std::span<float> x) {
    const int dims = static_cast<int>(x.size()), block = dims & -dims;
    for (int step = 1; step < block; step *= 2) {
      const std::vector<float> from(x.begin(), x.end());
      for (int n = 0; n < dims / 2; ++n) {
        const int at = 2 * n / block * block + n % (block / 2);
        x[at] = (from[2 * n] + from[2 * n + 1]) / 2;
        x[at + block / 2] = (from[2 * n] - from[2 * n + 1]) / 2;
      }
    }
  }
  static float ReadNumber(const std::byte* at, KvType type) {
    if (type == KvType::kI8) return static_cast<int8_t>(*at);
    if (type == KvType::kF32) {
      float v;
      std::memcpy(&v, at, 4);
      return v;
    }
    uint16_t v;
    std::memcpy(&v, at, 2);
    return HalfToFloat(v);
  }
  void FillSlot(size_t page, int slot, std::byte fill) {
    for (size_t gi = 0; gi < groups_.size(); ++gi) {
      const LayerGroup& g = groups_[gi];
      const size_t kn = KvTypeBytes(g.k_type), vn = g.v_dim * KvTypeBytes(g.v_type);
      for (int layer = 0; layer < g.layers; ++layer) {
        for (int h = 0; h < g.heads; ++h) {
          std::byte* k = pages_[page][gi] + g.HeadOffset(layer, h);
          for (int d = 0; d < g.k_dim; ++d) {
            std::memset(k + g.KOffset(d, slot), static_cast<int>(fill), kn);
          }
          if (g.k_type == KvType::kI8) {
            std::memset(k + g.KScaleOffset(slot), static_cast<int>(fill), sizeof(float));
          }
          std::memset(k + g.KBytes() + slot * vn, static_cast<int>(fill), vn);
        }
      }
    }
  }

  std::vector<LayerGroup> groups_;
  std::vector<TokenId> tokens_;
  std::vector<std::vector<std::byte>> bytes_;        // [groups]
  std::vector<std::vector<std::byte*>> pages_;       // [pages][groups]
};

constexpr std::byte kNanFill{0xff};  // every f16 and fp32 made of it is a NaN
constexpr std::byte kZeroFill{0};

class Verifier {
 public:
  Verifier(Model& model, Backend& backend, const std::vector<Backend*>& others,
           const VerifyOptions& options)
      : model_(model),
        backend_(&backend),
        others_(others),
        options_(options),
        pass_(model, &backend),
        pool_(model.groups(), PoolBytes()),
        n_(std::max(options.prompt_tokens, 96)) {}

  Result<RungResult> Run(const std::string& rung);

 private:
  // Rows [begin, end) of a raw sequence, computed for positions `home` later.
  struct Job {
    RawSequence* sequence;
    int32_t begin, end;
    int32_t home = 0;
  };

  size_t PoolBytes() const {
    size_t page = 0;
    for (const LayerGroup& g : model_.groups()) page += g.SlotStride();
    return page * 16 * static_cast<size_t>(std::max(options_.prompt_tokens, 96) / kPageTokens + 2);
  }
  RawSequence Fresh(const std::vector<TokenId>& tokens, std::byte fill = kZeroFill) const {
    return RawSequence(model_.groups(), tokens, fill);
  }
  std::vector<TokenId> Prompt(int n, uint64_t seed) const {
    return MakePrompt(model_.tokenizer(), n, seed);
  }

  std::vector<RowDigests> Forward(ForwardPass& pass, const std::vector<Job>& jobs);
  RowDigests Chunked(ForwardPass& pass, RawSequence& s, int chunk);
  RowDigests ComputePending(Timeline& timeline);
  std::vector<std::vector<float>> PendingLogits(Timeline& timeline);
  std::vector<std::vector<float>> LastLogits(ForwardPass& pass, const Job& job);
  void Expect(RungResult* r, const RowDigests& want, const RowDigests& got,
              const std::string& what);
  void Step(RungResult* r, int total);

  Status E0(RungResult* r);
  Status E1(RungResult* r);
  Status E1FromStore(RungResult* r, const std::vector<TokenId>& prompt, const RowDigests& want);
  Status E2(RungResult* r);
  Status E2Planned(RungResult* r, const Timeline& source, const RowDigests& want);
  Status E3(RungResult* r);
  Status E4(RungResult* r);
  Status E5(RungResult* r);
  Status E6(RungResult* r);
  Status E7(RungResult* r);

  Model& model_;
  Backend* backend_;
  const std::vector<Backend*>& others_;
  const VerifyOptions& options_;
  ForwardPass pass_;
  PagePool pool_;
  int n_;
  std::vector<float> last_logits_;  // of the last row that Forward computed
};

std::vector<RowDigests> Verifier::Forward(ForwardPass& pass, const std::vector<Job>& jobs) {
  ForwardBatch batch;
  for (size_t j = 0; j < jobs.size(); ++j) {
    batch.sequences.push_back({jobs[j].sequence->Runs(-jobs[j].home)});
    for (int32_t i = jobs[j].begin; i < jobs[j].end; ++i) {
      ForwardRow row;
      row.token = jobs[j].sequence->tokens()[i];
      row.position = i;
      row.home = i + jobs[j].home;
      row.sequence = static_cast<int32_t>(j);
      row.page = jobs[j].sequence->page(i);
      row.slot = i % kPageTokens;
      row.logits = true;
      batch.rows.push_back(row);
    }
  }
  const auto rows = static_cast<int64_t>(batch.rows.size());
  pass.Begin(std::move(batch));
  pass.Run();
  std::vector<RowDigests> out;
  int64_t at = 0;
  for (const Job& job : jobs) {
    auto& digests = out.emplace_back();
    for (int32_t i = job.begin; i < job.end; ++i, ++at) {
      digests.push_back(pass.failed(at) ? 0 : LogitsDigest(pass.logits(at)));
    }
  }
  const auto last = pass.logits(rows - 1);
  last_logits_.assign(last.begin(), last.end());
  return out;
}

RowDigests Verifier::Chunked(ForwardPass& pass, RawSequence& s, int chunk) {
  RowDigests all;
  for (int32_t at = 0; at < s.size(); at += chunk) {
    const auto got = Forward(pass, {{&s, at, std::min(s.size(), at + chunk)}});
    all.insert(all.end(), got[0].begin(), got[0].end());
  }
  return all;
}

// The logits of the job's last rows.
std::vector<std::vector<float>> Verifier::LastLogits(ForwardPass& pass, const Job& job) {
  Forward(pass, {job});
  std::vector<std::vector<float>> out;
  const int64_t rows = job.end - job.begin;
  for (int64_t i = std::max<int64_t>(0, rows - kNoiseRows); i < rows; ++i) {
    const auto logits = pass.logits(i);
    out.emplace_back(logits.begin(), logits.end());
  }
  return out;
}

// The logits of a timeline's pending rows; nothing where the pool is full.
std::vector<std::vector<float>> Verifier::PendingLogits(Timeline& timeline) {
  std::vector<std::vector<float>> out;
  PendingOptions options;
  options.on_logits = [&](int64_t, std::span<const float> logits) {
    out.emplace_back(logits.begin(), logits.end());
  };
  if (!holdfast::ComputePending(model_, pass_, timeline, options).ok()) return {};
  return out;
}

RowDigests Verifier::ComputePending(Timeline& timeline) {
  RowDigests out;
  for (const auto& row : PendingLogits(timeline)) {
    out.push_back(row.empty() ? 0 : LogitsDigest(row));
  }
  return out;
}

// `got` must equal the end of `want` (a restored prompt computes only its last rows).
void Verifier::Expect(RungResult* r, const RowDigests& want, const RowDigests& got,
                      const std::string& what) {
  ++r->cases;
  const bool same = !got.empty() && got.size() <= want.size() &&
                    std::equal(got.rbegin(), got.rend(), want.rbegin());
  const bool failed_rows = std::find(got.begin(), got.end(), 0) != got.end();
  if (same && !failed_rows) return;
  if (r->pass) r->detail = what + (failed_rows ? ": a row has no finite logits" : ": bits differ");
  r->pass = false;
}

void Verifier::Step(RungResult* r, int total) {
  if (options_.progress) options_.progress(r->name, r->cases, total);
}

Status Verifier::E0(RungResult* r) {
  const auto prompt = Prompt(n_, 1);
  auto alone = Fresh(prompt);
  const RowDigests want = Chunked(pass_, alone, n_);
  for (int chunk : {1, 7, 32, 50}) {
    auto s = Fresh(prompt);
    Expect(r, want, Chunked(pass_, s, chunk), "chunks of " + std::to_string(chunk));
    Step(r, 8);
  }
  auto a = Fresh(Prompt(37, 2)), b = Fresh(prompt), c = Fresh(Prompt(65, 3));
  const auto first = Forward(pass_, {{&a, 0, 20}, {&b, 0, 41}, {&c, 0, 64}});
  auto rest = Forward(pass_, {{&c, 64, 65}, {&b, 41, b.size()}, {&a, 20, 37}});
  RowDigests got = first[1];
  got.insert(got.end(), rest[1].begin(), rest[1].end());
  Expect(r, want, got, "in a batch with two other sequences");
  for (Backend* other : others_) {
    ForwardPass pass(model_, other);
    auto s = Fresh(prompt);
    Expect(r, want, Chunked(pass, s, 64), "another number of threads");
    Step(r, 8);
  }
  return Status();
}

Status Verifier::E1(RungResult* r) {
  const auto prompt = Prompt(n_, 4);
  const TenantScope scope("verify-e1");
  auto raw = Fresh(prompt);
  const RowDigests want = Chunked(pass_, raw, n_);
  Stitcher stitcher(&pool_, nullptr, model_.fingerprint());
  const StitchRequest request{scope, prompt, nullptr, {}};
  HOLDFAST_ASSIGN_OR_RETURN(Stitched cold, stitcher.Stitch(request));
  Expect(r, want, ComputePending(cold.timeline), "cold");
  HOLDFAST_ASSIGN_OR_RETURN(Stitched warm, stitcher.Stitch(request));
  Expect(r, want, ComputePending(warm.timeline), "prefix from the pool");
  if (warm.report.from_pool == 0) {
    r->pass = false;
    r->detail = "the prefix was not found in the pool";
  }
  const StitchRequest again{scope, prompt, &cold.timeline, {}};
  HOLDFAST_ASSIGN_OR_RETURN(Stitched forked, stitcher.Stitch(again));
  Expect(r, want, ComputePending(forked.timeline), "forked from a warm timeline");
  Step(r, 5);
  return E1FromStore(r, prompt, want);
}

Status Verifier::E1FromStore(RungResult* r, const std::vector<TokenId>& prompt,
                             const RowDigests& want) {
  RealEnv env;
  const std::string dir = options_.scratch_dir + "/pages";
  std::error_code ignored;
  for (const char* what : {"prefix from disk", "prefix from disk after a restart"}) {
    PagePool pool(model_.groups(), PoolBytes());  // a new process has an empty pool
    FilePageStore::Options store_options;
    store_options.path = dir;
    store_options.env = &env;
    HOLDFAST_ASSIGN_OR_RETURN(auto store, FilePageStore::Open(store_options));
    store->DescribeModel(model_.fingerprint(), model_.groups());
    const TenantScope scope("verify-disk");
    Stitcher stitcher(&pool, store.get(), model_.fingerprint());
    const StitchRequest request{scope, prompt, nullptr, {}};
    HOLDFAST_ASSIGN_OR_RETURN(Stitched first, stitcher.Stitch(request));
    Expect(r, want, ComputePending(first.timeline), what);
    PageKey parent = RootKey(model_.fingerprint(), scope, Digest{});
    int64_t block = 0;
    for (const PageKey& key : first.timeline.ExactKeys()) {
      PageHeader header{PageKind::kPage, model_.fingerprint(), key, parent, {}};
      const auto tokens = std::span(prompt).subspan(block++ * kPageTokens, kPageTokens);
      header.tokens.assign(tokens.begin(), tokens.end());
      PageLease page = pool.Find(key, tokens);
      if (!page) return Status::Corrupt("verify: a page that was just sealed is gone");
      std::vector<std::span<const std::byte>> payload;
      for (size_t g = 0; g < model_.groups().size(); ++g) {
        payload.emplace_back(page.payload(static_cast<int>(g)), model_.groups()[g].PayloadBytes());
      }
      HOLDFAST_RETURN_IF_ERROR(store->Put(header, payload));
      parent = key;
    }
    HOLDFAST_RETURN_IF_ERROR(store->Sync());
    { Timeline gone = std::move(first.timeline); }
    pool.DropCached();
    HOLDFAST_ASSIGN_OR_RETURN(Stitched second, stitcher.Stitch(request));
    Expect(r, want, ComputePending(second.timeline), what);
    if (second.report.from_store == 0) {
      r->pass = false;
      r->detail = "the prefix was not found on disk";
    }
    Step(r, 7);
  }
  std::filesystem::remove_all(dir, ignored);
  return Status();
}

Status Verifier::E2(RungResult* r) {
  const auto prompt = Prompt(n_, 5);
  const TenantScope scope("verify-e2");
  auto raw = Fresh(prompt);
  const RowDigests want = Chunked(pass_, raw, n_);
  Stitcher stitcher(&pool_, nullptr, model_.fingerprint());
  HOLDFAST_ASSIGN_OR_RETURN(Stitched source, stitcher.Stitch({scope, prompt, nullptr, {}}));
  if (ComputePending(source.timeline).empty()) return Status::Exhausted("verify: pool full");
  const int64_t whole = source.timeline.size() / kPageTokens * kPageTokens;
  const std::vector<std::vector<std::pair<int64_t, int64_t>>> cuts = {
      {{0, whole}}, {{0, 20}, {20, whole}}, {{3, 33}, {40, 41}, {45, whole - 7}}};
  for (const auto& cut : cuts) {
    std::vector<Piece> pieces;
    for (auto [begin, end] : cut) pieces.push_back({&source.timeline, begin, end, begin});
    const TenantScope other("verify-e2-splice");  // nothing to be found by key: pieces only
    HOLDFAST_ASSIGN_OR_RETURN(Stitched s, stitcher.Stitch({other, prompt, nullptr, pieces}));
    RowDigests tail = ComputePending(s.timeline);
    // Rows between the pieces come first; those behind the last one (the last row at least) count.
    const size_t behind =
        prompt.size() - std::min(static_cast<size_t>(cut.back().second), prompt.size() - 1);
    if (tail.size() >= behind) tail.erase(tail.begin(), tail.end() - behind);
    Expect(r, want, tail, "spliced at home in " + std::to_string(cut.size()) + " pieces");
    Step(r, static_cast<int>(cuts.size()));
  }
  return E2Planned(r, source.timeline, want);
}

// A run at home through the plan of every policy, on a model whose card knows everything.
Status Verifier::E2Planned(RungResult* r, const Timeline& source, const RowDigests& want) {
  auto card = std::make_shared<ModelCard>();
  card->max_context = n_;
  card->max_runs = 1;
  card->cells.push_back({CardKind::kInContext, 0, 0, 0, {}, {.contexts = kCardMinContexts}});
  Stitcher stitcher(&pool_, nullptr, model_.fingerprint());
  stitcher.SetCard(card);
  auto variant = std::make_shared<Variant>();
  variant->position = variant->first = 3;
  variant->parent = source.chain_key(0);
  const int64_t whole = source.size() / kPageTokens * kPageTokens;
  variant->tokens.assign(source.tokens().begin(), source.tokens().begin() + whole);
  variant->count = static_cast<int32_t>(whole - 3);
  const std::vector<FoundRun> runs = {{3, whole, variant, 0}};
  for (ReusePolicy policy : {ReusePolicy::kFast, ReusePolicy::kBalanced, ReusePolicy::kQuality}) {
    StitchRequest request{TenantScope("verify-e2-plan"), source.tokens(), nullptr, {}};
    request.reuse.policy = policy;
    request.runs = runs;
    HOLDFAST_ASSIGN_OR_RETURN(Stitched s, stitcher.Stitch(request));
    RowDigests rows;  // of those that are computed
    for (const ProvenanceSpan& span : s.provenance) {
      if (span.origin == KvOrigin::kShifted) continue;
      rows.insert(rows.end(), want.begin() + span.begin, want.begin() + span.end);
    }
    const std::string name = ReusePolicyName(policy);
    Expect(r, rows, ComputePending(s.timeline), "a run at home, planned as " + name);
    if (policy == ReusePolicy::kFast && s.report.shifted == 0) {
      r->pass = false;
      r->detail = "the plan used no run";
    }
  }
  return Status();
}

Status Verifier::E3(RungResult* r) {
  const auto prompt = Prompt(n_, 6);
  auto clean = Fresh(prompt);
  const RowDigests want = Chunked(pass_, clean, n_);
  for (int chunk : {n_, 33}) {
    auto poisoned = Fresh(prompt, kNanFill);
    Expect(r, want, Chunked(pass_, poisoned, chunk), "recomputed over pages of NaN");
    Step(r, 3);
  }
  auto stale = Fresh(prompt);  // pages of another prompt, then poisoned, then recomputed
  Chunked(pass_, stale, n_);
  stale.FillFrom(0, kNanFill);
  Expect(r, want, Chunked(pass_, stale, 64), "recomputed over its own pages filled with NaN");
  Step(r, 3);
  return Status();
}

// How far the turned K `got` of a head, turned back by `turn`, is from `want`: the largest relative
// error of a pair, and the root of the squares' sum over the head.
struct TurnError {
  double relative = 0, whole = 0;
  TurnError(const float* want, const float* got, const float* turn, int dims) {
    for (int a = 0, b = dims / 2; a < dims / 2; ++a, ++b) {
      const double c = turn[a], s = turn[b];
      const double off_a = got[a] * c + got[b] * s - want[a];
      const double off_b = got[b] * c - got[a] * s - want[b];
      const double norm = std::hypot(want[a], want[b]) + 1e-3;
      relative = std::max(relative, std::max(std::abs(off_a), std::abs(off_b)) / norm);
      whole += off_a * off_a + off_b * off_b;
    }
    whole = std::sqrt(whole);
  }
};

Status Verifier::E4(RungResult* r) {
  double worst = 0;
  for (int before : {32, 45}) {
    const auto p = Prompt(64, 7);
    auto all = Prompt(before, 8);
    all.insert(all.end(), p.begin(), p.end());
    auto fresh = Fresh(p), moved = Fresh(all);
    Chunked(pass_, fresh, 64);
    Chunked(pass_, moved, 64);
    const LayerGroup& g = model_.groups()[0];
    RopeTable rope = model_.MakeRope(0);  // layer 0 is the first of group 0
    rope.Reserve(before + 1);
    const float* turn = rope.Row(before);
    ++r->cases;
    for (int32_t i = 0; i < 64 && r->pass; ++i) {
      if (fresh.Read(0, i, 'v') != moved.Read(0, before + i, 'v')) {
        r->pass = false;
        r->detail = "layer-0 V of a moved run differs from fresh V";
      }
      const auto want = fresh.Read(0, i, 'k'), got = moved.Read(0, before + i, 'k');
      for (int h = 0; h < g.heads; ++h) {
        const TurnError error(&want[h * g.k_dim], &got[h * g.k_dim], turn, g.k_dim);
        double off = error.relative;
        if (g.k_type == KvType::kI8) {
          // Half a code of each mixed number, here and there; mixing makes a block's norm
          // sqrt(block) times as large, turning changes none.
          const double blocks = g.k_dim / (g.k_dim & -g.k_dim);
          off = error.whole / (std::sqrt(blocks) * (fresh.HalfCode(0, i, h) +
                                                    moved.HalfCode(0, before + i, h)) + 1e-30);
        }
        worst = std::max(worst, off);
      }
    }
    Step(r, 2);
  }
  const KvType k_type = model_.groups()[0].k_type;
  double bound = k_type == KvType::kF16 ? 0x1p-9 : 0x1p-18;
  if (k_type == KvType::kI8) bound = 1 + 0x1p-10;
  if (worst > bound) r->pass = false;
  if (r->detail.empty()) {
    r->detail = std::string("K turned: largest error, ") +
                (k_type == KvType::kI8 ? "of what half a code allows, " : "relative, ") +
                std::to_string(worst);
  }
  return Status();
}

// The mean over rows; infinite where they are not the same rows.
double MeanKl(const std::vector<std::vector<float>>& want,
              const std::vector<std::vector<float>>& got) {
  if (want.empty() || want.size() != got.size()) return std::numeric_limits<double>::infinity();
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i) sum += KlDivergence(want[i], got[i]);
  return sum / static_cast<double>(want.size());
}

Status Verifier::E5(RungResult* r) {
  constexpr std::array<int, 3> kHomes = {1, 77, 512};
  double worst = 0, moved_kl = 0, noise = 0;
  std::optional<ForwardPass> wide;
  if (options_.f32_kv != nullptr) wide.emplace(*options_.f32_kv, backend_);
  for (int c = 0; c < kNoisePrompts; ++c) {
    const auto prompt = Prompt(96, 9 + 100 * c);
    auto fresh = Fresh(prompt);
    const auto want = LastLogits(pass_, {&fresh, 0, fresh.size()});
    if (wide) {
      RawSequence s(options_.f32_kv->groups(), prompt, kZeroFill);
      noise += MeanKl(LastLogits(*wide, {&s, 0, s.size()}), want) / kNoisePrompts;
    }
    for (const int home : kHomes) {
      auto moved = Fresh(prompt);
      const double kl = MeanKl(want, LastLogits(pass_, {&moved, 0, moved.size(), home}));
      worst = std::max(worst, kl);
      moved_kl += kl / (kNoisePrompts * kHomes.size());
      ++r->cases;
      Step(r, kNoisePrompts * static_cast<int>(kHomes.size()));
    }
  }
  r->pass = worst <= kNoiseKl && (!wide || moved_kl <= kNoiseTimes * noise);
  r->detail = "mean KL " + std::to_string(moved_kl) + " nats, worst " + std::to_string(worst);
  if (wide) r->detail += "; of this KV against F32 " + std::to_string(noise);
  return Status();
}

Status Verifier::E6(RungResult* r) {
  const auto prompt = Prompt(n_, 10);
  auto clean = Fresh(prompt);
  const RowDigests want = Chunked(pass_, clean, n_);
  auto s = Fresh(prompt);
  Forward(pass_, {{&s, 0, s.size()}});
  for (int32_t at : {90, 64, 63, 32, 31, 1}) {  // downwards: what comes before stays whole
    for (std::byte fill : {kNanFill, std::byte{0x7c}, std::byte{0x80}}) {
      s.FillFrom(at, fill);  // later positions hold garbage while row `at` is computed
      const auto got = Forward(pass_, {{&s, at, at + 1}});
      Expect(r, RowDigests(want.begin(), want.begin() + at + 1), got[0],
             "garbage after token " + std::to_string(at));
      Step(r, 18);
    }
  }
  return Status();
}

Status Verifier::E7(RungResult* r) {
  constexpr std::array<int, 5> kPercent = {0, 25, 50, 75, 100};
  std::array<double, 5> kl{};
  Stitcher stitcher(&pool_, nullptr, model_.fingerprint());
  for (int c = 0; c < kE7Cases; ++c) {
    const auto head = Prompt(24, 20 + c), other = Prompt(57, 30 + c), body = Prompt(96, 40 + c);
    const auto question = Prompt(12, 50 + c);
    auto join = [](std::initializer_list<const std::vector<TokenId>*> parts) {
      std::vector<TokenId> v;
      for (const auto* p : parts) v.insert(v.end(), p->begin(), p->end());
      return v;
    };
    // The body was computed behind `head` and `other`; now it stands behind `head` alone.
    const auto rest = Prompt(kPageTokens, 60 + c);  // so that all of the body is in sealed pages
    const auto before = join({&head, &other, &body, &rest});
    const auto after = join({&head, &body, &question});
    const std::string name = "verify-e7-" + std::to_string(c);
    HOLDFAST_ASSIGN_OR_RETURN(Stitched source,
                              stitcher.Stitch({TenantScope(name), before, nullptr, {}}));
    PendingLogits(source.timeline);
    HOLDFAST_ASSIGN_OR_RETURN(Stitched full,
                              stitcher.Stitch({TenantScope(name + "-full"), after, nullptr, {}}));
    const auto want = PendingLogits(full.timeline);
    for (size_t k = 0; k < kPercent.size(); ++k) {
      const int64_t link = 96 * kPercent[k] / 100;
      const int64_t from = static_cast<int64_t>(head.size() + other.size()) + link;
      std::vector<Piece> pieces;
      if (link < 96) {
        pieces.push_back({&source.timeline, from, from - link + 96,
                          static_cast<int64_t>(head.size()) + link});
      }
      HOLDFAST_ASSIGN_OR_RETURN(
          Stitched s, stitcher.Stitch({TenantScope(name + "-" + std::to_string(k)), after, nullptr,
                                       pieces}));
      const auto got = PendingLogits(s.timeline);
      if (got.size() < question.size() || want.size() < question.size()) {
        return Status::Exhausted("verify: E7 needs a larger pool");
      }
      for (size_t q = 1; q <= question.size(); ++q) {
        const double one = KlDivergence(want[want.size() - q], got[got.size() - q]);
        kl[k] += one / (kE7Cases * question.size());
      }
      ++r->cases;
      Step(r, kE7Cases * 5);
    }
  }
  r->pass = kl[4] == 0 && kl[0] > 0 && kl[3] < kl[0] && kl[2] < kl[0];
  r->detail = "KL at 0, 25, 50, 75, 100 % recomputed:";
  for (size_t k = 0; k < kl.size(); ++k) {
    r->detail += " " + std::to_string(kl[k]);
    r->points.emplace_back(kPercent[k], kl[k]);
  }
  return Status();
}

Result<RungResult> Verifier::Run(const std::string& rung) {
  RungResult r;
  r.name = rung;
  using Method = Status (Verifier::*)(RungResult*);
  constexpr std::array<Method, 8> kRungs = {&Verifier::E0, &Verifier::E1, &Verifier::E2,
                                            &Verifier::E3, &Verifier::E4, &Verifier::E5,
                                            &Verifier::E6, &Verifier::E7};
  HOLDFAST_RETURN_IF_ERROR((this->*kRungs[rung[1] - '0'])(&r));
  return r;
}

}  // namespace

bool VerifyReport::pass() const {
  return std::all_of(rungs.begin(), rungs.end(), [](const RungResult& r) { return r.pass; });
}

Result<VerifyReport> RunVerify(Model& model, Backend& backend,
                               const std::vector<Backend*>& others, const VerifyOptions& options) {
  VerifyReport report;
  report.cpu = std::string(backend.name());
  report.numerics_digest = ComputeNumericsDigest(backend).all;
  Verifier verifier(model, backend, others, options);
  for (int i = 0; i < 8; ++i) {
    HOLDFAST_ASSIGN_OR_RETURN(RungResult r, verifier.Run("E" + std::to_string(i)));
    report.rungs.push_back(std::move(r));
  }
  return report;
}

}  // namespace holdfast
