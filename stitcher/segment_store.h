// SegmentStore: the segments of all tenants for one model, their variants, and the index that finds
// them in prompts.
//
// SQLite holds the rows (segment_rows.h); all of them are in memory too, as that is where they are
// looked for. KV is not here: variants name pages of the pool and the page store, which may be gone
// (segment.h). A variant comes here when a turn is committed (Learn) or when a segment was computed
// on purpose (Put). What a session's tokens left goes when the session does (Forget, and a foreign
// key in the database).
//
// A tenant's segments are its own: an id of another tenant is kNotFound, as is one that never was.
//
// Budget, of each tenant: `max_bytes` of KV in the pages that variants name, and `max_tokens` held
// in memory. Where it is full, the segments that were unused the longest go, pinned ones never; of
// one segment at most kMaxVariants variants stay, the last used. Whoever holds a FoundRun keeps its
// variant, whatever is deleted meanwhile.
//
// Writes that a client asked for are committed when the call returns. Others are queued: the store
// may be degraded or the process may die, then they are learnt again.
//
// Thread-safe; Find takes a shared lock and does no I/O.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "engine/base/env.h"
#include "engine/base/list_order.h"
#include "engine/base/status.h"
#include "engine/kv/timeline.h"
#include "engine/store/database.h"
#include "stitcher/anchor_index.h"
#include "stitcher/segment.h"
#include "stitcher/segment_rows.h"

namespace holdfast {

// A segment as clients see it.
struct SegmentInfo {
  int64_t n = 0;                // its place in lists
  SegmentId id;
  std::string role;
  int64_t tokens = 0;
  bool given = false, pinned = false;
  int64_t created_ms = 0, used_ms = 0;  // Unix time; used: last found in a prompt and used
  uint64_t hits = 0, hit_tokens = 0;
  uint64_t kv_bytes = 0;        // of the pages that its variants name, each time that they do
  struct VariantInfo {
    VariantKind kind = VariantKind::kInContext;
    int64_t tokens = 0, position = 0;
    int32_t generation = 0;
    int64_t created_ms = 0, used_ms = 0;
    uint64_t hits = 0;
  };
  std::vector<VariantInfo> variants;
};

// What a segment stands for in a message.
struct SegmentBody {
  std::string role, text;       // text: "" = what the tokens spell
  std::vector<TokenId> tokens;
};

// Tokens [begin, end) of a timeline that are the body of a message.
struct BodySpan {
  int64_t begin = 0, end = 0;
  std::string role;
};

struct SegmentStats {
  uint64_t segments = 0, variants = 0, tokens = 0, kv_bytes = 0, index_bytes = 0;
  uint64_t hits = 0, hit_tokens = 0;  // since the process began
  uint64_t dropped = 0;               // segments that made room
  uint64_t corrupt = 0;               // rows that were not what they must be, at the start
};

// The slice [begin, end) of a timeline's exact sealed pages (asserted) as an in-context variant,
// without row, segment and owner. `hashes`: of its tokens.
Variant SliceOf(const Timeline& timeline, const Digest& fp, const TokenHashes& hashes,
                int64_t begin, int64_t end);

class SegmentStore {
 public:
  static constexpr size_t kMaxVariants = 8;        // of one segment
  static constexpr size_t kMaxRoleBytes = 64;

  struct Options {
    Database* db = nullptr;        // opened with Migrations() and a table `session`
    SegmentBasis basis;
    uint64_t page_bytes = 0;       // PagePool::page_bytes()
    uint64_t max_bytes = 0;        // of KV, each tenant's
    uint64_t max_tokens = 8u << 20;
    std::function<int64_t()> now_ms;  // Unix time; null = the system clock
  };
  static std::vector<Migration> Migrations() { return SegmentMigrations(); }
  // Reads all rows of this model; damaged ones are deleted and counted.
  static Result<std::unique_ptr<SegmentStore>> Open(const Options& options);

