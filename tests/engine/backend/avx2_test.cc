#include <doctest/doctest.h>

#include "tests/engine/backend/contract.h"

TEST_CASE("avx2 equals reference") { holdfast::testing::CheckLevel("avx2", "avx2"); }
