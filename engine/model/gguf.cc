#include "engine/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "engine/backend/backend.h"
#include "engine/model/checked.h"

namespace holdfast {
namespace {

static_assert(std::endian::native == std::endian::little, "values are read as they lie");

// Bytes of a scalar; 0 for strings, arrays and unknown types.
uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    case GgufType::kString:
    case GgufType::kArray: return 0;
  }
  return 0;
}

std::string TypeName(GgufType type) {
  static constexpr std::string_view kNames[] = {"u8",  "i8",   "u16",    "i16",   "u32", "i32",
                                                "f32", "bool", "string", "array", "u64", "i64",
                                                "f64"};
  const auto i = static_cast<uint32_t>(type);
  return i < std::size(kNames) ? std::string(kNames[i]) : "type " + std::to_string(i);
}

template <typename T>
T Load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

Status Corrupt(std::string m) { return Status::Corrupt("gguf: " + std::move(m)); }

std::string KeyText(std::string_view key) { return "key " + GgufQuote(key); }

}  // namespace

std::string GgufTensorTypeName(uint32_t type) {
  static constexpr std::string_view kNames[] = {
      "F32",   "F16",    "Q4_0",   "Q4_1",    "Q4_2", "Q4_3", "Q5_0", "Q5_1",
      "Q8_0",  "Q8_1",   "Q2_K",   "Q3_K",    "Q4_K", "Q5_K", "Q6_K", "Q8_K",
      "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",    "I16",    "I32",    "I64",     "F64",  "IQ1_M", "BF16", "",
      "",      "",       "TQ1_0",  "TQ2_0",   "",     "",      "",     "MXFP4"};
  const bool named = type < std::size(kNames) && !kNames[type].empty();
  return named ? std::string(kNames[type]) : "type " + std::to_string(type);
}

std::string GgufQuote(std::string_view name) {
  constexpr size_t kShown = 80;
  std::string out = "'";
  for (char c : name.substr(0, kShown)) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[static_cast<uint8_t>(c) >> 4], kHex[c & 15]};
    }
  }
  return out + (name.size() > kShown ? "...'" : "'");
}

// Walks the file once. What a step reads was checked against `end_` by the step.
class GgufParser {
 public:
  explicit GgufParser(std::span<const std::byte> file) : file_(file) {
    end_ = std::min<uint64_t>(file.size(), GgufLimits::kHeaderBytes);
  }

  Result<Gguf> Run() {
    HOLDFAST_RETURN_IF_ERROR(ReadHead());
    for (uint64_t i = 0; i < key_count_; ++i) HOLDFAST_RETURN_IF_ERROR(ReadKey());
    HOLDFAST_RETURN_IF_ERROR(ReadAlignment());
    for (uint64_t i = 0; i < tensor_count_; ++i) HOLDFAST_RETURN_IF_ERROR(ReadTensorInfo());
    HOLDFAST_RETURN_IF_ERROR(PlaceTensors());
    return std::move(out_);
  }

 private:
  // The next `size` bytes, or kCorrupt that says of what.
  Status Take(uint64_t size, std::string_view what, std::span<const std::byte>* out) {
    if (size > end_ - at_) {
      const bool whole = end_ == file_.size();
      return Corrupt(std::string(what) + " of " + std::to_string(size) + " bytes at " +
                     std::to_string(at_) + " runs past the " +
                     (whole ? "file's end " : "header's limit ") + std::to_string(end_));
    }
    *out = file_.subspan(at_, size);
    at_ += size;
    return {};
  }

  template <typename T>
  Status Take(std::string_view what, T* out) {
    std::span<const std::byte> bytes;
    HOLDFAST_RETURN_IF_ERROR(Take(sizeof(T), what, &bytes));
    *out = Load<T>(bytes.data());
    return {};
  }

  Status TakeText(std::string_view what, uint64_t limit, std::string_view* out) {
    uint64_t size = 0;
    HOLDFAST_RETURN_IF_ERROR(Take(what, &size));
    if (size > limit) {
      return Corrupt(std::string(what) + " at " + std::to_string(at_) + " claims " +
                     std::to_string(size) + " bytes, the limit is " + std::to_string(limit));
    }
    std::span<const std::byte> bytes;
    HOLDFAST_RETURN_IF_ERROR(Take(size, what, &bytes));
    *out = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    return {};
  }

