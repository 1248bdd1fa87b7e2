#include "stitcher/recipe.h"

#include <algorithm>
#include <cstring>

#include "engine/base/bytes.h"

namespace holdfast {
namespace {

// Format: FORMAT.md.
constexpr uint32_t kMagic = 0x31435248;  // "HRC1"
constexpr size_t kMaxSources = 1 << 16, kMaxSpans = 1 << 20, kMaxTokens = 1 << 24;

constexpr char kVersion1[] = R"sql(
CREATE TABLE recipe(                     -- stitcher/recipe.h
  node INTEGER PRIMARY KEY REFERENCES node(id) ON DELETE CASCADE,
  body BLOB NOT NULL);
)sql";

// What policy verify has measured; NULL where it has not.
constexpr char kVersion2[] = R"sql(
ALTER TABLE recipe ADD COLUMN kl REAL;           -- mean, nats a token
ALTER TABLE recipe ADD COLUMN kl_largest REAL;
ALTER TABLE recipe ADD COLUMN kl_tokens INTEGER;
ALTER TABLE recipe ADD COLUMN same_top REAL;     -- share of tokens
)sql";

class Writer {
 public:
  template <typename T>
  void Add(T value) {
    bytes_.resize(bytes_.size() + sizeof(T));
    Put(bytes_.data() + bytes_.size() - sizeof(T), value);
  }
  void Add(const Digest& digest) {
    for (const uint8_t b : digest.bytes) Add(b);
  }
  void Add(std::span<const TokenId> tokens) {
    Add(static_cast<uint32_t>(tokens.size()));
    for (const TokenId t : tokens) Add(t);
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads beyond the end give zeros and make it not ok.
class BytesReader {
 public:
  explicit BytesReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T Next() {
    if (bytes_.size() < sizeof(T)) {
      ok_ = false;
      return T{};
    }
    const T value = Get<T>(bytes_.data());
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  Digest NextDigest() {
    Digest digest;
    for (uint8_t& b : digest.bytes) b = Next<uint8_t>();
    return digest;
  }
  size_t Count(size_t most) {
    const auto n = static_cast<size_t>(Next<uint32_t>());
    if (n <= most) return n;
    ok_ = false;
    return 0;
  }
  std::vector<TokenId> Tokens() {
    const size_t n = Count(std::min(kMaxTokens, bytes_.size() / sizeof(TokenId)));
    std::vector<TokenId> tokens(n);
    for (TokenId& t : tokens) t = Next<TokenId>();
    return tokens;
  }
  bool Done() const { return ok_ && bytes_.empty(); }
  bool ok() const { return ok_; }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

// A source's chain as far as it is known: its left, then its own tokens.
std::vector<TokenId> ChainOf(const RecipeSource& source) {
  std::vector<TokenId> chain = source.left;
  chain.insert(chain.end(), source.tokens.begin(), source.tokens.end());
  return chain;
}

// Sources are often slices of one chain: each is written as what it adds to the earlier one that it
// has most in common with.
void AddSources(const std::vector<RecipeSource>& sources, Writer* out) {
  std::vector<std::vector<TokenId>> chains;
  out->Add(static_cast<uint32_t>(sources.size()));
  for (const RecipeSource& s : sources) {
    out->Add(s.segment.digest);
    out->Add(s.variant);
    out->Add(static_cast<uint8_t>(s.kind));
    out->Add(s.parent);
    out->Add(s.home);
    out->Add(static_cast<uint32_t>(s.left.size()));
    const std::vector<TokenId> chain = ChainOf(s);
    uint32_t like = 0, common = 0;
    for (size_t i = 0; i < chains.size(); ++i) {
      const auto n = static_cast<uint32_t>(
          std::mismatch(chain.begin(), chain.end(), chains[i].begin(), chains[i].end()).first -
          chain.begin());
      if (n > common) {
        common = n;
        like = static_cast<uint32_t>(i);
      }
    }
    out->Add(like);
    out->Add(common);
    out->Add(std::span(chain).subspan(common));
    chains.push_back(chain);
  }
}

bool ReadSources(BytesReader* in, std::vector<RecipeSource>* sources) {
  std::vector<std::vector<TokenId>> chains;
  const size_t count = in->Count(kMaxSources);
  size_t total = 0;
  for (size_t i = 0; i < count && in->ok(); ++i) {
    RecipeSource s;
    s.segment.digest = in->NextDigest();
    s.variant = in->Next<int64_t>();
    const auto kind = in->Next<uint8_t>();
    s.kind = static_cast<VariantKind>(kind);
    s.parent = in->NextDigest();
    s.home = in->Next<int64_t>();
    const auto left = in->Next<uint32_t>();
    const auto like = in->Next<uint32_t>();
    const auto common = in->Next<uint32_t>();
    std::vector<TokenId> chain;
    if (common > 0) {
      if (like >= chains.size() || common > chains[like].size()) return false;
      chain.assign(chains[like].begin(), chains[like].begin() + common);
    }
    const std::vector<TokenId> rest = in->Tokens();
    chain.insert(chain.end(), rest.begin(), rest.end());
    total += chain.size();
    if (left > chain.size() || kind > 1 || s.home < 0 || s.home % kPageTokens != 0 ||
        (left != 0 && left != s.home) || (chain.size() - left) % kPageTokens != 0 ||
        total > kMaxTokens) {
      return false;
    }
    s.left.assign(chain.begin(), chain.begin() + left);
    s.tokens.assign(chain.begin() + left, chain.end());
    sources->push_back(std::move(s));
    chains.push_back(std::move(chain));
  }
  return in->ok();
}

void AddSpans(const Provenance& spans, Writer* out) {
  out->Add(static_cast<uint32_t>(spans.size()));
  for (const ProvenanceSpan& s : spans) {
    out->Add(s.end);
    out->Add(static_cast<uint8_t>(s.origin));
    out->Add(static_cast<uint8_t>(s.tier));
    out->Add(s.source);
    out->Add(s.shift);
    out->Add(s.generation);
  }
}

// Whether a shifted span lies in its source.
bool FitsSource(const ProvenanceSpan& s, const std::vector<RecipeSource>& sources) {
  const auto count = static_cast<int64_t>(sources.size());
  if (s.source < -1 || s.source >= count) return false;
  if (s.origin != KvOrigin::kShifted) return true;
  if (s.source < 0) return false;
  const RecipeSource& source = sources[s.source];
  const int64_t most = int64_t{1} << 40;
  if (s.shift < -most || s.shift > most) return false;
  const int64_t from = s.begin - s.shift, to = s.end - s.shift;
  return from >= source.home && to <= source.home + static_cast<int64_t>(source.tokens.size());
}

bool ReadSpans(BytesReader* in, Recipe* recipe) {
  const size_t count = in->Count(kMaxSpans);
  int64_t at = 0;
  for (size_t i = 0; i < count && in->ok(); ++i) {
    ProvenanceSpan s;
    s.begin = at;
    s.end = in->Next<int64_t>();
    const auto origin = in->Next<uint8_t>(), tier = in->Next<uint8_t>();
    s.source = in->Next<int32_t>();
    s.shift = in->Next<int64_t>();
    s.generation = in->Next<int32_t>();
    s.origin = static_cast<KvOrigin>(origin);
    s.tier = static_cast<KvTier>(tier);
    if (origin > static_cast<uint8_t>(KvOrigin::kFresh) ||
        tier > static_cast<uint8_t>(KvTier::kStore) || s.end <= at ||
        s.end > static_cast<int64_t>(kMaxTokens) || !FitsSource(s, recipe->sources)) {
      return false;
    }
    at = s.end;
    recipe->spans.push_back(s);
  }
  return in->ok();
}

// How much care a policy takes.
int RankOf(ReusePolicy policy) {
  switch (policy) {
    case ReusePolicy::kFast: return 1;
    case ReusePolicy::kBalanced:
    case ReusePolicy::kVerify: return 2;
    case ReusePolicy::kQuality: return 3;
    default: return 4;
  }
}

}  // namespace

const char* KvTierName(KvTier tier) {
  switch (tier) {
    case KvTier::kComputed: return "computed";
    case KvTier::kWarm: return "warm";
    case KvTier::kPool: return "pool";
    case KvTier::kStore: return "disk";
  }
  return "unknown";
}

const char* OriginName(const ProvenanceSpan& span) {
  switch (span.origin) {
    case KvOrigin::kExact: return span.tier == KvTier::kStore ? "restored" : "exact";
    case KvOrigin::kShifted: return "shifted";
    case KvOrigin::kLink: return "link";
    case KvOrigin::kSelected: return "selected";
    case KvOrigin::kFresh: return "fresh";
  }
  return "unknown";
}

void AddSpan(Provenance* map, const ProvenanceSpan& span) {
  if (span.begin >= span.end) return;
  if (!map->empty()) {
    ProvenanceSpan& last = map->back();
    ProvenanceSpan joined = last;
    joined.begin = span.begin;
    joined.end = span.end;
    if (last.end == span.begin && joined == span) {
      last.end = span.end;
      return;
    }
  }
  map->push_back(span);
}

Provenance FirstOf(const Provenance& map, int64_t length) {
  Provenance out;
  for (ProvenanceSpan span : map) {
    span.end = std::min(span.end, length);
    AddSpan(&out, span);
  }
  return out;
}

ProvenanceTotals TotalsOf(const Provenance& map) {
  ProvenanceTotals t;
  for (const ProvenanceSpan& s : map) {
    const int64_t n = s.end - s.begin;
    if (s.generation > 0) t.approximate += n;
    switch (s.origin) {
      case KvOrigin::kExact: (s.tier == KvTier::kStore ? t.restored : t.exact) += n; break;
      case KvOrigin::kShifted: t.shifted += n; break;
      case KvOrigin::kLink: t.link += n; break;
      case KvOrigin::kSelected: t.selected += n; break;
      case KvOrigin::kFresh: t.fresh += n; break;
    }
  }
  return t;
}

int64_t Recipe::exact_length() const {
  for (const ProvenanceSpan& s : spans) {
    if (s.origin == KvOrigin::kShifted) return s.begin;
  }
  return 0;
}

int64_t Recipe::approximate_end() const {
  int64_t end = 0;
  for (const ProvenanceSpan& s : spans) {
    if (s.origin == KvOrigin::kShifted) end = s.end;
  }
  return end;
}

bool Serves(const Recipe& recipe, const ReuseOptions& reuse) {
  return reuse.approximate() && RankOf(recipe.reuse.policy) >= RankOf(reuse.policy) &&
         (reuse.max_kl <= 0 || recipe.kl_bound <= reuse.max_kl);
}

std::vector<std::byte> EncodeRecipe(const Recipe& recipe) {
  Writer out;
  out.Add(kMagic);
  out.Add(static_cast<uint8_t>(recipe.reuse.policy));
  out.Add(static_cast<uint8_t>(recipe.hardened));
  out.Add(recipe.reuse.max_kl);
  out.Add(recipe.reuse.budget);
  out.Add(recipe.expected_kl);
  out.Add(recipe.kl_bound);
  AddSources(recipe.sources, &out);
  AddSpans(recipe.spans, &out);
  return out.Take();
}

Result<Recipe> DecodeRecipe(std::span<const std::byte> bytes) {
  BytesReader in(bytes);
  Recipe recipe;
  const bool ours = in.Next<uint32_t>() == kMagic;
  const auto policy = in.Next<uint8_t>();
  recipe.reuse.policy = static_cast<ReusePolicy>(policy);
  recipe.hardened = in.Next<uint8_t>() != 0;
  recipe.reuse.max_kl = in.Next<double>();
  recipe.reuse.budget = in.Next<double>();
  recipe.expected_kl = in.Next<double>();
  recipe.kl_bound = in.Next<double>();
  if (!ours || policy > static_cast<uint8_t>(ReusePolicy::kVerify) ||
      !ReadSources(&in, &recipe.sources) || !ReadSpans(&in, &recipe) || !in.Done()) {
    return Status::Corrupt("recipe: " + std::to_string(bytes.size()) + " bytes are not one");
  }
  return recipe;
}

std::vector<Migration> RecipeMigrations() {
  return {{"stitcher/recipe", 1, kVersion1}, {"stitcher/recipe", 2, kVersion2}};
}

Status PutRecipe(Txn& txn, int64_t node, const Recipe& recipe) {
  const std::vector<std::byte> body = EncodeRecipe(recipe);
  return txn.Run("INSERT INTO recipe(node, body) VALUES(?, ?) "
                 "ON CONFLICT(node) DO UPDATE SET body = excluded.body",
                 node, std::span<const std::byte>(body));
}

Status DeleteRecipe(Txn& txn, int64_t node) {
  return txn.Run("DELETE FROM recipe WHERE node = ?", node);
}

Result<Recipe> GetRecipe(Reader& reader, int64_t node) {
  Rows rows = reader.Query("SELECT body FROM recipe WHERE node = ?", node);
  if (rows.Next()) return DecodeRecipe(rows.Blob(0));
  if (!rows.status().ok()) return rows.status();
  return Status::NotFound("node " + std::to_string(node) + " has no recipe: its KV is exact");
}

Status PutShadowKl(Txn& txn, int64_t node, const ShadowKl& kl) {
  return txn.Run(
      "UPDATE recipe SET kl = ?, kl_largest = ?, kl_tokens = ?, same_top = ? WHERE node = ?",
      kl.mean, kl.largest, kl.tokens, kl.same_top, node);
}

Result<std::optional<ShadowKl>> GetShadowKl(Reader& reader, int64_t node) {
  Rows rows = reader.Query(
      "SELECT kl_tokens, kl, kl_largest, same_top FROM recipe "
      "WHERE node = ? AND kl_tokens IS NOT NULL",
      node);
  std::optional<ShadowKl> kl;
  if (rows.Next()) kl = {rows.Int(0), rows.Real(1), rows.Real(2), rows.Real(3)};
  if (!rows.status().ok()) return rows.status();
  return kl;
}

}  // namespace holdfast
