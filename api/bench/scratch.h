// A folder that goes away; path "" where there is none to be had.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace holdfast {

struct ScratchDir {
  ScratchDir() : path((std::filesystem::temp_directory_path() / "holdfast-bench-XXXXXX").string()) {
    if (mkdtemp(path.data()) == nullptr) path.clear();
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  ~ScratchDir() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

}  // namespace holdfast
