// What makes INT8 K hold for models whose keys have outliers: a factor per pair of numbers that
// rotation turns together, from the weights alone (the rule: NUMERICS.md section 9).
//
// A head of K has one scale per token, so that a few large channels (a bias on k makes them) leave
// the others a handful of codes. Each pair of K is divided by a power of two, and the same pair of
// the queries that meet it multiplied by it, so that K and q are about as uneven as each other: the
// error of an INT8 code, times what it meets, is then about the same everywhere. The dot product
// stays; both numbers of a pair share the factor, so it commutes with rotation; it is a power of
// two, so no bit is lost. Everything below (rotation, codes, pages, attention) knows nothing of it.
#pragma once

#include "engine/backend/backend.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace holdfast {

// Fills q_factor and k_factor of every layer. `backend` is the one that packed the weights.
void BalanceKeys(const ModelConfig& config, Backend& backend, ModelWeights* weights);

}  // namespace holdfast
