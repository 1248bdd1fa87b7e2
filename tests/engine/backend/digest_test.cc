// The digest of every level is the reference's, and the reference's is the one that was committed
// with kNumericsVersion: reference/ can't change in silence.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <set>

#include "engine/backend/backend.h"
#include "engine/backend/reference/reference.h"

using namespace holdfast;

TEST_CASE("the digest of reference is the one of this NUMERICS version") {
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  const NumericsDigest digest = ComputeNumericsDigest(*reference);
  std::set<std::string> names;
  for (const NumericsDigest::Entry& entry : digest.ops) CHECK(names.insert(entry.op).second);
  CHECK(names.size() == 14 + 5 + 6);
  for (const char* op : {"matmul/Q4_K", "embed/F16", "attend/f16", "attend/i8", "store_kv/f32", "rms_norm"}) {
    CHECK(names.count(op) == 1);
  }
  REQUIRE(kNumericsVersion == 1);
  // The operations that version 1 began with, which nothing added later may change.
  Hasher first("numerics-1");
  first.U64(kNumericsVersion);
  for (const NumericsDigest::Entry& entry : digest.ops) {
    if (!entry.op.ends_with("/i8")) first.Text(entry.op).Add(entry.digest);
  }
  CHECK(first.Finish().Hex() ==
        "1d44e7ad46f788c029c6eea6de63e5e06c677c96a4132ff9e634d01f82b11799");
  CHECK(digest.all.Hex() ==
        "1b41ee16af96bf161a3fbad3eefbd801d778c80696a4cbc017152b598b75e2c3");
}

TEST_CASE("every level has the digest of reference, at any number of threads") {
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  const NumericsDigest want = ComputeNumericsDigest(*reference);
  for (const char* level : {"portable", "avx2", "avx512"}) {
    for (int threads : {1, 2, 5}) {
      auto backend = MakeCpuBackend({.threads = threads, .level = level});
      if (!backend.ok()) {
        std::printf("not checked: %s\n", backend.status().ToString().c_str());
        continue;
      }
      const auto begin = std::chrono::steady_clock::now();
      const NumericsDigest got = ComputeNumericsDigest(**backend);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      std::printf("%s, %d threads: %.0f ms\n", level, threads, took.count() * 1e3);
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
