// serve and chat.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "api/cli.h"
#include "api/openai_chat.h"
#include "api/server.h"

namespace holdfast {
namespace {

constexpr int kDrainMs = 10'000;  // running answers may end within it after SIGTERM

struct ServeFlags {
  std::string host = "127.0.0.1";
  int port = 8420;
  std::vector<std::string> api_keys;  // TENANT=KEY
  std::vector<std::string> origins;
  std::string disk, segments;
  std::vector<std::string> quotas;    // TENANT=sessions:N,host:BYTES,disk:BYTES
  bool strict_model = false;
  bool no_page_store = false;
  int max_queued = 256;
  int max_running = 64;
  int replays = 1;
  double gc_every_h = 6;
};

Result<std::vector<ApiKey>> ReadKeys(const std::vector<std::string>& texts) {
  std::vector<ApiKey> keys;
  for (const std::string& text : texts) {
    const size_t at = text.find('=');
    if (at == std::string::npos || at == 0 || at + 1 == text.size()) {
      return Status::Invalid("--api-key must be TENANT=KEY");
    }
    keys.push_back({text.substr(0, at), Sha256(text.data() + at + 1, text.size() - at - 1)});
  }
  return keys;
}

// "sessions:100,host:2GiB,disk:10GiB", each of them or not.
Result<TenantQuota> ReadQuota(std::string_view limits) {
  TenantQuota quota;
  while (!limits.empty()) {
    const std::string_view one = limits.substr(0, limits.find(','));
    limits.remove_prefix(std::min(limits.size(), one.size() + 1));
    const size_t colon = std::min(one.find(':'), one.size());
    const std::string_view name = one.substr(0, colon);
    int64_t* const limit = name == "sessions" ? &quota.sessions
                           : name == "host"   ? &quota.host_bytes
                           : name == "disk"   ? &quota.disk_bytes
                                              : nullptr;
    const auto value = ParseBytes(std::string(one.substr(std::min(one.size(), colon + 1))));
    if (limit == nullptr || !value.ok() || *value == 0) {
      return Status::Invalid("--quota '" + std::string(one) +
                             "': must be sessions:N, host:BYTES or disk:BYTES");
    }
    *limit = static_cast<int64_t>(*value);
  }
  return quota;
}

Result<std::map<std::string, TenantQuota>> ReadQuotas(const std::vector<std::string>& texts) {
  std::map<std::string, TenantQuota> quotas;
  for (const std::string& text : texts) {
    const size_t at = text.find('=');
    if (at == std::string::npos || at == 0) {
      return Status::Invalid("--quota must be TENANT=sessions:N,host:BYTES,disk:BYTES");
    }
    HOLDFAST_ASSIGN_OR_RETURN(quotas[text.substr(0, at)],
                              ReadQuota(std::string_view(text).substr(at + 1)));
  }
  return quotas;
}

Result<RuntimeOptions> RuntimeOptionsOf(const CommonFlags& flags) {
  RuntimeOptions options;
  HOLDFAST_ASSIGN_OR_RETURN(options.engine, EngineOptionsOf(flags));
  options.data_dir = DataDirOf(flags);
  return options;
}

// DATA/server.json says where the server that holds the folder listens; readable by the owner only.
void WriteServerFile(const std::string& data_dir, const std::string& url,
                     const std::string& model, const std::string& admin_token) {
  const std::string path = data_dir + "/server.json";
  const int fd = open((path + ".tmp").c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return;  // a convenience: commands then say that the folder is locked
  const std::string text =
      DumpJson({{"url", url},
                {"pid", static_cast<int64_t>(getpid())},
                {"model", model},
                {"admin_token", admin_token}}) +
      "\n";
  const bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  if (written) std::rename((path + ".tmp").c_str(), path.c_str());
}

// Blocks the signals that end the server, before any thread exists; they are waited for.
sigset_t BlockEndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return set;
}

void Announce(const CommonFlags& flags, const std::string& url, Engine& engine) {
  if (flags.json) {
    return PrintJson({{"listening", url},
                      {"model", ModelNameOf(flags)},
                      {"numerics_digest", engine.numerics().all.Hex()},
                      {"cpu", engine.cpu_level()},
                      {"context", engine.max_context()}});
  }
  std::cout << "listening on " << url << "  (" << ModelNameOf(flags) << ", " << engine.cpu_level()
            << ", numerics " << engine.numerics().all.Hex().substr(0, 12) << ")" << std::endl;
}

int Serve(const CommonFlags& flags, const ServeFlags& serve) {
  const sigset_t end_signals = BlockEndSignals();
  auto keys = ReadKeys(serve.api_keys);
  if (!keys.ok()) return Fail(flags, keys.status());
  ServerOptions options;
  options.host = serve.host;
  options.port = serve.port;
  options.keys = std::move(*keys);
  options.origins = serve.origins;
  options.model_name = ModelNameOf(flags);
  options.strict_model = serve.strict_model;
  options.replays = serve.replays;
  Server server(options);
  auto port = server.Listen();
  if (!port.ok()) return Fail(flags, port.status());

  auto runtime_options = RuntimeOptionsOf(flags);
  if (!runtime_options.ok()) return Fail(flags, runtime_options.status());
  runtime_options->page_store = !serve.no_page_store;
  runtime_options->engine.max_queued = serve.max_queued;
  runtime_options->engine.max_running = serve.max_running;
  auto disk = ParseBytes(serve.disk);
  if (!disk.ok()) return Fail(flags, disk.status());
  runtime_options->disk_bytes = *disk;
  auto segments = ParseBytes(serve.segments);
  if (!segments.ok()) return Fail(flags, segments.status());
  runtime_options->segment_bytes = *segments;
  auto quotas = ReadQuotas(serve.quotas);
  if (!quotas.ok()) return Fail(flags, quotas.status());
  runtime_options->quotas = std::move(*quotas);
  runtime_options->gc_every_ms = static_cast<int64_t>(serve.gc_every_h * 3'600'000);
  auto runtime = Runtime::Open(*runtime_options);
  if (!runtime.ok()) return Fail(flags, runtime.status());

  const std::string shown = serve.host.find(':') != std::string::npos ? "[" + serve.host + "]"
                                                                      : serve.host;
  const std::string url = "http://" + shown + ":" + std::to_string(*port);
  server.Attach(runtime->get());
  WriteServerFile(runtime_options->data_dir, url, flags.model, server.admin_token());
  Announce(flags, url, (*runtime)->engine());
  int signal_number = 0;
  sigwait(&end_signals, &signal_number);
  server.EndReplays();
  (*runtime)->Shutdown(kDrainMs);
  server.Stop();
  server.WaitUntilStopped();
  std::error_code ignored;
  std::filesystem::remove(runtime_options->data_dir + "/server.json", ignored);
  return 0;
}

struct ChatFlags {
  std::string session, message;
  int64_t max_tokens = 1024;
  float temperature = 0.7f;
};

// One conversation on the terminal; with --json one document per answer.
class Conversation {
 public:
  Conversation(Runtime* runtime, const CommonFlags& flags, const ChatFlags& chat)
      : runtime_(runtime), flags_(flags), chat_(chat), session_(chat.session) {}

