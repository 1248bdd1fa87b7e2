#include "sessions/bundle_file.h"

#include <array>
#include <cstring>

#include "engine/base/bytes.h"
#include "engine/store/checksum.h"

namespace holdfast {
namespace {

constexpr std::array<uint8_t, 8> kMagic = {'H', 'F', 'b', 'u', 'n', 'd', 0x1a, 0x0a};

// Over the first 16 bytes of the section's header and the payload; the seed is the section's
// number, so that sections that change places are noticed.
uint64_t CheckOf(std::span<const std::byte> header, BundleWriter::Parts payload,
                 uint64_t number) {
  std::vector<std::span<const std::byte>> parts = {header.first(16)};
  parts.insert(parts.end(), payload.begin(), payload.end());
  return Checksum64(parts, number);
}

}  // namespace

Status CheckBundleKey(std::string_view key) {
  if (key.empty() || (key.size() >= kMinBundleKeyBytes && key.size() <= kMaxBundleKeyBytes)) {
    return Status();
  }
  return Status::Invalid("bundle key: " + std::to_string(key.size()) + " bytes, not " +
                         std::to_string(kMinBundleKeyBytes) + " to " +
                         std::to_string(kMaxBundleKeyBytes));
}

BundleWriter::BundleWriter(Sink sink, std::string_view key) : sink_(std::move(sink)) {
  if (!key.empty()) mac_.emplace(std::as_bytes(std::span(key.data(), key.size())));
}

Status BundleWriter::Write(std::span<const std::byte> bytes) {
  if (mac_) mac_->Update(bytes.data(), bytes.size());
  bytes_ += bytes.size();
  return sink_(bytes);
}

Status BundleWriter::Begin() {
  std::array<std::byte, kBundleHeaderBytes> header{};
  std::memcpy(header.data(), kMagic.data(), kMagic.size());
  Put<uint16_t>(&header[8], kBundleVersion);
  return Write(header);
}

Status BundleWriter::Add(BundleSection kind, Parts payload) {
  uint64_t length = 0;
  for (const auto& p : payload) length += p.size();
  if (length > kMaxBundleSectionBytes) {
    return Status::Exhausted("bundle: a section of " + std::to_string(length) +
                             " bytes is more than the " + std::to_string(kMaxBundleSectionBytes) +
                             " that the format allows");
  }
  std::array<std::byte, kBundleSectionBytes> header{};
  Put<uint32_t>(&header[0], static_cast<uint32_t>(kind));
  Put<uint64_t>(&header[8], length);
  Put<uint64_t>(&header[16], CheckOf(header, payload, sections_));
  ++sections_;
  HOLDFAST_RETURN_IF_ERROR(Write(header));
  for (const auto& p : payload) HOLDFAST_RETURN_IF_ERROR(Write(p));
  return Status();
}

Status BundleWriter::End() {
  std::array<std::byte, kBundleEndBytes> end{};
  Put<uint64_t>(&end[0], sections_);
  if (mac_) {
    Put<uint8_t>(&end[8], 1);
    const Digest mac = mac_->Finish();
    mac_.reset();  // it ends before this section
    std::memcpy(&end[16], mac.bytes.data(), mac.bytes.size());
  }
  const std::span<const std::byte> payload(end);
  return Add(BundleSection::kEnd, {&payload, 1});
}

BundleReader::BundleReader(File* file, uint64_t size, std::string_view key)
    : file_(file), size_(size) {
  if (!key.empty()) mac_.emplace(std::as_bytes(std::span(key.data(), key.size())));
}

Status BundleReader::Bad(const std::string& what) const {
  return Status::Corrupt("bundle: section " + std::to_string(sections_) + ": " + what);
}

Status BundleReader::Take(std::span<std::byte> out) {
  if (out.size() > size_ - at_) {
    return Bad(std::to_string(out.size()) + " bytes wanted, the file has " +
               std::to_string(size_ - at_) + " left");
  }
  if (out.empty()) return Status();
  HOLDFAST_RETURN_IF_ERROR(file_->ReadAt(at_, {&out, 1}));
  at_ += out.size();
  return Status();
}

Status BundleReader::Begin() {
  std::array<std::byte, kBundleHeaderBytes> header;
  if (size_ < header.size()) return Status::Corrupt("bundle: shorter than a header");
  HOLDFAST_RETURN_IF_ERROR(Take(header));
  if (std::memcmp(header.data(), kMagic.data(), kMagic.size()) != 0) {
    return Status::Corrupt("bundle: not a bundle of Holdfast (magic)");
  }
  const uint16_t version = Get<uint16_t>(&header[8]);
  if (version < 1 || version > kBundleVersion) {
    return Status::Invalid("bundle: version " + std::to_string(version) + " is not known; this "
                           "program reads versions 1 to " + std::to_string(kBundleVersion));
  }
  if (Get<uint16_t>(&header[10]) != 0 || Get<uint32_t>(&header[12]) != 0) {
    return Status::Corrupt("bundle: reserved bytes of the header");
  }
  if (mac_) mac_->Update(header.data(), header.size());
  return Status();
}

Result<bool> BundleReader::Next() {
  if (ended_) return false;
  std::array<std::byte, kBundleSectionBytes> header;
  HOLDFAST_RETURN_IF_ERROR(Take(header));
  const uint32_t kind = Get<uint32_t>(&header[0]);
  if (kind < static_cast<uint32_t>(BundleSection::kSession) ||
      kind > static_cast<uint32_t>(BundleSection::kRecipe) || Get<uint32_t>(&header[4]) != 0) {
    return Bad("kind " + std::to_string(kind));
  }
  const uint64_t length = Get<uint64_t>(&header[8]);
  if (length > kMaxBundleSectionBytes || length > size_ - at_) {
    return Bad("a length of " + std::to_string(length) + " bytes, the file has " +
               std::to_string(size_ - at_) + " left");
  }
  kind_ = static_cast<BundleSection>(kind);
  payload_.resize(length);
  HOLDFAST_RETURN_IF_ERROR(Take(payload_));
  const std::span<const std::byte> payload(payload_);
  if (Get<uint64_t>(&header[16]) != CheckOf(header, {&payload, 1}, sections_)) {
    return Bad("checksum");
  }
  if (kind_ == BundleSection::kEnd) {
    std::optional<Digest> mac;
    if (mac_) mac = mac_->Finish();
    HOLDFAST_RETURN_IF_ERROR(ReadEnd(mac));
    return false;
  }
  if (mac_) {
    mac_->Update(header.data(), header.size());
    mac_->Update(payload_.data(), payload_.size());
  }
  ++sections_;
  return true;
}

Status BundleReader::ReadEnd(const std::optional<Digest>& mac) {
  if (payload_.size() != kBundleEndBytes) return Bad("an end of another length");
  if (Get<uint64_t>(&payload_[0]) != sections_) return Bad("sections are missing");
  const uint8_t flag = Get<uint8_t>(&payload_[8]);
  if (flag > 1) return Bad("signature flag");
  for (size_t i = 9; i < 16; ++i) {
    if (payload_[i] != std::byte{0}) return Bad("reserved bytes");
  }
  if (at_ != size_) return Bad("bytes after the end");
  Digest stored;
  std::memcpy(stored.bytes.data(), &payload_[16], stored.bytes.size());
  signed_ = flag == 1;
  if (!signed_ && !stored.IsZero()) return Bad("reserved bytes");
  authentic_ = signed_ && mac && SameInConstantTime(*mac, stored);
  ended_ = true;
  return Status();
}

}  // namespace holdfast
