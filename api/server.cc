#include "api/server.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <thread>

#include "api/replay_jobs.h"
#include "api/route.h"
#include "api/web/page.h"

namespace holdfast {
namespace {

constexpr std::string_view kJsonType = "application/json; charset=utf-8";
constexpr size_t kMaxRequestId = 128;

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.starts_with("127.");
}

// "127.0.0.1:8420" -> "127.0.0.1"; "[::1]:8420" -> "[::1]".
std::string_view WithoutPort(std::string_view host) {
  const size_t bracket = host.find(']');
  const size_t colon = host.find(':', bracket == std::string_view::npos ? 0 : bracket);
  return host.substr(0, colon);
}

std::string_view HostOfOrigin(std::string_view origin) {
  const size_t scheme = origin.find("://");
  return scheme == std::string_view::npos ? origin : WithoutPort(origin.substr(scheme + 3));
}

bool IsPlainId(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestId &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) { return c > 32 && c < 127; });
}

// Compares in constant time against every key; the tenant, or null.
const std::string* TenantOf(const std::vector<ApiKey>& keys, std::string_view token) {
  const Digest digest = Sha256(token.data(), token.size());
  const std::string* found = nullptr;
  for (const ApiKey& k : keys) {
    if (CRYPTO_memcmp(k.key_digest.bytes.data(), digest.bytes.data(), 32) == 0) found = &k.tenant;
  }
  return found;
}

std::string_view BearerToken(const HttpRequest& request) {
  std::string_view value = request.header("authorization");
  if (value.starts_with("Bearer ")) return value.substr(7);
  return request.header("x-api-key");
}

void SendError(HttpExchange& exchange, const ApiError& error) {
  if (error.retry_after_s > 0) {
    exchange.AddHeader("retry-after", std::to_string(error.retry_after_s));
  }
  if (!error.should_retry) exchange.AddHeader("x-should-retry", "false");
  exchange.Send(error.status, kJsonType, ErrorJson(error));
}

Json ModelJson(const Call& call) {
  const ModelConfig& config = call.runtime.engine().model().config();
  return {{"id", call.options.model_name},
          {"object", "model"},
          {"created", 0},
          {"owned_by", "holdfast"},
          {"context_length", call.runtime.engine().max_context()},
          {"max_model_len", call.runtime.engine().max_context()},
          {"architecture", config.architecture},
          {"fingerprint", call.runtime.engine().model().fingerprint().Hex()}};
}

void HandleModels(Call& call) {
  call.Reply(200, {{"object", "list"}, {"data", Json::array({ModelJson(call)})}});
}

void HandleModel(Call& call) {
  if (call.request.segments[0] != call.options.model_name) {
    return call.Refuse(Status::NotFound("model_not_found: no model '" + call.request.segments[0] +
                                        "'; this server has '" + call.options.model_name + "'"));
  }
  call.Reply(200, ModelJson(call));
}

void HandleTokenize(Call& call) {
  Result<Json> body = ParseJson(call.request.body);
  if (!body.ok()) return call.Refuse(body.status());
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  const std::string_view name = fields.Find("content") != nullptr ? "content"
                                : fields.Find("prompt") != nullptr ? "prompt"
                                                                   : "text";
  if (fields.Find(name) == nullptr) fields.Fail("content", "is missing");
  const std::string text = fields.Text(name, "", call.options.limits.body_bytes);
  const bool special = fields.Bool("parse_special", false);
  if (error.has_value()) return call.Refuse(*error);
  const Tokenizer& tokenizer = call.runtime.engine().tokenizer();
  const auto tokens = special ? tokenizer.Encode(text) : tokenizer.EncodePlain(text);
  if (!tokens.ok()) return call.Refuse(tokens.status());
  call.Reply(200, {{"tokens", *tokens}, {"count", tokens->size()}});
}

