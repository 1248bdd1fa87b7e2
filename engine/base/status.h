// Status and Result<T>: how every operating error travels in Holdfast.
//
// Nine codes, each with one meaning for the caller; api/http_error.cc maps them to HTTP in one
// function. A message says what went wrong and where ("gguf: tensor 'blk.0.attn_q.weight': offset
// 812 + 4096 bytes lies beyond the file's end 4000"). Programmer errors are asserts, never Status.
//
// A build without NDEBUG aborts when a Status that holds an error is destroyed unexamined (after
// RocksDB's ASSERT_STATUS_CHECKED): an error that nobody looked at is a bug. Looking means ok(),
// code(), or moving it on; IgnoreError() says that looking is not needed.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace holdfast {

enum class Code : uint8_t {
  kOk = 0,
  kInvalid,      // the caller's input is wrong and stays wrong: HTTP 400
  kNotFound,     // the named thing does not exist for this caller: 404
  kConflict,     // the state forbids it now (busy head, locked data folder): 409
  kExhausted,    // a limit or quota is reached: 429, or 507 for storage
  kUnavailable,  // try again later: loading, shutting down: 503
  kCorrupt,      // bytes or numbers are not what they must be (bad file, value not finite): 500
  kIo,           // the operating system or a storage library failed: 500
  kCancelled,    // the caller went away or asked to stop: 499
};

std::string_view CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  ~Status() { CheckExamined(); }

  Status(const Status& other) : code_(other.code()), message_(other.message_) {}
  Status(Status&& other) noexcept : code_(other.code()), message_(std::move(other.message_)) {}
  Status& operator=(const Status& other) {
    CheckExamined();
    code_ = other.code();
    message_ = other.message_;
    return *this;
  }
  Status& operator=(Status&& other) noexcept {
    CheckExamined();
    code_ = other.code();
    message_ = std::move(other.message_);
    return *this;
  }

  static Status Invalid(std::string m) { return {Code::kInvalid, std::move(m)}; }
  static Status NotFound(std::string m) { return {Code::kNotFound, std::move(m)}; }
  static Status Conflict(std::string m) { return {Code::kConflict, std::move(m)}; }
  static Status Exhausted(std::string m) { return {Code::kExhausted, std::move(m)}; }
  static Status Unavailable(std::string m) { return {Code::kUnavailable, std::move(m)}; }
  static Status Corrupt(std::string m) { return {Code::kCorrupt, std::move(m)}; }
  static Status Io(std::string m) { return {Code::kIo, std::move(m)}; }
  static Status Cancelled(std::string m) { return {Code::kCancelled, std::move(m)}; }

  bool ok() const { return code() == Code::kOk; }
  Code code() const {
    MarkExamined();
    return code_;
  }
  const std::string& message() const {
    MarkExamined();
    return message_;
  }
  // "corrupt: gguf: ..." for logs.
  std::string ToString() const;
  void IgnoreError() const { MarkExamined(); }

 private:
#ifdef NDEBUG
  void MarkExamined() const {}
  void CheckExamined() const {}
#else
  void MarkExamined() const { examined_ = true; }
  void CheckExamined() {
    assert((code_ == Code::kOk || examined_) && "an error Status was dropped unexamined");
    examined_ = false;
  }
  mutable bool examined_ = false;
#endif
  Code code_ = Code::kOk;
  std::string message_;
};

// A value or the error that took its place. value() asserts ok().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) { assert(!status_.ok()); }  // NOLINT

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() & {
    assert(value_.has_value());
    return *value_;
  }
  const T& value() const& {
    assert(value_.has_value());
    return *value_;
  }
  T&& value() && {
    assert(value_.has_value());
    return std::move(*value_);
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace holdfast

// Returns the error of a Status expression to the caller.
#define HOLDFAST_RETURN_IF_ERROR(expr)                             \
  do {                                                             \
    ::holdfast::Status holdfast_status_ = (expr);                  \
    if (!holdfast_status_.ok()) return holdfast_status_;           \
  } while (false)

#define HOLDFAST_CONCAT_INNER(a, b) a##b
#define HOLDFAST_CONCAT(a, b) HOLDFAST_CONCAT_INNER(a, b)

// HOLDFAST_ASSIGN_OR_RETURN(auto x, F()): the value of a Result, or its error to the caller.
#define HOLDFAST_ASSIGN_OR_RETURN(lhs, expr) \
  HOLDFAST_ASSIGN_OR_RETURN_IMPL(HOLDFAST_CONCAT(holdfast_result_, __LINE__), lhs, expr)
#define HOLDFAST_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return tmp.status();                  \
  lhs = std::move(tmp).value()
