// Bundles in memory, as bytes and as sections, for tests that damage them.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/env.h"
#include "sessions/bundle.h"
#include "sessions/bundle_file.h"
#include "sessions/keeper.h"

namespace holdfast {

using Bytes = std::vector<std::byte>;

class BytesFile : public File {
 public:
  explicit BytesFile(const Bytes* bytes) : bytes_(bytes) {}
  Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) override {
    for (const auto& p : parts) {
      if (offset > bytes_->size() || p.size() > bytes_->size() - offset) {
        return Status::Corrupt("the file ends");
      }
      if (!p.empty()) std::memcpy(p.data(), bytes_->data() + offset, p.size());
      offset += p.size();
    }
    return Status();
  }
  Status WriteAt(uint64_t, std::span<const std::span<const std::byte>>) override {
    return Status::Io("read only");
  }
  Status Sync() override { return Status(); }
  Status PunchHole(uint64_t, uint64_t) override { return Status::Unavailable("read only"); }
  Result<uint64_t> Size() override { return bytes_->size(); }

 private:
  const Bytes* bytes_;
};

inline Result<Bytes> ExportBytes(Keeper& keeper, const std::string& tenant, const std::string& id,
                                 const ExportOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto plan, keeper.Export(tenant, id, options));
  Bytes bytes;
  HOLDFAST_RETURN_IF_ERROR(plan->WriteTo([&](std::span<const std::byte> piece) {
                                bytes.insert(bytes.end(), piece.begin(), piece.end());
                                return Status();
                              }).status());
  return bytes;
}

inline Result<ImportReport> ImportBytes(Keeper& keeper, const std::string& tenant,
                                        const Bytes& bytes, const ImportOptions& options) {
  BytesFile file(&bytes);
  return keeper.Import(tenant, &file, bytes.size(), options);
}

struct RawSection {
  BundleSection kind;
  Bytes payload;
};

// The sections of a sound bundle, without its end.
inline std::vector<RawSection> SectionsOf(const Bytes& bytes) {
  BytesFile file(&bytes);
  BundleReader in(&file, bytes.size(), "");
  std::vector<RawSection> sections;
  if (!in.Begin().ok()) return sections;
  while (true) {
    const Result<bool> more = in.Next();
    if (!more.ok() || !*more) return sections;
    sections.push_back({in.kind(), Bytes(in.payload().begin(), in.payload().end())});
  }
}

// As somebody writes it who knows the format: lengths and checksums are right.
inline Bytes Framed(const std::vector<RawSection>& sections, const std::string& key) {
  Bytes bytes;
  BundleWriter out(
      [&](std::span<const std::byte> piece) {
        bytes.insert(bytes.end(), piece.begin(), piece.end());
        return Status();
      },
      key);
  out.Begin().IgnoreError();
  for (const RawSection& s : sections) {
    const std::span<const std::byte> part(s.payload);
    out.Add(s.kind, {&part, 1}).IgnoreError();
  }
  out.End().IgnoreError();
  return bytes;
}

}  // namespace holdfast
