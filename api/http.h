// HttpServer: HTTP/1.1 at the edge, over cpp-httplib (http.cc is the only file that includes it).
//
// Debian's httplib 0.11.4 trusts its peers too much (chunked bodies pass the limit, headers without
// end, a few dripping sockets hold all workers). So the bytes go through a Stream of ours with
// budgets: every named limit below is enforced there or before a handler runs. One thread per
// connection, capped; a connection over the cap gets 503 and is closed. No request or response is
// ever compressed.
//
// Handlers run on their connection's thread and may block. A handler answers once: Send, or
// Stream, whose body is then written piece by piece. Thread-safe: Stop, active_connections.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

struct HttpLimits {
  size_t body_bytes = 32u << 20;      // 413 beyond
  size_t header_bytes = 64u << 10;    // request line and headers: 431 beyond
  int header_ms = 10'000;             // to send all headers: closed beyond
  int body_ms = 60'000;               // to send the whole body: 408 beyond
  uint64_t upload_bytes = uint64_t{64} << 30;  // of a streamed body: 413 beyond
  int upload_ms = 3'600'000;          // to send it; a pause of body_ms is too long as well
  int idle_ms = 30'000;               // between requests of a kept-alive connection
  int write_ms = 30'000;              // a client that takes nothing for so long is cut
  size_t connections = 1024;
  size_t requests_per_connection = 10'000;
};

struct HttpRequest {
  std::string method, path;            // path without the query, percent-decoded
  std::vector<std::string> parts;      // of the path between its slashes, each decoded
  std::map<std::string, std::string> query;
  std::map<std::string, std::string> headers;  // names in lower case; the first value of each
  std::string body;
  std::string remote;                  // "127.0.0.1:40112"
  std::vector<std::string> segments;   // what the route's {} matched, in order
  // Of a streamed route, instead of `body`: hands the body's pieces to `take` until it ends or
  // `take` fails. Once, during the handler. Errors begin with request_too_large, request_timeout.
  using TakePiece = std::function<Status(std::string_view)>;
  std::function<Status(const TakePiece& take)> read_body;

  std::string_view header(const std::string& lower_name) const;  // "" when absent
};

// The body of an answer in pieces. Lives during `run` only; belongs to the connection's thread.
class HttpBody {
 public:
  virtual ~HttpBody() = default;
  // False when the client is gone or takes nothing: stop then.
  virtual bool Write(std::string_view piece) = 0;
  // True when the peer has closed its side or the server is stopping. Cheap: ask often.
  virtual bool ClientGone() const = 0;
  // Ends the answer as a broken one, so that the client sees that it is not whole.
  virtual void Break() = 0;
};

// The answer to one request. Lives until the handler returns; belongs to its thread.
class HttpExchange {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;
  virtual ~HttpExchange() = default;

  // A byte of the value that would end the header or the answer's head becomes '?'.
  void AddHeader(std::string name, std::string value) {
    for (char& c : value) {
      if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
    }
    headers_.emplace_back(std::move(name), std::move(value));
  }
  // The whole answer.
  virtual void Send(int status, std::string_view content_type, std::string body) = 0;
  // An answer in pieces: `run` is called after the handler has returned, once the status line and
  // headers are out; so it must own what it uses.
  virtual void Stream(int status, std::string_view content_type,
                      std::function<void(HttpBody& body)> run) = 0;
  virtual bool ClientGone() const = 0;  // as HttpBody's

 protected:
  Headers headers_;
};

using HttpHandler = std::function<void(const HttpRequest&, HttpExchange&)>;
// Looks at a request before its body is read; false: it has answered (401, 403, ...).
using HttpGate = std::function<bool(const HttpRequest&, HttpExchange&)>;

class HttpServer {
 public:
  explicit HttpServer(HttpLimits limits);
  ~HttpServer();

  // `pattern`: "/v1/sessions/{}/items"; {} matches one segment. Before Listen only. kStreamed: the
  // body is not gathered; the handler reads it (HttpRequest::read_body).
  enum class Body : uint8_t { kWhole, kStreamed };
  void Route(std::string method, std::string_view pattern, HttpHandler handler,
             Body body = Body::kWhole);
  void SetGate(HttpGate gate);
  // Answers what no route takes (404, or 405 with `allow` naming the methods), and every error that
  // arises before a handler (400, 408, 413, 415, 431, 503): status and a message.
  using ErrorBody = std::function<std::string(int status, const std::string& message)>;
  void SetErrorBody(ErrorBody body);  // its result is sent as application/json

  // Binds; port 0 picks a free one. kConflict: the port is taken; kInvalid: the address is no
  // address.
  Result<int> Listen(const std::string& host, int port);
  void Serve();  // accepts until Stop; returns when every connection has ended
  // No more requests: idle connections close, running answers end. From any thread, not from a
  // signal.
  void Stop();
  size_t active_connections() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A plain client for our own commands: one request, one answer.
struct HttpReply {
  int status = 0;
  std::string body;
};
struct HttpCallArgs {
  std::string base_url;  // "http://127.0.0.1:8420"
  std::string method = "GET", path = {};
  std::string body = {};     // sent as application/json
  std::string api_key = {};  // "" = none
  int timeout_s = 600;   // without a byte
  HttpExchange::Headers headers = {};
  // A body that is read piece by piece instead: `size` bytes, from `read(offset, out)`.
  struct Upload {
    uint64_t size = 0;
    std::function<Status(uint64_t offset, std::span<std::byte> out)> read;
  };
  std::optional<Upload> upload = {};
  // Takes the body of a good answer piece by piece; HttpReply::body is then that of an error only.
  // `expected`: the header `size_header` of the answer as a number, 0 where it is absent.
  std::function<Status(std::string_view piece, uint64_t expected)> download = {};
  std::string size_header = {};
};
// kUnavailable when nobody answers there, or the answer breaks off.
Result<HttpReply> HttpCall(const HttpCallArgs& args);

}  // namespace holdfast
