#include "engine/store/page_files.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdio>
#include <cstdlib>

#include "engine/store/page_record.h"

namespace holdfast {

namespace {

constexpr char kPrefix[] = "pages-", kSuffix[] = ".hf";

std::string NameOf(uint32_t number) {
  char name[32];
  std::snprintf(name, sizeof(name), "%s%06u%s", kPrefix, number, kSuffix);
  return name;
}

// The number in a page file's name; 0 when it is not one.
uint32_t NumberIn(const std::string& name) {
  const size_t prefix = sizeof(kPrefix) - 1;
  if (name.compare(0, prefix, kPrefix) != 0) return 0;
  const unsigned long number = std::strtoul(name.c_str() + prefix, nullptr, 10);
  if (number == 0 || number > 0xfffffffful) return 0;
  return NameOf(static_cast<uint32_t>(number)) == name ? static_cast<uint32_t>(number) : 0;
}

// The file's bytes from `at` to `end`: as a hole, or else what of them is not zero is written over.
Status MakeZeros(File& file, uint64_t at, uint64_t end) {
  if (file.PunchHole(at, end - at).ok()) return Status();
  static constexpr std::array<std::byte, 16 * kRecordAlign> kZeros{};
  std::array<std::byte, kZeros.size()> bytes;
  HOLDFAST_ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  for (end = std::min(end, size); at < end; at += bytes.size()) {
    const size_t count = std::min<uint64_t>(bytes.size(), end - at);
    const std::span<std::byte> some = std::span(bytes).first(count);
    HOLDFAST_RETURN_IF_ERROR(file.ReadAt(at, {&some, 1}));
    if (IsZeros(some)) continue;
    const std::span<const std::byte> zeros = std::span(kZeros).first(count);
    HOLDFAST_RETURN_IF_ERROR(file.WriteAt(at, {&zeros, 1}));
  }
  return Status();
}

}  // namespace

std::string PageFiles::PathOf(uint32_t file) const { return options_.path + "/" + NameOf(file); }

Result<std::unique_ptr<PageFiles>> PageFiles::Open(Options options) {
  std::unique_ptr<PageFiles> files(new PageFiles(std::move(options)));
  Env* env = files->options_.env;
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<std::string> names, env->List(files->options_.path));
  for (const std::string& name : names) {
    const uint32_t number = NumberIn(name);
    if (number == 0) continue;
    Slot slot;
    HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<File> file,
                              env->Open(files->PathOf(number), FileMode::kReadWrite));
    HOLDFAST_ASSIGN_OR_RETURN(uint64_t size, file->Size());
    slot.size_at_open = size;
    slot.end = AlignToRecord(size);  // a torn tail is left behind
    slot.file = std::move(file);
    files->slots_.emplace(number, std::move(slot));
    files->last_number_ = files->active_ = std::max(files->last_number_, number);
  }
  return files;
}

// With add_mu_ held.
Status PageFiles::AddFile() {
  uint32_t number = 0;
  {
    std::lock_guard lock(mu_);
    number = last_number_ + 1;
  }
  Slot slot;
  HOLDFAST_ASSIGN_OR_RETURN(slot.file, options_.env->Open(PathOf(number), FileMode::kCreate));
  uint32_t dead = 0;
  {
    std::lock_guard lock(mu_);
    const auto old = slots_.find(active_);
    slots_.emplace(number, std::move(slot));
    last_number_ = active_ = number;
    unnamed_.insert(number);
    if (old != slots_.end() && IsDeadLocked(old->first, old->second)) {
      dead = old->first;
      ForgetLocked(old);
    }
  }
  if (dead != 0) Unlink(dead);
  return Status();
}

// Nothing where there is no file to write to, or it is full.
std::optional<PagePlace> PageFiles::ReserveLocked(uint64_t length) {
  const auto it = slots_.find(active_);
  if (it == slots_.end() || it->second.spoiled ||
      (it->second.end > 0 && it->second.end + length > options_.max_file_bytes)) {
    return std::nullopt;
  }
  const PagePlace place{active_, it->second.end, length};
  it->second.end += length;
  it->second.live += length;
  return place;
}

Result<PagePlace> PageFiles::Reserve(uint64_t length) {
  assert(length > 0 && length % kRecordAlign == 0);
  std::lock_guard adding(add_mu_);
  while (true) {  // a new file may be spoiled before anything is written to it
    {
      std::lock_guard lock(mu_);
      if (const auto place = ReserveLocked(length)) return *place;
    }
    HOLDFAST_RETURN_IF_ERROR(AddFile());
  }
}

std::shared_ptr<File> PageFiles::FileOf(uint32_t number) const {
  std::lock_guard lock(mu_);
  const auto it = slots_.find(number);
  return it == slots_.end() ? nullptr : it->second.file;
}

Status PageFiles::Write(const PagePlace& place,
                        std::span<const std::span<const std::byte>> parts) {
  const std::shared_ptr<File> file = FileOf(place.file);
  assert(file != nullptr && "a held place keeps its file");
  HOLDFAST_RETURN_IF_ERROR(file->WriteAt(place.offset, parts));
  std::lock_guard lock(mu_);
  if (slots_.at(place.file).spoiled) return Status::Io(PathOf(place.file) + ": its sync failed");
  unsynced_.insert(place.file);
  return Status();
}

