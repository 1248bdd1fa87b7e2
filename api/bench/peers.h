// Other engines to measure beside ours: anything with llama.cpp's llama-bench (and, for several
// sequences, llama-batched-bench). One process per sample, so that ours and theirs can alternate.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

struct Peer {
  std::string name;  // "llama.cpp", "ik_llama"
  std::string dir;   // with the programs, or with a bin/ that has them
};
// "NAME=DIR"; kInvalid for another name or no folder. What is in it is looked at when it runs.
Result<Peer> ParsePeer(const std::string& text);

// kNotFound when the peer's folder has no such program.
Result<std::string> FindProgram(const Peer& peer, const std::string& name);

// What both are to do; f16 KV, flash attention where the peer has it.
struct PeerTest {
  enum class Kind : uint8_t { kPrefill, kDecode, kAgents };
  Kind kind = Kind::kPrefill;
  int64_t context = 0;    // cached tokens before
  int64_t tokens = 0;     // computed (of each sequence)
  int64_t sequences = 1;  // kAgents
  bool shared = false;    // the context is one for all of them
};

// Tokens per second, once. kNotFound: the program is not there; kInvalid: it has no such test; kIo:
// it failed. llama-bench has -d for a context; a version that has only -gp (ik_llama.cpp) can
// decode after one, but not append to it.
Result<double> RunPeer(const Peer& peer, const PeerTest& test, const std::string& model_path,
                       int threads);

// The command of a test. `has_depth`: llama-bench knows -d. kInvalid as above.
Result<std::vector<std::string>> PeerCommand(const std::string& program, const PeerTest& test,
                                             const std::string& model_path, int threads,
                                             bool has_depth);
// Tokens per second in what the program printed; kIo when there is no such number.
Result<double> ParsePeerOutput(const PeerTest& test, const std::string& output);

}  // namespace holdfast