  Status ReadHead() {
    std::span<const std::byte> magic;
    HOLDFAST_RETURN_IF_ERROR(Take(4, "magic", &magic));
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) return Corrupt("this is not a GGUF file");
    uint32_t version = 0;
    HOLDFAST_RETURN_IF_ERROR(Take("version", &version));
    if (version != 2 && version != 3) {
      const bool swapped = version == 2u << 24 || version == 3u << 24;
      return Status::Invalid("gguf: " + (swapped ? std::string("big-endian files are")
                                                 : "version " + std::to_string(version) + " is") +
                             " not supported (versions 2 and 3, little endian, are)");
    }
    HOLDFAST_RETURN_IF_ERROR(Take("tensor count", &tensor_count_));
    HOLDFAST_RETURN_IF_ERROR(Take("key count", &key_count_));
    if (tensor_count_ > GgufLimits::kTensors || key_count_ > GgufLimits::kKeys) {
      return Corrupt("claims " + std::to_string(tensor_count_) + " tensors and " +
                     std::to_string(key_count_) + " keys, the limit of each is 65536");
    }
    return {};
  }

  Status ReadKey() {
    std::string_view key;
    HOLDFAST_RETURN_IF_ERROR(TakeText("key", GgufLimits::kNameBytes, &key));
    uint32_t type = 0;
    HOLDFAST_RETURN_IF_ERROR(Take("value type", &type));
    Gguf::Value value;
    value.type = static_cast<GgufType>(type);
    HOLDFAST_RETURN_IF_ERROR(value.type == GgufType::kArray ? ReadArray(key, &value)
                                                            : ReadScalar(key, &value));
    if (!out_.keys_.emplace(key, value).second) return Corrupt(KeyText(key) + " appears twice");
    return {};
  }

  Status ReadScalar(std::string_view key, Gguf::Value* value) {
    if (value->type == GgufType::kString) {
      std::string_view text;
      HOLDFAST_RETURN_IF_ERROR(TakeText(KeyText(key), GgufLimits::kStringBytes, &text));
      value->bytes = std::as_bytes(std::span(text));
      return {};
    }
    const uint64_t size = ScalarBytes(value->type);
    if (size == 0) return Corrupt(KeyText(key) + " has unknown value " + TypeName(value->type));
    HOLDFAST_RETURN_IF_ERROR(Take(size, "value", &value->bytes));
    if (value->type == GgufType::kBool && Load<uint8_t>(value->bytes.data()) > 1) {
      return Corrupt(KeyText(key) + " is a bool that is neither 0 nor 1");
    }
    return {};
  }

  Status ReadArray(std::string_view key, Gguf::Value* value) {
    uint32_t element = 0;
    HOLDFAST_RETURN_IF_ERROR(Take("element type", &element));
    HOLDFAST_RETURN_IF_ERROR(Take("array count", &value->count));
    value->element = static_cast<GgufType>(element);
    const uint64_t limit = value->element == GgufType::kString ? GgufLimits::kArrayStrings
                                                               : GgufLimits::kArrayElements;
    if (value->count > limit) {
      return Corrupt(KeyText(key) + " claims " + std::to_string(value->count) +
                     " elements, the limit is " + std::to_string(limit));
    }
    if (value->element == GgufType::kArray) {
      return Status::Invalid("gguf: " + KeyText(key) + ": arrays of arrays are not supported");
    }
    const uint64_t begin = at_;
    if (value->element == GgufType::kString) {
      std::string_view text;
      for (uint64_t i = 0; i < value->count; ++i) {
        HOLDFAST_RETURN_IF_ERROR(TakeText("array string", GgufLimits::kStringBytes, &text));
      }
      value->bytes = file_.subspan(begin, at_ - begin);
      return {};
    }
    const uint64_t size = ScalarBytes(value->element);
    if (size == 0) {
      return Corrupt(KeyText(key) + " has unknown element " + TypeName(value->element));
    }
    return Take(size * value->count, "array", &value->bytes);  // at most 8 * 2^24
  }

  Status ReadAlignment() {
    HOLDFAST_ASSIGN_OR_RETURN(alignment_, out_.CountOr("general.alignment", 32));
    if (alignment_ < 1 || alignment_ > GgufLimits::kAlignment || !std::has_single_bit(alignment_)) {
      return Corrupt("general.alignment " + std::to_string(alignment_) +
                     " is not a power of two up to 2^20");
    }
    return {};
  }

  Status ReadTensorInfo() {
    GgufTensor t;
    HOLDFAST_RETURN_IF_ERROR(TakeText("tensor name", GgufLimits::kNameBytes, &t.name));
    const std::string what = "tensor " + GgufQuote(t.name);
    HOLDFAST_RETURN_IF_ERROR(Take("dimension count", &t.dims));
    if (t.dims < 1 || t.dims > GgufLimits::kDims) {
      return Corrupt(what + " has " + std::to_string(t.dims) + " dimensions, not 1 to 4");
    }
    for (uint32_t i = 0; i < t.dims; ++i) {
      HOLDFAST_RETURN_IF_ERROR(Take("dimension", &t.dim[i]));
      if (t.dim[i] == 0) return Corrupt(what + " has a dimension of 0");
    }
    HOLDFAST_RETURN_IF_ERROR(Take("tensor type", &t.type));
    uint64_t offset = 0;
    HOLDFAST_RETURN_IF_ERROR(Take("tensor offset", &offset));
    if (offset % alignment_ != 0) {
      return Corrupt(what + ": offset " + std::to_string(offset) + " is no multiple of " +
                     std::to_string(alignment_));
    }
    if (!out_.by_name_.emplace(t.name, out_.tensors_.size()).second) {
      return Corrupt(what + " appears twice");
    }
    out_.tensors_.push_back(t);
    offsets_.push_back(offset);
    return {};
  }

  // Gives each tensor its bytes: inside the file, and no byte to two tensors.
  Status PlaceTensors() {
    const uint64_t begin = (at_ + alignment_ - 1) / alignment_ * alignment_;  // at_ <= 2^28
    const uint64_t room = file_.size() > begin ? file_.size() - begin : 0;
    for (size_t i = 0; i < offsets_.size(); ++i) {
      GgufTensor& t = out_.tensors_[i];
      const std::string what = "tensor " + GgufQuote(t.name);
      const BlockShape block = WeightBlock(static_cast<WeightType>(t.type));
      uint64_t bytes = 0;
      if (block.elements != 0) {
        if (t.dim[0] % block.elements != 0) {
          return Corrupt(what + ": rows of " + std::to_string(t.dim[0]) +
                         " are no whole blocks of " + GgufTensorTypeName(t.type));
        }
        const Checked size = Checked(t.dim[0] / block.elements) * block.bytes * t.dim[1] *
                             t.dim[2] * t.dim[3];
        if (!size.ok()) return Corrupt(what + ": its size overflows 64 bits");
        bytes = size.value();
      }
      if (!(Checked(offsets_[i]) + bytes).AtMost(room)) {
        return Corrupt(what + ": offset " + std::to_string(offsets_[i]) + " + " +
                       std::to_string(bytes) + " bytes lies beyond the data's end " +
                       std::to_string(room));
      }
      t.data = bytes == 0 ? std::span<const std::byte>()
                          : file_.subspan(begin + offsets_[i], bytes);
    }
    return CheckOverlap();
  }

  Status CheckOverlap() {
    std::vector<size_t> order(offsets_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return offsets_[a] < offsets_[b]; });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = out_.tensors_[order[i - 1]];
      if (offsets_[order[i - 1]] + before.data.size() > offsets_[order[i]]) {  // no overflow here
        return Corrupt("tensors " + GgufQuote(before.name) + " and " +
                       GgufQuote(out_.tensors_[order[i]].name) + " overlap");
      }
    }
    return {};
  }

  std::span<const std::byte> file_;
  uint64_t end_ = 0;  // of what may be header
  uint64_t at_ = 0;
  uint64_t tensor_count_ = 0, key_count_ = 0;
  uint64_t alignment_ = 32;
  std::vector<uint64_t> offsets_;  // as the file gives them, by tensor
  Gguf out_;
};

