// Server: the REST API over a Runtime. Routes and limits stand in README; errors have OpenAI's
// shape.
//
// Life: Listen (the port is taken, every request gets 503 while the model loads) -> Attach (the
// Runtime is there, requests are answered) -> Stop (running answers end) -> WaitUntilStopped.
// Thread-safe. The Runtime outlives the server's Serve.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "api/api_error.h"
#include "api/http.h"
#include "api/json.h"
#include "api/runtime.h"

namespace holdfast {

class ReplayJobs;

struct ApiKey {
  std::string tenant;
  Digest key_digest;  // SHA-256 of the key: the key itself is not kept
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8420;                 // 0 picks a free one
  HttpLimits limits;
  // None: everybody is tenant "default", and only from this machine.
  std::vector<ApiKey> keys;
  std::vector<std::string> origins;  // allowed beside the server's own (pages of other sites)
  std::string model_name;          // as /v1/models shows it
  std::string admin_token;         // of /v1/admin/...; "" = a random one
  bool strict_model = false;       // 404 for a request that names another model
  int replays = 1;                 // of /v1/replays that run at the same time
};

class Server {
 public:
  explicit Server(ServerOptions options);
  ~Server();

  // Takes the port; kConflict when it is taken, kInvalid for an address beyond this machine without
  // keys. Requests are accepted from here on.
  Result<int> Listen();
  void Attach(Runtime* runtime);
  void EndReplays();  // cancels those that nobody waits for; no more are taken on
  const std::string& admin_token() const;
  void WaitUntilStopped();  // returns after Stop, when every connection has ended
  void Stop();

 private:
  friend struct Routes;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a route's handler works with: the request, its tenant, and the answer.
struct Call {
  const HttpRequest& request;
  HttpExchange& exchange;
  Runtime& runtime;
  ReplayJobs& jobs;
  const ServerOptions& options;
  std::string tenant;
  std::string request_id;

  void Reply(int status, const Json& body);
  void Refuse(const ApiError& error);
  void Refuse(const Status& status) { Refuse(ErrorOf(status)); }
};

// The handlers, by subject (chat_routes.cc, session_routes.cc, replay_routes.cc, server.cc).
void HandleChat(Call& call);
void HandleTurns(Call& call);
void HandleCancelTurn(Call& call);
void HandleCreateSession(Call& call);
void HandleListSessions(Call& call);
void HandleGetSession(Call& call);
void HandleDeleteSession(Call& call);
void HandleItems(Call& call);
void HandleTokens(Call& call);
void HandleListTurns(Call& call);
void HandleBranches(Call& call);
void HandleBranch(Call& call);
void HandleFork(Call& call);
void HandleRewind(Call& call);
void HandleSnapshot(Call& call);
void HandleSnapshots(Call& call);
void HandleGetSnapshot(Call& call);
void HandlePinSnapshot(Call& call);
void HandleVerifySnapshot(Call& call);
void HandleDeleteSnapshot(Call& call);
void HandleTree(Call& call);
void HandleEvents(Call& call);
void HandleResidency(Call& call);
void HandlePrefetch(Call& call);
void HandleProvenance(Call& call);
void HandleHarden(Call& call);
void HandleFsck(Call& call);
void HandleGc(Call& call);
void HandleBackup(Call& call);
void HandleExport(Call& call);
void HandleImport(Call& call);

void HandleReplay(Call& call);
void HandleCreateReplay(Call& call);
void HandleListReplays(Call& call);
void HandleGetReplay(Call& call);
void HandleDeleteReplay(Call& call);
void HandleCancelReplay(Call& call);
void HandleReplaySteps(Call& call);
void HandleAddSegment(Call& call);
void HandleListSegments(Call& call);
void HandleGetSegment(Call& call);
void HandlePinSegment(Call& call);
void HandleDeleteSegment(Call& call);

Json SessionJson(const SessionInfo& session);  // the session object

// Prometheus text of everything that is counted.
std::string MetricsText(const Runtime::Stats& stats, const std::string& model, size_t connections);

}  // namespace holdfast
