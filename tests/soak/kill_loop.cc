// kill_loop --kills N --seed S: kills a process that serves several conversations, again and again.
//
// A child opens the data folder and lets four clients talk, each through a script of turns with a
// seed or temperature 0, tool calls, forks by regenerated turns and idempotency keys. The parent
// kills it with SIGKILL at a random moment and starts the next child on the same folder. Clients
// send a turn again until they have seen its end. Checked all the time:
//   - an answer has the token ids of the uninterrupted run that was made first in another folder
//   - after each start every acknowledged turn is there, token for token
// At the end one child runs undisturbed and everything is checked once more. Exit 0: all held.
//
// The parent runs no threads (it forks); answers come through a pipe, and one that is cut off by
// the kill was not acknowledged.

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "api/chat_stream.h"
#include "api/runtime.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

constexpr int kClients = 4;
constexpr int kTurns = 7;
constexpr int kMaxKillMs = 700;
constexpr char kTenant[] = "kill-loop";

struct ScriptTurn {
  std::string text;
  uint64_t seed = 0;  // 0: temperature 0
  int max_tokens = 0;
  bool call_tool = false;
  bool keyed = false;
};
using Script = std::vector<ScriptTurn>;

// What a client has seen the end of.
struct Ack {
  uint32_t client = 0, round = 0, turn = 0;
  std::string session, branch, response;  // response: EncodeResponse
  std::vector<TokenId> prompt, completion;
};

// The conversations of one client, and how far it is. Rounds are the same script in a new session.
struct Client {
  uint32_t round = 0;
  std::vector<Ack> acks;  // of this round
};

struct Plan {
  std::string model;
  uint64_t seed = 0;
  std::vector<Script> scripts;
  std::vector<Client> clients{kClients};
};

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "kill_loop: %s\n", why.c_str());
  std::exit(1);
}

std::vector<Script> MakeScripts(uint64_t seed) {
  std::mt19937_64 random(seed);
  static const char* const kWords[] = {"open", "the", "file", "and", "tell", "me", "what", "stands",
                                       "in", "line", "seven", "please", "then", "list", "again"};
  std::vector<Script> scripts(kClients);
  for (Script& script : scripts) {
    for (int t = 0; t < kTurns; ++t) {
      ScriptTurn turn;
      for (uint64_t n = 5 + random() % 40; n > 0; --n) {
        turn.text += kWords[random() % std::size(kWords)];
        turn.text += ' ';
      }
      turn.seed = random() % 3 == 0 ? 0 : 1 + random() % 1000;
      turn.max_tokens = 8 + static_cast<int>(random() % 40);
      turn.call_tool = random() % 3 == 0;
      if (turn.call_tool) turn.max_tokens = 120;
      turn.keyed = random() % 3 == 0;
      script.push_back(std::move(turn));
    }
  }
  return scripts;
}

std::string Quote(const std::string& text) {  // the scripts need no escapes
  return "\"" + text + "\"";
}

ChatMessage Said(const char* role, const std::string& text, const std::string& more) {
  ChatMessage m;
  m.role = role;
  m.text = text;
  m.raw_json = std::string("{\"role\":") + Quote(role) + ",\"content\":" + Quote(text) + more + "}";
  return m;
}

