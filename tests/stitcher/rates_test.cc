#include "stitcher/rates.h"

#include <doctest/doctest.h>

#include <cmath>
#include <memory>

#include "tests/engine/base/temp_dir.h"

namespace holdfast {
namespace {

struct Fixture {
  testing::TempDir folder;
  std::unique_ptr<Database> db;
  const Digest fp = Hasher("model").Finish();

  Fixture() {
    Database::Options options;
    options.path = folder.File("test.db");
    options.migrations = RateMigrations();
    db = Database::Open(options).value();
  }
  void Put(std::string_view machine, const StitchRates& rates) {
    REQUIRE(db->Write([&](Txn& txn) { return PutRates(txn, fp, machine, rates); },
                      WriteClass::kTurn)
                .ok());
  }
  StitchRates Get(const Digest& of, std::string_view machine) {
    StitchRates rates;
    REQUIRE(db->Read([&](Reader& reader) -> Status {
                HOLDFAST_ASSIGN_OR_RETURN(rates, GetRates(reader, of, machine));
                return Status();
              }).ok());
    return rates;
  }
};

TEST_CASE_FIXTURE(Fixture, "rates are of one model on one machine") {
  Put("here", {.load_ms_per_page = 1.5, .compute_ms_per_token = 3});
  CHECK(Get(fp, "here").load_ms_per_page == 1.5);
  CHECK(Get(fp, "here").compute_ms_per_token == 3);
  CHECK(Get(fp, "elsewhere").compute_ms_per_token == 0);
  CHECK(Get(Hasher("other").Finish(), "here").compute_ms_per_token == 0);
  Put("here", {.load_ms_per_page = 1.5, .compute_ms_per_token = 4});
  CHECK(Get(fp, "here").compute_ms_per_token == 4);
}

TEST_CASE_FIXTURE(Fixture, "no plan is made of numbers that are no rates") {
  Put("here", {.load_ms_per_page = -1, .compute_ms_per_token = INFINITY});
  CHECK(Get(fp, "here").load_ms_per_page == 0);
  CHECK(Get(fp, "here").compute_ms_per_token == 0);
}

TEST_CASE("what is worth a write") {
  const StitchRates none, known{.load_ms_per_page = 1, .compute_ms_per_token = 10};
  CHECK_FALSE(DiffersMuch(none, none));
  CHECK(DiffersMuch(none, {.compute_ms_per_token = 10}));
  CHECK_FALSE(DiffersMuch(known, known));
  CHECK_FALSE(DiffersMuch(known, {.load_ms_per_page = 1.2, .compute_ms_per_token = 8}));
  CHECK(DiffersMuch(known, {.load_ms_per_page = 1.3, .compute_ms_per_token = 10}));
  CHECK(DiffersMuch(known, {.load_ms_per_page = 1, .compute_ms_per_token = 7}));
  CHECK_FALSE(DiffersMuch(known, none));  // what was known is not forgotten
}

}  // namespace
}  // namespace holdfast
