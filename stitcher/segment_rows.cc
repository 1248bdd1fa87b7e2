#include "stitcher/segment_rows.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

namespace holdfast {
namespace {

// Blobs are little endian: tokens u32, hashes of left contexts u64, digests 32 bytes.
constexpr char kVersion1[] = R"sql(
CREATE TABLE segment(
  n INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,               -- SegmentId
  tenant TEXT NOT NULL,
  fp BLOB NOT NULL,
  tokenizer BLOB NOT NULL,
  chat_template BLOB NOT NULL,
  role TEXT NOT NULL,
  tokens BLOB NOT NULL,
  text TEXT NOT NULL,                    -- as given; '' = what the tokens spell
  given INTEGER NOT NULL,                -- a client made it: it stays without variants
  pinned INTEGER NOT NULL,
  created_ms INTEGER NOT NULL,
  used_ms INTEGER NOT NULL,
  hits INTEGER NOT NULL,
  hit_tokens INTEGER NOT NULL);

CREATE TABLE segment_variant(
  id INTEGER PRIMARY KEY,
  segment BLOB NOT NULL REFERENCES segment(id) ON DELETE CASCADE,
  -- The session whose tokens it holds goes with them; its table is made by sessions.
  owner INTEGER REFERENCES session(sid) ON DELETE CASCADE,
  kind INTEGER NOT NULL,                 -- VariantKind
  parent BLOB NOT NULL,
  head BLOB NOT NULL,                    -- tokens of the covering pages before the segment's
  count INTEGER NOT NULL,                -- then so many of the segment's
  rest BLOB NOT NULL,                    -- then these
  position INTEGER NOT NULL,
  sink BLOB NOT NULL,
  left_hashes BLOB NOT NULL,
  generation INTEGER NOT NULL,
  created_ms INTEGER NOT NULL,
  used_ms INTEGER NOT NULL,
  hits INTEGER NOT NULL,
  UNIQUE(segment, kind, parent, position));
CREATE INDEX segment_variant_owner ON segment_variant(owner) WHERE owner IS NOT NULL;

CREATE TRIGGER segment_without_variant AFTER DELETE ON segment_variant BEGIN
  DELETE FROM segment WHERE id = OLD.segment AND given = 0 AND
    NOT EXISTS (SELECT 1 FROM segment_variant WHERE segment = OLD.segment);
END;
)sql";

template <typename T>
std::span<const std::byte> Blob(std::span<const T> values) {
  return std::as_bytes(values);
}
template <typename T>
std::span<const std::byte> Blob(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// Readers of a column that say no where Rows would end the whole query.
template <typename T>
bool Read(std::span<const std::byte> blob, std::vector<T>* out) {
  if (blob.size() % sizeof(T) != 0) return false;
  out->resize(blob.size() / sizeof(T));
  if (!blob.empty()) std::memcpy(out->data(), blob.data(), blob.size());
  return true;
}
bool Read(std::span<const std::byte> blob, Digest* out) {
  if (blob.size() != out->bytes.size()) return false;
  std::memcpy(out->bytes.data(), blob.data(), blob.size());
  return true;
}
bool AreTokens(std::span<const TokenId> tokens) {
  return std::all_of(tokens.begin(), tokens.end(), [](TokenId t) { return t >= 0; });
}

// The slice of a variant's tokens before, or after, the segment's own.
std::span<const TokenId> HeadOf(const Variant& v) { return std::span(v.tokens).first(v.first); }
std::span<const TokenId> RestOf(const Variant& v) {
  return std::span(v.tokens).subspan(static_cast<size_t>(v.first) + v.count);
}

// Columns of a variant after its own id and its segment's.
bool ReadVariant(const Rows& rows, const SegmentBasis& basis, const SegmentRow& segment,
                 VariantRow* out) {
  auto v = std::make_shared<Variant>();
  std::vector<TokenId> rest;
  v->row = rows.Int(0);
  v->segment = segment.id;
  v->fp = basis.fp;
  v->owner = rows.IsNull(2) ? 0 : rows.Int(2);
  v->kind = static_cast<VariantKind>(rows.Int(3));
  const int64_t kind = rows.Int(3), count = rows.Int(6), generation = rows.Int(11);
  v->position = rows.Int(8);
  if (!Read(rows.Blob(4), &v->parent) || !Read(rows.Blob(5), &v->tokens) ||
      !Read(rows.Blob(7), &rest) || !Read(rows.Blob(9), &v->sink) ||
      !Read(rows.Blob(10), &v->left)) {
    return false;
  }
  const auto isolated = v->kind == VariantKind::kIsolated;
  const auto whole = static_cast<int64_t>(segment.tokens.size());
  if (kind < 0 || kind > 1 || generation < 0 || generation > kMaxGeneration || v->position < 0 ||
      v->position % kPageTokens != static_cast<int64_t>(v->tokens.size()) ||
      count < kMinSegmentTokens || count > whole || rest.size() >= kPageTokens ||
      (count < whole && !rest.empty()) || !AreTokens(v->tokens) || !AreTokens(rest) ||
      !AreTokens(v->sink) || static_cast<int64_t>(v->sink.size()) != (isolated ? v->position : 0)) {
    return false;
  }
  if (v->left.size() > 62 || (!v->left.empty() && v->position >> (v->left.size() - 1) == 0)) {
    return false;
  }
  v->first = static_cast<int32_t>(v->tokens.size());
  v->count = static_cast<int32_t>(count);
  v->generation = static_cast<int32_t>(generation);
  v->tokens.insert(v->tokens.end(), segment.tokens.begin(), segment.tokens.begin() + count);
  v->tokens.insert(v->tokens.end(), rest.begin(), rest.end());
  *out = {std::move(v), rows.Int(12), rows.Int(13), static_cast<uint64_t>(rows.Int(14))};
  return out->variant->tokens.size() % kPageTokens == 0;
}

Status InsertSegment(Txn& txn, const SegmentBasis& basis, const SegmentRow& s) {
  return txn.Run(
      "INSERT INTO segment(n, id, tenant, fp, tokenizer, chat_template, role, tokens, text, given, "
      "pinned, created_ms, used_ms, hits, hit_tokens) "
      "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
      "given = excluded.given, pinned = excluded.pinned",
      s.n, s.id.digest, s.tenant, basis.fp, basis.tokenizer, basis.chat_template, s.role,
      Blob(s.tokens), s.text, s.given, s.pinned, s.created_ms, s.used_ms, s.hits, s.hit_tokens);
}

Status InsertVariant(Txn& txn, const VariantRow& row) {
  const Variant& v = *row.variant;
  return txn.Run(
      "INSERT INTO segment_variant(id, segment, owner, kind, parent, head, count, rest, position, "
      "sink, left_hashes, generation, created_ms, used_ms, hits) "
      "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
      "ON CONFLICT(segment, kind, parent, position) DO UPDATE SET id = excluded.id, "
      "owner = excluded.owner, head = excluded.head, count = excluded.count, "
      "rest = excluded.rest, used_ms = excluded.used_ms",
      v.row, v.segment.digest, v.owner == 0 ? SqlValue() : SqlValue(v.owner), v.kind, v.parent,
      Blob(HeadOf(v)), v.count, Blob(RestOf(v)), v.position, Blob(v.sink), Blob(v.left),
      v.generation, row.created_ms, row.used_ms, row.hits);
}

Status LoadSegmentRows(Reader& reader, const SegmentBasis& basis, LoadedSegments* out) {
  Rows rows = reader.Query(
      "SELECT n, id, tenant, role, tokens, text, given, pinned, created_ms, used_ms, hits, "
      "hit_tokens FROM segment WHERE fp = ? AND tokenizer = ? AND chat_template = ? ORDER BY n",
      basis.fp, basis.tokenizer, basis.chat_template);
  while (rows.Next()) {
    SegmentRow s;
    s.n = rows.Int(0);
    s.tenant = rows.Text(2);
    s.role = rows.Text(3);
    const bool sound = Read(rows.Blob(1), &s.id.digest) && Read(rows.Blob(4), &s.tokens) &&
                       AreTokens(s.tokens) && !s.tokens.empty() &&
                       MakeSegmentId(basis, TenantScope(s.tenant), s.role, s.tokens) == s.id;
    if (!sound) {
      out->bad_segments.push_back(s.n);
      continue;
    }
    s.text = rows.Text(5);
    s.given = rows.Int(6) != 0;
    s.pinned = rows.Int(7) != 0;
    s.created_ms = rows.Int(8);
    s.used_ms = rows.Int(9);
    s.hits = static_cast<uint64_t>(rows.Int(10));
    s.hit_tokens = static_cast<uint64_t>(rows.Int(11));
    out->segments.push_back(std::move(s));
  }
  return rows.status();
}

Status LoadVariantRows(Reader& reader, const SegmentBasis& basis, LoadedSegments* out) {
  std::map<SegmentId, const SegmentRow*> segments;
  for (const SegmentRow& s : out->segments) segments[s.id] = &s;
  Rows rows = reader.Query(
      "SELECT id, segment, owner, kind, parent, head, count, rest, position, sink, left_hashes, "
      "generation, created_ms, used_ms, hits FROM segment_variant ORDER BY id");
  while (rows.Next()) {
    SegmentId id;
    if (!Read(rows.Blob(1), &id.digest)) continue;
    const auto segment = segments.find(id);
    if (segment == segments.end()) continue;  // of another model
    VariantRow row;
    if (ReadVariant(rows, basis, *segment->second, &row)) {
      out->variants.push_back(std::move(row));
    } else {
      out->bad_variants.push_back(rows.Int(0));
    }
  }
  return rows.status();
}

}  // namespace

std::vector<Migration> SegmentMigrations() {
  return {{"stitcher/segments", 1, kVersion1}};
}

Status ApplyChange(Txn& txn, const SegmentBasis& basis, const SegmentChange& change) {
  for (const SegmentId& id : change.drop_segments) {
    HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM segment WHERE id = ?", id.digest));
  }
  for (const SegmentRow& s : change.segments) {
    HOLDFAST_RETURN_IF_ERROR(InsertSegment(txn, basis, s));
  }
  for (const VariantRow& v : change.variants) {
    HOLDFAST_RETURN_IF_ERROR(InsertVariant(txn, v));
  }
  for (const int64_t row : change.drop_variants) {
    HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM segment_variant WHERE id = ?", row));
  }
  return Status();
}

Result<LoadedSegments> LoadSegments(Reader& reader, const SegmentBasis& basis) {
  LoadedSegments out;
  HOLDFAST_RETURN_IF_ERROR(LoadSegmentRows(reader, basis, &out));
  HOLDFAST_RETURN_IF_ERROR(LoadVariantRows(reader, basis, &out));
  Rows rows = reader.Query(
      "SELECT (SELECT COALESCE(MAX(n), 0) FROM segment), "
      "(SELECT COALESCE(MAX(id), 0) FROM segment_variant)");
  if (rows.Next()) {
    out.next_n = rows.Int(0) + 1;
    out.next_variant = rows.Int(1) + 1;
  }
  if (!rows.status().ok()) return rows.status();
  return out;
}

Result<std::vector<SegmentBasis>> SegmentBases(Reader& reader) {
  std::vector<SegmentBasis> bases;
  Rows rows = reader.Query(
      "SELECT DISTINCT fp, tokenizer, chat_template FROM segment "
      "WHERE length(fp) = 32 AND length(tokenizer) = 32 AND length(chat_template) = 32");
  while (rows.Next()) bases.push_back({rows.DigestAt(0), rows.DigestAt(1), rows.DigestAt(2)});
  if (!rows.status().ok()) return rows.status();
  return bases;
}

Result<SegmentCheck> CheckSegments(Reader& reader) {
  SegmentCheck check;
  int64_t sound_segments = 0, sound_variants = 0;
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<SegmentBasis> bases, SegmentBases(reader));
  for (const SegmentBasis& basis : bases) {
    HOLDFAST_ASSIGN_OR_RETURN(const LoadedSegments loaded, LoadSegments(reader, basis));
    sound_segments += static_cast<int64_t>(loaded.segments.size());
    sound_variants += static_cast<int64_t>(loaded.variants.size());
  }
  Rows rows = reader.Query(
      "SELECT (SELECT count(*) FROM segment), (SELECT count(*) FROM segment_variant)");
  if (rows.Next()) {
    check.segments = rows.Int(0);
    check.variants = rows.Int(1);
  }
  if (!rows.status().ok()) return rows.status();
  check.damaged_segments = check.segments - sound_segments;
  check.damaged_variants = check.variants - sound_variants;
  return check;
}

Result<bool> IsOfAnotherBasis(Reader& reader, const SegmentBasis& basis, std::string_view tenant,
                              const SegmentId& id) {
  Rows rows = reader.Query(
      "SELECT fp = ? AND tokenizer = ? AND chat_template = ? FROM segment "
      "WHERE id = ? AND tenant = ?",
      basis.fp, basis.tokenizer, basis.chat_template, id.digest, tenant);
  const bool other = rows.Next() && rows.Int(0) == 0;
  if (!rows.status().ok()) return rows.status();
  return other;
}

}  // namespace holdfast