// The request of the client's next turn: the whole history, as it saw it.
ChatRequest NextRequest(const Plan& plan, int index) {
  const Client& client = plan.clients[index];
  ChatRequest r;
  r.tenant = kTenant;
  const std::string name = "client" + std::to_string(index) + "-" + std::to_string(client.round);
  if (index > 0) r.session.id = name;  // the first client is anonymous
  const size_t now = client.acks.size();
  std::string call_id;
  for (size_t t = 0; t <= now; ++t) {
    const ScriptTurn& turn = plan.scripts[index][t];
    if (call_id.empty()) {
      r.messages.push_back(Said("user", turn.text + name, ""));
    } else {
      ChatMessage m = Said("tool", turn.text + name, ",\"tool_call_id\":" + Quote(call_id));
      m.tool_call_id = call_id;
      r.messages.push_back(std::move(m));
    }
    if (t == now) break;
    auto response = DecodeResponse(client.acks[t].response);
    if (!response.ok()) Fail(response.status().ToString());
    ChatMessage m;
    m.role = "assistant";
    m.text = response->content;
    m.tool_calls = response->tool_calls;
    m.raw_json = AssistantJson(m.text, m.tool_calls);
    call_id = m.tool_calls.empty() ? "" : m.tool_calls.front().id;
    r.messages.push_back(std::move(m));
  }
  const ScriptTurn& turn = plan.scripts[index][now];
  r.tools = {{"read_file", R"({"type":"object","properties":{"path":{"enum":["a","bb"]}},)"
                           R"("required":["path"],"additionalProperties":false})"}};
  r.tools_json = R"([{"type":"function","function":{"name":"read_file"}}])";
  r.tool_choice = turn.call_tool ? ToolChoice::kRequired : ToolChoice::kNone;
  r.parallel_tool_calls = false;
  r.sampling.temperature = turn.seed == 0 ? 0.0f : 1.0f;
  if (turn.seed != 0) r.seed = turn.seed;
  r.max_tokens = turn.max_tokens;
  if (turn.keyed) r.idempotency_key = name + "-" + std::to_string(now);
  return r;
}

// --- Acks over the pipe: a length, then fields with lengths.

void PutBytes(std::string* out, const void* data, uint32_t size) {
  out->append(reinterpret_cast<const char*>(&size), sizeof(size));
  out->append(static_cast<const char*>(data), size);
}

std::string Encode(const Ack& a) {
  std::string body;
  const uint32_t numbers[3] = {a.client, a.round, a.turn};
  PutBytes(&body, numbers, sizeof(numbers));
  for (const std::string* s : {&a.session, &a.branch, &a.response}) {
    PutBytes(&body, s->data(), static_cast<uint32_t>(s->size()));
  }
  for (const auto* t : {&a.prompt, &a.completion}) {
    PutBytes(&body, t->data(), static_cast<uint32_t>(t->size() * sizeof(TokenId)));
  }
  std::string out;
  PutBytes(&out, body.data(), static_cast<uint32_t>(body.size()));
  return out;
}

std::string_view TakeBytes(std::string_view* in) {
  uint32_t size;
  std::memcpy(&size, in->data(), sizeof(size));
  const std::string_view bytes = in->substr(sizeof(size), size);
  in->remove_prefix(sizeof(size) + size);
  return bytes;
}

std::vector<TokenId> TakeTokens(std::string_view* in) {
  const std::string_view bytes = TakeBytes(in);
  std::vector<TokenId> out(bytes.size() / sizeof(TokenId));
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// Removes one whole ack from the front of `stream`; false when there is none.
bool Decode(std::string* stream, Ack* a) {
  uint32_t size;
  if (stream->size() < sizeof(size)) return false;
  std::memcpy(&size, stream->data(), sizeof(size));
  if (stream->size() < sizeof(size) + size) return false;
  std::string_view body = std::string_view(*stream).substr(sizeof(size), size);
  const std::string_view numbers = TakeBytes(&body);
  uint32_t values[3];
  std::memcpy(values, numbers.data(), sizeof(values));
  a->client = values[0];
  a->round = values[1];
  a->turn = values[2];
  a->session = TakeBytes(&body);
  a->branch = TakeBytes(&body);
  a->response = TakeBytes(&body);
  a->prompt = TakeTokens(&body);
  a->completion = TakeTokens(&body);
  stream->erase(0, sizeof(size) + size);
  return true;
}

void WriteAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + at, bytes.size() - at);
    if (n <= 0) _exit(3);
    at += static_cast<size_t>(n);
  }
}

// --- The child.

