// sessions export|import: bundles between files and the REST API. A bundle is written to FILE.part
// and gets its name when it is whole.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "api/cli_access.h"
#include "engine/base/env.h"

namespace holdfast {
namespace {

constexpr size_t kMaxKeyFile = 4096;

struct BundleFlags {
  std::string id, file, key_file, as, snapshot;
  bool no_pages = false;
};

// The key as the header carries it: of --key-file (a line end after it is not part of it), else of
// HOLDFAST_BUNDLE_KEY; "" = none.
Result<std::string> KeyHex(const BundleFlags& flags) {
  std::string key;
  if (!flags.key_file.empty()) {
    std::ifstream in(flags.key_file, std::ios::binary);
    key.assign(std::istreambuf_iterator<char>(in), {});
    if (!in.good() && !in.eof()) return Status::NotFound("key file " + flags.key_file);
    if (key.size() > kMaxKeyFile) return Status::Invalid(flags.key_file + " is too long for a key");
    while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) key.pop_back();
    if (key.empty()) return Status::Invalid(flags.key_file + " holds no key");
  } else if (const char* env = std::getenv("HOLDFAST_BUNDLE_KEY"); env != nullptr) {
    key = env;
  }
  std::string hex;
  for (const unsigned char c : key) {
    hex += "0123456789abcdef"[c >> 4];
    hex += "0123456789abcdef"[c & 15];
  }
  return hex;
}

HttpExchange::Headers KeyHeader(const std::string& hex) {
  if (hex.empty()) return {};
  return {{"x-bundle-key", hex}};
}

Result<int> Export(Access& access, const CommonFlags& common, const BundleFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::string key, KeyHex(flags));
  const std::string part = flags.file + ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  if (!out) return Status::Io(part + " cannot be written");
  uint64_t bytes = 0;
  HttpCallArgs args;
  args.path = SessionPath(flags.id, "/export?pages=") + (flags.no_pages ? "0" : "1");
  if (!flags.snapshot.empty()) args.path += "&snapshot=" + Percent(flags.snapshot);
  args.headers = KeyHeader(key);
  args.size_header = "x-bundle-bytes";
  args.download = [&](std::string_view piece, uint64_t expected) {
    bytes += piece.size();
    ShowProgress("exporting", expected == 0 ? 0 : std::min(0.999, 1.0 * bytes / expected));
    return out.write(piece.data(), static_cast<std::streamsize>(piece.size()))
               ? Status()
               : Status::Io(part + ": writing failed");
  };
  Status status = access.Call(std::move(args)).status();
  ShowProgress("exporting", 1);
  out.close();
  if (status.ok() && !out) status = Status::Io(part + ": writing failed");
  if (status.ok() && std::rename(part.c_str(), flags.file.c_str()) != 0) {
    status = Status::Io("renaming " + part + " failed");
  }
  if (!status.ok()) {
    std::remove(part.c_str());
    return status;
  }
  if (common.json) {
    PrintJson({{"file", flags.file}, {"bytes", bytes}, {"signed", !key.empty()}});
  } else {
    std::cout << flags.file << ": " << bytes << " bytes"
              << (key.empty() ? ", not signed: tokens only, no pages" : "") << std::endl;
  }
  return 0;
}

Result<int> Import(Access& access, const CommonFlags& common, const BundleFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::string key, KeyHex(flags));
  RealEnv env;
  HOLDFAST_ASSIGN_OR_RETURN(const auto file, env.Open(flags.file, FileMode::kRead));
  HttpCallArgs args;
  args.method = "POST";
  args.path = "/v1/sessions/import" + (flags.as.empty() ? "" : "?as=" + Percent(flags.as));
  args.headers = KeyHeader(key);
  HttpCallArgs::Upload& upload = args.upload.emplace();
  HOLDFAST_ASSIGN_OR_RETURN(upload.size, file->Size());
  if (upload.size == 0) return Status::Invalid(flags.file + " is empty");
  upload.read = [&, size = upload.size](uint64_t offset, std::span<std::byte> out) {
    ShowProgress("importing", std::min(0.999, 1.0 * offset / size));
    return file->ReadAt(offset, {&out, 1});
  };
  Result<Json> done = access.Call(std::move(args));
  ShowProgress("importing", 1);
  if (!done.ok()) return done.status();
  if (common.json) {
    PrintJson(*done);
    return 0;
  }
  const Json& d = *done;
  std::cout << d["session"]["id"].get<std::string>() << ": " << d["session"]["tokens"]
            << " tokens, " << d["pages_taken"] << " of " << d["pages"] << " pages taken";
  if (d["pages_left_why"].is_string()) {
    std::cout << " (" << d["pages_left_why"].get<std::string>()
              << "; the KV of the rest is computed again)";
  }
  if (d["approximate_turns"] > 0) {
    std::cout << "; " << d["approximate_turns"]
              << " answers were given over approximate KV, which is made anew here";
  }
  std::cout << std::endl;
  if (d["miss"].is_object()) {
    std::cout << "made by another model: its messages are in this one's tokens on branch "
              << d["session"]["default_branch"].get<std::string>() << ", the first "
              << d["miss"]["at_token"] << " as they were" << std::endl;
  }
  return 0;
}

}  // namespace

void AddBundleCommands(CLI::App* sessions, CommonFlags* flags, Command* chosen) {
  auto b = std::make_shared<BundleFlags>();
  const auto add = [=](const char* name, const char* help, auto action) {
    CLI::App* c = AddAccessCommand(sessions, name, help, flags, chosen,
                                   [=](Access& a) { return action(a, *flags, *b); });
    c->add_option("--key-file", b->key_file,
                  "Key of the signature, 16 to 1024 bytes (default: HOLDFAST_BUNDLE_KEY)");
    return c;
  };
  CLI::App* e = add("export", "Write a session to one file", &Export);
  e->add_option("id", b->id, "The session")->required();
  e->add_option("-o,--output", b->file, "The file")->required();
  e->add_option("--snapshot", b->snapshot, "Up to this snapshot, and nothing else of the session");
  e->add_flag("--no-pages", b->no_pages, "Tokens only: the KV is computed again");
  CLI::App* i = add("import", "Make a session of a bundle", &Import);
  i->add_option("file", b->file, "The file")->required();
  i->add_option("--as", b->as, "The session's id here, of your own");
}

}  // namespace holdfast
