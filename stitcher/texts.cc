#include "stitcher/texts.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

namespace holdfast {
namespace {

namespace fs = std::filesystem;

bool IsHidden(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.size() > 1 && name[0] == '.' && name != "..";
}

// Of a file or of all in a folder, as far as they can be read.
void ListFiles(const fs::path& path, std::vector<fs::path>* out) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) {
    out->push_back(path);
    return;
  }
  fs::recursive_directory_iterator at(path, fs::directory_options::skip_permission_denied, error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    std::error_code ignored;
    if (IsHidden(at->path())) {
      at.disable_recursion_pending();
    } else if (at->is_regular_file(ignored)) {
      out->push_back(at->path());
    }
  }
}

std::optional<TextFile> ReadText(const fs::path& path) {
  std::error_code error;
  if (fs::file_size(path, error) > kMostTextBytes || error) return std::nullopt;
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto is_control = [](unsigned char c) {
    return (c < ' ' && c != '\n' && c != '\t') || c == 0x7f;
  };
  if (std::any_of(text.begin(), text.end(), is_control)) return std::nullopt;
  if (text.find("<|") != std::string::npos) return std::nullopt;
  TextFile file{.path = path.string(), .lines = {}};
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    if (end - begin > kMostLineBytes) return std::nullopt;
    file.lines.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  if (file.lines.size() < kLeastTextLines) return std::nullopt;
  if (file.lines.back().back() != '\n') file.lines.back() += '\n';
  return file;
}

}  // namespace

Result<std::vector<TextFile>> ReadTextFiles(std::span<const std::string> paths) {
  std::vector<fs::path> files;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!fs::exists(path, error)) return Status::NotFound("text: " + path + " is not there");
    ListFiles(path, &files);
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  std::vector<TextFile> texts;
  for (const fs::path& path : files) {
    if (auto text = ReadText(path)) texts.push_back(std::move(*text));
  }
  if (!texts.empty()) return texts;
  return Status::Invalid("text: none of " + std::to_string(files.size()) +
                         " files is text of " + std::to_string(kLeastTextLines) +
                         " lines or more");
}

}  // namespace holdfast
