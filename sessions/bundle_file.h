// The frame of a bundle: a session with all that belongs to it as one file (FORMAT.md has the
// tables). This layer knows sections, their lengths and checksums, and the HMAC over all of them;
// bundle_rows.h knows what is in them.
//
//   bundle = header, section 0 (kSession), section 1, ..., the last one (kEnd)
//
// The reader is safe on hostile bytes: every length is checked against what is left of the file
// before anything is allocated, and a section is checked before it is given out. Errors: kCorrupt
// (what and in which section), kInvalid for a version that this program does not know.
//
// One section stands in memory at a time. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/env.h"
#include "engine/base/hash.h"
#include "engine/base/status.h"

namespace holdfast {

enum class BundleSection : uint32_t {
  kSession = 1,
  kBasis = 2,
  kContext = 3,
  kNode = 4,
  kItem = 5,
  kBranch = 6,
  kTurn = 7,
  kSnapshot = 8,
  kEvent = 9,
  kPage = 10,
  kEnd = 11,
  kRecipe = 12,  // since version 2
};

inline constexpr uint16_t kBundleVersion = 2;  // written; 1 is read too
inline constexpr uint64_t kBundleHeaderBytes = 16;
inline constexpr uint64_t kBundleSectionBytes = 24;  // before each payload
inline constexpr uint64_t kBundleEndBytes = 48;      // payload of kEnd
inline constexpr uint64_t kMaxBundleSectionBytes = uint64_t{256} << 20;
inline constexpr size_t kMinBundleKeyBytes = 16, kMaxBundleKeyBytes = 1024;

// kInvalid unless `key` is empty (none) or of a length that is allowed.
Status CheckBundleKey(std::string_view key);

class BundleWriter {
 public:
  using Sink = std::function<Status(std::span<const std::byte>)>;
  using Parts = std::span<const std::span<const std::byte>>;

  // `key`: empty = the bundle is not signed.
  BundleWriter(Sink sink, std::string_view key);
  Status Begin();
  Status Add(BundleSection kind, Parts payload);
  Status End();
  uint64_t bytes() const { return bytes_; }

 private:
  Status Write(std::span<const std::byte> bytes);

  const Sink sink_;
  std::optional<HmacSha256> mac_;
  uint64_t sections_ = 0, bytes_ = 0;
};

class BundleReader {
 public:
  // Reads `file` (of `size` bytes) from its beginning; both are borrowed. `key`: empty = the
  // signature is not looked at.
  BundleReader(File* file, uint64_t size, std::string_view key);
  Status Begin();

  // The next section; false after kEnd, which is checked here and not given out.
  Result<bool> Next();
  BundleSection kind() const { return kind_; }
  std::span<const std::byte> payload() const { return payload_; }  // until the next call

  uint64_t at() const { return at_; }
  // "section 7", for messages.
  std::string Where() const { return "section " + std::to_string(sections_ - 1); }

  // After the end:
  bool is_signed() const { return signed_; }
  bool authentic() const { return authentic_; }  // signed under the key that was given

 private:
  Status ReadEnd(const std::optional<Digest>& mac);
  Status Bad(const std::string& what) const;
  Status Take(std::span<std::byte> out);

  File* const file_;
  const uint64_t size_;
  std::optional<HmacSha256> mac_;
  uint64_t at_ = 0, sections_ = 0;
  BundleSection kind_ = BundleSection::kEnd;
  std::vector<std::byte> payload_;
  bool ended_ = false, signed_ = false, authentic_ = false;
};

}  // namespace holdfast
