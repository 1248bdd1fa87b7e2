#include "engine/store/page_record.h"

// The same hashes in the best instructions of this CPU, not in those that every x86 has.
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <cassert>
#include <cstring>
#include <memory>
#include <string>

#include "engine/base/bytes.h"

namespace holdfast {
namespace {

constexpr std::array<uint8_t, 8> kMagic = {'H', 'F', 'p', 'a', 'g', 'e', 0x1a, 0x0a};
constexpr uint8_t kCodecRaw = 0;

// Offsets in the header; FORMAT.md has the same table.
enum Offset : size_t {
  kAtMagic = 0,
  kAtVersion = 8,
  kAtKind = 10,
  kAtCodec = 11,
  kAtPageTokens = 12,
  kAtGroupCount = 14,
  kAtTokenCount = 16,
  kAtHeaderBytes = 20,
  kAtRecordBytes = 24,
  kAtFp = 32,
  kAtKey = 64,
  kAtParent = 96,
  kAtTag = 128,
  kAtCheck = 144,
  kAtReserved = 152,
  kAtGroups = 192,
};
constexpr size_t kGroupBytes = 48;

static_assert(kAtGroups + kMaxRecordGroups * kGroupBytes + kPageTokens * sizeof(TokenId) <=
              kRecordHeaderBytes);

void PutDigest(std::byte* at, const Digest& d) { std::memcpy(at, d.bytes.data(), 32); }

Digest TakeDigest(const std::byte* at) {
  Digest d;
  std::memcpy(d.bytes.data(), at, 32);
  return d;
}

Status Bad(const std::string& what) { return Status::Corrupt("page record: " + what); }

bool TokenCountFits(PageKind kind, uint64_t count) {
  if (kind == PageKind::kPage) return count == kPageTokens;
  return count >= 1 && count <= kPageTokens;
}

void PutGroup(std::byte* at, const RecordGroup& g) {
  Put<uint64_t>(at, g.payload_bytes);
  Put<uint8_t>(at + 8, static_cast<uint8_t>(g.shape.kind));
  Put<uint8_t>(at + 9, static_cast<uint8_t>(g.shape.k_type));
  Put<uint8_t>(at + 10, static_cast<uint8_t>(g.shape.v_type));
  Put<int32_t>(at + 12, g.shape.layout_id);
  Put<int32_t>(at + 16, g.shape.first_layer);
  Put<int32_t>(at + 20, g.shape.layers);
  Put<int32_t>(at + 24, g.shape.heads);
  Put<int32_t>(at + 28, g.shape.k_dim);
  Put<int32_t>(at + 32, g.shape.v_dim);
  Put<int32_t>(at + 36, g.shape.window);
}

// PayloadBytes() of a shape from hostile numbers: no product can overflow within these bounds.
bool ShapeFits(const LayerGroup& s, uint64_t payload_bytes) {
  constexpr int kMaxCount = 1 << 16;
  for (int n : {s.layers, s.heads, s.k_dim, s.v_dim}) {
    if (n < 0 || n > kMaxCount) return false;
  }
  if (s.k_type == KvType::kI8 && s.k_dim % 4 != 0) return false;
  if (s.first_layer < 0 || s.first_layer > kMaxCount || s.window < 0) return false;
  // Every product stays below 2^64: a head has at most 2^24 bytes, 2^16 heads and layers follow.
  return uint64_t{s.HeadBytes()} * static_cast<uint64_t>(s.heads) *
             static_cast<uint64_t>(s.layers) ==
         payload_bytes;
}

Status TakeGroup(const std::byte* at, RecordGroup* g) {
  g->payload_bytes = Get<uint64_t>(at);
  if (g->payload_bytes == 0 || g->payload_bytes > kMaxGroupPayloadBytes) {
    return Bad("a payload of " + std::to_string(g->payload_bytes) + " bytes");
  }
  if (Get<uint8_t>(at + 11) != 0 || Get<uint64_t>(at + 40) != 0) return Bad("reserved bytes");
  g->shape.layout_id = Get<int32_t>(at + 12);
  if (g->shape.layout_id == 0) {
    if (!IsZeros({at + 8, kGroupBytes - 8})) return Bad("an undescribed group with a description");
    g->shape = LayerGroup{KvKind::kKv, 0, 0, 0, 0, 0, KvType::kF32, KvType::kF32, 0, 0};
    return Status();
  }
  const uint8_t kind = Get<uint8_t>(at + 8), k = Get<uint8_t>(at + 9), v = Get<uint8_t>(at + 10);
  if (kind > static_cast<uint8_t>(KvKind::kState)) return Bad("layer group kind");
  if (k > static_cast<uint8_t>(KvType::kI8) || v > static_cast<uint8_t>(KvType::kF16)) {
    return Bad("KV type");
  }
  g->shape.kind = static_cast<KvKind>(kind);
  g->shape.k_type = static_cast<KvType>(k);
  g->shape.v_type = static_cast<KvType>(v);
  g->shape.first_layer = Get<int32_t>(at + 16);
  g->shape.layers = Get<int32_t>(at + 20);
  g->shape.heads = Get<int32_t>(at + 24);
  g->shape.k_dim = Get<int32_t>(at + 28);
  g->shape.v_dim = Get<int32_t>(at + 32);
  g->shape.window = Get<int32_t>(at + 36);
  if (!ShapeFits(g->shape, g->payload_bytes)) return Bad("a shape that does not fit its payload");
  return Status();
}

// To be called after hashing, which may leave the upper halves of vector registers in use. While
// they are, some processors take hundreds of cycles for each step between SSE and VEX instructions
// (Intel's Optimization Reference Manual, "Mixing AVX code with SSE code"), on this thread and on
// those that it starts.
void ClearUpperHalves() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx")) asm volatile("vzeroupper");
#endif
}

uint64_t CheckOf(std::span<const std::byte> header) {
  std::array<std::byte, kRecordHeaderBytes> copy;
  std::memcpy(copy.data(), header.data(), copy.size());
  std::memset(copy.data() + kAtCheck, 0, 8);
  const uint64_t check = XXH3_64bits(copy.data(), copy.size());
  ClearUpperHalves();
  return check;
}

RecordTag TagOf(std::span<const std::byte> header,
                std::span<const std::span<const std::byte>> payloads) {
  std::array<std::byte, kRecordHeaderBytes> copy;
  std::memcpy(copy.data(), header.data(), copy.size());
  std::memset(copy.data() + kAtTag, 0, kAtReserved - kAtTag);  // tag and check
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  assert(state != nullptr && "out of memory");
  XXH3_128bits_reset(state.get());
  XXH3_128bits_update(state.get(), copy.data(), copy.size());
  for (const auto& p : payloads) XXH3_128bits_update(state.get(), p.data(), p.size());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state.get()));
  ClearUpperHalves();
  RecordTag tag;
  std::memcpy(tag.data(), canonical.digest, tag.size());
  return tag;
}

