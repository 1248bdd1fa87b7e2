// Inside stitcher: how much an answer's distribution moved because its context was approximate.
#pragma once

#include <cstdint>
#include <span>

#include "stitcher/stitcher.h"

namespace holdfast {

// `served` and `exact` are the answer's context as it was served and as full prefill gives it, the
// same tokens, at least the last one pending. Computes what is pending and `answer`, token by token
// as it was given (teacher-forced), on both. Holds the logits of kShadowRows rows of each.
Result<ShadowKl> CompareAnswers(const ComputeFn& compute, Timeline served, Timeline exact,
                                std::span<const TokenId> answer, const ComputeOptions& options);

inline constexpr int64_t kShadowRows = 16;

}  // namespace holdfast
