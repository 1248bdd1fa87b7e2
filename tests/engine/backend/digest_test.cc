// The digest of every level is the reference's, and the reference's is the one that was committed
// with kNumericsVersion: reference/ can't change in silence.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>
#include <string_view>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/levels.h"
#include "engine/backend/reference/reference.h"

using namespace holdfast;

// What the digest over all operations was when the version was new: types and operations have come
// since, and what there was has kept its bits, or stored pages would be lost without need.
Digest OfFirstOperations(const NumericsDigest& digest) {
  constexpr std::string_view kLater[] = {"geglu", "scale", "soft_cap"};
  constexpr std::string_view kTypes[] = {"F32", "F16", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"};
  Hasher all("numerics-1");
  all.U64(kNumericsVersion);
  for (const NumericsDigest::Entry& entry : digest.ops) {
    const std::string_view op = entry.op, type = op.substr(op.find('/') + 1);
    const bool of_type = op.starts_with("matmul/") || op.starts_with("embed/");
    if (of_type && std::ranges::find(kTypes, type) == std::end(kTypes)) continue;
    if (op.ends_with("/i8") || std::ranges::find(kLater, op) != std::end(kLater)) continue;
    all.Text(entry.op).Add(entry.digest);
  }
  return all.Finish();
}

TEST_CASE("the digest of reference is the one of this NUMERICS version") {
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  const NumericsDigest digest = ComputeNumericsDigest(*reference);
  std::set<std::string> names;
  for (const NumericsDigest::Entry& entry : digest.ops) CHECK(names.insert(entry.op).second);
  CHECK(names.size() == 2 * AllWeightTypes().size() + 5 + 6 + 3);
  for (const char* op : {"matmul/Q4_K", "embed/F16", "attend/f16", "attend/i8", "store_kv/f32",
                         "rms_norm", "geglu", "scale", "soft_cap"}) {
    CHECK(names.count(op) == 1);
  }
  REQUIRE(kNumericsVersion == 1);
  CHECK(OfFirstOperations(digest).Hex() ==
        "1d44e7ad46f788c029c6eea6de63e5e06c677c96a4132ff9e634d01f82b11799");
  CHECK(digest.all.Hex() ==
        "5c0a671af7d895267292c73315a945fe056f245b18708b1722ab457c18118228");
}

TEST_CASE("every level has the digest of reference, at any number of threads") {
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  const NumericsDigest want = ComputeNumericsDigest(*reference);
  for (const CpuLevel& row : CpuLevels()) {
    const std::string level(row.name);
    for (int threads : {1, 2, 5}) {
      auto backend = MakeCpuBackend({.threads = threads, .level = level});
      if (!backend.ok()) {
        std::printf("not checked: %s\n", backend.status().ToString().c_str());
        continue;
      }
      const auto begin = std::chrono::steady_clock::now();
      const NumericsDigest got = ComputeNumericsDigest(**backend);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      std::printf("%s, %d threads: %.0f ms\n", level.c_str(), threads, took.count() * 1e3);
      CAPTURE(level);
      CAPTURE(threads);
      REQUIRE(got.ops.size() == want.ops.size());
      for (size_t i = 0; i < want.ops.size(); ++i) {
        CAPTURE(want.ops[i].op);
        CHECK(got.ops[i].op == want.ops[i].op);
        CHECK(got.ops[i].digest == want.ops[i].digest);
      }
      CHECK(got.all == want.all);
    }
  }
}
