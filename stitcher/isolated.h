// Isolated variants: a segment's KV computed before anybody asks for it, behind the sink prefix of
// its role alone (what the chat template puts before the first message of that role: begin token,
// system header, role header). It is an ordinary exact timeline, so that its pages are ordinary
// pages: [sink prefix, the segment's tokens, filler up to the page's end, which is never used].
// There is no begin token of the segment's own: what follows a sink must have been computed so.
//
// Blocks until the model thread has computed the rows: not for the model thread itself.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "stitcher/segment.h"
#include "stitcher/stitcher.h"

namespace holdfast {

// The sink prefix of `role` ("user", "tool", ...), that of "user" where the template refuses to
// begin with that role. kInvalid: it refuses both, or changes what it is given.
Result<std::vector<TokenId>> SinkPrefix(const Tokenizer& tokenizer,
                                        const ChatTemplate& chat_template, std::string_view role);

struct IsolatedRequest {
  TenantScope scope;
  std::span<const TokenId> sink;
  std::span<const TokenId> tokens;  // the segment's, kMinSegmentTokens or more
};
// Computes what is not there yet, and gives back the variant (without row and segment). kInvalid:
// too few tokens, or more than the context has. kExhausted: no room in the pool or the queue.
Result<Variant> ComputeIsolated(Engine& engine, Stitcher& stitcher,
                                const IsolatedRequest& request);

}  // namespace holdfast
