// Reads GGUF, versions 2 and 3, little endian: metadata and a directory of tensors over bytes that
// somebody else holds (a mapped file). The bytes are hostile until shown otherwise: every length,
// count, offset, alignment and product is checked, in overflow-checked u64, before anything is
// allocated or read by it, and nothing that is allocated is larger than the file's own header.
//
//   "GGUF" u32 version | u64 tensors | u64 keys | keys | tensor infos | padding | tensor data
//   key = string, u32 type, value; string = u64 length, bytes; array = u32 type, u64 count, values
//   tensor info = string, u32 dims, u64 dim[dims] (innermost first), u32 type, u64 offset in data
//
// Errors: kCorrupt for bytes that are no such file, kInvalid for a well-formed file that needs what
// is not built (a version, big endian, nested arrays). Messages say what and where.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

// The numbers of GGUF's value types.
enum class GgufType : uint32_t {
  kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8,
  kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12,
};

// Limits on what a file may claim; beyond them it is kCorrupt.
struct GgufLimits {
  static constexpr uint64_t kStringBytes = 16u << 20;
  static constexpr uint64_t kArrayElements = 1u << 24;
  static constexpr uint64_t kArrayStrings = 1u << 22;  // each becomes an object: a tighter limit
  static constexpr uint64_t kKeys = 65536;
  static constexpr uint64_t kTensors = 65536;
  static constexpr uint64_t kNameBytes = 1024;  // of a key or a tensor
  static constexpr uint64_t kHeaderBytes = 256u << 20;
  static constexpr uint64_t kAlignment = 1u << 20;
  static constexpr uint32_t kDims = 4;
};

// One entry of the directory. `name` and `data` look into the file's bytes.
struct GgufTensor {
  std::string_view name;
  uint32_t dims = 0;
  std::array<uint64_t, GgufLimits::kDims> dim = {1, 1, 1, 1};  // innermost (row length) first, >= 1
  uint32_t type = 0;                // GGUF's number; WeightType where known() says so
  bool known() const { return !data.empty(); }
  std::span<const std::byte> data;  // whole, inside the file; empty for types of unknown size
};

// Immutable and copyable; valid while the bytes that it was parsed from are. Any thread.
class Gguf {
 public:
  static Result<Gguf> Parse(std::span<const std::byte> file);

  // Values by key. kCorrupt, naming the key, when it is missing or of another type; *Or gives the
  // default when it is missing (only then).
  bool Has(std::string_view key) const { return keys_.contains(key); }
  Result<std::string_view> Text(std::string_view key) const;
  Result<std::string_view> TextOr(std::string_view key, std::string_view otherwise) const;
  Result<uint64_t> Count(std::string_view key) const;  // any integer type, not negative
  Result<uint64_t> CountOr(std::string_view key, uint64_t otherwise) const;
  Result<double> Real(std::string_view key) const;  // F32 or F64, finite
  Result<double> RealOr(std::string_view key, double otherwise) const;
  Result<bool> FlagOr(std::string_view key, bool otherwise) const;
  Result<std::vector<std::string>> Texts(std::string_view key) const;
  Result<std::vector<int32_t>> Int32s(std::string_view key) const;  // I32 or U32 below 2^31
  Result<std::vector<float>> Floats(std::string_view key) const;
  Result<std::vector<bool>> Flags(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(std::string_view name) const;  // null when there is none

 private:
  struct Value {
    GgufType type = GgufType::kU8;
    GgufType element = GgufType::kU8;   // of an array
    uint64_t count = 0;                 // of an array
    std::span<const std::byte> bytes;   // the value's, without an array's or string's head
  };
  friend class GgufParser;
  Result<Value> Find(std::string_view key, GgufType type) const;
  Result<Value> FindArray(std::string_view key, GgufType element) const;

  std::unordered_map<std::string_view, Value> keys_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

// "Q4_0" for GGUF's tensor type number 2, ..., "type 77" for one that we have not heard of.
std::string GgufTensorTypeName(uint32_t type);
// A name from a file, in quotes, fit for a message: cut at 80 bytes, odd bytes as \xNN.
std::string GgufQuote(std::string_view name);

}  // namespace holdfast