Result<Gguf> Gguf::Parse(std::span<const std::byte> file) { return GgufParser(file).Run(); }

Result<Gguf::Value> Gguf::Find(std::string_view key, GgufType type) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return Corrupt(KeyText(key) + " is missing");
  if (it->second.type != type) {
    return Corrupt(KeyText(key) + " is " + TypeName(it->second.type) + " where " + TypeName(type) +
                   " is expected");
  }
  return it->second;
}

Result<Gguf::Value> Gguf::FindArray(std::string_view key, GgufType element) const {
  HOLDFAST_ASSIGN_OR_RETURN(Value value, Find(key, GgufType::kArray));
  if (value.element != element) {
    return Corrupt(KeyText(key) + " is an array of " + TypeName(value.element) + " where " +
                   TypeName(element) + " is expected");
  }
  return value;
}

Result<std::string_view> Gguf::Text(std::string_view key) const {
  HOLDFAST_ASSIGN_OR_RETURN(const Value value, Find(key, GgufType::kString));
  return std::string_view(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
}

Result<std::string_view> Gguf::TextOr(std::string_view key, std::string_view otherwise) const {
  if (!Has(key)) return otherwise;
  return Text(key);
}

Result<uint64_t> Gguf::Count(std::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return Corrupt(KeyText(key) + " is missing");
  const std::byte* p = it->second.bytes.data();
  int64_t value = 0;
  switch (it->second.type) {
    case GgufType::kU8: return uint64_t{Load<uint8_t>(p)};
    case GgufType::kU16: return uint64_t{Load<uint16_t>(p)};
    case GgufType::kU32: return uint64_t{Load<uint32_t>(p)};
    case GgufType::kU64: return Load<uint64_t>(p);
    case GgufType::kI8: value = Load<int8_t>(p); break;
    case GgufType::kI16: value = Load<int16_t>(p); break;
    case GgufType::kI32: value = Load<int32_t>(p); break;
    case GgufType::kI64: value = Load<int64_t>(p); break;
    default:
      return Corrupt(KeyText(key) + " is " + TypeName(it->second.type) +
                     " where an integer is expected");
  }
  if (value < 0) return Corrupt(KeyText(key) + " is negative");
  return static_cast<uint64_t>(value);
}

Result<uint64_t> Gguf::CountOr(std::string_view key, uint64_t otherwise) const {
  if (!Has(key)) return otherwise;
  return Count(key);
}

Result<double> Gguf::Real(std::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return Corrupt(KeyText(key) + " is missing");
  double value = 0;
  if (it->second.type == GgufType::kF32) {
    value = Load<float>(it->second.bytes.data());
  } else if (it->second.type == GgufType::kF64) {
    value = Load<double>(it->second.bytes.data());
  } else {
    return Corrupt(KeyText(key) + " is " + TypeName(it->second.type) +
                   " where f32 is expected");
  }
  if (!std::isfinite(value)) return Corrupt(KeyText(key) + " is not finite");
  return value;
}

Result<double> Gguf::RealOr(std::string_view key, double otherwise) const {
  if (!Has(key)) return otherwise;
  return Real(key);
}

Result<bool> Gguf::FlagOr(std::string_view key, bool otherwise) const {
  if (!Has(key)) return otherwise;
  HOLDFAST_ASSIGN_OR_RETURN(const Value value, Find(key, GgufType::kBool));
  return Load<uint8_t>(value.bytes.data()) != 0;
}

Result<std::vector<std::string>> Gguf::Texts(std::string_view key) const {
  HOLDFAST_ASSIGN_OR_RETURN(const Value value, FindArray(key, GgufType::kString));
  std::vector<std::string> out;
  out.reserve(value.count);
  const std::byte* p = value.bytes.data();
  for (uint64_t i = 0; i < value.count; ++i) {  // the parser walked the same bytes
    const uint64_t size = Load<uint64_t>(p);
    out.emplace_back(reinterpret_cast<const char*>(p + 8), size);
    p += 8 + size;
  }
  return out;
}

Result<std::vector<int32_t>> Gguf::Int32s(std::string_view key) const {
  const auto it = keys_.find(key);
  const bool u32 = it != keys_.end() && it->second.element == GgufType::kU32;
  HOLDFAST_ASSIGN_OR_RETURN(const Value value,
                            FindArray(key, u32 ? GgufType::kU32 : GgufType::kI32));
  std::vector<int32_t> out(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    out[i] = Load<int32_t>(value.bytes.data() + 4 * i);
    if (u32 && out[i] < 0) return Corrupt(KeyText(key) + " holds a number beyond 2^31");
  }
  return out;
}

Result<std::vector<float>> Gguf::Floats(std::string_view key) const {
  HOLDFAST_ASSIGN_OR_RETURN(const Value value, FindArray(key, GgufType::kF32));
  std::vector<float> out(value.count);
  if (!out.empty()) std::memcpy(out.data(), value.bytes.data(), value.bytes.size());
  return out;
}

Result<std::vector<bool>> Gguf::Flags(std::string_view key) const {
  HOLDFAST_ASSIGN_OR_RETURN(const Value value, FindArray(key, GgufType::kBool));
  std::vector<bool> out;
  for (std::byte b : value.bytes) out.push_back(b != std::byte{0});
  return out;
}

const GgufTensor* Gguf::FindTensor(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace holdfast