void HandleDetokenize(Call& call) {
  Result<Json> body = ParseJson(call.request.body);
  if (!body.ok()) return call.Refuse(body.status());
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  const Json* tokens = fields.Array("tokens", 1u << 20);
  if (tokens == nullptr) fields.Fail("tokens", "is missing");
  const Tokenizer& tokenizer = call.runtime.engine().tokenizer();
  StreamDecoder decoder(&tokenizer, StreamDecoder::Specials::kShow);
  std::string text;
  for (size_t i = 0; tokens != nullptr && i < tokens->size() && !error.has_value(); ++i) {
    const Json& t = (*tokens)[i];
    if (!t.is_number_integer() || t.get<int64_t>() < 0 ||
        t.get<int64_t>() >= static_cast<int64_t>(tokenizer.vocab_size())) {
      fields.Fail("tokens[" + std::to_string(i) + "]", "is not a token of this model");
    } else {
      text += decoder.Push(t.get<TokenId>());
    }
  }
  if (error.has_value()) return call.Refuse(*error);
  call.Reply(200, {{"content", text + decoder.Flush()}});
}

}  // namespace

std::string RandomId(std::string_view prefix) {
  std::array<unsigned char, 12> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  std::string id(prefix);
  for (unsigned char b : bytes) {
    id += "0123456789abcdef"[b >> 4];
    id += "0123456789abcdef"[b & 15];
  }
  return id;
}

void Call::Reply(int status, const Json& body) {
  exchange.Send(status, kJsonType, DumpJson(body));
}

void Call::Refuse(const ApiError& error) { SendError(exchange, error); }

struct Server::Impl {
  explicit Impl(ServerOptions o) : options(std::move(o)), http(options.limits) {}

  using Handler = void (*)(Call&);
  void Add(std::string method, std::string_view pattern, Handler handler,
           HttpServer::Body body = HttpServer::Body::kWhole) {
    http.Route(
        std::move(method), pattern,
        [this, handler](const HttpRequest& request, HttpExchange& exchange) {
          Serve(request, exchange, handler);
        },
        body);
  }

  void Serve(const HttpRequest& request, HttpExchange& exchange, Handler handler) {
    std::string id(request.header("x-request-id"));
    if (!IsPlainId(id)) id = RandomId("req_");
    exchange.AddHeader("x-request-id", id);
    Runtime* r = runtime.load();
    if (r == nullptr) return SendError(exchange, ErrorOf(503, "the model is loading"));
    Call call{request, exchange, *r, *jobs, options, "default", std::move(id)};
    if (!options.keys.empty() && !IsAdmin(request)) {
      const std::string* tenant = TenantOf(options.keys, BearerToken(request));
      if (tenant == nullptr) return SendError(exchange, ErrorOf(401, "the API key is not valid"));
      call.tenant = *tenant;
    }
    handler(call);
  }

  // Before a body is read: the key where keys are set; where none are, the Host and Origin headers,
  // so that no web page elsewhere can talk to a server on its visitor's machine.
  bool Gate(const HttpRequest& request, HttpExchange& exchange) const {
    if (request.path == "/health" || (IsPage(request) && !options.keys.empty())) return true;
    if (IsAdmin(request)) {
      const std::string_view token = request.header("x-admin-token");
      const bool good = SameInConstantTime(Sha256(token.data(), token.size()),
                                           Sha256(options.admin_token.data(),
                                                  options.admin_token.size()));
      return good || (SendError(exchange, ErrorOf(403, "the token of DATA/server.json is missing "
                                                       "or not valid")),
                      false);
    }
    if (!options.keys.empty()) {
      if (request.method == "OPTIONS" || TenantOf(options.keys, BearerToken(request)) != nullptr) {
        return true;
      }
      return SendError(exchange, ErrorOf(401, "the API key is missing or not valid")), false;
    }
    const std::string_view host = WithoutPort(request.header("host"));
    if (!host.empty() && !IsLoopback(host) && host != options.host) {
      return SendError(exchange, ErrorOf(403, "Host '" + std::string(host) +
                                                  "' is not this server; set an API key")), false;
    }
    const std::string_view origin = request.header("origin");
    if (origin.empty() || IsLoopback(HostOfOrigin(origin)) ||
        std::find(options.origins.begin(), options.origins.end(), origin) !=
            options.origins.end()) {
      return true;
    }
    return SendError(exchange, ErrorOf(403, "Origin '" + std::string(origin) +
                                                "' is not allowed; see --origin")), false;
  }

