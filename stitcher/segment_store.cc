#include "stitcher/segment_store.h"

#include <algorithm>
#include <cassert>
#include <mutex>
#include <optional>
#include <utility>

namespace holdfast {
namespace {

Status CheckSlice(const Variant& v, std::span<const TokenId> tokens) {
  if (v.generation < 0 || v.generation > kMaxGeneration) {
    return Status::Invalid("segments: a variant of generation " + std::to_string(v.generation) +
                           " is beyond " + std::to_string(kMaxGeneration));
  }
  const bool fits = v.first == v.position % kPageTokens && v.count >= kMinSegmentTokens &&
                    v.tokens.size() % kPageTokens == 0 &&
                    static_cast<size_t>(v.first) + v.count <= v.tokens.size() &&
                    v.tokens.size() - v.first - v.count < kPageTokens;
  if (!fits) return Status::Invalid("segments: a variant's slice does not fit its pages");
  const auto body = v.body();
  if (body.size() > tokens.size() || !std::equal(body.begin(), body.end(), tokens.begin())) {
    return Status::Invalid("segments: a variant holds other tokens than its segment");
  }
  return Status();
}

}  // namespace

Variant SliceOf(const Timeline& timeline, const Digest& fp, const TokenHashes& hashes,
                int64_t begin, int64_t end) {
  assert(0 <= begin && begin < end &&
         (end + kPageTokens - 1) / kPageTokens * kPageTokens <= timeline.filled());
  const PageKey& parent = timeline.chain_key(begin / kPageTokens);
  Variant v = SliceOfChain(timeline.tokens(), parent, begin, end);
  v.fp = fp;
  v.left = SuffixHashes(hashes, begin);
  return v;
}

Result<std::unique_ptr<SegmentStore>> SegmentStore::Open(const Options& options) {
  std::unique_ptr<SegmentStore> store(new SegmentStore(options));
  HOLDFAST_RETURN_IF_ERROR(store->Load());
  return store;
}

Status SegmentStore::Load() {
  LoadedSegments loaded;
  HOLDFAST_RETURN_IF_ERROR(options_.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(loaded, LoadSegments(reader, options_.basis));
    return Status();
  }));
  next_n_ = loaded.next_n;
  next_variant_ = loaded.next_variant;
  corrupt_ = loaded.bad_segments.size() + loaded.bad_variants.size();
  std::map<SegmentId, Segment*> segments;
  for (SegmentRow& row : loaded.segments) {
    const SegmentId id = row.id;
    Tenant& tenant = tenants_[row.tenant];
    segments[id] = &AddSegment(&tenant, std::move(row));
  }
  for (VariantRow& row : loaded.variants) {
    Segment* segment = segments.at(row.variant->segment);
    AddVariant(&tenants_[segment->row.tenant], segment, std::move(row));
  }
  SegmentChange change;  // the budget may be smaller than it was
  for (auto& [name, tenant] : tenants_) MakeRoom(&tenant, 0, 0, {}, &change).IgnoreError();
  if (corrupt_ == 0 && change.drop_segments.empty()) return Status();
  return options_.db->Write(
      [&](Txn& txn) -> Status {
        for (const int64_t n : loaded.bad_segments) {
          HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM segment WHERE n = ?", n));
        }
        change.drop_variants = loaded.bad_variants;
        return ApplyChange(txn, options_.basis, change);
      },
      WriteClass::kBackground);
}

// All writes are of one class, so that they are run in the order in which they were asked for.
Status SegmentStore::Write(SegmentChange change) {
  return options_.db->Write(
      [this, &change](Txn& txn) { return ApplyChange(txn, options_.basis, change); },
      WriteClass::kBackground);
}

void SegmentStore::Submit(SegmentChange change) {
  // What is not written is learnt again. (The work outlives this store.)
  options_.db
      ->Submit([change = std::move(change), basis = options_.basis](
                   Txn& txn) { return ApplyChange(txn, basis, change); },
               WriteClass::kBackground, [](const Status& s) { s.IgnoreError(); })
      .IgnoreError();
}

SegmentStore::Segment& SegmentStore::AddSegment(Tenant* tenant, SegmentRow row) {
  const SegmentId id = row.id;
  tenant->order[row.n] = id;
  tenant->tokens += row.tokens.size();
  Segment& segment = tenant->segments[id];
  segment.row = std::move(row);
  return segment;
}

