// Design. httplib's Server is kept for what it does well (parsing the request line, headers,
// chunks, query strings; writing responses) and loses what it does badly: its accept queue becomes
// one thread per connection under a cap, its routing becomes ours behind one catch-all per method,
// and its socket stream becomes BudgetStream, which ends a connection whose peer is slower or
// wordier than the limits. A request's life on its thread: Converse -> process_request -> [gate] ->
// catch-all -> body -> handler.
#include "api/http.h"

#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

namespace holdfast {
namespace {

constexpr int kBacklog = 512;       // httplib asks for 5
constexpr int kPollSliceMs = 100;   // how soon a stop is noticed while waiting for bytes
constexpr size_t kReadBuffer = 16u << 10;
constexpr size_t kClientPiece = 1u << 20;   // of an upload
constexpr size_t kMaxErrorBody = 64u << 10; // kept of an answer that was to be downloaded

using Clock = std::chrono::steady_clock;

int MsUntil(Clock::time_point t) {
  return static_cast<int>(
      std::chrono::duration_cast<std::chrono::milliseconds>(t - Clock::now()).count());
}

bool PeerClosed(int fd) {
  pollfd p{fd, POLLRDHUP, 0};
  if (poll(&p, 1, 0) < 0) return errno != EINTR;
  return (p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

// The socket as httplib reads and writes it, under the limits. One connection's thread.
class BudgetStream : public httplib::Stream {
 public:
  BudgetStream(int fd, const HttpLimits& limits, const std::atomic<bool>& stopping)
      : fd_(fd), limits_(limits), stopping_(stopping), buffer_(kReadBuffer) {}

  // Waits for the first byte of a request; false at the time-out, the peer's end or a stop.
  bool AwaitRequest() {
    const auto deadline = Clock::now() + std::chrono::milliseconds(limits_.idle_ms);
    BeginHeaders(deadline);
    if (begin_ < end_) return Arm();
    while (!stopping_) {
      const int left = MsUntil(deadline);
      if (left <= 0) return false;
      pollfd p{fd_, POLLIN, 0};
      const int n = poll(&p, 1, std::min(left, kPollSliceMs));
      if (n < 0 && errno != EINTR) return false;
      if (n > 0) return Fill(kPollSliceMs) > 0 && Arm();
    }
    return false;
  }

  // From here on the body's budget counts.
  void BeginBody() {
    in_headers_ = false;
    upload_end_.reset();
    deadline_ = Clock::now() + std::chrono::milliseconds(limits_.body_ms);
  }
  // The body is a long one: its budget is that of an upload.
  void BeginUpload() {
    upload_end_ = Clock::now() + std::chrono::milliseconds(limits_.upload_ms);
  }

  int refusal() const { return refusal_; }  // 408 or 431 when a budget was broken, else 0

  bool is_readable() const override { return true; }
  bool is_writable() const override { return !PeerClosed(fd_); }
  ssize_t read(char* out, size_t size) override {
    if (in_headers_ && header_bytes_ >= limits_.header_bytes) return Refuse(431);
    if (begin_ == end_) {
      if (upload_end_) {
        deadline_ = std::min(*upload_end_,
                             Clock::now() + std::chrono::milliseconds(limits_.body_ms));
      }
      for (;;) {
        const int left = MsUntil(deadline_);
        if (left <= 0) return Refuse(408);
        if (stopping_ && in_headers_) return -1;
        const ssize_t n = Fill(std::min(left, kPollSliceMs));
        if (n > 0) break;
        if (n == 0) return 0;
        if (n == -1) return -1;
      }
    }
    const size_t n = std::min(size, end_ - begin_);
    std::memcpy(out, buffer_.data() + begin_, n);
    begin_ += n;
    if (in_headers_) header_bytes_ += n;
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* data, size_t size) override {
    size_t sent = 0;
    while (sent < size) {
      const ssize_t n = send(fd_, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) {
        sent += static_cast<size_t>(n);
      } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        pollfd p{fd_, POLLOUT, 0};
        if (poll(&p, 1, limits_.write_ms) <= 0) return -1;
      } else if (n == 0 || errno != EINTR) {
        return -1;
      }
    }
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    Name(&getpeername, ip, port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    Name(&getsockname, ip, port);
  }
  socket_t socket() const override { return fd_; }

 private:
  void BeginHeaders(Clock::time_point deadline) {
    in_headers_ = true;
    header_bytes_ = 0;
    deadline_ = deadline;
  }
  bool Arm() {  // the first byte is here: the time for headers begins
    deadline_ = Clock::now() + std::chrono::milliseconds(limits_.header_ms);
    return true;
  }
  ssize_t Refuse(int status) {
    if (refusal_ == 0) refusal_ = status;
    return -1;
  }
  // Bytes read; 0 at the peer's end, -1 on an error, -2 when nothing came within `ms`.
  ssize_t Fill(int ms) {
    pollfd p{fd_, POLLIN, 0};
    const int ready = poll(&p, 1, ms);
    if (ready == 0 || (ready < 0 && errno == EINTR)) return -2;
    if (ready < 0) return -1;
    const ssize_t n = recv(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -2 : -1;
    begin_ = 0;
    end_ = static_cast<size_t>(n);
    return n;
  }
  void Name(int (*get)(int, sockaddr*, socklen_t*), std::string& ip, int& port) const {
    sockaddr_storage a{};
    socklen_t len = sizeof(a);
    char host[64] = "", service[16] = "0";
    if (get(fd_, reinterpret_cast<sockaddr*>(&a), &len) == 0) {
      getnameinfo(reinterpret_cast<sockaddr*>(&a), len, host, sizeof(host), service,
                  sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV);
    }
    ip = host;
    port = std::atoi(service);
  }

  const int fd_;
  const HttpLimits& limits_;
  const std::atomic<bool>& stopping_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0, header_bytes_ = 0;
  bool in_headers_ = true;
  int refusal_ = 0;
  Clock::time_point deadline_;
  std::optional<Clock::time_point> upload_end_;
};

const char* Reason(int status) {
  switch (status) {
    case 408: return "Request Timeout";
    case 431: return "Request Header Fields Too Large";
    default: return "Service Unavailable";
  }
}

std::vector<std::string> Split(std::string_view path) {
  std::vector<std::string> out;
  size_t at = 1;
  while (at <= path.size()) {
    const size_t end = std::min(path.find('/', at), path.size());
    out.emplace_back(path.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

struct RouteEntry {
  std::string method;
  std::vector<std::string> pattern;
  HttpHandler handler;
  HttpServer::Body body = HttpServer::Body::kWhole;

  bool Match(const std::vector<std::string>& path, std::vector<std::string>* captured) const {
    if (path.size() != pattern.size()) return false;
    captured->clear();
    for (size_t i = 0; i < path.size(); ++i) {
      if (pattern[i] == "{}" && !path[i].empty()) {
        captured->push_back(path[i]);
      } else if (pattern[i] != path[i]) {
        return false;
      }
    }
    return true;
  }
};

// What the current connection's thread is serving: httplib's callbacks carry no context.
struct Connection {
  BudgetStream* stream = nullptr;
};
thread_local Connection current;

class SinkBody : public HttpBody {
 public:
  SinkBody(httplib::DataSink* sink, int fd, const std::atomic<bool>& stopping)
      : sink_(sink), fd_(fd), stopping_(stopping) {}
  bool Write(std::string_view piece) override {
    alive_ = alive_ && sink_->write(piece.data(), piece.size());
    return alive_;
  }
  bool ClientGone() const override { return !alive_ || stopping_ || PeerClosed(fd_); }
  void Break() override { alive_ = false; }
  bool alive() const { return alive_; }

 private:
  httplib::DataSink* sink_;
  int fd_;
  const std::atomic<bool>& stopping_;
  bool alive_ = true;
};

class Exchange : public HttpExchange {
 public:
  Exchange(httplib::Response* response, int fd, const std::atomic<bool>& stopping)
      : response_(response), fd_(fd), stopping_(stopping) {}

  void Send(int status, std::string_view content_type, std::string body) override {
    Head(status);
    response_->set_content(std::move(body), std::string(content_type));
  }
  void Stream(int status, std::string_view content_type,
              std::function<void(HttpBody&)> run) override {
    Head(status);
    response_->set_header("Cache-Control", "no-store");
    response_->set_chunked_content_provider(
        std::string(content_type),
        [run = std::move(run), fd = fd_, &stopping = stopping_](size_t, httplib::DataSink& sink) {
          SinkBody body(&sink, fd, stopping);
          run(body);
          if (body.alive()) sink.done();
          return body.alive();
        });
  }
  bool ClientGone() const override { return stopping_ || PeerClosed(fd_); }

 private:
  void Head(int status) {
    response_->status = status;
    for (auto& [name, value] : headers_) response_->set_header(name, value);
  }
  httplib::Response* response_;
  int fd_;
  const std::atomic<bool>& stopping_;
};

// What stands between the slashes that the client sent: one that it encoded is part of a name.
std::vector<std::string> PartsOf(const httplib::Request& in) {
  const std::string_view target(in.target);
  std::vector<std::string> parts = Split(target.substr(0, target.find('?')));
  for (std::string& part : parts) part = httplib::detail::decode_url(part, false);
  return parts;
}

HttpRequest Convert(const httplib::Request& in) {
  HttpRequest out;
  out.method = in.method;
  out.path = in.path;
  out.parts = PartsOf(in);
  for (const auto& [k, v] : in.params) out.query.emplace(k, v);
  for (const auto& [k, v] : in.headers) {
    std::string name = k;
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    out.headers.emplace(std::move(name), v);
  }
  out.remote = in.remote_addr + ":" + std::to_string(in.remote_port);
  return out;
}

}  // namespace

std::string_view HttpRequest::header(const std::string& lower_name) const {
  const auto it = headers.find(lower_name);
  return it == headers.end() ? std::string_view() : std::string_view(it->second);
}

struct HttpServer::Impl : public httplib::Server {
  explicit Impl(HttpLimits l) : limits(l) {
    new_task_queue = [this] { return new ThreadPerConnection(this); };
    set_payload_max_length(std::max<uint64_t>(limits.body_bytes, limits.upload_bytes));
    set_tcp_nodelay(true);
    set_keep_alive_timeout(limits.idle_ms / 1000);
    set_keep_alive_max_count(limits.requests_per_connection);
    // httplib's own refusals (a request that does not parse) have no body.
    set_error_handler([this](const httplib::Request&, httplib::Response& p) {
      if (!p.body.empty()) return;
      const int refused = current.stream->refusal();
      Fail(&p, refused != 0 ? refused : p.status, refused != 0 ? Reason(refused) : "bad request");
    });
    set_pre_routing_handler([this](const httplib::Request& q, httplib::Response& p) {
      return PreRoute(q, p) ? HandlerResponse::Unhandled : HandlerResponse::Handled;
    });
    set_exception_handler(
        [this](const httplib::Request&, httplib::Response& p, std::exception_ptr) {
          Fail(&p, 500, "internal error");
        });
    const auto plain = [this](const httplib::Request& q, httplib::Response& p) {
      Dispatch(Convert(q), &p);
    };
    const auto with_body = [this](const httplib::Request& q, httplib::Response& p,
                                  const httplib::ContentReader& reader) {
      HttpRequest request = Convert(q);
      if (IsStreamed(q)) {
        DispatchStreamed(q, reader, std::move(request), &p);
      } else if (ReadBody(q, reader, &request, &p)) {
        Dispatch(std::move(request), &p);
      }
    };
    Get("/.*", plain);
    Options("/.*", plain);
    Post("/.*", with_body);
    Put("/.*", with_body);
    Patch("/.*", with_body);
    Delete("/.*", with_body);
  }

  // httplib's worker pool, replaced: every accepted socket gets a thread of its own.
  class ThreadPerConnection : public httplib::TaskQueue {
   public:
    explicit ThreadPerConnection(Impl* impl) : impl_(impl) {}
    void enqueue(std::function<void()> serve) override {
      {
        std::lock_guard lock(impl_->mu);
        ++impl_->connections;
      }
      std::thread([impl = impl_, serve = std::move(serve)] {
        serve();
        std::lock_guard lock(impl->mu);
        --impl->connections;
        impl->ended.notify_all();
      }).detach();
    }
    void shutdown() override {
      std::unique_lock lock(impl_->mu);
      impl_->ended.wait(lock, [&] { return impl_->connections == 0; });
    }

   private:
    Impl* impl_;
  };

  bool process_and_close_socket(socket_t fd) override {
    Converse(fd);
    ::shutdown(fd, SHUT_WR);
    close(fd);
    return true;
  }

  void Converse(int fd) {
    BudgetStream stream(fd, limits, stopping);
    current.stream = &stream;
    size_t active;
    {
      std::lock_guard lock(mu);
      active = connections;
    }
    if (active > limits.connections) return Refuse(&stream, 503, "too many connections");
    for (size_t n = 0; n < limits.requests_per_connection && stream.AwaitRequest(); ++n) {
      bool closed = false;
      const bool last = stopping || n + 1 == limits.requests_per_connection;
      const bool ok = process_request(stream, last, closed, [&](httplib::Request& q) {
        q.headers.erase("Accept-Encoding");  // nothing is ever compressed
        q.headers.erase("Range");
        q.ranges.clear();
        stream.BeginBody();
      });
      if (!ok && stream.refusal() != 0) {
        return Refuse(&stream, stream.refusal(),
                      stream.refusal() == 431 ? "the headers are too large" : "too slow");
      }
      if (!ok || closed) return;
    }
  }

  void Refuse(BudgetStream* stream, int status, const std::string& message) {
    const std::string body = error_body(status, message);
    std::string out = "HTTP/1.1 " + std::to_string(status) + " " + Reason(status) +
                      "\r\nContent-Type: application/json; charset=utf-8\r\nConnection: close\r\n";
    if (status == 503) out += "Retry-After: 1\r\n";
    out += "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    stream->write(out.data(), out.size());
  }

  void Fail(httplib::Response* p, int status, const std::string& message) {
    p->status = status;
    p->set_header("Connection", "close");  // bytes of the body may still be on their way
    p->set_content(error_body(status, message), "application/json; charset=utf-8");
  }

  // True when the request may go on to its body.
  bool PreRoute(const httplib::Request& q, httplib::Response& p) {
    if (q.has_header("Transfer-Encoding") && q.has_header("Content-Length")) {
      return Fail(&p, 400, "both Transfer-Encoding and Content-Length"), false;
    }
    if (q.get_header_value_count("Content-Length") > 1) {
      return Fail(&p, 400, "more than one Content-Length"), false;
    }
    const std::string encoding = q.get_header_value("Content-Encoding");
    if (!encoding.empty() && encoding != "identity") {
      return Fail(&p, 415, "Content-Encoding: only identity is supported"), false;
    }
    const std::string length = q.get_header_value("Content-Length");
    if (length.find_first_not_of("0123456789") != std::string::npos || length.size() > 18) {
      return Fail(&p, 400, "Content-Length is not a number"), false;
    }
    if (!length.empty() && std::stoull(length) > BodyLimit(q)) {
      return Fail(&p, 413, TooLarge(BodyLimit(q))), false;
    }
    if (!gate) return true;
    Exchange exchange(&p, current.stream->socket(), stopping);
    if (gate(Convert(q), exchange)) return true;
    p.set_header("Connection", "close");
    return false;
  }

  // Makes the kernel's queue of unaccepted connections longer than httplib asks for.
  void LengthenBacklog() { ::listen(svr_sock_, kBacklog); }

  static std::string TooLarge(uint64_t limit) {
    return "the body is larger than " + std::to_string(limit) + " bytes";
  }

  bool IsStreamed(const httplib::Request& q) const {
    const std::vector<std::string> path = PartsOf(q);
    std::vector<std::string> captured;
    return std::any_of(routes.begin(), routes.end(), [&](const RouteEntry& r) {
      return r.body == HttpServer::Body::kStreamed && r.method == q.method &&
             r.Match(path, &captured);
    });
  }
  uint64_t BodyLimit(const httplib::Request& q) const {
    return IsStreamed(q) ? limits.upload_bytes : limits.body_bytes;
  }

  // A multipart body would be parsed by httplib; here it is bytes like any other.
  static bool ReadPieces(const httplib::Request& q, const httplib::ContentReader& reader,
                         const httplib::ContentReceiver& take) {
    return q.is_multipart_form_data()
               ? reader([](const httplib::MultipartFormData&) { return true; }, take)
               : reader(take);
  }

  void DispatchStreamed(const httplib::Request& q, const httplib::ContentReader& reader,
                        HttpRequest request, httplib::Response* p) {
    bool whole = false;
    request.read_body = [&](const HttpRequest::TakePiece& take) -> Status {
      current.stream->BeginUpload();
      Status status;
      uint64_t bytes = 0;
      const bool ok = ReadPieces(q, reader, [&](const char* data, size_t n) {
        bytes += n;
        if (bytes > limits.upload_bytes) {
          status = Status::Invalid("request_too_large: " + TooLarge(limits.upload_bytes));
        } else {
          status = take({data, n});
        }
        return status.ok();
      });
      whole = ok && status.ok();
      if (!status.ok() || ok) return status;
      return current.stream->refusal() != 0
                 ? Status::Invalid("request_timeout: the body came too slowly")
                 : Status::Invalid("the body is not what its headers say");
    };
    Dispatch(std::move(request), p);
    if (!whole) p->set_header("Connection", "close");  // bytes of it may still be on their way
  }

  bool ReadBody(const httplib::Request& q, const httplib::ContentReader& reader,
                HttpRequest* request, httplib::Response* p) {
    if (!q.has_header("Content-Length") && !q.has_header("Transfer-Encoding")) return true;
    if (q.get_header_value("Content-Length") == "0") return true;
    bool too_large = false;
    const auto take = [&](const char* data, size_t n) {
      too_large = request->body.size() + n > limits.body_bytes;
      if (!too_large) request->body.append(data, n);
      return !too_large;
    };
    const bool ok = ReadPieces(q, reader, take);
    if (ok && !too_large) return true;
    const int refused = current.stream->refusal();
    if (too_large) {
      Fail(p, 413, TooLarge(limits.body_bytes));
    } else if (refused != 0) {
      Fail(p, refused, "the body came too slowly");
    } else {
      Fail(p, 400, "the body is not what its headers say");
    }
    return false;
  }

  void Dispatch(HttpRequest request, httplib::Response* p) {
    Exchange exchange(p, current.stream->socket(), stopping);
    std::string allow;
    const std::string method = request.method == "HEAD" ? "GET" : request.method;
    for (const RouteEntry& route : routes) {
      std::vector<std::string> captured;
      if (!route.Match(request.parts, &captured)) continue;
      if (route.method == method) {
        request.segments = std::move(captured);
        return route.handler(request, exchange);
      }
      allow += (allow.empty() ? "" : ", ") + route.method;
    }
    const int status = allow.empty() ? 404 : 405;
    if (!allow.empty()) exchange.AddHeader("Allow", allow);
    exchange.Send(status, "application/json; charset=utf-8",
                  error_body(status, allow.empty()
                                         ? "no such path: " + request.method + " " + request.path
                                         : "method " + request.method + " is not allowed here"));
  }

  const HttpLimits limits;
  std::vector<RouteEntry> routes;
  HttpGate gate;
  ErrorBody error_body = [](int, const std::string& message) { return message; };
  std::atomic<bool> stopping{false};
  std::mutex mu;
  std::condition_variable ended;
  size_t connections = 0;
  bool serving = false;  // Serve has begun and not ended
};

HttpServer::HttpServer(HttpLimits limits) : impl_(new Impl(limits)) {}

HttpServer::~HttpServer() { Stop(); }

void HttpServer::Route(std::string method, std::string_view pattern, HttpHandler handler,
                       Body body) {
  impl_->routes.push_back({std::move(method), Split(pattern), std::move(handler), body});
}

void HttpServer::SetGate(HttpGate gate) { impl_->gate = std::move(gate); }

void HttpServer::SetErrorBody(ErrorBody body) { impl_->error_body = std::move(body); }

Result<int> HttpServer::Listen(const std::string& host, int port) {
  // Without SO_REUSEPORT, httplib's default, a second server on the port is told so.
  impl_->set_socket_options([](socket_t fd) {
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  });
  if (port == 0) {
    port = impl_->bind_to_any_port(host);
    if (port <= 0) return Status::Invalid("http: cannot bind " + host + ": " + strerror(errno));
  } else if (!impl_->bind_to_port(host, port)) {
    const std::string where = host + ":" + std::to_string(port);
    if (errno == EADDRINUSE) return Status::Conflict("http: " + where + " is taken");
    return Status::Invalid("http: cannot bind " + where + ": " + strerror(errno));
  }
  impl_->LengthenBacklog();
  return port;
}

void HttpServer::Serve() {
  {
    std::lock_guard lock(impl_->mu);
    if (impl_->stopping) return;
    impl_->serving = true;
  }
  impl_->listen_after_bind();
  std::lock_guard lock(impl_->mu);
  impl_->serving = false;
}

void HttpServer::Stop() {
  std::unique_lock lock(impl_->mu);
  impl_->stopping = true;
  // httplib forgets a stop that comes before its loop has begun.
  while (impl_->serving && !impl_->is_running()) {
    impl_->ended.wait_for(lock, std::chrono::milliseconds(1));
  }
  lock.unlock();
  impl_->stop();
}

size_t HttpServer::active_connections() const {
  std::lock_guard lock(impl_->mu);
  return impl_->connections;
}

namespace {

// `failed` keeps what the caller's reader said.
void SetUpload(const HttpCallArgs::Upload& upload, httplib::Request* request, Status* failed) {
  request->set_header("Content-Type", "application/octet-stream");
  request->content_length_ = upload.size;
  request->content_provider_ = [&upload, failed](size_t offset, size_t length,
                                                 httplib::DataSink& sink) {
    std::vector<std::byte> piece(std::min(length, kClientPiece));
    *failed = upload.read(offset, piece);
    return failed->ok() && sink.write(reinterpret_cast<const char*>(piece.data()), piece.size());
  };
}

void SetDownload(const HttpCallArgs& args, httplib::Request* request, HttpReply* reply,
                 Status* failed) {
  auto expected = std::make_shared<uint64_t>(0);
  request->response_handler = [&args, reply, expected](const httplib::Response& r) {
    reply->status = r.status;
    *expected = std::strtoull(r.get_header_value(args.size_header.c_str()).c_str(), nullptr, 10);
    return true;
  };
  request->content_receiver = [&args, reply, failed, expected](const char* data, size_t n,
                                                               uint64_t, uint64_t) {
    if (reply->status >= 400) {
      reply->body.append(data, std::min(n, kMaxErrorBody - std::min(kMaxErrorBody,
                                                                    reply->body.size())));
      return true;
    }
    *failed = args.download({data, n}, *expected);
    return failed->ok();
  };
}

}  // namespace

Result<HttpReply> HttpCall(const HttpCallArgs& args) {
  httplib::Client client(args.base_url);
  client.set_read_timeout(args.timeout_s);
  client.set_write_timeout(args.timeout_s);
  httplib::Request request;
  request.method = args.method;
  request.path = args.path;
  request.body = args.body;
  if (!args.body.empty()) request.set_header("Content-Type", "application/json");
  if (!args.api_key.empty()) request.set_header("Authorization", "Bearer " + args.api_key);
  for (const auto& [name, value] : args.headers) request.set_header(name, value);
  HttpReply reply;
  Status failed;
  if (args.upload) SetUpload(*args.upload, &request, &failed);
  if (args.download) SetDownload(args, &request, &reply, &failed);
  const httplib::Result result = client.send(request);
  HOLDFAST_RETURN_IF_ERROR(std::move(failed));
  if (!result) {
    return Status::Unavailable("no answer from " + args.base_url + ": " +
                               httplib::to_string(result.error()));
  }
  reply.status = result->status;
  if (!args.download) reply.body = result->body;
  return reply;
}

}  // namespace holdfast