Status CheckEncodable(const PageHeader& page, std::span<const LayerGroup> shapes,
                      std::span<const std::span<const std::byte>> payloads) {
  auto invalid = [](const std::string& what) { return Status::Invalid("page record: " + what); };
  if (payloads.empty() || payloads.size() > kMaxRecordGroups) return invalid("number of groups");
  if (!shapes.empty() && shapes.size() != payloads.size()) return invalid("number of shapes");
  if (page.kind > PageKind::kSegment) return invalid("kind");
  if (!TokenCountFits(page.kind, page.tokens.size())) return invalid("number of tokens");
  for (TokenId t : page.tokens) {
    if (t < 0) return invalid("a negative token");
  }
  for (size_t g = 0; g < payloads.size(); ++g) {
    const uint64_t bytes = payloads[g].size();
    if (bytes == 0 || bytes > kMaxGroupPayloadBytes) return invalid("payload length");
    if (!shapes.empty() && (shapes[g].layout_id <= 0 || !ShapeFits(shapes[g], bytes))) {
      return invalid("a payload that is not as long as its layer group says");
    }
  }
  return Status();
}

Result<std::vector<RecordGroup>> TakeGroups(const std::byte* header, size_t count) {
  std::vector<RecordGroup> groups(count);
  for (size_t g = 0; g < count; ++g) {
    HOLDFAST_RETURN_IF_ERROR(TakeGroup(header + kAtGroups + g * kGroupBytes, &groups[g]));
  }
  return groups;
}

}  // namespace

uint64_t RecordBytes(std::span<const RecordGroup> groups) {
  uint64_t bytes = kRecordHeaderBytes;
  for (const RecordGroup& g : groups) bytes += AlignToRecord(g.payload_bytes);
  return bytes;
}