// Every acknowledged turn is in the log, token for token.
void CheckAcknowledged(Runtime& runtime, const Plan& plan) {
  for (const Client& client : plan.clients) {
    if (client.acks.empty()) continue;
    const Ack& last = client.acks.back();  // its prompt holds those before it
    auto tokens = runtime.keeper().Tokens(kTenant, last.session, last.branch);
    if (!tokens.ok()) {
      Fail("acknowledged turn " + std::to_string(last.turn) + " of client " +
           std::to_string(last.client) + " is lost: " + tokens.status().ToString());
    }
    std::vector<TokenId> want = last.prompt;
    want.insert(want.end(), last.completion.begin(), last.completion.end());
    if (want.back() == kTinyEndOfText) want.pop_back();  // not the template's end: not in the head
    if (tokens->size() < want.size() || !std::equal(want.begin(), want.end(), tokens->begin())) {
      Fail("acknowledged turn " + std::to_string(last.turn) + " of client " +
           std::to_string(last.client) + " is not what was acknowledged: " +
           std::to_string(tokens->size()) + " tokens in session " + last.session + ", branch " +
           last.branch + ", the same up to " +
           std::to_string(std::mismatch(tokens->begin(), tokens->end(), want.begin(), want.end())
                              .first - tokens->begin()) +
           " of " + std::to_string(want.size()));
    }
  }
}

Ack RunTurn(Runtime& runtime, const Plan& plan, int index) {
  auto stream = runtime.Chat(NextRequest(plan, index));
  if (!stream.ok()) Fail("client " + std::to_string(index) + ": " + stream.status().ToString());
  std::optional<ChatDone> done;
  while (auto event = (*stream)->Next(-1)) {
    if (event->done) done = std::move(event->done);
  }
  if (!done || !done->status.ok() || !done->report.durable) {
    Fail("client " + std::to_string(index) + ": a turn ended badly: " +
         (done ? done->status.ToString() : "no end"));
  }
  Ack a;
  a.client = static_cast<uint32_t>(index);
  a.round = plan.clients[index].round;
  a.turn = static_cast<uint32_t>(plan.clients[index].acks.size());
  a.session = done->report.start.session_id;
  a.branch = done->report.start.branch;
  a.response = EncodeResponse({done->finish, done->content, done->warning, done->tool_calls});
  a.prompt = done->prompt_tokens;
  a.completion = done->completion_tokens;
  return a;
}

void Advance(Plan* plan, int index, Ack ack) {
  Client& client = plan->clients[index];
  client.acks.push_back(std::move(ack));
  if (client.acks.size() == plan->scripts[index].size()) {
    client.acks.clear();
    ++client.round;
  }
}

// Serves the clients until it is killed, or until each has come to the end of `last_round`.
[[noreturn]] void RunChild(Plan plan, const std::string& data, int fd, uint32_t last_round) {
  RuntimeOptions options;
  options.engine.model_path = plan.model;
  options.engine.kv_bytes = 16u << 20;
  options.engine.cpu.threads = 1;
  options.data_dir = data;
  options.disk_bytes = 512u << 20;
  auto runtime = Runtime::Open(options);
  if (!runtime.ok()) Fail("open: " + runtime.status().ToString());
  CheckAcknowledged(**runtime, plan);
  std::mutex pipe;
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] {
      while (plan.clients[i].round <= last_round) {
        Ack ack = RunTurn(**runtime, plan, i);
        {
          std::lock_guard lock(pipe);
          WriteAll(fd, Encode(ack));
        }
        Advance(&plan, i, std::move(ack));  // no other thread looks at this client
      }
    });
  }
  for (std::thread& t : threads) t.join();
  runtime->reset();
  std::exit(0);
}

// --- The parent.

struct Loop {
  Plan plan;
  std::map<std::pair<uint32_t, uint32_t>, std::vector<TokenId>> expected;  // client, turn
  uint64_t acknowledged = 0;
  bool calm = true;  // the uninterrupted run is being made

