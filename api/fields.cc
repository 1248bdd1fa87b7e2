#include "api/fields.h"

#include <cmath>

namespace holdfast {
namespace {

std::string Range(double min, double max) {
  auto show = [](double v) {
    if (v == std::floor(v) && std::abs(v) < 1e15) return std::to_string(static_cast<int64_t>(v));
    std::string s = std::to_string(v);
    s.erase(s.find_last_not_of('0') + 1);
    return s;
  };
  return "from " + show(min) + " to " + show(max);
}

}  // namespace

Fields::Fields(const Json& object, std::string path, std::optional<ApiError>* error)
    : object_(object), path_(std::move(path)), error_(error) {
  if (object_.is_object()) return;
  if (!error_->has_value()) {
    *error_ = ErrorOf(400, (path_.empty() ? "the body" : path_) + " must be an object");
    (*error_)->param = path_;
  }
}

const Json* Fields::Find(std::string_view name) const {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(std::string(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::string Fields::PathOf(std::string_view name) const {
  if (path_.empty() || name.empty()) return path_ + std::string(name);
  return path_ + "." + std::string(name);
}

void Fields::Fail(std::string_view name, const std::string& why, const std::string& code) {
  if (error_->has_value()) return;
  *error_ = ErrorOf(400, PathOf(name) + " " + why);
  (*error_)->param = PathOf(name);
  (*error_)->code = code;
}

int64_t Fields::Int(std::string_view name, int64_t min, int64_t max, int64_t fallback) {
  const Json* v = Find(name);
  if (v == nullptr) return fallback;
  const bool whole = v->is_number_integer() ||
                     (v->is_number_float() && v->get<double>() == std::floor(v->get<double>()) &&
                      std::abs(v->get<double>()) < 1e15);
  if (!whole) return Fail(name, "must be an integer"), fallback;
  if (v->is_number_unsigned() && v->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return Fail(name, "is too large"), fallback;
  }
  const auto n = v->is_number_float() ? static_cast<int64_t>(v->get<double>()) : v->get<int64_t>();
  if (n < min || n > max) {
    return Fail(name, "must be " + Range(static_cast<double>(min), static_cast<double>(max))),
           fallback;
  }
  return n;
}

double Fields::Number(std::string_view name, double min, double max, double fallback) {
  const Json* v = Find(name);
  if (v == nullptr) return fallback;
  if (!v->is_number()) return Fail(name, "must be a number"), fallback;
  const auto n = v->get<double>();
  if (!(n >= min && n <= max)) return Fail(name, "must be " + Range(min, max)), fallback;
  return n;
}

bool Fields::Bool(std::string_view name, bool fallback) {
  const Json* v = Find(name);
  if (v == nullptr) return fallback;
  if (!v->is_boolean()) return Fail(name, "must be true or false"), fallback;
  return v->get<bool>();
}

std::string Fields::Text(std::string_view name, std::string fallback, size_t max_bytes) {
  const Json* v = Find(name);
  if (v == nullptr) return fallback;
  if (!v->is_string()) return Fail(name, "must be a string"), fallback;
  const auto& s = v->get_ref<const std::string&>();
  if (s.size() > max_bytes) {
    return Fail(name, "is longer than " + std::to_string(max_bytes) + " bytes"), fallback;
  }
  return s;
}

const Json* Fields::Object(std::string_view name) {
  const Json* v = Find(name);
  if (v != nullptr && !v->is_object()) return Fail(name, "must be an object"), nullptr;
  return v;
}

const Json* Fields::Array(std::string_view name, size_t max_items) {
  const Json* v = Find(name);
  if (v == nullptr) return nullptr;
  if (!v->is_array()) return Fail(name, "must be an array"), nullptr;
  if (v->size() > max_items) {
    return Fail(name, "has more than " + std::to_string(max_items) + " entries"), nullptr;
  }
  return v;
}

size_t Fields::OneOf(std::string_view name, std::initializer_list<std::string_view> words) {
  const Json* v = Find(name);
  if (v == nullptr) return 0;
  std::string all;
  size_t i = 0;
  for (std::string_view w : words) {
    if (v->is_string() && v->get_ref<const std::string&>() == w) return i;
    all += (i++ == 0 ? "'" : ", '") + std::string(w) + "'";
  }
  Fail(name, "must be one of " + all);
  return 0;
}

}  // namespace holdfast
