#include "api/http.h"

#include <doctest/doctest.h>

namespace holdfast {
namespace {

class Recorder : public HttpExchange {
 public:
  void Send(int, std::string_view, std::string) override {}
  void Stream(int, std::string_view, std::function<void(HttpBody&)>) override {}
  bool ClientGone() const override { return false; }
  const Headers& headers() const { return headers_; }
};

TEST_CASE("no value ends a header") {
  Recorder exchange;
  exchange.AddHeader("etag", "\"a\r\nset-cookie: b\n\x7f" + std::string(1, '\0') + "\t:1\"");
  exchange.AddHeader("x-name", "gr\xc3\xbcn: 1");
  CHECK(exchange.headers()[0].second == "\"a??set-cookie: b????:1\"");
  CHECK(exchange.headers()[1].second == "gr\xc3\xbcn: 1");
}

}  // namespace
}  // namespace holdfast
