// Names of pages. A page's key says everything that its bits depend on: the model and its numerics
// (fp), whose it is (tenant), every token before it, and every approximation before it (taint).
// Equal keys mean equal bits, so a hit can be used as it is; the tokens are compared all the same.
//
//   root   = H("page-root-1", fp, tenant scope, adapter-set digest, taint)
//   key[i] = H("page-key-1", key[i-1], token ids of page i, digests of non-token inputs,
//              explicit positions, taint)          key[-1] = root
// (DESIGN: identity and layout). H is SHA-256 over length-prefixed fields; all 32 bytes are used.
#pragma once

#include <span>
#include <string>

#include "engine/base/hash.h"
#include "engine/base/types.h"

namespace holdfast {

using PageKey = Digest;

// Whose pages these are. Made from the authenticated caller, never from a request's body; there is
// no default, so that no code path can forget it.
class TenantScope {
 public:
  explicit TenantScope(std::string tenant) : tenant_(std::move(tenant)) {}
  const std::string& tenant() const { return tenant_; }
  bool operator==(const TenantScope&) const = default;

 private:
  std::string tenant_;
};

// The root of a chain. `fp`: Model::fingerprint(). `taint`: zero for an exact chain.
PageKey RootKey(const Digest& fp, const TenantScope& scope, const Digest& taint);

// The key of the page that holds `tokens` (exactly kPageTokens of them) after `parent`.
PageKey NextKey(const PageKey& parent, std::span<const TokenId> tokens, const Digest& taint);

// The key of a partial page: 1..kPageTokens-1 `tokens` after `parent`. Has a tag of its own, so
// that it never equals the key of a whole page.
PageKey TailKey(const PageKey& parent, std::span<const TokenId> tokens, const Digest& taint);

// Taint after a run of approximate KV: H("taint-1", before, source key, first, count, shift).
Digest TaintAfter(const Digest& before, const PageKey& source, int first, int count, int shift);

}  // namespace holdfast
