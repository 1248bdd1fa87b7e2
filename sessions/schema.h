// The tables of sessions (DESIGN: schema from the start). Blobs are little endian: tokens u32,
// origins u8 (TokenOrigin), digests u64 (one per sampled token, in order), hashes 32 bytes.
#pragma once

#include <vector>

#include "engine/store/database.h"

namespace holdfast {

// The values are stored.
enum class NodeKind : uint8_t { kInput = 0, kOutput = 1 };
enum class NodeStatus : uint8_t { kCommitted = 0, kAborted = 1 };
enum class TurnStatus : uint8_t { kAdmitted = 0, kRunning = 1, kCommitted = 2, kAborted = 3 };

std::vector<Migration> SessionMigrations();
// What a gc has to know of segments; after their own.
std::vector<Migration> SegmentGcMigrations();

}  // namespace holdfast