  // What a client may do. kNotFound: no such segment of this tenant; with the code word
  // segment_of_another_model where there is one of another model, tokenizer or chat template.
  // Makes a segment, or finds it. kInvalid: no tokens, or a bad role. kExhausted: the budget is
  // full of pinned ones.
  struct Given {
    std::string role;
    std::vector<TokenId> tokens;
    std::string text;              // "" = what the tokens spell
    bool pin = false;
  };
  Result<SegmentInfo> Give(const TenantScope& scope, const Given& given);
  Result<SegmentInfo> Get(const TenantScope& scope, const SegmentId& id) const;
  // kInvalid instead for one of another model.
  Result<SegmentBody> Body(const TenantScope& scope, const SegmentId& id) const;
  // Those behind place `after` in that order: above it from the oldest on, or below it from the
  // newest on.
  std::vector<SegmentInfo> List(const TenantScope& scope, int64_t after, int limit,
                                ListOrder order = ListOrder::kAscending) const;
  enum class Pin : uint8_t { kOff, kOn };
  Result<SegmentInfo> SetPin(const TenantScope& scope, const SegmentId& id, Pin pin);
  Status Delete(const TenantScope& scope, const SegmentId& id);

  // Takes on the bodies of a committed turn, as far as they lie in exact sealed pages of its
  // timeline; short ones are passed over. `owner`: the session's row.
  void Learn(const Timeline& timeline, std::span<const BodySpan> bodies, int64_t owner);
  // Takes on one variant of the segment of these tokens (its `row` and `segment` are set here).
  // kInvalid: its tokens are not the segment's, too few, or its generation is above
  // kMaxGeneration. kExhausted: the budget is full of pinned ones.
  Status Put(const TenantScope& scope, std::string_view role, std::span<const TokenId> tokens,
             Variant variant);
  // The session is gone, and its rows in the database with it.
  void Forget(int64_t owner);

  // See AnchorIndex::Find. Pages of what it finds may be gone.
  std::vector<FoundRun> Find(const TenantScope& scope, std::span<const TokenId> tokens,
                             int64_t begin, int64_t end) const;
  // These runs are used.
  void Used(const TenantScope& scope, std::span<const FoundRun> runs);

  // Adds the keys of all pages that variants name, of all tenants and models.
  Status AddPages(std::unordered_set<PageKey, DigestHash>* keys) const;
  // Those of pinned segments' variants, of all tenants, at most `max`: the pages of what was used
  // last at the end, each variant's last page first, as Renew wants them. What was used longest ago
  // is left out.
  std::vector<PageKey> PinnedPages(size_t max) const;
  // The rows of all tenants and models against what they must be.
  static Result<SegmentCheck> Check(Reader& reader) { return CheckSegments(reader); }
  SegmentStats stats() const;

 private:
  struct Segment {
    SegmentRow row;
    std::vector<VariantRow> variants;
  };
  struct Tenant {
    std::map<SegmentId, Segment> segments;
    std::map<int64_t, SegmentId> order;  // by n
    AnchorIndex index;
    uint64_t kv_bytes = 0, tokens = 0;
  };

  explicit SegmentStore(const Options& options) : options_(options) {}
  int64_t NowMs() const {
    return options_.now_ms ? options_.now_ms() : env_.WallMicros() / 1000;
  }
  SegmentId IdOf(const TenantScope& scope, std::string_view role,
                 std::span<const TokenId> tokens) const {
    return MakeSegmentId(options_.basis, scope, role, tokens);
  }
  SegmentInfo InfoOf(const Segment& segment) const;
  const Segment* FindLocked(const TenantScope& scope, const SegmentId& id) const;
  Status Missing(const TenantScope& scope, const SegmentId& id, Code of_another_model) const;
  uint64_t BytesOf(const Variant& v) const {
    return v.tokens.size() / kPageTokens * options_.page_bytes;
  }
  Segment& AddSegment(Tenant* tenant, SegmentRow row);
  void AddVariant(Tenant* tenant, Segment* segment, VariantRow row);
  void RemoveVariant(Tenant* tenant, Segment* segment, size_t at);
  void RemoveSegment(Tenant* tenant, const SegmentId& id);
  bool MakePlace(Tenant* tenant, Segment* segment, const Variant& variant, SegmentChange* change);
  Status MakeRoom(Tenant* tenant, uint64_t bytes, uint64_t tokens, const SegmentId& keep,
                  SegmentChange* change);
  Status Load();
  Status Write(SegmentChange change);  // waits
  void Submit(SegmentChange change);   // does not

  const Options options_;
  mutable RealEnv env_;
  mutable std::shared_mutex mu_;
  std::map<std::string, Tenant, std::less<>> tenants_;
  int64_t next_n_ = 1, next_variant_ = 1;
  uint64_t dropped_ = 0, corrupt_ = 0;
  std::atomic<uint64_t> hits_{0}, hit_tokens_{0};
};

}  // namespace holdfast
