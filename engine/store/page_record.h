// The codec of page records: what one page looks like on disk. engine/kv/FORMAT.md has the table.
//
//   record = header (4096 bytes), then the payload of each layer group, each padded with zeros to
//   a multiple of 4096 bytes
//
// The header carries `check` (XXH3-64 over itself), so that its lengths can be used before the
// payload is read, and `tag` (XXH3-128 over header and payloads). Every byte of a record is
// guarded: by check and tag, or by having to be zero. The decoder is safe on hostile bytes: all
// lengths are checked before use, and nothing large is allocated by what the bytes say.
//
// Pure functions; thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/kv/layout.h"
#include "engine/kv/page_store.h"

namespace holdfast {

inline constexpr uint64_t kRecordAlign = 4096;
inline constexpr size_t kRecordHeaderBytes = 4096;
inline constexpr size_t kMaxRecordGroups = 64;
inline constexpr uint64_t kMaxGroupPayloadBytes = uint64_t{1} << 28;
inline constexpr uint16_t kRecordVersion = 1;

using RecordTag = std::array<uint8_t, 16>;  // XXH3-128, its canonical (big endian) bytes

// One layer group as the header describes it.
struct RecordGroup {
  uint64_t payload_bytes = 0;
  LayerGroup shape;  // layout_id 0: the writer did not know; the other fields are then zero
  bool operator==(const RecordGroup&) const = default;
};

struct RecordHeader {
  PageHeader page;
  std::vector<RecordGroup> groups;
  uint64_t record_bytes = 0;
  RecordTag tag{};
};

constexpr uint64_t AlignToRecord(uint64_t bytes) {
  return (bytes + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}

// Length of a whole record with these payloads.
uint64_t RecordBytes(std::span<const RecordGroup> groups);

// Writes the header of a record, tag and check too, into `out` (kRecordHeaderBytes of it).
// `shapes` is empty, or one for each payload. kInvalid: too many groups, a payload that is empty,
// too long or not as long as its shape says, a wrong number of tokens, a negative token.
Status EncodeRecordHeader(const PageHeader& page, std::span<const LayerGroup> shapes,
                          std::span<const std::span<const std::byte>> payloads,
                          std::span<std::byte> out);

// The tag in an encoded header.
RecordTag TagInHeader(std::span<const std::byte> header);

// Reads a header (`bytes`: at least kRecordHeaderBytes). kCorrupt when anything in it is not as it
// must be; a version that this program does not know is kInvalid.
Result<RecordHeader> DecodeRecordHeader(std::span<const std::byte> bytes);

// Whether `payloads` are those that the header was written for. `header_bytes`: the bytes that
// `header` was decoded from. kCorrupt when not.
Status VerifyRecordPayloads(const RecordHeader& header, std::span<const std::byte> header_bytes,
                            std::span<const std::span<const std::byte>> payloads);

// A whole record in memory, payloads as views into `bytes`. Verifies everything, padding too.
struct DecodedRecord {
  RecordHeader header;
  std::vector<std::span<const std::byte>> payloads;
};
Result<DecodedRecord> DecodeRecord(std::span<const std::byte> bytes);

// Whether all bytes are zero (padding).
bool IsZeros(std::span<const std::byte> bytes);

}  // namespace holdfast
