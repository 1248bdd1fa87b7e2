// What a tenant may have: sessions, memory and disk. What is over is refused before it is done,
// with what to do about it: "quota_exceeded: ..." (429) or "insufficient_storage: ..." (507).
//
//   sessions     that have not expired. Checked in the transaction that makes one
//   host_bytes   of the pool's pages that its running turns and warm heads hold. Its warm heads go
//                before a turn is refused; cached pages are free for all and charged to nobody
//   disk_bytes   of the KV of all tokens that its sessions hold, but for answers that were cut off:
//                what its pages take while none is evicted. Pages that sessions share count in each
//
// A tenant over its disk quota is refused new turns, its sessions can be read and deleted.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "engine/store/database.h"

namespace holdfast {

struct TenantQuota {  // 0 = no limit
  int64_t sessions = 0, host_bytes = 0, disk_bytes = 0;
};

// Thread-safe; may read the database.
class Quotas {
 public:
  // "*" is the quota of tenants that are not named.
  Quotas(std::map<std::string, TenantQuota> quotas, Database* db)
      : quotas_(std::move(quotas)), db_(db) {}

  TenantQuota Of(std::string_view tenant) const;
  Status CheckNewSession(Reader& reader, std::string_view tenant, int64_t now_ms) const;
  Status CheckDisk(std::string_view tenant, size_t page_bytes);
  void Added(const std::string& tenant, int64_t tokens);  // committed ones
  void Deleted();                                         // some session

 private:
  Result<int64_t> TokensOf(std::string_view tenant);

  const std::map<std::string, TenantQuota> quotas_;
  Database* const db_;
  std::mutex mu_;
  uint64_t changes_ = 0;
  std::map<std::string, int64_t, std::less<>> tokens_;  // that tenants hold, as far as known
};

}  // namespace holdfast
