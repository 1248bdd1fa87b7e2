// Servers as benches start them, ours and llama.cpp's, and chat turns with them over HTTP.
#pragma once

#include <string>
#include <vector>

#include "api/bench/peers.h"
#include "api/bench/process.h"
#include "api/http.h"
#include "api/json.h"
#include "api/runtime.h"

namespace holdfast {

class ServerProcess {
 public:
  // `program` (holdfast) over the folder, with the engine's model, threads and memory for KV.
  // Returns when it listens.
  static Result<ServerProcess> Start(const std::string& program, const EngineOptions& engine,
                                     const std::string& data_dir);
  // The peer's llama-server; returns when it is ready. kNotFound where the peer has none.
  static Result<ServerProcess> StartPeer(const Peer& peer, const std::string& model_path,
                                         int threads, const std::vector<std::string>& flags);
  // Requests whose answer is one JSON object.
  Result<Json> Get(const std::string& path) const;
  Result<Json> Post(const std::string& path, const Json& body) const;
  Result<int64_t> CountTokens(const std::string& text) const;  // ours
  // A chat completion, streamed.
  struct Turn {
    double first_ms = 0;   // from the request to the first piece of text, or the end without any
    std::string content;
    // How it was made, as ours and llama-server say it; empty where they don't.
    Json keeper = Json::object(), timings = Json::object();
  };
  Result<Turn> Chat(Json body) const;

 private:
  ServerProcess(ChildProcess process, std::string url)
      : process_(std::move(process)), url_(std::move(url)) {}

  Result<Json> Ask(HttpCallArgs args) const;

  ChildProcess process_;
  std::string url_;
};

}  // namespace holdfast
