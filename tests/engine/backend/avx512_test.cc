#include <doctest/doctest.h>

#include "tests/engine/backend/contract.h"

TEST_CASE("avx512 equals reference") { holdfast::testing::CheckLevel("avx512", "avx512_vnni"); }
