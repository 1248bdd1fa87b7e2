// The rows of a session as a bundle carries them. Each row names its columns once, in Columns; from
// that follow the SQL that reads and writes it and its bytes in a section (FORMAT.md: fields one
// after another in this order). A new column is a field and a line here, and a new bundle version.
//
// Rows refer to each other by number in the bundle (from 1 in order of appearance), not by the ids
// of a database. Plain values; no I/O but of the readers and transactions handed in.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/types.h"
#include "engine/store/database.h"
#include "sessions/basis.h"

namespace holdfast {

// In a database: its id, 0 for NULL. In a bundle: the number, 0 for none (the root).
struct NodeRef {
  int64_t n = 0;
};
struct BranchRef {
  int64_t n = 0;
};
struct BasisRef {
  int64_t n = 0;
};

// The first section: the session, and what must fit where it goes on.
struct BundleSession {
  std::string id;
  std::optional<std::string> external_id;
  int64_t anonymous = 0;
  std::string model;
  Digest model_digest;
  int64_t seed = 0, next_ordinal = 0, ttl_s = 0;
  std::string meta;
  int64_t created_ms = 0, updated_ms = 0;
  // Not of the table:
  BranchRef default_branch;
  Digest head_model;                  // weights whose tokens the default branch ends in
  Digest fp;                          // of the pages
  int64_t numerics = 0;               // NUMERICS version of the writer
  std::vector<uint64_t> page_groups;  // bytes of a page's payload, by layer group
  int64_t nodes = 0, branches = 0, turns = 0;  // as many follow

  static constexpr char kTable[] = "session";
  template <typename F>
  void TableColumns(F&& f) {
    f("id", id), f("external_id", external_id), f("anonymous", anonymous), f("model", model);
    f("model_digest", model_digest), f("seed", seed), f("next_ordinal", next_ordinal);
    f("ttl_s", ttl_s), f("meta", meta), f("created_ms", created_ms), f("updated_ms", updated_ms);
  }
  template <typename F>
  void Columns(F&& f) {
    TableColumns(f);
    f("", default_branch), f("", head_model), f("", fp), f("", numerics), f("", page_groups);
    f("", nodes), f("", branches), f("", turns);
  }
};

// What answers rested on (basis.h), for replays elsewhere.
struct BundleBasis {
  Digest digest, weights, fp, numerics;
  std::string operations;
  Digest chat_template, tokenizer;
  std::string kv;

  static constexpr char kTable[] = "basis";
  template <typename F>
  void Columns(F&& f) {
    f("digest", digest), f("weights", weights), f("fp", fp), f("numerics", numerics);
    f("operations", operations), f("chat_template", chat_template), f("tokenizer", tokenizer);
    f("kv", kv);
  }
};

inline Basis BasisOf(const BundleBasis& b) {
  return {b.weights, b.fp, b.numerics, b.operations, b.chat_template, b.tokenizer, b.kv};
}

// What a node's template_digest is over, beside the basis.
struct BundleContext {
  Digest digest;
  std::string tools, template_kwargs;

  static constexpr char kTable[] = "context";
  template <typename F>
  void Columns(F&& f) {
    f("digest", digest), f("tools", tools), f("template_kwargs", template_kwargs);
  }
};

struct BundleNode {
  NodeRef parent;
  int64_t parent_count = 0, kind = 0, status = 0;
  std::string turn;
  std::vector<TokenId> tokens;
  std::vector<uint8_t> origins;
  std::vector<uint64_t> digests;
  std::string sampling;
  int64_t seed = 0;
  Digest template_digest, model_digest;
  std::optional<Digest> lineage_hash;
  BasisRef basis;