void SegmentStore::AddVariant(Tenant* tenant, Segment* segment, VariantRow row) {
  tenant->kv_bytes += BytesOf(*row.variant);
  tenant->tokens += row.variant->tokens.size();
  tenant->index.Add(row.variant);
  segment->variants.push_back(std::move(row));
}

void SegmentStore::RemoveVariant(Tenant* tenant, Segment* segment, size_t at) {
  const auto it = segment->variants.begin() + static_cast<std::ptrdiff_t>(at);
  tenant->kv_bytes -= BytesOf(*it->variant);
  tenant->tokens -= it->variant->tokens.size();
  tenant->index.Remove(*it->variant);
  segment->variants.erase(it);
}

void SegmentStore::RemoveSegment(Tenant* tenant, const SegmentId& id) {
  const auto it = tenant->segments.find(id);
  Segment& segment = it->second;
  while (!segment.variants.empty()) {
    RemoveVariant(tenant, &segment, segment.variants.size() - 1);
  }
  tenant->tokens -= segment.row.tokens.size();
  tenant->order.erase(segment.row.n);
  tenant->segments.erase(it);
}

// Drops segments until so much more fits, but for `keep` and pinned ones; none where it never will.
// An eighth of the budget goes at once, so that the search for the oldest is rare.
Status SegmentStore::MakeRoom(Tenant* tenant, uint64_t bytes, uint64_t tokens,
                              const SegmentId& keep, SegmentChange* change) {
  const auto fits = [&](uint64_t part) {
    return tenant->kv_bytes + bytes <= options_.max_bytes / 8 * part &&
           tenant->tokens + tokens <= options_.max_tokens / 8 * part;
  };
  if (fits(8)) return Status();
  std::vector<std::pair<int64_t, SegmentId>> line;
  uint64_t kept_bytes = bytes, kept_tokens = tokens;
  for (const auto& [id, s] : tenant->segments) {
    if (!s.row.pinned && id != keep) {
      line.emplace_back(s.row.used_ms, id);
      continue;
    }
    kept_tokens += s.row.tokens.size();
    for (const VariantRow& v : s.variants) {
      kept_bytes += BytesOf(*v.variant);
      kept_tokens += v.variant->tokens.size();
    }
  }
  if (kept_bytes > options_.max_bytes || kept_tokens > options_.max_tokens) {
    return Status::Exhausted("quota_exceeded: segments may name " +
                             std::to_string(options_.max_bytes) + " bytes of KV and hold " +
                             std::to_string(options_.max_tokens) +
                             " tokens; unpin or delete some");
  }
  std::sort(line.begin(), line.end());
  for (const auto& [used_ms, id] : line) {
    if (fits(7)) break;
    RemoveSegment(tenant, id);
    change->drop_segments.push_back(id);
    ++dropped_;
  }
  return Status();
}

SegmentInfo SegmentStore::InfoOf(const Segment& s) const {
  const SegmentRow& row = s.row;
  SegmentInfo info;
  info.n = row.n;
  info.id = row.id;
  info.role = row.role;
  info.tokens = static_cast<int64_t>(row.tokens.size());
  info.given = row.given;
  info.pinned = row.pinned;
  info.created_ms = row.created_ms;
  info.used_ms = row.used_ms;
  info.hits = row.hits;
  info.hit_tokens = row.hit_tokens;
  for (const VariantRow& v : s.variants) {
    info.kv_bytes += BytesOf(*v.variant);
    info.variants.push_back({v.variant->kind, v.variant->count, v.variant->position,
                             v.variant->generation, v.created_ms, v.used_ms, v.hits});
  }
  return info;
}

const SegmentStore::Segment* SegmentStore::FindLocked(const TenantScope& scope,
                                                      const SegmentId& id) const {
  const auto tenant = tenants_.find(scope.tenant());
  if (tenant == tenants_.end()) return nullptr;
  const auto segment = tenant->second.segments.find(id);
  return segment == tenant->second.segments.end() ? nullptr : &segment->second;
}

// Why a segment is not in memory.
Status SegmentStore::Missing(const TenantScope& scope, const SegmentId& id,
                             Code of_another_model) const {
  bool other = false;
  HOLDFAST_RETURN_IF_ERROR(options_.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(
        other, IsOfAnotherBasis(reader, options_.basis, scope.tenant(), id));
    return Status();
  }));
  if (!other) return Status::NotFound("segment '" + id.Text() + "' does not exist");
  return Status(of_another_model,
                "segment_of_another_model: segment '" + id.Text() +
                    "' was made for another model, tokenizer or chat template");
}

