// SHA-256 (FIPS 180-4, by OpenSSL) as the one identity hash, and a builder that makes every input
// unambiguous: each field goes in with its length before it, so no two lists of fields collide by
// sliding bytes from one field into the next.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace holdfast {

// 256 bits; ordered and comparable as bytes. All zero means "none".
struct Digest {
  std::array<uint8_t, 32> bytes{};

  auto operator<=>(const Digest&) const = default;
  bool IsZero() const { return *this == Digest{}; }
  std::string Hex() const;
  // Reads 64 hexadecimal digits; false when `hex` is not that.
  static bool FromHex(std::string_view hex, Digest* out);
};

// For unordered containers: the digest's first 8 bytes are already uniform.
struct DigestHash {
  size_t operator()(const Digest& d) const {
    size_t h;
    std::memcpy(&h, d.bytes.data(), sizeof(h));
    return h;
  }
};

// SHA-256 of the bare bytes, no tag or length (for file checksums that others print too): in
// pieces, or at once.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(const Sha256Stream&) = delete;
  Sha256Stream& operator=(const Sha256Stream&) = delete;
  void Update(const void* data, size_t size);
  Digest Finish();

 private:
  evp_md_ctx_st* ctx_;
};
Digest Sha256(const void* data, size_t size);

// HMAC-SHA256 (RFC 2104) of bytes in pieces, under a key of any length.
class HmacSha256 {
 public:
  explicit HmacSha256(std::span<const std::byte> key);
  void Update(const void* data, size_t size) { inner_.Update(data, size); }
  Digest Finish();

 private:
  static constexpr size_t kBlock = 64;
  std::array<uint8_t, kBlock> key_{};
  Sha256Stream inner_;
};
// In a time that does not depend on where they differ: for tags and keys.
bool SameInConstantTime(const Digest& a, const Digest& b);

// Not thread-safe; one builder, one digest.
class Hasher {
 public:
  // `tag` separates domains ("page-key-1", "fp-1"); it is the first field.
  explicit Hasher(std::string_view tag);
  Hasher& Bytes(const void* data, size_t size);  // length as u64 little endian, then the bytes
  Hasher& Text(std::string_view s) { return Bytes(s.data(), s.size()); }
  Hasher& U64(uint64_t v);
  Hasher& Add(const Digest& d) { return Bytes(d.bytes.data(), d.bytes.size()); }
  template <typename T>
  Hasher& Values(std::span<const T> v) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Bytes(v.data(), v.size_bytes());
  }
  Digest Finish() { return stream_.Finish(); }

 private:
  Sha256Stream stream_;
};

}  // namespace holdfast