  // Holds nothing of anybody: the page asks its reader for a key.
  static bool IsPage(const HttpRequest& request) {
    return request.path == "/" || request.path == "/page.js" || request.path == "/openapi.json";
  }
  static bool IsAdmin(const HttpRequest& request) {
    return request.path.starts_with("/v1/admin/");
  }
  void AddPages();
  void AddRoutes();

  ServerOptions options;
  HttpServer http;
  std::unique_ptr<ReplayJobs> jobs;         // set before the runtime is
  std::atomic<Runtime*> runtime{nullptr};
  std::thread acceptor;
};

void Server::Impl::AddPages() {
  const auto page = [](HttpExchange& e, const char* type, std::string_view text) {
    e.AddHeader("content-security-policy", kPagePolicy);
    e.AddHeader("cache-control", "no-cache");
    e.AddHeader("referrer-policy", "no-referrer");
    e.AddHeader("x-content-type-options", "nosniff");
    e.Send(200, type, std::string(text));
  };
  http.Route("GET", "/", [page](const HttpRequest&, HttpExchange& e) {
    page(e, "text/html; charset=utf-8", kPageHtml);
  });
  http.Route("GET", "/page.js", [page](const HttpRequest&, HttpExchange& e) {
    page(e, "text/javascript; charset=utf-8", kPageScript);
  });
  http.Route("GET", "/openapi.json", [page](const HttpRequest&, HttpExchange& e) {
    page(e, kJsonType.data(), kOpenApi);
  });
}