Result<SegmentInfo> SegmentStore::Give(const TenantScope& scope, const Given& given) {
  if (given.tokens.empty()) return Status::Invalid("segments: a segment has one token or more");
  if (given.role.empty() || given.role.size() > kMaxRoleBytes) {
    return Status::Invalid("segments: '" + given.role + "' is no role");
  }
  const SegmentId id = IdOf(scope, given.role, given.tokens);
  const int64_t now = NowMs();
  SegmentChange change;
  SegmentInfo info;
  {
    std::lock_guard lock(mu_);
    Tenant& tenant = tenants_[scope.tenant()];
    auto it = tenant.segments.find(id);
    if (it == tenant.segments.end()) {
      HOLDFAST_RETURN_IF_ERROR(MakeRoom(&tenant, 0, given.tokens.size(), id, &change));
      AddSegment(&tenant, {.n = next_n_++, .id = id, .tenant = scope.tenant(), .role = given.role,
                           .tokens = given.tokens, .text = given.text, .created_ms = now,
                           .used_ms = now});
      it = tenant.segments.find(id);
    }
    SegmentRow& row = it->second.row;
    row.given = true;
    row.pinned = row.pinned || given.pin;
    info = InfoOf(it->second);
    change.segments.push_back(row);
  }
  HOLDFAST_RETURN_IF_ERROR(Write(std::move(change)));
  return info;
}

Result<SegmentInfo> SegmentStore::Get(const TenantScope& scope, const SegmentId& id) const {
  {
    std::shared_lock lock(mu_);
    if (const Segment* s = FindLocked(scope, id)) return InfoOf(*s);
  }
  return Missing(scope, id, Code::kNotFound);
}

Result<SegmentBody> SegmentStore::Body(const TenantScope& scope, const SegmentId& id) const {
  {
    std::shared_lock lock(mu_);
    if (const Segment* s = FindLocked(scope, id)) {
      return SegmentBody{s->row.role, s->row.text, s->row.tokens};
    }
  }
  return Missing(scope, id, Code::kInvalid);
}

std::vector<SegmentInfo> SegmentStore::List(const TenantScope& scope, int64_t after, int limit,
                                            ListOrder order) const {
  std::vector<SegmentInfo> out;
  std::shared_lock lock(mu_);
  const auto tenant = tenants_.find(scope.tenant());
  if (tenant == tenants_.end()) return out;
  const auto& all = tenant->second.order;
  const bool up = order == ListOrder::kAscending;
  auto it = up ? all.upper_bound(after) : all.lower_bound(after);
  while (static_cast<int>(out.size()) < limit && it != (up ? all.end() : all.begin())) {
    const auto at = up ? it++ : --it;
    out.push_back(InfoOf(tenant->second.segments.at(at->second)));
  }
  return out;
}

Result<SegmentInfo> SegmentStore::SetPin(const TenantScope& scope, const SegmentId& id, Pin pin) {
  SegmentChange change;
  SegmentInfo info;
  {
    std::lock_guard lock(mu_);
    if (const Segment* s = FindLocked(scope, id)) {
      Segment& segment = tenants_.find(scope.tenant())->second.segments.at(s->row.id);
      segment.row.pinned = pin == Pin::kOn;
      info = InfoOf(segment);
      change.segments.push_back(segment.row);
    }
  }
  if (change.segments.empty()) return Missing(scope, id, Code::kNotFound);
  HOLDFAST_RETURN_IF_ERROR(Write(std::move(change)));
  return info;
}

Status SegmentStore::Delete(const TenantScope& scope, const SegmentId& id) {
  bool there = false;
  HOLDFAST_RETURN_IF_ERROR(options_.db->Write(
      [&](Txn& txn) -> Status {
        Status s = txn.Run("DELETE FROM segment WHERE id = ? AND tenant = ?", id.digest,
                           scope.tenant());
        there = txn.changes() == 1;
        return s;
      },
      WriteClass::kBackground));
  std::lock_guard lock(mu_);
  if (FindLocked(scope, id) != nullptr) {
    RemoveSegment(&tenants_.find(scope.tenant())->second, id);
    there = true;
  }
  return there ? Status() : Status::NotFound("segment '" + id.Text() + "' does not exist");
}

