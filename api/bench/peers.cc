#include "api/bench/peers.h"

#include <filesystem>

#include "api/bench/process.h"
#include "api/json.h"

namespace holdfast {

namespace fs = std::filesystem;

Result<std::string> FindProgram(const Peer& peer, const std::string& name) {
  for (const char* folder : {"", "bin", "build/bin"}) {
    const fs::path path = fs::path(peer.dir) / folder / name;
    if (fs::exists(path)) return path.string();
  }
  return Status::NotFound("no " + name + " in " + peer.dir);
}

Result<Peer> ParsePeer(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string dir = equals == std::string::npos ? "" : text.substr(equals + 1);
  const Peer peer{text.substr(0, equals), dir};
  if ((peer.name != "llama.cpp" && peer.name != "ik_llama") || peer.dir.empty()) {
    return Status::Invalid("--peer " + text + ": must be llama.cpp=DIR or ik_llama=DIR");
  }
  return peer;
}

Result<std::vector<std::string>> PeerCommand(const std::string& program, const PeerTest& test,
                                             const std::string& model_path, int threads,
                                             bool has_depth) {
  const auto n = [](int64_t number) { return std::to_string(number); };
  std::vector<std::string> command = {program, "-m", model_path, "-t", n(threads)};
  const auto add = [&](const std::vector<std::string>& more) {
    command.insert(command.end(), more.begin(), more.end());
  };
  if (test.kind == PeerTest::Kind::kAgents) {
    add({"-fa", "1", "-c", n(test.sequences * (test.context + test.tokens)), "-npp",
         n(test.context), "-ntg", n(test.tokens), "-npl", n(test.sequences), "--output-format",
         "jsonl"});
    if (test.shared) add({"-pps"});
    return command;
  }
  add({"-fa", "1", "-ctk", "f16", "-ctv", "f16", "-r", "1", "-o", "json"});
  const bool decodes = test.kind == PeerTest::Kind::kDecode;
  const std::string prompt = n(decodes ? 0 : test.tokens), answer = n(decodes ? test.tokens : 0);
  if (test.context == 0 || has_depth) {
    add({"-p", prompt, "-n", answer});
    if (test.context > 0) add({"-d", n(test.context)});
    return command;
  }
  if (!decodes) return Status::Invalid("its llama-bench has no -d: it can't append to a context");
  add({"-p", "0", "-n", "0", "-gp", n(test.context) + "," + answer});
  return command;
}

Result<double> ParsePeerOutput(const PeerTest& test, const std::string& output) {
  // Whatever a library prints before it is no part of the document.
  const bool agents = test.kind == PeerTest::Kind::kAgents;
  const size_t begin = output.find(agents ? "{" : "[\n");
  const std::string_view text =
      begin == std::string::npos ? std::string_view() : std::string_view(output).substr(begin);
  auto json = ParseJson(agents ? text.substr(0, text.find('\n')) : text);
  if (json.ok() && json->is_array() && !json->empty()) json = Json(json->back());
  const char* key = agents ? "speed_tg" : "avg_ts";
  if (!json.ok() || !json->is_object() || !json->contains(key) || !(*json)[key].is_number()) {
    return Status::Io("no " + std::string(key) + " in what it printed");
  }
  return (*json)[key].get<double>();
}

Result<double> RunPeer(const Peer& peer, const PeerTest& test, const std::string& model_path,
                       int threads) {
  const bool agents = test.kind == PeerTest::Kind::kAgents;
  HOLDFAST_ASSIGN_OR_RETURN(const std::string program,
                            FindProgram(peer, agents ? "llama-batched-bench" : "llama-bench"));
  bool has_depth = true;
  if (!agents && test.context > 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::string help, RunProcess({program, "--help"}));
    has_depth = help.find("--n-depth") != std::string::npos;
  }
  HOLDFAST_ASSIGN_OR_RETURN(const auto command,
                            PeerCommand(program, test, model_path, threads, has_depth));
  HOLDFAST_ASSIGN_OR_RETURN(const std::string output, RunProcess(command));
  return ParsePeerOutput(test, output);
}

}  // namespace holdfast
