// Inside stitcher: the rows of segments and their variants, and all SQL on them. A row that is not
// what it must be is never handed out: a segment's id is a hash over the rest of its row, and a
// variant's fields bind each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/store/database.h"
#include "stitcher/segment.h"

namespace holdfast {

std::vector<Migration> SegmentMigrations();

struct SegmentRow {
  int64_t n = 0;               // in the order in which they were made; never reused in a process
  SegmentId id;
  std::string tenant, role;
  std::vector<TokenId> tokens;
  std::string text;            // as a client gave it; "" = what the tokens spell
  bool given = false;          // a client made it: it stays without variants
  bool pinned = false;
  int64_t created_ms = 0, used_ms = 0;
  uint64_t hits = 0, hit_tokens = 0;
};

struct VariantRow {
  std::shared_ptr<const Variant> variant;
  int64_t created_ms = 0, used_ms = 0;
  uint64_t hits = 0;
};

// What one write makes of the tables, in this order.
struct SegmentChange {
  std::vector<SegmentId> drop_segments;
  std::vector<SegmentRow> segments;    // put in; where it is there, `given` and `pinned` are set
  std::vector<VariantRow> variants;    // put in, in the place of one of the same slice
  std::vector<int64_t> drop_variants;  // rows
};
Status ApplyChange(Txn& txn, const SegmentBasis& basis, const SegmentChange& change);

struct LoadedSegments {
  std::vector<SegmentRow> segments;  // by n
  std::vector<VariantRow> variants;  // of these segments
  int64_t next_n = 1, next_variant = 1;
  std::vector<int64_t> bad_segments;  // their n
  std::vector<int64_t> bad_variants;
};
// All of one model.
Result<LoadedSegments> LoadSegments(Reader& reader, const SegmentBasis& basis);

// Of all models that have segments.
Result<std::vector<SegmentBasis>> SegmentBases(Reader& reader);

// Of all models. A variant is damaged as well where its segment is.
struct SegmentCheck {
  int64_t segments = 0, variants = 0, damaged_segments = 0, damaged_variants = 0;
};
Result<SegmentCheck> CheckSegments(Reader& reader);

// Whether the tenant has that segment for another model, tokenizer or template.
Result<bool> IsOfAnotherBasis(Reader& reader, const SegmentBasis& basis, std::string_view tenant,
                              const SegmentId& id);

}  // namespace holdfast
