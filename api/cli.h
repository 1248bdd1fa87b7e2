// The command line (README and DESIGN section 10: a contract that scripts rely on).
//
// Every command: --json prints one document on standard output and nothing else there; progress and
// messages go to standard error; exit 0 good, 1 failed, 2 usage. Flags also come from --config FILE
// (TOML) and from HOLDFAST_* in the environment.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/json.h"
#include "api/runtime.h"

namespace CLI {
class App;
}

namespace holdfast {

// What most commands share.
struct CommonFlags {
  std::string model = "qwen2.5-coder-0.5b-instruct";  // name, path or URL
  std::string data;      // "" = $XDG_DATA_HOME/holdfast
  std::string cpu;       // "" = $HOLDFAST_CPU or the best
  std::string kv_memory; // "2GiB"; "" = a quarter of what is free
  bool no_speculation = false;
  std::string kv_type = "f16";  // or "i8"
  int threads = 0;
  bool json = false;
};

// The outcome of a command: its exit status, after it has printed what it has to say.
using Command = std::function<int()>;

// Each adds its subcommands to `app`; the chosen one's Command goes to `*chosen`.
void AddServeCommands(CLI::App& app, CommonFlags* flags, Command* chosen);    // serve, chat
void AddToolCommands(CLI::App& app, CommonFlags* flags, Command* chosen);     // pull, tokenize, ...
void AddCalibrateCommand(CLI::App& app, CommonFlags* flags, Command* chosen);  // calibrate
void AddSessionCommands(CLI::App& app, CommonFlags* flags, Command* chosen);  // sessions ...
void AddBundleCommands(CLI::App* sessions, CommonFlags* flags, Command* chosen);  // export, import
void AddUpkeepCommands(CLI::App* sessions, CommonFlags* flags, Command* chosen);  // fsck, gc, ...
void AddReplayCommand(CLI::App& app, CommonFlags* flags, Command* chosen);    // replay
void AddBenchCommand(CLI::App& app, CommonFlags* flags, Command* chosen);     // bench

// Shared by the commands.
void AddCommonFlags(CLI::App* command, CommonFlags* flags, bool with_data);
int Fail(const CommonFlags& flags, const Status& status);  // prints it, returns 1
void PrintJson(const Json& document);
std::string DataDirOf(const CommonFlags& flags);
// Pulls the model where it is only a name. Progress on standard error.
Result<std::string> ModelPathOf(const CommonFlags& flags);
std::string ModelNameOf(const CommonFlags& flags);
Result<size_t> ParseBytes(const std::string& text);  // "512MiB", "2GiB", "1000000"; "" = 0
KvType KvTypeOf(const CommonFlags& flags);
Result<EngineOptions> EngineOptionsOf(const CommonFlags& flags);
// A progress bar on a terminal, a line every ten seconds elsewhere. Any number of calls; 1.0 ends.
void ShowProgress(const std::string& what, double fraction);

int RunCli(int argc, char** argv);

}  // namespace holdfast
