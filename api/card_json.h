// Model cards (stitcher/card.h) as JSON, and where they lie: DATA/cards/FINGERPRINT.json, written
// by `holdfast calibrate`, and those of the known models, which are in the binary (stitcher/cards).
#pragma once

#include <optional>
#include <string>

#include "api/json.h"
#include "stitcher/calibrate.h"
#include "stitcher/card.h"

namespace holdfast {

Json CardJson(const ModelCard& card);
// kInvalid: not a card, one of another version, or a number that is out of range (names the field).
Result<ModelCard> ParseCard(std::string_view text);

// Where a data folder's own cards lie.
std::string CardFolder(const std::string& data_dir);
// The card of the model with that fingerprint: the data folder's own, else the binary's; nullopt
// where there is none. kIo, kInvalid: there is one in the folder and it can't be read.
Result<std::optional<ModelCard>> FindCard(const std::string& data_dir, const Digest& model);
// Published by rename; the folder is made. Returns the path.
Result<std::string> SaveCard(const std::string& data_dir, const ModelCard& card);

// One trial as a line of a record file (quality benches).
Json TrialJson(const Trial& trial);
Result<Trial> ParseTrial(std::string_view line);

}  // namespace holdfast