void SegmentStore::Learn(const Timeline& timeline, std::span<const BodySpan> bodies,
                         int64_t owner) {
  int64_t sealed = -1;
  std::optional<TokenHashes> hashes;
  for (const BodySpan& b : bodies) {
    if (b.end - b.begin < kMinSegmentTokens || b.end > timeline.size()) continue;
    if (sealed < 0) sealed = static_cast<int64_t>(timeline.ExactKeys().size()) * kPageTokens;
    const int64_t end = std::min(b.end, sealed);
    if (end - b.begin < kMinSegmentTokens) continue;
    if (!hashes) hashes.emplace(timeline.tokens());
    Variant v = SliceOf(timeline, options_.basis.fp, *hashes, b.begin, end);
    v.owner = owner;
    // One for which there is no room is not learnt.
    Put(timeline.scope(), b.role, timeline.tokens().subspan(b.begin, b.end - b.begin),
        std::move(v)).IgnoreError();
  }
}

// Where `variant` may go in: false when the segment has as much of the same slice already; else the
// place is made, for which an older variant may go.
bool SegmentStore::MakePlace(Tenant* tenant, Segment* segment, const Variant& variant,
                             SegmentChange* change) {
  auto& rows = segment->variants;
  const auto same = std::find_if(rows.begin(), rows.end(), [&](const VariantRow& r) {
    return r.variant->kind == variant.kind && r.variant->parent == variant.parent &&
           r.variant->position == variant.position;
  });
  if (same != rows.end()) {
    if (same->variant->count >= variant.count) return false;
    // The write replaces its row.
    RemoveVariant(tenant, segment, static_cast<size_t>(same - rows.begin()));
  } else if (rows.size() >= kMaxVariants) {
    const auto oldest = std::min_element(
        rows.begin(), rows.end(),
        [](const VariantRow& a, const VariantRow& b) { return a.used_ms < b.used_ms; });
    change->drop_variants.push_back(oldest->variant->row);
    RemoveVariant(tenant, segment, static_cast<size_t>(oldest - rows.begin()));
  }
  return true;
}

Status SegmentStore::Put(const TenantScope& scope, std::string_view role,
                         std::span<const TokenId> tokens, Variant variant) {
  HOLDFAST_RETURN_IF_ERROR(CheckSlice(variant, tokens));
  const int64_t now = NowMs();
  variant.segment = IdOf(scope, role, tokens);
  SegmentChange change;
  {
    std::lock_guard lock(mu_);
    Tenant& tenant = tenants_[scope.tenant()];
    auto it = tenant.segments.find(variant.segment);
    const bool is_new = it == tenant.segments.end();
    if (!is_new && !MakePlace(&tenant, &it->second, variant, &change)) return Status();
    HOLDFAST_RETURN_IF_ERROR(MakeRoom(&tenant, BytesOf(variant),
                                      variant.tokens.size() + (is_new ? tokens.size() : 0),
                                      variant.segment, &change));
    if (is_new) {
      AddSegment(&tenant, {.n = next_n_++, .id = variant.segment, .tenant = scope.tenant(),
                           .role = std::string(role), .tokens = {tokens.begin(), tokens.end()},
                           .text = {}, .created_ms = now, .used_ms = now});
      it = tenant.segments.find(variant.segment);
    }
    variant.row = next_variant_++;
    VariantRow row{std::make_shared<const Variant>(std::move(variant)), now, now, 0};
    change.segments.push_back(it->second.row);
    change.variants.push_back(row);
    AddVariant(&tenant, &it->second, std::move(row));
  }
  Submit(std::move(change));
  return Status();
}

void SegmentStore::Forget(int64_t owner) {
  std::lock_guard lock(mu_);
  for (auto& [name, tenant] : tenants_) {
    std::vector<SegmentId> gone;
    for (auto& [id, segment] : tenant.segments) {
      for (size_t i = segment.variants.size(); i-- > 0;) {
        if (segment.variants[i].variant->owner == owner) RemoveVariant(&tenant, &segment, i);
      }
      if (segment.variants.empty() && !segment.row.given) gone.push_back(id);
    }
    for (const SegmentId& id : gone) RemoveSegment(&tenant, id);
  }
}

std::vector<FoundRun> SegmentStore::Find(const TenantScope& scope,
                                         std::span<const TokenId> tokens, int64_t begin,
                                         int64_t end) const {
  std::shared_lock lock(mu_);
  const auto tenant = tenants_.find(scope.tenant());
  if (tenant == tenants_.end()) return {};
  return tenant->second.index.Find(tokens, begin, end);
}