bool IsZeros(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

Status EncodeRecordHeader(const PageHeader& page, std::span<const LayerGroup> shapes,
                          std::span<const std::span<const std::byte>> payloads,
                          std::span<std::byte> out) {
  assert(out.size() >= kRecordHeaderBytes);
  HOLDFAST_RETURN_IF_ERROR(CheckEncodable(page, shapes, payloads));
  std::byte* h = out.data();
  std::memset(h, 0, kRecordHeaderBytes);
  std::memcpy(h + kAtMagic, kMagic.data(), kMagic.size());
  Put<uint16_t>(h + kAtVersion, kRecordVersion);
  Put<uint8_t>(h + kAtKind, static_cast<uint8_t>(page.kind));
  Put<uint8_t>(h + kAtCodec, kCodecRaw);
  Put<uint16_t>(h + kAtPageTokens, kPageTokens);
  Put<uint16_t>(h + kAtGroupCount, static_cast<uint16_t>(payloads.size()));
  Put<uint32_t>(h + kAtTokenCount, static_cast<uint32_t>(page.tokens.size()));
  Put<uint32_t>(h + kAtHeaderBytes, kRecordHeaderBytes);
  PutDigest(h + kAtFp, page.fp);
  PutDigest(h + kAtKey, page.key);
  PutDigest(h + kAtParent, page.parent);
  uint64_t record_bytes = kRecordHeaderBytes;
  std::byte* at = h + kAtGroups;
  for (size_t g = 0; g < payloads.size(); ++g, at += kGroupBytes) {
    record_bytes += AlignToRecord(payloads[g].size());
    if (shapes.empty()) {
      Put<uint64_t>(at, payloads[g].size());
    } else {
      PutGroup(at, {payloads[g].size(), shapes[g]});
    }
  }
  Put<uint64_t>(h + kAtRecordBytes, record_bytes);
  for (size_t i = 0; i < page.tokens.size(); ++i) Put<int32_t>(at + i * 4, page.tokens[i]);
  const RecordTag tag = TagOf({h, kRecordHeaderBytes}, payloads);
  std::memcpy(h + kAtTag, tag.data(), tag.size());
  Put<uint64_t>(h + kAtCheck, CheckOf({h, kRecordHeaderBytes}));
  return Status();
}

RecordTag TagInHeader(std::span<const std::byte> header) {
  RecordTag tag;
  std::memcpy(tag.data(), header.data() + kAtTag, tag.size());
  return tag;
}

Result<RecordHeader> DecodeRecordHeader(std::span<const std::byte> bytes) {
  if (bytes.size() < kRecordHeaderBytes) return Bad("shorter than a header");
  const std::byte* h = bytes.data();
  if (std::memcmp(h + kAtMagic, kMagic.data(), kMagic.size()) != 0) return Bad("magic");
  if (Get<uint64_t>(h + kAtCheck) != CheckOf(bytes)) return Bad("header checksum");
  const uint16_t version = Get<uint16_t>(h + kAtVersion);
  if (version != kRecordVersion) {
    return Status::Invalid("page record: version " + std::to_string(version) + " is not known");
  }
  // From here on only a writer with the right checksum can be wrong, or hostile.
  RecordHeader header;
  const uint8_t kind = Get<uint8_t>(h + kAtKind);
  if (kind > static_cast<uint8_t>(PageKind::kSegment)) return Bad("kind");
  header.page.kind = static_cast<PageKind>(kind);
  if (Get<uint8_t>(h + kAtCodec) != kCodecRaw) return Bad("codec");
  if (Get<uint16_t>(h + kAtPageTokens) != kPageTokens) return Bad("page size");
  if (Get<uint32_t>(h + kAtHeaderBytes) != kRecordHeaderBytes) return Bad("header length");
  if (!IsZeros({h + kAtReserved, kAtGroups - kAtReserved})) return Bad("reserved bytes");
  const size_t groups = Get<uint16_t>(h + kAtGroupCount);
  if (groups == 0 || groups > kMaxRecordGroups) return Bad("number of groups");
  const uint32_t tokens = Get<uint32_t>(h + kAtTokenCount);
  if (!TokenCountFits(header.page.kind, tokens)) return Bad("number of tokens");
  HOLDFAST_ASSIGN_OR_RETURN(header.groups, TakeGroups(h, groups));
  header.record_bytes = Get<uint64_t>(h + kAtRecordBytes);
  if (header.record_bytes != RecordBytes(header.groups)) return Bad("record length");
  const size_t at_tokens = kAtGroups + groups * kGroupBytes, end = at_tokens + tokens * 4;
  for (size_t at = at_tokens; at < end; at += 4) {
    header.page.tokens.push_back(Get<int32_t>(h + at));
    if (header.page.tokens.back() < 0) return Bad("a negative token");
  }
  if (!IsZeros({h + end, kRecordHeaderBytes - end})) return Bad("bytes after the tokens");
  header.page.fp = TakeDigest(h + kAtFp);
  header.page.key = TakeDigest(h + kAtKey);
  header.page.parent = TakeDigest(h + kAtParent);
  header.tag = TagInHeader(bytes);
  return header;
}

Status VerifyRecordPayloads(const RecordHeader& header, std::span<const std::byte> header_bytes,
                            std::span<const std::span<const std::byte>> payloads) {
  if (payloads.size() != header.groups.size()) return Bad("number of payloads");
  for (size_t g = 0; g < payloads.size(); ++g) {
    if (payloads[g].size() != header.groups[g].payload_bytes) return Bad("payload length");
  }
  return TagOf(header_bytes, payloads) == header.tag ? Status() : Bad("checksum");
}

Result<DecodedRecord> DecodeRecord(std::span<const std::byte> bytes) {
  DecodedRecord record;
  HOLDFAST_ASSIGN_OR_RETURN(record.header, DecodeRecordHeader(bytes));
  if (record.header.record_bytes != bytes.size()) return Bad("not as long as it says");
  uint64_t at = kRecordHeaderBytes;
  for (const RecordGroup& g : record.header.groups) {
    const uint64_t padded = AlignToRecord(g.payload_bytes);
    record.payloads.push_back(bytes.subspan(at, g.payload_bytes));
    if (!IsZeros(bytes.subspan(at + g.payload_bytes, padded - g.payload_bytes))) {
      return Bad("padding");
    }
    at += padded;
  }
  HOLDFAST_RETURN_IF_ERROR(VerifyRecordPayloads(record.header, bytes, record.payloads));
  return record;
}

}  // namespace holdfast