  Status Say(const std::string& text) {
    ChatRequest request;
    request.tenant = "default";
    request.session.id = session_;
    request.append = !session_.empty() && known_;
    request.max_tokens = chat_.max_tokens;
    request.sampling.temperature = chat_.temperature;
    ChatMessage m;
    m.role = "user";
    m.text = text;
    m.raw_json = DumpJson({{"role", "user"}, {"content", text}});
    request.messages.push_back(std::move(m));
    HOLDFAST_ASSIGN_OR_RETURN(auto stream, runtime_->Chat(std::move(request)));
    for (;;) {
      std::optional<ChatEvent> event = stream->Next(-1);
      if (!event.has_value()) continue;
      if (!flags_.json && event->kind == ChatEvent::Kind::kText) {
        std::cout << event->text << std::flush;
      }
      if (event->done.has_value()) return Finish(*event->done);
    }
  }

  Status FindSession() {
    if (session_.empty()) return Status();
    const auto info = runtime_->keeper().Get("default", session_);
    known_ = info.ok() && info->turns > 0;
    return session_.starts_with("sess_") ? info.status() : Status();
  }

 private:
  Status Finish(const ChatDone& done) {
    if (!done.status.ok()) return done.status;
    session_ = done.report.start.session_id;
    known_ = true;
    if (flags_.json) {
      PrintJson({{"content", done.content}, {"usage", UsageJson(done)},
                 {"keeper", KeeperJson(done.report)}});
    } else {
      const StitchReport& s = done.report.start.stitch;
      std::cout << std::endl;
      std::cerr << "[" << session_ << ": " << s.from_warm + s.from_pool << " tokens reused, "
                << s.from_store << " restored, " << s.to_compute << " computed, "
                << done.report.generated << " generated]" << std::endl;
    }
    return Status();
  }

