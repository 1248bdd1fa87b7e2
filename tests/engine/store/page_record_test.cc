#include "engine/store/page_record.h"

#include <doctest/doctest.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "tests/engine/base/format_example.h"

namespace holdfast {
namespace {

// The worked example of FORMAT.md.
struct Example {
  PageHeader header;
  LayerGroup shape{KvKind::kKv, 0, 1, 1, 1, 1, KvType::kF16, KvType::kF16, 0, 1};
  std::vector<std::byte> payload = std::vector<std::byte>(128);

  Example() {
    header.kind = PageKind::kTail;
    header.fp.bytes.fill(0x11);
    header.key.bytes.fill(0x22);
    header.parent.bytes.fill(0x33);
    header.tokens = {7, 8, 258};
    for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i);
  }
};

// A record as it lies on disk.
std::vector<std::byte> Encode(const PageHeader& header, const std::vector<LayerGroup>& shapes,
                              const std::vector<std::vector<std::byte>>& payloads) {
  const std::vector<std::span<const std::byte>> views(payloads.begin(), payloads.end());
  std::vector<std::byte> record(kRecordHeaderBytes);
  const Status s = EncodeRecordHeader(header, shapes, views, record);
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  for (const auto& p : payloads) {
    record.insert(record.end(), p.begin(), p.end());
    record.resize(AlignToRecord(record.size()));
  }
  return record;
}

std::vector<std::byte> EncodeExample(const Example& e) {
  return Encode(e.header, {e.shape}, {e.payload});
}

// A page of two groups, payloads of odd lengths, by `seed`.
std::vector<std::byte> RandomRecord(uint64_t seed) {
  std::mt19937_64 random(seed);
  PageHeader header;
  for (Digest* d : {&header.fp, &header.key, &header.parent}) {
    for (uint8_t& b : d->bytes) b = static_cast<uint8_t>(random());
  }
  for (int i = 0; i < kPageTokens; ++i) {
    header.tokens.push_back(static_cast<TokenId>(random() % 150000));
  }
  std::vector<std::vector<std::byte>> payloads(1 + random() % 3);
  for (auto& p : payloads) {
    p.resize(1 + random() % 9000);
    for (std::byte& b : p) b = static_cast<std::byte>(random());
  }
  return Encode(header, {}, payloads);
}

#if defined(__x86_64__)
// Whether the upper halves of all 16 vector registers are zero.
__attribute__((target("avx"), noinline)) bool UpperHalvesAreZero() {
  std::array<uint8_t, 16 * 32> all;
  uint8_t* at = all.data();
#define HOLDFAST_STORE(n) \
  asm volatile("vmovdqu %%ymm" #n ", (%0)" ::"r"(at + 32 * (n)) : "memory");
  HOLDFAST_STORE(0) HOLDFAST_STORE(1) HOLDFAST_STORE(2) HOLDFAST_STORE(3)
  HOLDFAST_STORE(4) HOLDFAST_STORE(5) HOLDFAST_STORE(6) HOLDFAST_STORE(7)
  HOLDFAST_STORE(8) HOLDFAST_STORE(9) HOLDFAST_STORE(10) HOLDFAST_STORE(11)
  HOLDFAST_STORE(12) HOLDFAST_STORE(13) HOLDFAST_STORE(14) HOLDFAST_STORE(15)
#undef HOLDFAST_STORE
  for (size_t i = 0; i < all.size(); ++i) {
    if (i % 32 >= 16 && all[i] != 0) return false;
  }
  return true;
}
#endif

// All decoders on the same bytes; ok only when the whole record is.
Status DecodeAll(std::span<const std::byte> bytes) {
  DecodeRecordHeader(bytes).status().IgnoreError();
  Result<DecodedRecord> record = DecodeRecord(bytes);
  if (!record.ok()) {
    const Code code = record.status().code();
    CHECK((code == Code::kCorrupt || code == Code::kInvalid));
    CHECK_FALSE(record.status().message().empty());
  }
  return record.status();
}

TEST_CASE("a record decodes to what was encoded") {
  const Example e;
  const std::vector<std::byte> bytes = EncodeExample(e);
  CHECK(bytes.size() == 8192);
  Result<DecodedRecord> record = DecodeRecord(bytes);
  REQUIRE_MESSAGE(record.ok(), record.status().ToString());
  CHECK(record->header.page.kind == PageKind::kTail);
  CHECK(record->header.page.fp == e.header.fp);
  CHECK(record->header.page.key == e.header.key);
  CHECK(record->header.page.parent == e.header.parent);
  CHECK(record->header.page.tokens == e.header.tokens);
  REQUIRE(record->header.groups.size() == 1);
  CHECK(record->header.groups[0] == RecordGroup{128, e.shape});
  CHECK(std::equal(record->payloads[0].begin(), record->payloads[0].end(), e.payload.begin()));
}

#if defined(__x86_64__)
TEST_CASE("hashing a record leaves no upper half of a vector register in use") {
  if (!__builtin_cpu_supports("avx")) return;
  std::vector<std::byte> record = RandomRecord(1);
  CHECK(UpperHalvesAreZero());
  const bool decoded = DecodeRecord(record).ok();
  CHECK(UpperHalvesAreZero());
  CHECK(decoded);
}
#endif

TEST_CASE("FORMAT.md's worked example is what the encoder writes") {
  const std::vector<std::byte> bytes = EncodeExample(Example());
  CHECK(testing::HexLines(std::span(bytes).first(kRecordHeaderBytes + 128)) ==
        testing::HexBlockOf(HOLDFAST_SOURCE_DIR "/engine/kv/FORMAT.md"));
}

TEST_CASE("what must not be encoded is refused") {
  const Example good;
  std::vector<std::byte> out(kRecordHeaderBytes);
  auto encode = [&](const Example& e) {
    const std::vector<std::span<const std::byte>> views = {e.payload};
    return EncodeRecordHeader(e.header, {&e.shape, 1}, views, out).code();
  };
  CHECK(encode(good) == Code::kOk);
  std::vector<Example> bad(7, good);
  bad[0].header.tokens.clear();
  bad[1].header.tokens.resize(kPageTokens + 1);
  bad[2].header.tokens[0] = -1;
  bad[3].header.kind = PageKind::kPage;  // and only three tokens
  bad[4].payload.pop_back();
  bad[5].shape.layout_id = 0;
  bad[6].shape.heads = 1 << 30;
  for (size_t i = 0; i < bad.size(); ++i) CHECK_MESSAGE(encode(bad[i]) == Code::kInvalid, i);
  const std::vector<std::span<const std::byte>> none, empty = {{}};
  CHECK(EncodeRecordHeader(good.header, {}, none, out).code() == Code::kInvalid);
  CHECK(EncodeRecordHeader(good.header, {}, empty, out).code() == Code::kInvalid);
  const std::vector<std::span<const std::byte>> many(kMaxRecordGroups + 1, good.payload);
  CHECK(EncodeRecordHeader(good.header, {}, many, out).code() == Code::kInvalid);
}

TEST_CASE("every bit of the header, and every byte of payload and padding, is guarded") {
  std::vector<std::byte> bytes = EncodeExample(Example());
  REQUIRE(DecodeAll(bytes).ok());
  for (size_t at = 0; at < kRecordHeaderBytes; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[at] ^= static_cast<std::byte>(1 << bit);
      if (DecodeAll(bytes).ok()) FAIL_CHECK("bit " << bit << " of byte " << at << " is free");
      bytes[at] ^= static_cast<std::byte>(1 << bit);
    }
  }
  for (size_t at = kRecordHeaderBytes; at < bytes.size(); ++at) {
    bytes[at] ^= std::byte{0x10};
    if (DecodeAll(bytes).ok()) FAIL_CHECK("byte " << at << " is free");
    bytes[at] ^= std::byte{0x10};
  }
  REQUIRE(DecodeAll(bytes).ok());
}

TEST_CASE("truncated and extended records are refused") {
  const std::vector<std::byte> bytes = RandomRecord(1);
  for (size_t edge = 0; edge <= bytes.size(); edge += kRecordAlign) {
    for (int delta = -1; delta <= 1; ++delta) {
      const size_t size = edge + static_cast<size_t>(delta);
      if (size == bytes.size()) continue;
      std::vector<std::byte> cut = bytes;
      if (size > bytes.size() + 1) continue;  // edge 0 - 1
      cut.resize(size);
      CHECK_FALSE(DecodeAll(cut).ok());
    }
  }
}

TEST_CASE("parts of two good records do not make a third") {
  const std::vector<std::byte> a = EncodeExample(Example());
  Example other;
  other.payload[5] = std::byte{99};
  const std::vector<std::byte> b = EncodeExample(other);
  std::vector<std::byte> mixed(a.begin(), a.begin() + kRecordHeaderBytes);
  mixed.insert(mixed.end(), b.begin() + kRecordHeaderBytes, b.end());
  CHECK_FALSE(DecodeAll(mixed).ok());
}

TEST_CASE("20,000 mutated records give typed errors") {
  std::mt19937_64 random(20261124);
  std::vector<std::vector<std::byte>> seeds;
  for (uint64_t i = 0; i < 16; ++i) seeds.push_back(RandomRecord(i));
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = seeds[random() % seeds.size()];
    const std::vector<std::byte>& other = seeds[random() % seeds.size()];
    switch (random() % 5) {
      case 0:  // a few bytes of the header
        for (uint64_t i = 0; i <= random() % 4; ++i) {
          bytes[random() % 512] = static_cast<std::byte>(random());
        }
        break;
      case 1: bytes.resize(random() % bytes.size()); break;
      case 2:  // a piece of another record
        std::memcpy(bytes.data() + random() % 4096, other.data() + random() % 4096, random() % 64);
        break;
      case 3: bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 << (random() % 8)); break;
      case 4: std::memset(bytes.data() + random() % 4096, 0, random() % 4096); break;
    }
    const bool changed =
        std::none_of(seeds.begin(), seeds.end(), [&](const auto& s) { return s == bytes; });
    if (DecodeAll(bytes).ok() == changed) FAIL_CHECK("round " << round);
  }
}

