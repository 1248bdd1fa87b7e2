#include "stitcher/rates.h"

#include <cmath>

namespace holdfast {
namespace {

constexpr double kMuch = 0.25;

constexpr char kVersion1[] = R"sql(
CREATE TABLE rate(
  fp BLOB NOT NULL,                      -- of the model
  machine TEXT NOT NULL,
  load_ms_per_page REAL NOT NULL,        -- 0 = not measured
  compute_ms_per_token REAL NOT NULL,
  PRIMARY KEY(fp, machine)) WITHOUT ROWID;
)sql";

bool DiffersMuch(double before, double now) {
  return now > 0 && std::abs(now - before) > kMuch * before;
}

// What a database says, if a plan can be made of it.
double Sound(double ms) { return std::isfinite(ms) && ms > 0 ? ms : 0; }

}  // namespace

bool DiffersMuch(const StitchRates& before, const StitchRates& now) {
  return DiffersMuch(before.load_ms_per_page, now.load_ms_per_page) ||
         DiffersMuch(before.compute_ms_per_token, now.compute_ms_per_token);
}

std::vector<Migration> RateMigrations() { return {{"stitcher/rates", 1, kVersion1}}; }

Result<StitchRates> GetRates(Reader& reader, const Digest& fp, std::string_view machine) {
  Rows rows = reader.Query(
      "SELECT load_ms_per_page, compute_ms_per_token FROM rate WHERE fp = ? AND machine = ?", fp,
      machine);
  StitchRates rates;
  if (rows.Next()) {
    rates.load_ms_per_page = Sound(rows.Real(0));
    rates.compute_ms_per_token = Sound(rows.Real(1));
  }
  HOLDFAST_RETURN_IF_ERROR(rows.status());
  return rates;
}

Status PutRates(Txn& txn, const Digest& fp, std::string_view machine, const StitchRates& rates) {
  return txn.Run(
      "INSERT INTO rate(fp, machine, load_ms_per_page, compute_ms_per_token) VALUES(?, ?, ?, ?) "
      "ON CONFLICT DO UPDATE SET load_ms_per_page = excluded.load_ms_per_page, "
      "compute_ms_per_token = excluded.compute_ms_per_token",
      fp, machine, rates.load_ms_per_page, rates.compute_ms_per_token);
}

}  // namespace holdfast