  static constexpr char kTable[] = "node";
  template <typename F>
  void Columns(F&& f) {
    f("parent", parent), f("parent_count", parent_count), f("kind", kind), f("status", status);
    f("turn", turn), f("tokens", tokens), f("origins", origins), f("digests", digests);
    f("sampling", sampling), f("seed", seed), f("template_digest", template_digest);
    f("model_digest", model_digest), f("lineage_hash", lineage_hash), f("basis", basis);
  }
};

struct BundleItem {  // of the node before it in the bundle
  int64_t first = 0, count = 0, header = 0, trailer = 0;
  std::string role, call_id;
  Digest content_hash;
  std::string content, raw;

  static constexpr char kTable[] = "item";
  template <typename F>
  void Columns(F&& f) {
    f("first", first), f("count", count), f("header", header), f("trailer", trailer);
    f("role", role), f("call_id", call_id), f("content_hash", content_hash);
    f("content", content), f("raw", raw);
  }
};

// Of the node before it, an output: it was given over approximate KV.
struct BundleRecipe {
  int64_t policy = 0;  // ReusePolicy

  static constexpr char kTable[] = "recipe";
  template <typename F>
  void Columns(F&& f) {
    f("policy", policy);
  }
};

struct BundleBranch {
  std::string name;
  int64_t ordinal = 0;
  NodeRef node;
  int64_t count = 0, generation = 0;
  Digest head_hash;
  int64_t tokens = 0, items = 0;
  std::string parent_name;
  int64_t parent_tokens = 0, created_ms = 0, updated_ms = 0;

  static constexpr char kTable[] = "branch";
  template <typename F>
  void Columns(F&& f) {
    f("name", name), f("ordinal", ordinal), f("node", node), f("count", count);
    f("generation", generation), f("head_hash", head_hash), f("tokens", tokens), f("items", items);
    f("parent_name", parent_name), f("parent_tokens", parent_tokens);
    f("created_ms", created_ms), f("updated_ms", updated_ms);
  }
};

// Without idempotency keys and the responses kept for them: these belong to one server's clients.
struct BundleTurn {
  std::string id;
  BranchRef branch;
  Digest request_digest, input_digest;
  NodeRef parent;
  int64_t parent_count = 0, status = 0, seed = 0;
  std::string sampling;
  int64_t prompt_tokens = 0;
  NodeRef output;
  std::string finish;
  int64_t created_ms = 0;
  std::optional<int64_t> ended_ms;
  int64_t queue_us = 0, restore_us = 0, prefill_us = 0, decode_us = 0;

  static constexpr char kTable[] = "turn";
  template <typename F>
  void Columns(F&& f) {
    f("id", id), f("branch", branch), f("request_digest", request_digest);
    f("input_digest", input_digest), f("parent", parent), f("parent_count", parent_count);
    f("status", status), f("seed", seed), f("sampling", sampling);
    f("prompt_tokens", prompt_tokens), f("output", output), f("finish", finish);
    f("created_ms", created_ms), f("ended_ms", ended_ms), f("queue_us", queue_us);
    f("restore_us", restore_us), f("prefill_us", prefill_us), f("decode_us", decode_us);
  }
};

struct BundleSnapshot {
  std::string id, label, branch;
  NodeRef node;
  int64_t count = 0, tokens = 0, items = 0, created_ms = 0;

  static constexpr char kTable[] = "snapshot";
  template <typename F>
  void Columns(F&& f) {
    f("id", id), f("label", label), f("branch", branch), f("node", node), f("count", count);
    f("tokens", tokens), f("items", items), f("created_ms", created_ms);
  }
};

struct BundleEvent {
  int64_t at_ms = 0;
  std::string kind, branch, turn, detail;

