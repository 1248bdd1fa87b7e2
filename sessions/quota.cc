#include "sessions/quota.h"

#include "engine/base/types.h"
#include "engine/kv/layout.h"
#include "sessions/schema.h"

namespace holdfast {

TenantQuota Quotas::Of(std::string_view tenant) const {
  auto it = quotas_.find(std::string(tenant));
  if (it == quotas_.end()) it = quotas_.find("*");
  return it == quotas_.end() ? TenantQuota{} : it->second;
}

Status Quotas::CheckNewSession(Reader& reader, std::string_view tenant, int64_t now_ms) const {
  const int64_t limit = Of(tenant).sessions;
  if (limit == 0) return Status();
  Rows rows = reader.Query(
      "SELECT COUNT(*) FROM session WHERE tenant = ? AND (expires_ms IS NULL OR expires_ms > ?)",
      tenant, now_ms);
  const int64_t count = rows.Next() ? rows.Int(0) : 0;
  HOLDFAST_RETURN_IF_ERROR(rows.status());
  if (count < limit) return Status();
  return Status::Exhausted("quota_exceeded: tenant '" + std::string(tenant) + "' has " +
                           std::to_string(count) + " of " + std::to_string(limit) +
                           " sessions: delete some (DELETE /v1/sessions/{id}), or make them with "
                           "a ttl_s");
}

Status Quotas::CheckDisk(std::string_view tenant, size_t page_bytes) {
  const int64_t limit = Of(tenant).disk_bytes;
  if (limit == 0) return Status();
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t tokens, TokensOf(tenant));
  const int64_t bytes = tokens * static_cast<int64_t>(page_bytes) / kPageTokens;
  if (bytes < limit) return Status();
  return Status::Exhausted("insufficient_storage: the sessions of tenant '" + std::string(tenant) +
                           "' take " + std::to_string(bytes) + " of " + std::to_string(limit) +
                           " bytes on disk: delete some (DELETE /v1/sessions/{id}), or ask for a "
                           "larger quota");
}

// Read when first asked for, and again after what was counted meanwhile cannot be in it.
Result<int64_t> Quotas::TokensOf(std::string_view tenant) {
  while (true) {
    uint64_t before = 0;
    {
      std::lock_guard lock(mu_);
      const auto it = tokens_.find(tenant);
      if (it != tokens_.end()) return it->second;
      before = changes_;
    }
    int64_t bytes = 0;
    HOLDFAST_RETURN_IF_ERROR(db_->Read([&](Reader& reader) {
      Rows rows = reader.Query(
          "SELECT COALESCE(SUM(LENGTH(n.tokens)), 0) FROM node n JOIN session s ON s.sid = n.sid "
          "WHERE s.tenant = ? AND n.status = ?",
          tenant, NodeStatus::kCommitted);
      if (rows.Next()) bytes = rows.Int(0);
      return rows.status();
    }));
    std::lock_guard lock(mu_);
    if (changes_ == before) tokens_.emplace(tenant, bytes / static_cast<int64_t>(sizeof(TokenId)));
  }
}

void Quotas::Added(const std::string& tenant, int64_t tokens) {
  std::lock_guard lock(mu_);
  ++changes_;
  const auto it = tokens_.find(tenant);
  if (it != tokens_.end()) it->second += tokens;
}

void Quotas::Deleted() {
  std::lock_guard lock(mu_);
  ++changes_;
  tokens_.clear();
}

}  // namespace holdfast
