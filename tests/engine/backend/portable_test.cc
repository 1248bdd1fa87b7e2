#include <doctest/doctest.h>

#include "tests/engine/backend/contract.h"

TEST_CASE("portable equals reference") { holdfast::testing::CheckLevel("portable", ""); }
