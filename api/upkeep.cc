#include "api/upkeep.h"

#include <filesystem>

#include "api/card_json.h"
#include "engine/store/data_dir.h"

namespace holdfast {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kCompactStep = uint64_t{64} << 20;

Status CopyCards(Env& env, const std::string& from, const std::string& to) {
  const fs::path cards = CardFolder(from), copies = CardFolder(to);
  std::error_code error;
  if (!fs::exists(cards, error)) return Status();
  HOLDFAST_RETURN_IF_ERROR(env.MakeDirectory(copies));
  for (const auto& card : fs::directory_iterator(cards, error)) {
    if (card.path().extension() != ".json") continue;  // one that is being written
    const fs::path copy = copies / card.path().filename();
    if (!fs::copy_file(card.path(), copy, error)) break;
    HOLDFAST_ASSIGN_OR_RETURN(const auto file, env.Open(copy, FileMode::kReadWrite));
    HOLDFAST_RETURN_IF_ERROR(file->Sync());
  }
  if (error) return Status::Io("backup: " + cards.string() + ": " + error.message());
  return env.SyncDirectory(copies);
}

Status CopyFolder(Runtime& runtime, const std::string& path, BackupReport* report) {
  HOLDFAST_ASSIGN_OR_RETURN(const DataDir folder,
                            DataDir::Open(path, DataDir::Mode::kCreate));
  // Pages first: those of turns that end in between are then missing, which costs a prefill; the
  // other way round they would be of no use.
  RealEnv env;
  if (FilePageStore* from = runtime.page_store(); from != nullptr) {
    runtime.SyncPages();
    FilePageStore::Options options;
    options.path = folder.pages_path();
    options.env = &env;
    options.max_bytes = UINT64_MAX / 2;
    HOLDFAST_ASSIGN_OR_RETURN(const auto to, FilePageStore::Open(std::move(options)));
    HOLDFAST_ASSIGN_OR_RETURN(report->pages, from->CopyTo(to.get()));
  }
  HOLDFAST_RETURN_IF_ERROR(runtime.database().BackupTo(folder.database_path()));
  HOLDFAST_RETURN_IF_ERROR(CopyCards(env, runtime.data_path(), path));
  return env.SyncDirectory(path);
}

}  // namespace

Result<FsckReport> Fsck(Runtime& runtime, FilePageStore::Repair repair) {
  FsckReport report;
  HOLDFAST_ASSIGN_OR_RETURN(report.log, runtime.keeper().CheckLog());
  if (runtime.page_store() == nullptr) return report;
  HOLDFAST_ASSIGN_OR_RETURN(report.pages, runtime.page_store()->CheckAll(repair));
  return report;
}

Result<GcReport> CollectGarbage(Runtime& runtime, Gc what) {
  GcReport report;
  if (what == Gc::kExpired) {
    HOLDFAST_ASSIGN_OR_RETURN(report.deleted.sessions, runtime.keeper().DeleteExpired());
    return report;
  }
  HOLDFAST_ASSIGN_OR_RETURN(report.deleted, runtime.keeper().Collect());
  uint64_t moved = 0;
  do {
    if (runtime.page_store() == nullptr) break;
    HOLDFAST_ASSIGN_OR_RETURN(moved, runtime.page_store()->Compact(kCompactStep));
    report.bytes_moved += moved;
  } while (moved > 0);
  return report;
}

Result<BackupReport> Backup(Runtime& runtime, const std::string& path) {
  std::error_code error;
  if (!fs::path(path).is_absolute()) {
    return Status::Invalid("backup: " + path + " is not an absolute path");
  }
  if (fs::exists(path, error) || error) {
    return Status::Conflict("backup: " + path + " exists already");
  }
  BackupReport report;
  const Status copied = CopyFolder(runtime, path, &report);
  if (!copied.ok()) {
    fs::remove_all(path, error);
    return copied;
  }
  for (const auto& file : fs::recursive_directory_iterator(path, error)) {
    if (file.is_regular_file(error)) report.bytes += file.file_size(error);
  }
  return report;
}

}  // namespace holdfast
