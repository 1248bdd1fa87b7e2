// Isolated variants: a segment's KV computed before anybody asks for it, behind the sink prefix of
// its role (what the chat template puts before the first message of that role: begin token, system
// header, role header) and a *primer*, a fixed text of some 300 tokens. It is an ordinary exact
// timeline, so that its pages are ordinary pages: [sink prefix, primer, the segment's tokens,
// filler up to the page's end, which is never used]. There is no begin token of the segment's own:
// what follows a sink must have been computed so.
//
// The primer stands for what will come before the segment in a prompt: right behind a sink, its
// first tokens get the attention that goes elsewhere there (stitcher/README.md says what that
// costs). It is computed once, and shared as any prefix is.
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

// Sink prefix and primer of `role` ("user", "tool", ...); the sink prefix is that of "user" where
// the template refuses to begin with that role. kInvalid: it refuses both, or changes what it is
// given.
Result<std::vector<TokenId>> IsolatedPrefix(const Tokenizer& tokenizer,
                                            const ChatTemplate& chat_template,
                                            std::string_view role);

struct IsolatedRequest {
  TenantScope scope;
  std::span<const TokenId> prefix;
  std::span<const TokenId> tokens;  // the segment's, kMinSegmentTokens or more
};
// Computes what is not there yet, and gives back the variant (without row and segment). kInvalid:
// too few tokens, or more than the context has. kExhausted: no room in the pool or the queue.
Result<Variant> ComputeIsolated(Engine& engine, Stitcher& stitcher,
                                const IsolatedRequest& request);

}  // namespace holdfast
