// Basis: what an answer rests on beside its tokens, sampling and seed. Each distinct one is a row
// of table `basis`; each node of the token log names its own, so that a replay can say what has
// changed.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"

namespace holdfast {

struct Basis {
  Digest weights;        // Model::weights_digest()
  Digest fp;             // Model::fingerprint()
  Digest numerics;       // NumericsDigest::all
  std::string operations;  // a line "NAME DIGEST" for each of its operations
  Digest chat_template;  // ChatTemplate::digest()
  Digest tokenizer;      // Tokenizer::digest()
  std::string kv;        // how K is stored: "f16", "i8"

  Digest digest() const;  // over all of it
};
Basis BasisOf(const Engine& engine, const ChatTemplate& chat_template);

// Names of what differs, in the order of blame: "weights", "numerics", "kv_type", "tokenizer",
// "model" (the fingerprints do, and none of the others says why), "template".
std::vector<std::string> ChangesBetween(const Basis& recorded, const Basis& now);
// The operations whose digests differ, or that one of the two lacks: "matmul/Q4_K, attend/f16".
std::string ChangedOperations(const Basis& recorded, const Basis& now);

}  // namespace holdfast
