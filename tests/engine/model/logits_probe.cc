// logits_probe MODEL < TOKENS
// Stdin: ids, separated by blanks; an id < 0 begins the next question. Stdout: of each question
// the logits behind its last token, 32-bit floats, little-endian..
#include <cstdio>
#include <iostream>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/sequence_kv.h"

namespace holdfast {
namespace {

// False: a value was not finite.
bool Answer(Model& model, const std::vector<TokenId>& tokens) {
  SequenceKv kv(model);
  kv.Reserve(std::ssize(tokens));
  ForwardBatch batch;
  for (int i = 0; i < std::ssize(tokens); ++i) {
    batch.rows.push_back({.token = tokens[i], .position = i, .page = kv.PageOf(i),
                          .slot = SequenceKv::SlotOf(i), .logits = i + 1 == std::ssize(tokens)});
  }
  batch.sequences.push_back({kv.Runs(std::ssize(tokens))});
  ForwardPass pass(model);
  pass.Begin(batch);
  pass.Run();
  const auto logits = pass.logits(std::ssize(tokens) - 1);
  return !logits.empty() &&
         std::fwrite(logits.data(), sizeof(float), logits.size(), stdout) == logits.size();
}

int Run(const char* path) {
  const auto backend = MakeCpuBackend({.threads = 2, .level = ""});
  if (!backend.ok()) return 1;
  const NumericsDigest none;
  const auto model = Model::Load(path, **backend,
                                 {.threads = 2, .progress = {},
                                  .numerics = &none});
  if (!model.ok()) {
    std::fprintf(stderr, "logits_probe: %s\n", model.status().ToString().c_str());
    return 1;
  }
  std::vector<TokenId> tokens;
  for (TokenId token; std::cin >> token;) {
    if (token >= 0) {
      if (token >= (*model)->config().vocab) return 1;
      tokens.push_back(token);
      continue;
    }
    if (tokens.empty() || !Answer(**model, tokens)) return 1;
    tokens.clear();
  }
  return tokens.empty() ? 0 : 1;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  if (argc == 2) return holdfast::Run(argv[1]);
  std::fprintf(stderr, "usage: logits_probe MODEL < TOKENS\n");
  return 2;
}
