#include "engine/base/hash.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <bit>
#include <cstdlib>

namespace holdfast {

static_assert(std::endian::native == std::endian::little, "formats and keys are little endian");

std::string Digest::Hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string s;
  s.reserve(64);
  for (uint8_t b : bytes) {
    s.push_back(kDigits[b >> 4]);
    s.push_back(kDigits[b & 15]);
  }
  return s;
}

bool Digest::FromHex(std::string_view hex, Digest* out) {
  if (hex.size() != 64) return false;
  auto nibble = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (size_t i = 0; i < 32; ++i) {
    const int hi = nibble(hex[2 * i]), lo = nibble(hex[2 * i + 1]);
    if (hi < 0 || lo < 0) return false;
    out->bytes[i] = static_cast<uint8_t>(hi * 16 + lo);
  }
  return true;
}

Sha256Stream::Sha256Stream() : ctx_(EVP_MD_CTX_new()) {
  // Only memory exhaustion can fail here, and then nothing sensible is left to do.
  if (ctx_ == nullptr || EVP_DigestInit_ex(ctx_, EVP_sha256(), nullptr) != 1) std::abort();
}

Sha256Stream::~Sha256Stream() { EVP_MD_CTX_free(ctx_); }

void Sha256Stream::Update(const void* data, size_t size) { EVP_DigestUpdate(ctx_, data, size); }

Digest Sha256Stream::Finish() {
  Digest d;
  EVP_DigestFinal_ex(ctx_, d.bytes.data(), nullptr);
  return d;
}

HmacSha256::HmacSha256(std::span<const std::byte> key) {
  if (key.size() > kBlock) {
    const Digest d = Sha256(key.data(), key.size());
    std::memcpy(key_.data(), d.bytes.data(), d.bytes.size());
  } else if (!key.empty()) {
    std::memcpy(key_.data(), key.data(), key.size());
  }
  std::array<uint8_t, kBlock> pad = key_;
  for (uint8_t& b : pad) b ^= 0x36;
  inner_.Update(pad.data(), pad.size());
}

Digest HmacSha256::Finish() {
  const Digest inner = inner_.Finish();
  Sha256Stream outer;
  std::array<uint8_t, kBlock> pad = key_;
  for (uint8_t& b : pad) b ^= 0x5c;
  outer.Update(pad.data(), pad.size());
  outer.Update(inner.bytes.data(), inner.bytes.size());
  return outer.Finish();
}

bool SameInConstantTime(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

Hasher::Hasher(std::string_view tag) { Text(tag); }

Hasher& Hasher::U64(uint64_t v) {
  stream_.Update(&v, sizeof(v));
  return *this;
}

Hasher& Hasher::Bytes(const void* data, size_t size) {
  U64(size);
  stream_.Update(data, size);
  return *this;
}

Digest Sha256(const void* data, size_t size) {
  Digest d;
  EVP_Digest(data, size, d.bytes.data(), nullptr, EVP_sha256(), nullptr);
  return d;
}

}  // namespace holdfast
