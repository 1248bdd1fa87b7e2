#include <doctest/doctest.h>

#include "tests/engine/backend/contract.h"

TEST_CASE("neon equals reference") { holdfast::testing::CheckLevel("neon", "asimddp"); }
