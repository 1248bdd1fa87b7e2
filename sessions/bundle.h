// Bundles: a session as one file that goes on elsewhere, bit for bit (FORMAT.md has its bytes).
//
//   Keeper::Export -> BundleExport::WriteTo(sink)        what it was at one moment
//   Keeper::Import(file) -> ImportReport                 all of it or nothing
//
// Tokens are taken from any bundle that is whole and keeps the rules of the token log
// (log_check.h), since they can do no more harm than a client's messages. Pages are taken only
// where the bundle's HMAC fits the key that the caller gives: wrong KV would answer wrongly.
// Without them the KV is computed again, to the same bits. Page keys name their tenant and are
// derived anew from the tokens.
//
// Approximate KV stays at home: a bundle says which answers were given over it, by which policy.
// Elsewhere their tokens stand, their branches count as hardened, and the next turn makes their KV
// anew, by its own policy (ImportReport::approximate_turns says of how many answers).
//
// What another model has said comes in whole, as it was recorded, and its default branch is
// tokenised anew by this model's template as a branch of its own, which is the default one here
// (ImportReport::miss says so). It goes on from there; nothing of it is called identical.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/base/status.h"
#include "sessions/tree.h"

namespace holdfast {

struct ExportOptions {
  std::string key;    // "" = not signed, and without pages: nobody could take them
  bool pages = true;  // the whole pages that the page store holds; partial ones are left out
  // Up to this snapshot: one branch that ends there, with the turns on the way to it, and nothing
  // else of the session; no events. "" = the whole session.
  std::string snapshot = {};
};

struct ImportOptions {
  std::string key;    // "" = tokens only
  std::string as;     // the external id that the session gets here; "" = the one that it has
};

struct ImportReport {
  SessionInfo session;
  std::string bundle_id;       // the session's id in the bundle; here it may be another
  int64_t approximate_turns = 0;  // in the bundle
  int64_t pages = 0;           // in the bundle
  int64_t pages_taken = 0;
  std::string pages_left_why;  // why not all: "", or a sentence
  bool is_signed = false, authentic = false;
  std::optional<Miss> miss;    // "model_changed": of another model, and `at_token` tokens stand
};

// A session as it was when Export was called. Belongs to one thread; must not outlive its keeper.
class BundleExport {
 public:
  using Sink = std::function<Status(std::span<const std::byte>)>;
  struct Counts {
    int64_t nodes = 0, items = 0, pages = 0;
    uint64_t bytes = 0;
  };
  ~BundleExport();
  // What WriteTo will write, but for pages that are evicted before it comes to them.
  uint64_t bytes_expected() const;
  const std::string& session_id() const;
  // The file, piece by piece. Once. The first error of the sink or of a read ends it: kConflict
  // when the session was deleted meanwhile.
  Result<Counts> WriteTo(const Sink& sink);

  struct Impl;
  explicit BundleExport(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