void SegmentStore::Used(const TenantScope& scope, std::span<const FoundRun> runs) {
  if (runs.empty()) return;
  const int64_t now = NowMs();
  struct Hit {
    SegmentId segment;
    int64_t variant, tokens;
  };
  std::vector<Hit> hits;
  {
    std::lock_guard lock(mu_);
    const auto tenant = tenants_.find(scope.tenant());
    for (const FoundRun& run : runs) {
      hit_tokens_ += static_cast<uint64_t>(run.end - run.begin);
      ++hits_;
      if (tenant == tenants_.end()) continue;
      const auto it = tenant->second.segments.find(run.variant->segment);
      if (it == tenant->second.segments.end()) continue;  // deleted meanwhile
      SegmentRow& row = it->second.row;
      row.used_ms = now;
      row.hits += 1;
      row.hit_tokens += static_cast<uint64_t>(run.end - run.begin);
      for (VariantRow& v : it->second.variants) {
        if (v.variant->row != run.variant->row) continue;
        v.used_ms = now;
        ++v.hits;
      }
      hits.push_back({row.id, run.variant->row, run.end - run.begin});
    }
  }
  options_.db
      ->Submit(
          [hits = std::move(hits), now](Txn& txn) -> Status {
            for (const Hit& h : hits) {
              HOLDFAST_RETURN_IF_ERROR(
                  txn.Run("UPDATE segment SET used_ms = ?, hits = hits + 1, "
                          "hit_tokens = hit_tokens + ? WHERE id = ?",
                          now, h.tokens, h.segment.digest));
              HOLDFAST_RETURN_IF_ERROR(
                  txn.Run("UPDATE segment_variant SET used_ms = ?, hits = hits + 1 WHERE id = ?",
                          now, h.variant));
            }
            return Status();
          },
          WriteClass::kBackground, [](const Status& s) { s.IgnoreError(); })
      .IgnoreError();
}

Status SegmentStore::AddPages(std::unordered_set<PageKey, DigestHash>* keys) const {
  const auto add = [&](const VariantRow& v) {
    for (const PageKey& key : v.variant->PageKeys()) keys->insert(key);
  };
  {
    std::shared_lock lock(mu_);
    for (const auto& [name, tenant] : tenants_) {
      for (const auto& [id, segment] : tenant.segments) {
        for (const VariantRow& v : segment.variants) add(v);
      }
    }
  }
  return options_.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const std::vector<SegmentBasis> bases, SegmentBases(reader));
    for (const SegmentBasis& basis : bases) {
      if (basis == options_.basis) continue;
      HOLDFAST_ASSIGN_OR_RETURN(const LoadedSegments loaded, LoadSegments(reader, basis));
      for (const VariantRow& v : loaded.variants) add(v);
    }
    return Status();
  });
}

std::vector<PageKey> SegmentStore::PinnedPages(size_t max) const {
  std::vector<std::pair<int64_t, std::shared_ptr<const Variant>>> line;  // by when it was used
  {
    std::shared_lock lock(mu_);
    for (const auto& [name, tenant] : tenants_) {
      for (const auto& [id, segment] : tenant.segments) {
        if (!segment.row.pinned) continue;
        for (const VariantRow& v : segment.variants) line.emplace_back(v.used_ms, v.variant);
      }
    }
  }
  std::sort(line.begin(), line.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second->row) > std::pair(b.first, b.second->row);
  });
  std::vector<PageKey> keys;  // the other way round
  for (const auto& [used_ms, variant] : line) {
    const std::vector<PageKey> own = variant->PageKeys();
    if (keys.size() + own.size() > max) break;
    keys.insert(keys.end(), own.begin(), own.end());
  }
  std::reverse(keys.begin(), keys.end());
  return keys;
}

SegmentStats SegmentStore::stats() const {
  SegmentStats s;
  s.hits = hits_;
  s.hit_tokens = hit_tokens_;
  std::shared_lock lock(mu_);
  s.dropped = dropped_;
  s.corrupt = corrupt_;
  for (const auto& [name, tenant] : tenants_) {
    s.segments += tenant.segments.size();
    s.tokens += tenant.tokens;
    s.kv_bytes += tenant.kv_bytes;
    s.index_bytes += tenant.index.bytes();
    for (const auto& [id, segment] : tenant.segments) s.variants += segment.variants.size();
  }
  return s;
}

}  // namespace holdfast
