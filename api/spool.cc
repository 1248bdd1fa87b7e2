#include "api/spool.h"

namespace holdfast {
namespace {

constexpr size_t kWriteBytes = 4u << 20;

}  // namespace

Result<std::unique_ptr<Spool>> Spool::Make(const std::string& folder, uint64_t min_free_bytes) {
  std::unique_ptr<Spool> spool(new Spool(folder, min_free_bytes));
  uint64_t random = 0;
  HOLDFAST_RETURN_IF_ERROR(
      spool->env_.FillRandom(std::as_writable_bytes(std::span(&random, 1))));
  const std::string path = folder + "/spool-" + std::to_string(random);
  HOLDFAST_ASSIGN_OR_RETURN(spool->file_, spool->env_.Open(path, FileMode::kCreate));
  HOLDFAST_RETURN_IF_ERROR(spool->env_.Remove(path));
  return spool;
}

Status Spool::Append(std::string_view piece) {
  waiting_ += piece;
  return waiting_.size() < kWriteBytes ? Status() : Flush();
}

Status Spool::Flush() {
  if (waiting_.empty()) return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const uint64_t free, env_.FreeBytes(folder_));
  if (free < min_free_bytes_ + waiting_.size()) {
    return Status::Exhausted("insufficient_storage: " + folder_ + " has only " +
                             std::to_string(free) + " bytes free");
  }
  const std::span<const std::byte> bytes =
      std::as_bytes(std::span(waiting_.data(), waiting_.size()));
  Status s = file_->WriteAt(size_, {&bytes, 1});
  if (s.code() == Code::kExhausted) s = Status::Exhausted("insufficient_storage: " + s.message());
  HOLDFAST_RETURN_IF_ERROR(std::move(s));
  size_ += waiting_.size();
  waiting_.clear();
  return Status();
}

}  // namespace holdfast