// Puts the right check over a changed header, as a hostile writer would.
void Resign(std::vector<std::byte>* record) {
  std::memset(record->data() + 144, 0, 8);
  const uint64_t check = XXH3_64bits(record->data(), kRecordHeaderBytes);
  std::memcpy(record->data() + 144, &check, sizeof(check));
}

TEST_CASE("20,000 records with hostile fields under a right check give typed errors") {
  std::mt19937_64 random(4711);
  // Fields, and numbers that tend to break decoders.
  const std::vector<size_t> fields = {8,   10,  11,  12,  14,  16,  20,  24,  28,
                                      152, 160, 192, 196, 200, 201, 204, 208, 212,
                                      216, 220, 224, 228, 232, 240, 244, 250, 4092};
  const std::vector<uint64_t> numbers = {0, 1, 2, 3, 31, 32, 33, 64, 65, 127, 128, 4095, 4096, 4097,
                                         65535, 65536, 1u << 28, (1u << 28) + 1, 0x7fffffff,
                                         0x80000000, 0xffffffff, 0x100000000, ~0ull, ~0ull - 4095};
  const std::vector<std::byte> described = EncodeExample(Example());
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = round % 2 == 0 ? described : RandomRecord(random() % 16);
    const std::vector<std::byte> before = bytes;
    for (uint64_t i = 0; i <= random() % 3; ++i) {
      const uint64_t number = numbers[random() % numbers.size()];
      const size_t at = fields[random() % fields.size()];
      std::memcpy(bytes.data() + at, &number, std::min<size_t>(1 << random() % 4, 4096 - at));
    }
    Resign(&bytes);
    // The tag covers all of the header, so nothing but the unchanged record may pass.
    if (DecodeAll(bytes).ok() != (bytes == before)) FAIL_CHECK("round " << round);
    Result<RecordHeader> header = DecodeRecordHeader(bytes);
    if (header.ok()) CHECK(header->record_bytes == RecordBytes(header->groups));
  }
}

}  // namespace
}  // namespace holdfast
