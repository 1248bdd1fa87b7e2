#include "api/json.h"

namespace holdfast {
namespace {

// Counts depth and nodes, and builds nothing: the document is built only when it is known to be
// sane.
class Budget : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Node(); }
  bool boolean(bool) override { return Node(); }
  bool number_integer(number_integer_t) override { return Node(); }
  bool number_unsigned(number_unsigned_t) override { return Node(); }
  bool number_float(number_float_t, const string_t&) override { return Node(); }
  bool string(string_t&) override { return Node(); }
  bool binary(binary_t&) override { return Node(); }
  bool start_object(std::size_t) override { return Enter(); }
  bool key(string_t&) override { return Node(); }
  bool end_object() override { return --depth_, true; }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override { return --depth_, true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error ..."
    const std::string what = e.what();
    const size_t at = what.find("] ");
    error = at == std::string::npos ? what : what.substr(at + 2);
    error += " (byte " + std::to_string(position) + ")";
    return false;
  }

  std::string error;

 private:
  bool Node() {
    if (++nodes_ <= kJsonNodes) return true;
    error = "more than " + std::to_string(kJsonNodes) + " values";
    return false;
  }
  bool Enter() {
    if (++depth_ <= kJsonDepth) return Node();
    error = "nested deeper than " + std::to_string(kJsonDepth) + " levels";
    return false;
  }
  int depth_ = 0;
  size_t nodes_ = 0;
};

}  // namespace

Result<Json> ParseJson(std::string_view text) {
  Budget budget;
  if (!nlohmann::json::sax_parse(text, &budget)) {
    return Status::Invalid("not valid JSON: " + budget.error);
  }
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return Status::Invalid("not valid JSON");
  return value;
}

std::string DumpJson(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace holdfast