  static constexpr char kTable[] = "event";
  template <typename F>
  void Columns(F&& f) {
    f("at_ms", at_ms), f("kind", kind), f("branch", branch), f("turn", turn), f("detail", detail);
  }
};

// ---- bytes -------------------------------------------------------------------------------------

// Integers are i64; digests 32 bytes; texts and arrays a u32 length in bytes, then the bytes;
// optional fields a byte 0 or 1, then the field where it is 1. References are i64 numbers.
class RowEncoder {
 public:
  template <typename T>
  void operator()(const char*, const T& v) { Add(v); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  void Raw(const void* data, size_t size) {
    const auto* p = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), p, p + size);
  }
  void Add(int64_t v) { Raw(&v, sizeof(v)); }
  void Add(NodeRef v) { Add(v.n); }
  void Add(BranchRef v) { Add(v.n); }
  void Add(BasisRef v) { Add(v.n); }
  void Add(const Digest& d) { Raw(d.bytes.data(), d.bytes.size()); }
  void Add(const std::string& s) { Sized(s.data(), s.size()); }
  template <typename T>
  void Add(const std::vector<T>& v) { Sized(v.data(), v.size() * sizeof(T)); }
  template <typename T>
  void Add(const std::optional<T>& v) {
    const uint8_t there = v.has_value();
    Raw(&there, 1);
    if (v) Add(*v);
  }
  void Sized(const void* data, size_t size) {
    const auto length = static_cast<uint32_t>(size);  // sections end far below 2^32
    Raw(&length, sizeof(length));
    Raw(data, size);
  }
  std::vector<std::byte> bytes_;
};

// Reads what RowEncoder wrote from bytes that may be hostile; ok() when all of them were used and
// nothing was missing.
class RowDecoder {
 public:
  explicit RowDecoder(std::span<const std::byte> bytes) : left_(bytes) {}
  template <typename T>
  void operator()(const char*, T& v) { Take(v); }
  bool ok() const { return good_ && left_.empty(); }

 private:
  const std::byte* Raw(size_t size) {
    if (!good_ || size > left_.size()) {
      good_ = false;
      return nullptr;
    }
    const std::byte* at = left_.data();
    left_ = left_.subspan(size);
    return at;
  }
  void Take(int64_t& v) {
    if (const std::byte* p = Raw(sizeof(v))) std::memcpy(&v, p, sizeof(v));
  }
  void Take(NodeRef& v) { Take(v.n); }
  void Take(BranchRef& v) { Take(v.n); }
  void Take(BasisRef& v) { Take(v.n); }
  void Take(Digest& d) {
    if (const std::byte* p = Raw(d.bytes.size())) std::memcpy(d.bytes.data(), p, d.bytes.size());
  }
  uint32_t TakeLength() {
    uint32_t length = 0;
    if (const std::byte* p = Raw(sizeof(length))) std::memcpy(&length, p, sizeof(length));
    return length;
  }
  void Take(std::string& s) {
    const uint32_t length = TakeLength();
    if (const std::byte* p = Raw(length)) s.assign(reinterpret_cast<const char*>(p), length);
  }
  template <typename T>
  void Take(std::vector<T>& v) {
    const uint32_t length = TakeLength();
    if (length % sizeof(T) != 0) good_ = false;
    const std::byte* p = Raw(length);
    if (p == nullptr) return;
    v.resize(length / sizeof(T));
    if (length > 0) std::memcpy(v.data(), p, length);
  }
  template <typename T>
  void Take(std::optional<T>& v) {
    const std::byte* there = Raw(1);
    if (there == nullptr) return;
    if (*there > std::byte{1}) good_ = false;
    if (*there == std::byte{1}) Take(v.emplace());
  }

  std::span<const std::byte> left_;
  bool good_ = true;
};

// ---- SQL ---------------------------------------------------------------------------------------

// Lists the columns: "a, b, c"; and as many question marks.
struct RowNames {
  std::string names, marks;
  template <typename T>
  void operator()(const char* name, const T&) {
    names += (names.empty() ? "" : ", ") + std::string(name);
    marks += marks.empty() ? "?" : ", ?";
  }
};

class RowSqlReader {
 public:
  explicit RowSqlReader(Rows& rows) : rows_(rows) {}
  template <typename T>
  void operator()(const char*, T& v) {
    Read(v);
    ++column_;
  }