void Server::Impl::AddRoutes() {
  http.SetErrorBody([](int status, const std::string& m) { return ErrorJson(ErrorOf(status, m)); });
  http.SetGate([this](const HttpRequest& q, HttpExchange& e) { return Gate(q, e); });
  http.Route("GET", "/health", [this](const HttpRequest&, HttpExchange& e) {
    const bool ready = runtime.load() != nullptr;
    e.Send(ready ? 200 : 503, kJsonType, ready ? R"({"status":"ok"})" : R"({"status":"loading"})");
  });
  http.Route("GET", "/metrics", [this](const HttpRequest&, HttpExchange& e) {
    Runtime* r = runtime.load();
    e.Send(200, "text/plain; version=0.0.4",
           MetricsText(r != nullptr ? r->stats() : Runtime::Stats{}, options.model_name,
                       http.active_connections()));
  });
  AddPages();
  Add("GET", "/v1/models", &HandleModels);
  Add("GET", "/v1/models/{}", &HandleModel);
  Add("POST", "/tokenize", &HandleTokenize);
  Add("POST", "/detokenize", &HandleDetokenize);
  Add("POST", "/v1/chat/completions", &HandleChat);
  Add("POST", "/v1/sessions", &HandleCreateSession);
  Add("GET", "/v1/sessions", &HandleListSessions);
  Add("GET", "/v1/sessions/{}", &HandleGetSession);
  Add("DELETE", "/v1/sessions/{}", &HandleDeleteSession);
  Add("GET", "/v1/sessions/{}/items", &HandleItems);
  Add("GET", "/v1/sessions/{}/tokens", &HandleTokens);
  Add("POST", "/v1/sessions/{}/turns", &HandleTurns);
  Add("GET", "/v1/sessions/{}/turns", &HandleListTurns);
  Add("POST", "/v1/sessions/{}/turns/{}/cancel", &HandleCancelTurn);
  Add("GET", "/v1/sessions/{}/tree", &HandleTree);
  Add("GET", "/v1/sessions/{}/branches", &HandleBranches);
  Add("POST", "/v1/sessions/{}/branches", &HandleBranch);
  Add("POST", "/v1/sessions/{}/fork", &HandleFork);
  Add("POST", "/v1/sessions/{}/rewind", &HandleRewind);
  Add("POST", "/v1/sessions/{}/snapshot", &HandleSnapshot);
  Add("GET", "/v1/sessions/{}/snapshots", &HandleSnapshots);
  Add("GET", "/v1/sessions/{}/snapshots/{}", &HandleGetSnapshot);
  Add("DELETE", "/v1/sessions/{}/snapshots/{}", &HandleDeleteSnapshot);
  Add("POST", "/v1/sessions/{}/snapshots/{}/pin", &HandlePinSnapshot);
  Add("POST", "/v1/sessions/{}/snapshots/{}/verify", &HandleVerifySnapshot);
  Add("GET", "/v1/sessions/{}/events", &HandleEvents);
  Add("GET", "/v1/sessions/{}/residency", &HandleResidency);
  Add("POST", "/v1/sessions/{}/prefetch", &HandlePrefetch);
  Add("GET", "/v1/sessions/{}/provenance", &HandleProvenance);
  Add("POST", "/v1/sessions/{}/harden", &HandleHarden);
  Add("POST", "/v1/admin/fsck", &HandleFsck);
  Add("POST", "/v1/admin/gc", &HandleGc);
  Add("POST", "/v1/admin/backup", &HandleBackup);
  Add("GET", "/v1/sessions/{}/export", &HandleExport);
  Add("POST", "/v1/sessions/import", &HandleImport, HttpServer::Body::kStreamed);
  Add("POST", "/v1/sessions/{}/replay", &HandleReplay);
  Add("POST", "/v1/replays", &HandleCreateReplay);
  Add("GET", "/v1/replays", &HandleListReplays);
  Add("GET", "/v1/replays/{}", &HandleGetReplay);
  Add("DELETE", "/v1/replays/{}", &HandleDeleteReplay);
  Add("POST", "/v1/replays/{}/cancel", &HandleCancelReplay);
  Add("GET", "/v1/replays/{}/steps", &HandleReplaySteps);
  Add("POST", "/v1/segments", &HandleAddSegment);
  Add("GET", "/v1/segments", &HandleListSegments);
  Add("GET", "/v1/segments/{}", &HandleGetSegment);
  Add("DELETE", "/v1/segments/{}", &HandleDeleteSegment);
  Add("POST", "/v1/segments/{}/pin", &HandlePinSegment);
}

Server::Server(ServerOptions options) : impl_(new Impl(std::move(options))) {
  if (impl_->options.admin_token.empty()) impl_->options.admin_token = RandomId("");
  impl_->AddRoutes();
}

const std::string& Server::admin_token() const { return impl_->options.admin_token; }

Server::~Server() {
  Stop();
  WaitUntilStopped();
}

Result<int> Server::Listen() {
  if (impl_->options.keys.empty() && !IsLoopback(impl_->options.host)) {
    return Status::Invalid("http: to listen on " + impl_->options.host +
                           ", beyond this machine, set an API key (--api-key TENANT=KEY)");
  }
  HOLDFAST_ASSIGN_OR_RETURN(impl_->options.port,
                            impl_->http.Listen(impl_->options.host, impl_->options.port));
  impl_->acceptor = std::thread([this] { impl_->http.Serve(); });
  return impl_->options.port;
}

void Server::Attach(Runtime* runtime) {
  ReplayJobs::Limits limits;
  limits.running = impl_->options.replays;
  impl_->jobs = std::make_unique<ReplayJobs>(runtime, limits);
  impl_->runtime = runtime;
}

void Server::EndReplays() {
  if (impl_->jobs != nullptr) impl_->jobs->Stop();
}

void Server::WaitUntilStopped() {
  if (impl_->acceptor.joinable()) impl_->acceptor.join();
  EndReplays();
}

void Server::Stop() { impl_->http.Stop(); }

}  // namespace holdfast
