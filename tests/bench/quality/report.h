// From records to stitcher/QUALITY.md, quality.svg and cards/MODEL.json.
#pragma once

#include <string>
#include <vector>

#include "stitcher/calibrate.h"
#include "tests/bench/quality/records.h"

namespace holdfast {

struct MeasuredModel {
  ModelRecords records;
  ModelCard card;
};

// The contract, checked on contexts that its card has not seen: a card is made from the trials of
// odd seeds and judged by those of even ones, and the other way round.
struct ContractCheck {
  double max_kl = 0;
  int contexts = 0;    // that were asked for
  int served = 0;      // of these, for which the card had a setting
  int kept = 0;        // of these, which stayed under max_kl
  double rows = 0;     // of the served, mean
};
ContractCheck CheckContract(const std::vector<Trial>& trials, double max_kl);

// `source`: of the text that was measured on; empty: it was made up. kIo: a file can't be written.
Status WriteReport(const std::string& dir, const std::string& source,
                   const std::vector<MeasuredModel>& models);

}  // namespace holdfast