 private:
  void Read(int64_t& v) { v = rows_.Int(column_); }
  void Read(NodeRef& v) { v.n = rows_.IsNull(column_) ? 0 : rows_.Int(column_); }
  void Read(BranchRef& v) { v.n = rows_.IsNull(column_) ? 0 : rows_.Int(column_); }
  void Read(BasisRef& v) { v.n = rows_.IsNull(column_) ? 0 : rows_.Int(column_); }
  void Read(std::string& v) { v = rows_.Text(column_); }
  void Read(Digest& v) { v = rows_.DigestAt(column_); }
  template <typename T>
  void Read(std::vector<T>& v) { v = rows_.Array<T>(column_); }
  template <typename T>
  void Read(std::optional<T>& v) {
    if (!rows_.IsNull(column_)) Read(v.emplace());
  }
  Rows& rows_;
  int column_ = 0;
};

// The values to bind; they look into the row.
struct RowSqlValues {
  std::vector<SqlValue> values;
  template <typename T>
  void operator()(const char*, const T& v) { values.push_back(Of(v)); }
  template <typename T>
  static SqlValue Of(const T& v) { return SqlValue(v); }
  static SqlValue Of(const NodeRef& v) { return v.n == 0 ? SqlValue() : SqlValue(v.n); }
  static SqlValue Of(const BranchRef& v) { return v.n == 0 ? SqlValue() : SqlValue(v.n); }
  static SqlValue Of(const BasisRef& v) { return v.n == 0 ? SqlValue() : SqlValue(v.n); }
  template <typename T>
  static SqlValue Of(const std::vector<T>& v) { return std::as_bytes(std::span(v)); }
};

// Columns that are not of the row: the session's id, say.
using ExtraColumns = std::span<const std::pair<const char*, SqlValue>>;

template <typename Row>
Status InsertRow(Txn& txn, Row& row, ExtraColumns extra) {
  RowNames names;
  RowSqlValues values;
  const auto both = [&](const char* name, auto& v) {
    names(name, v);
    values(name, v);
  };
  if constexpr (requires { row.TableColumns(both); }) {
    row.TableColumns(both);
  } else {
    row.Columns(both);
  }
  for (const auto& [name, value] : extra) {
    names(name, value);
    values.values.push_back(value);
  }
  return txn.RunValues("INSERT INTO " + std::string(Row::kTable) + "(" + names.names +
                           ") VALUES(" + names.marks + ")",
                       values.values);
}

// Calls `f(row)` for each row of the table where `where` holds.
template <typename Row, typename F>
Status ForEachRow(Reader& reader, const std::string& where, int64_t argument, const F& f) {
  Row sample;
  RowNames names;
  sample.Columns(names);
  Rows rows = reader.Query(
      "SELECT " + names.names + " FROM " + Row::kTable + " WHERE " + where, argument);
  while (rows.Next()) {
    Row row;
    row.Columns(RowSqlReader(rows));
    if (!rows.status().ok()) return rows.status();
    HOLDFAST_RETURN_IF_ERROR(f(row));
  }
  return rows.status();
}

template <typename Row>
std::vector<std::byte> EncodeRow(Row row) {
  RowEncoder out;
  row.Columns(out);
  return out.bytes();
}

template <typename Row>
Result<Row> DecodeRow(std::span<const std::byte> bytes) {
  Row row;
  RowDecoder in(bytes);
  row.Columns(in);
  if (in.ok()) return row;
  return Status::Corrupt("bundle: a " + std::string(Row::kTable) + " that cannot be read");
}

// Calls `f(ref)` for each NodeRef, BranchRef and BasisRef of the row.
template <typename Row, typename F>
void MapRefs(Row& row, const F& f) {
  row.Columns([&](const char*, auto& v) {
    if constexpr (requires { v.n; }) f(v);
  });
}

}  // namespace holdfast
