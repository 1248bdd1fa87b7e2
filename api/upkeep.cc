#include "api/upkeep.h"

#include <filesystem>

#include "engine/store/data_dir.h"

namespace holdfast {
namespace {

constexpr uint64_t kCompactStep = uint64_t{64} << 20;

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
  HOLDFAST_ASSIGN_OR_RETURN(report.sessions, runtime.keeper().DeleteExpired());
  FilePageStore* store = runtime.page_store();
  if (store == nullptr || what == Gc::kExpired) return report;
  HOLDFAST_ASSIGN_OR_RETURN(const auto keep, runtime.keeper().PagesInUse());
  HOLDFAST_ASSIGN_OR_RETURN(
      report.pages, store->DeleteUnless(runtime.engine().model().fingerprint(), keep));
  while (true) {
    HOLDFAST_ASSIGN_OR_RETURN(const uint64_t moved, store->Compact(kCompactStep));
    if (moved == 0) return report;
    report.bytes_moved += moved;
  }
}

Result<BackupReport> Backup(Runtime& runtime, const std::string& path) {
  std::error_code error;
  if (!std::filesystem::path(path).is_absolute()) {
    return Status::Invalid("backup: " + path + " is not an absolute path");
  }
  if (std::filesystem::exists(path, error) || error) {
    return Status::Conflict("backup: " + path + " exists already");
  }
  BackupReport report;
  const Status copied = CopyFolder(runtime, path, &report);
  if (!copied.ok()) {
    std::filesystem::remove_all(path, error);
    return copied;
  }
  for (const auto& file : std::filesystem::recursive_directory_iterator(path, error)) {
    if (file.is_regular_file(error)) report.bytes += file.file_size(error);
  }
  return report;
}

}  // namespace holdfast