Status PageFiles::Read(const PagePlace& place, std::span<const std::span<std::byte>> parts) {
  const std::shared_ptr<File> file = FileOf(place.file);
  if (file == nullptr) return Status::Corrupt(PathOf(place.file) + ": no such page file");
  return file->ReadAt(place.offset, parts);
}

Status PageFiles::Sync() {
  std::set<uint32_t> failed;
  std::set<uint32_t> unnamed;
  std::map<uint32_t, std::shared_ptr<File>> unsynced;
  {
    std::lock_guard lock(mu_);
    unnamed.swap(unnamed_);
    for (uint32_t number : unsynced_) unsynced[number] = slots_.at(number).file;
    unsynced_.clear();
  }
  Status first;
  if (!unnamed.empty()) {
    first = options_.env->SyncDirectory(options_.path);
    if (!first.ok()) failed.insert(unnamed.begin(), unnamed.end());
  }
  for (const auto& [number, file] : unsynced) {
    Status status = file->Sync();
    if (status.ok()) continue;
    failed.insert(number);
    if (first.ok()) first = std::move(status);
  }
  std::lock_guard lock(mu_);
  for (uint32_t number : failed) {
    const auto it = slots_.find(number);
    if (it != slots_.end()) it->second.spoiled = true;
  }
  return first;
}

void PageFiles::MarkUnsynced(uint32_t file) {
  std::lock_guard lock(mu_);
  if (!slots_.contains(file)) return;
  unsynced_.insert(file);
  unnamed_.insert(file);
}

bool PageFiles::Spoiled(uint32_t file) const {
  std::lock_guard lock(mu_);
  const auto it = slots_.find(file);
  return it != slots_.end() && it->second.spoiled;
}

bool PageFiles::Holds(const PagePlace& place) const {
  std::lock_guard lock(mu_);
  const auto it = slots_.find(place.file);
  return it != slots_.end() && place.offset % kRecordAlign == 0 &&
         place.length % kRecordAlign == 0 && place.length > 0 &&
         place.offset <= it->second.size_at_open &&
         place.length <= it->second.size_at_open - place.offset;
}

void PageFiles::Retain(const PagePlace& place) {
  std::lock_guard lock(mu_);
  slots_.at(place.file).live += place.length;
}

bool PageFiles::IsDeadLocked(uint32_t number, const Slot& slot) const {
  return slot.live == 0 && (number != active_ || slot.spoiled);
}

std::map<uint32_t, PageFiles::Slot>::iterator PageFiles::ForgetLocked(
    std::map<uint32_t, Slot>::iterator it) {
  unsynced_.erase(it->first);
  unnamed_.erase(it->first);
  return slots_.erase(it);
}

// A name that comes back after a crash is a dead file, which recovery unlinks again.
void PageFiles::Unlink(uint32_t number) { options_.env->Remove(PathOf(number)).IgnoreError(); }

void PageFiles::SkipNumbers(uint32_t seen) {
  std::lock_guard lock(mu_);
  last_number_ = std::max(last_number_, seen);
}

void PageFiles::Release(const PagePlace& place, Space space) {
  std::shared_ptr<File> file;
  bool dead = false;
  {
    std::lock_guard lock(mu_);
    const auto it = slots_.find(place.file);
    if (it == slots_.end()) return;
    Slot& slot = it->second;
    assert(slot.live >= place.length);
    slot.live -= place.length;
    dead = IsDeadLocked(place.file, slot);
    if (dead) {
      ForgetLocked(it);
    } else if (space == Space::kPunch) {
      file = slot.file;
    }
  }
  if (dead) Unlink(place.file);
  // Where the file system cannot, the space comes back with compaction.
  if (file != nullptr) file->PunchHole(place.offset, place.length).IgnoreError();
}

Status PageFiles::Clear(const Usage& usage, std::span<const PagePlace> held) {
  const std::shared_ptr<File> file = FileOf(usage.file);
  if (file == nullptr) return Status();  // unlinked
  uint64_t at = 0;
  for (const PagePlace& place : held) {
    if (place.offset > at) HOLDFAST_RETURN_IF_ERROR(MakeZeros(*file, at, place.offset));
    at = std::max(at, place.offset + place.length);
  }
  if (at < usage.bytes) HOLDFAST_RETURN_IF_ERROR(MakeZeros(*file, at, usage.bytes));
  MarkUnsynced(usage.file);
  return Status();
}

void PageFiles::RemoveDead() {
  std::lock_guard lock(mu_);
  for (auto it = slots_.begin(); it != slots_.end();) {
    if (IsDeadLocked(it->first, it->second)) {
      Unlink(it->first);
      it = ForgetLocked(it);
    } else {
      ++it;
    }
  }
}

std::vector<PageFiles::Usage> PageFiles::usage() const {
  std::lock_guard lock(mu_);
  std::vector<Usage> all;
  for (const auto& [number, slot] : slots_) {
    all.push_back({number, slot.end, slot.live, number == active_ && !slot.spoiled});
  }
  return all;
}

}  // namespace holdfast
