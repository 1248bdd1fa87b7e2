// Inside api: segments as clients make and name them. What keeps them is stitcher/segment_store.h.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "sessions/keeper.h"
#include "stitcher/segment_store.h"

namespace holdfast {

struct NewSegment {
  std::string tenant;           // from the authenticated caller
  std::string role = "user";    // of the messages that it will stand in
  std::string text;             // or
  std::vector<TokenId> tokens;  // no control tokens; whole characters
  bool warm = false;            // compute its KV now (stitcher/isolated.h)
  bool pin = false;
};

// All outlive the call.
struct SegmentParts {
  SegmentStore* segments = nullptr;
  Engine* engine = nullptr;
  Stitcher* stitcher = nullptr;
  Keeper* keeper = nullptr;
  const ChatTemplate* chat_template = nullptr;
};

// Makes a segment, or finds the one of these tokens. kInvalid names the field: neither or both of
// text and tokens, tokens that are no text, too few or too many to be warmed. kExhausted: the
// budget is full of pinned ones, or there is no room for its KV now.
Result<SegmentInfo> AddSegment(const SegmentParts& parts, const NewSegment& request);

// What the segment called `id` stands for in a message: its tokens, and its text, which is never
// empty. kNotFound: no such segment of the tenant. kInvalid: of another model, tokenizer or
// template, or it ends inside a character.
Result<SegmentBody> SegmentNamed(const SegmentStore& segments, const Tokenizer& tokenizer,
                                 std::string_view tenant, std::string_view id);

}  // namespace holdfast
