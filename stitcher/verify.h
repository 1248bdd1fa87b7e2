// verify: the laws of exactness, checked on the user's own model, machine and instruction set.
//
// Each rung blocks the next in meaning: a rung that fails says that every promise above it is void.
//   E0 same prompt in another batch, chunking and thread count: the same bits
//   E1 exact prefix from the pool, from disk, and from disk after a restart: the same bits
//   E2 identity splice (slices of the right pages at home): the same bits
//   E3 everything recomputed over pages filled with NaN: the same bits
//   E4 a run moved by some tokens: layer-0 V equals fresh V bit for bit, layer-0 K turned equals
//      fresh K within the rounding of the KV dtype
//   E5 a whole prompt computed at other positions and read back with turned queries: the logits
//      agree within the dtype's noise: a mean KL of at most twice what storing KV in its type costs
//      against F32, where a model with such KV is given
//   E6 garbage written at later positions changes nothing: the same bits
//   E7 the KL of a spliced context falls as more of it is recomputed, to exactly 0 at 100 %
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace holdfast {

struct VerifyOptions {
  std::string scratch_dir;          // for E1's page files; made and removed
  int prompt_tokens = 200;          // of the longest case; at least 96
  Model* f32_kv = nullptr;          // the same weights with F32 KV, for E5; null = none
  std::function<void(const std::string& rung, int done, int total)> progress;
};

struct RungResult {
  std::string name;        // "E0" ...
  bool pass = true;
  int cases = 0;
  std::string detail;      // first failure, or the figures measured (E4, E5, E7)
  std::vector<std::pair<double, double>> points;  // E7: per cent recomputed, KL
};

struct VerifyReport {
  std::string cpu;         // level of the backend
  Digest numerics_digest;
  std::vector<RungResult> rungs;
  bool pass() const;
};

// Loads nothing itself: `model` runs on `backend`; `others` are backends of the same kind with
// other thread counts (E0). Uses its own pool; takes seconds to minutes, by model and level.
Result<VerifyReport> RunVerify(Model& model, Backend& backend,
                               const std::vector<Backend*>& others, const VerifyOptions& options);

}  // namespace holdfast
