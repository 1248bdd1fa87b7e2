// Small carriers between C++ values and ffi.h. Private to engine/text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/text/ffi.h"
#include "engine/text/text.h"

namespace holdfast {

template <typename T, void (*kFree)(T*)>
struct HandleDeleter {
  void operator()(T* handle) const { kFree(handle); }
};
template <typename T, void (*kFree)(T*)>
using Handle = std::unique_ptr<T, HandleDeleter<T, kFree>>;

using TokenizerHandle = Handle<HfTokenizer, hf_tokenizer_free>;
using TemplateHandle = Handle<HfTemplate, hf_template_free>;
using FactoryHandle = Handle<HfFactory, hf_factory_free>;
using ConstraintHandle = Handle<HfConstraint, hf_constraint_free>;

// Bytes that the crate allocated.
class ForeignBytes {
 public:
  ForeignBytes() = default;
  ~ForeignBytes() { hf_bytes_free(bytes_); }
  ForeignBytes(const ForeignBytes&) = delete;
  ForeignBytes& operator=(const ForeignBytes&) = delete;

  HfBytes* out() { return &bytes_; }
  std::string text() const {
    return {reinterpret_cast<const char*>(bytes_.ptr), bytes_.len};
  }
  template <typename T>
  std::vector<T> values() const {
    std::vector<T> v(bytes_.len / sizeof(T));
    if (!v.empty()) std::memcpy(v.data(), bytes_.ptr, v.size() * sizeof(T));
    return v;
  }

 private:
  HfBytes bytes_{nullptr, 0, 0};
};

inline HfSlice AsSlice(std::string_view s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

inline std::vector<HfSlice> AsSlices(const std::vector<std::string>& texts) {
  std::vector<HfSlice> slices;
  slices.reserve(texts.size());
  for (const std::string& text : texts) slices.push_back(AsSlice(text));
  return slices;
}

inline Status AsStatus(int32_t code, const ForeignBytes& err) {
  return code == 0 ? Status() : Status(static_cast<Code>(code), err.text());
}

struct Tokenizer::Impl {
  std::vector<std::string> texts;  // by id: what TokenText returns
  std::vector<TokenType> types;    // by id, after the peer's corrections
  std::vector<std::pair<std::string_view, TokenId>> by_text;  // views of texts, ascending
  std::vector<TokenId> ends;
  TokenId bos = kNoToken, eos = kNoToken;
  bool add_bos = false;
  Digest digest;
  TokenizerHandle handle;
};

}  // namespace holdfast