  // Takes in what came through the pipe.
  void Receive(std::string* stream) {
    Ack ack;
    while (Decode(stream, &ack)) {
      const Client& client = plan.clients[ack.client];
      if (ack.round != client.round || ack.turn != client.acks.size()) Fail("out of order");
      const auto key = std::pair(ack.round * kClients + ack.client, ack.turn);
      const auto it = expected.find(key);
      if (calm) {
        expected.emplace(key, ack.completion);
      } else if (it == expected.end() || it->second != ack.completion) {
        Fail("client " + std::to_string(ack.client) + ", round " + std::to_string(ack.round) +
             ", turn " + std::to_string(ack.turn) + ": other tokens than the uninterrupted run");
      }
      ++acknowledged;
      Advance(&plan, static_cast<int>(ack.client), std::move(ack));
    }
  }

  // Runs a child; kills it after `kill_ms` unless that is negative. True: it ended by itself, well.
  bool Run(const std::string& data, int kill_ms, uint32_t last_round) {
    int fds[2];
    if (pipe(fds) != 0) Fail("pipe");
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child < 0) Fail("fork");
    if (child == 0) {
      close(fds[0]);
      RunChild(plan, data, fds[1], last_round);
    }
    close(fds[1]);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kill_ms);
    std::string stream;
    bool killed = false;
    char buffer[65536];
    while (true) {
      int wait = -1;
      if (kill_ms >= 0 && !killed) {
        wait = static_cast<int>(std::max<int64_t>(
            0, std::chrono::duration_cast<std::chrono::milliseconds>(
                   deadline - std::chrono::steady_clock::now()).count()));
        if (wait == 0) {
          kill(child, SIGKILL);
          killed = true;
          wait = -1;
        }
      }
      pollfd p{fds[0], POLLIN, 0};
      if (poll(&p, 1, wait) <= 0) continue;
      const ssize_t n = read(fds[0], buffer, sizeof(buffer));
      if (n <= 0) break;
      stream.append(buffer, static_cast<size_t>(n));
      Receive(&stream);
    }
    close(fds[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && killed) return false;
    Fail("a child ended with status " + std::to_string(status));
  }
};

int Main(int kills, uint64_t seed) {
  std::string folder = (std::filesystem::temp_directory_path() / "kill-loop-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) Fail("no temporary folder");
  std::printf("kill_loop: seed %llu, %d kills, in %s\n", static_cast<unsigned long long>(seed),
              kills, folder.c_str());
  Loop loop;
  loop.plan.model = folder + "/tiny.gguf";
  loop.plan.seed = seed;
  loop.plan.scripts = MakeScripts(seed);
  TinyModelSpec spec;
  spec.head = TinyHead::kSeparate;  // with a tied one it says one letter for ever
  if (!WriteTinyModel(spec, loop.plan.model).ok()) Fail("the model can't be written");

  // What is expected: enough rounds for all kills, undisturbed.
  const Plan begin = loop.plan;
  constexpr uint32_t kRounds = 12;
  loop.Run(folder + "/calm", -1, kRounds - 1);
  loop.calm = false;
  const uint64_t calm = loop.acknowledged;
  std::mt19937_64 random(seed ^ 0x9e3779b97f4a7c15u);
  int killed = 0, runs = 0;  // a run may end before its kill comes: it does not count
  for (int part = 0; killed < kills; ++part) {
    const std::string data = folder + "/data" + std::to_string(part);
    loop.plan = begin;
    bool ended = false;
    for (; killed < kills && !ended; ++runs) {
      const int kill_ms = 1 + static_cast<int>(random() % kMaxKillMs);
      ended = loop.Run(data, kill_ms, kRounds - 1);
      killed += !ended;
    }
    if (!ended && !loop.Run(data, -1, kRounds - 1)) Fail("the last run did not end");
    std::filesystem::remove_all(data);
  }
  std::printf("kill_loop: %d kills in %d runs, %llu turns acknowledged, all with the tokens of "
              "the uninterrupted run\n",
              killed, runs, static_cast<unsigned long long>(loop.acknowledged - calm));
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  int kills = 25;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--kills") == 0) {
      kills = std::atoi(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: kill_loop [--kills N] [--seed S]\n");
      return 2;
    }
  }
  return holdfast::Main(kills, seed);
}
