#include "api/api_error.h"

#include <array>
#include <string_view>

#include "api/json.h"

namespace holdfast {
namespace {

// Codes that messages begin with, and the HTTP status where it is not that of the Code.
struct CodeWord {
  std::string_view word;
  int status;  // 0: as the Code says
};
constexpr std::array<CodeWord, 10> kCodeWords = {{
    {"context_length_exceeded", 400},
    {"request_timeout", 408},
    {"request_too_large", 413},
    {"insufficient_storage", 507},
    {"store_degraded", 507},
    {"quota_exceeded", 429},
    {"model_not_found", 404},
    {"segment_of_another_model", 0},
    {"busy_head", 0},
    {"head_moved", 0},
}};

}  // namespace

ApiError ErrorOf(const Status& status) {
  ApiError e;
  e.message = status.message();
  switch (status.code()) {
    case Code::kOk:
    case Code::kInvalid: e.status = 400; break;
    case Code::kNotFound: e.status = 404; break;
    case Code::kConflict: e.status = 409; break;
    case Code::kExhausted: e.status = 429; break;
    case Code::kUnavailable: e.status = 503; break;
    case Code::kCorrupt:
    case Code::kIo: e.status = 500; break;
    case Code::kCancelled: e.status = 499; break;
  }
  for (const CodeWord& w : kCodeWords) {
    if (!e.message.starts_with(w.word) || e.message.size() <= w.word.size() ||
        e.message[w.word.size()] != ':') {
      continue;
    }
    e.code = w.word;
    e.message = e.message.substr(w.word.size() + 2);
    if (w.status != 0) e.status = w.status;
  }
  const ApiError kind = ErrorOf(e.status, "");
  e.type = kind.type;
  if (e.code.empty()) e.code = kind.code;
  e.retry_after_s = kind.retry_after_s;
  // Waiting alone does not end these.
  e.should_retry =
      e.status != 409 && e.code != "quota_exceeded" && e.code != "insufficient_storage";
  if (!e.should_retry) e.retry_after_s = 0;
  return e;
}

ApiError ErrorOf(int http_status, std::string message) {
  ApiError e;
  e.status = http_status;
  e.message = std::move(message);
  switch (http_status) {
    case 401: e.type = "authentication_error", e.code = "invalid_api_key"; break;
    case 403: e.type = "permission_error", e.code = "forbidden"; break;
    case 404: e.code = "not_found"; break;
    case 409: e.type = "conflict_error", e.code = "conflict"; break;
    case 413: e.code = "request_too_large"; break;
    case 429: e.type = "rate_limit_error", e.code = "queue_full", e.retry_after_s = 1; break;
    case 503: e.type = "server_error", e.code = "unavailable", e.retry_after_s = 1; break;
    case 507: e.type = "server_error", e.code = "insufficient_storage", e.retry_after_s = 2; break;
    default:
      if (http_status >= 500) e.type = "server_error", e.code = "internal_error";
  }
  return e;
}

std::string ErrorJson(const ApiError& error) {
  auto or_null = [](const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); };
  Json body;
  body["error"] = {{"message", error.message},
                   {"type", error.type},
                   {"param", or_null(error.param)},
                   {"code", or_null(error.code)}};
  return DumpJson(body);
}

}  // namespace holdfast