  Runtime* runtime_;
  const CommonFlags& flags_;
  const ChatFlags& chat_;
  std::string session_;
  bool known_ = false;
};

int Chat(const CommonFlags& flags, const ChatFlags& chat) {
  auto options = RuntimeOptionsOf(flags);
  if (!options.ok()) return Fail(flags, options.status());
  auto runtime = Runtime::Open(*options);
  if (!runtime.ok()) return Fail(flags, runtime.status());
  Conversation conversation(runtime->get(), flags, chat);
  Status status = conversation.FindSession();
  if (status.ok() && !chat.message.empty()) {
    status = conversation.Say(chat.message);
  } else if (status.ok()) {
    std::string line;
    const bool prompt = isatty(STDIN_FILENO) != 0;
    while (status.ok()) {
      if (prompt) std::cerr << "> " << std::flush;
      if (!std::getline(std::cin, line)) break;
      if (!line.empty()) status = conversation.Say(line);
    }
  }
  (*runtime)->Shutdown(0);
  return status.ok() ? 0 : Fail(flags, status);
}

}  // namespace

void AddServeCommands(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto serve = std::make_shared<ServeFlags>();
  CLI::App* s = app.add_subcommand("serve", "Serve the REST API");
  AddCommonFlags(s, flags, true);
  s->add_option("--host", serve->host, "Address to listen on")->envname("HOLDFAST_HOST");
  s->add_option("--port", serve->port, "Port; 0 picks a free one")
      ->envname("HOLDFAST_PORT")
      ->check(CLI::Range(0, 65535));
  s->add_option("--api-key", serve->api_keys, "TENANT=KEY; may be given again")
      ->envname("HOLDFAST_API_KEY");
  s->add_option("--origin", serve->origins, "A web origin that may call; may be given again");
  s->add_option("--disk", serve->disk, "Disk space for pages, like 20GiB")
      ->envname("HOLDFAST_DISK");
  s->add_option("--segments", serve->segments,
                "KV that the segments of each tenant may name, like 2GiB; default: as much as "
                "pages may have")
      ->envname("HOLDFAST_SEGMENTS");
  s->add_option("--quota", serve->quotas,
                "TENANT=sessions:N,host:BYTES,disk:BYTES; \"*\" = every other tenant; may be given "
                "again")
      ->envname("HOLDFAST_QUOTA");
  s->add_option("--max-queued", serve->max_queued, "Requests that may wait")
      ->envname("HOLDFAST_MAX_QUEUED")->check(CLI::Range(1, 65536));
  s->add_option("--max-running", serve->max_running, "Sequences that decode together")
      ->envname("HOLDFAST_MAX_RUNNING")->check(CLI::Range(1, 1024));
  s->add_option("--replays", serve->replays, "Replays of /v1/replays that run at the same time")
      ->envname("HOLDFAST_REPLAYS")->check(CLI::Range(1, 64));
  s->add_option("--gc-every", serve->gc_every_h,
                "Hours after which what was deleted is gone from the disk, once the server is "
                "idle; after twice as many in any case; 0 = only with sessions gc --now")
      ->envname("HOLDFAST_GC_EVERY")->check(CLI::Range(0.0, 12.0));
  s->add_flag("--strict-model", serve->strict_model, "404 for requests that name another model");
  s->add_flag("--no-page-store", serve->no_page_store, "Keep tokens only, no pages on disk");
  s->callback([=] { *chosen = [=] { return Serve(*flags, *serve); }; });

  auto chat = std::make_shared<ChatFlags>();
  CLI::App* c = app.add_subcommand("chat", "Talk to the model; the session is kept");
  AddCommonFlags(c, flags, true);
  c->add_option("--session", chat->session, "Session to go on with (or to make)");
  c->add_option("-m,--message", chat->message, "Say this and end; else lines from standard input");
  c->add_option("--max-tokens", chat->max_tokens, "Tokens of an answer at most")
      ->check(CLI::Range(1, 1 << 20));
  c->add_option("--temperature", chat->temperature, "0 = always the likeliest token")
      ->check(CLI::Range(0.0, 2.0));
  c->callback([=] { *chosen = [=] { return Chat(*flags, *chat); }; });
}

}  // namespace holdfast
