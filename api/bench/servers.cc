#include "api/bench/servers.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <thread>

#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPeerStartSeconds = 120;

// A port that nobody has now.
Result<int> FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  const bool good = fd >= 0 && bind(fd, any, size) == 0 && getsockname(fd, any, &size) == 0;
  if (fd >= 0) close(fd);
  if (!good) return Status::Io("bench: no free port");
  return ntohs(address.sin_port);
}

// A chunk of a streamed answer, "data: {...}"; null for another line.
Json ChunkIn(std::string_view line) {
  if (!line.starts_with("data: {")) return nullptr;
  auto chunk = ParseJson(line.substr(6));
  return chunk.ok() ? std::move(*chunk) : Json(nullptr);
}

std::string TextOf(const Json& chunk) {
  if (!chunk.contains("choices") || chunk["choices"].empty()) return "";
  const Json delta = chunk["choices"][0].value("delta", Json());
  return delta.contains("content") && delta["content"].is_string()
             ? delta["content"].get<std::string>()
             : "";
}

}  // namespace

Result<ServerProcess> ServerProcess::Start(const std::string& program, const EngineOptions& engine,
                                           const std::string& data_dir) {
  std::vector<std::string> argv = {program, "serve", "--json", "--port", "0", "--model",
                                   engine.model_path, "--data", data_dir, "--threads",
                                   std::to_string(engine.cpu.threads), "--kv-type",
                                   KvTypeName(engine.kv_type)};
  if (!engine.cpu.level.empty()) argv.insert(argv.end(), {"--cpu", engine.cpu.level});
  if (engine.kv_bytes != 0) {
    argv.insert(argv.end(), {"--kv-memory", std::to_string(engine.kv_bytes)});
  }
  HOLDFAST_ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(argv));
  std::string line;
  const auto hello = process.ReadLine(&line) ? ParseJson(line) : Status::Io("it printed nothing");
  if (!hello.ok() || !hello->contains("listening")) {
    const Status end = process.Wait();
    return end.ok() ? Status::Io("bench: the server did not say that it listens") : end;
  }
  return ServerProcess(std::move(process), (*hello)["listening"].get<std::string>());
}

Result<ServerProcess> ServerProcess::StartPeer(const Peer& peer, const std::string& model_path,
                                               int threads,
                                               const std::vector<std::string>& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::string program, FindProgram(peer, "llama-server"));
  HOLDFAST_ASSIGN_OR_RETURN(const int port, FreePort());
  std::vector<std::string> argv = {program,  "-m", model_path, "-t", std::to_string(threads),
                                   "--host", "127.0.0.1", "--port", std::to_string(port),
                                   "-fa", "on"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  HOLDFAST_ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(argv));
  ServerProcess server(std::move(process), "http://127.0.0.1:" + std::to_string(port));
  const auto deadline = Clock::now() + std::chrono::seconds(kPeerStartSeconds);
  while (Clock::now() < deadline) {
    const auto health = HttpCall({.base_url = server.url_, .path = "/health", .timeout_s = 5});
    if (health.ok() && health->status == 200) return server;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return Status::Unavailable("bench: llama-server of " + peer.dir + " was not ready after " +
                             std::to_string(kPeerStartSeconds) + " s");
}

Result<Json> ServerProcess::Ask(HttpCallArgs args) const {
  args.base_url = url_;
  HOLDFAST_ASSIGN_OR_RETURN(const HttpReply reply, HttpCall(args));
  if (reply.status >= 300) {
    return Status::Io("bench: " + args.path + ": " + std::to_string(reply.status) + " " +
                      reply.body);
  }
  return ParseJson(reply.body);
}

Result<Json> ServerProcess::Get(const std::string& path) const {
  return Ask({.base_url = {}, .path = path});
}

Result<Json> ServerProcess::Post(const std::string& path, const Json& body) const {
  return Ask({.base_url = {}, .method = "POST", .path = path, .body = DumpJson(body)});
}

Result<int64_t> ServerProcess::CountTokens(const std::string& text) const {
  HOLDFAST_ASSIGN_OR_RETURN(const Json answer, Post("/tokenize", {{"content", text}}));
  return answer["count"].get<int64_t>();
}

Result<ServerProcess::Turn> ServerProcess::Chat(Json body) const {
  body["stream"] = true;
  Turn turn;
  std::string rest, error;
  const auto start = Clock::now();
  HttpCallArgs args{.base_url = url_, .method = "POST", .path = "/v1/chat/completions",
                    .body = DumpJson(body)};
  args.download = [&](std::string_view piece, uint64_t) -> Status {
    rest += piece;
    for (size_t end; (end = rest.find('\n')) != std::string::npos; rest.erase(0, end + 1)) {
      Json chunk = ChunkIn(std::string_view(rest).substr(0, end));
      const std::string text = TextOf(chunk);
      if (turn.content.empty() && !text.empty()) turn.first_ms = MsSince(start);
      turn.content += text;
      if (chunk.contains("error")) error = chunk["error"].dump();
      if (chunk.contains("keeper")) turn.keeper = std::move(chunk["keeper"]);
      if (chunk.contains("timings")) turn.timings = std::move(chunk["timings"]);
    }
    return Status();
  };
  HOLDFAST_ASSIGN_OR_RETURN(const HttpReply reply, HttpCall(args));
  if (reply.status != 200) {
    return Status::Io("bench: chat: " + std::to_string(reply.status) + " " + reply.body);
  }
  if (!error.empty()) return Status::Io("bench: chat: " + error);
  if (turn.content.empty()) turn.first_ms = MsSince(start);
  return turn;
}

}  // namespace holdfast
