// Reading a JSON object field by field, each with its type and range. The first thing that is wrong
// is kept, with the path of the field ("messages[2].role"), and every later read gives its default:
// so a reader is straight code with one check at its end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/api_error.h"
#include "api/json.h"

namespace holdfast {

inline constexpr double kMaxUnixTime = 1e11;  // seconds; a time in milliseconds is beyond it

class Fields {
 public:
  // `object` is borrowed. `path` is "" for the request itself.
  Fields(const Json& object, std::string path, std::optional<ApiError>* error);

  // The field, or null when it is absent or JSON null.
  const Json* Find(std::string_view name) const;
  // Absent: `fallback`. Of the wrong type or outside [min, max]: fails, and gives `fallback`.
  int64_t Int(std::string_view name, int64_t min, int64_t max, int64_t fallback);
  double Number(std::string_view name, double min, double max, double fallback);
  bool Bool(std::string_view name, bool fallback);
  std::string Text(std::string_view name, std::string fallback = "", size_t max_bytes = 1u << 20);
  const Json* Object(std::string_view name);
  const Json* Array(std::string_view name, size_t max_items);
  // One of `words`; its index. Absent: 0.
  size_t OneOf(std::string_view name, std::initializer_list<std::string_view> words);

  std::string PathOf(std::string_view name) const;
  void Fail(std::string_view name, const std::string& why, const std::string& code = "");
  std::optional<ApiError>* error() const { return error_; }

 private:
  const Json& object_;
  std::string path_;
  std::optional<ApiError>* error_;
};

}  // namespace holdfast
