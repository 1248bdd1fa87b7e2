// Errors as the API shows them (OpenAI's shape):
//   {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
#pragma once

#include <string>

#include "engine/base/status.h"

namespace holdfast {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // "messages[2].role"; "" = null
  std::string code;   // "context_length_exceeded"; "" = null
  int retry_after_s = 0;        // header retry-after, where > 0
  bool should_retry = true;     // false: header x-should-retry: false
};

// The one place where codes become HTTP. A message that begins with a code word and a colon
// ("context_length_exceeded: ...", "store_degraded: ...") has that code.
ApiError ErrorOf(const Status& status);
// For refusals that have no Status: 401, 404, 405, 413, ...
ApiError ErrorOf(int http_status, std::string message);
std::string ErrorJson(const ApiError& error);

}  // namespace holdfast
