#include "api/runtime.h"

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <utility>

#include "api/card_json.h"
#include "api/chat_stream.h"
#include "api/free_replay.h"
#include "api/recorded_request.h"
#include "api/segments.h"
#include "engine/base/env.h"
#include "engine/base/machine.h"
#include "engine/kv/memory_page_store.h"
#include "engine/store/data_dir.h"
#include "engine/store/file_page_store.h"

namespace holdfast {
namespace {

constexpr int kCloseMs = 5000;  // for cancelled streams to be let go of by their consumers
constexpr uint64_t kWriterPoolPart = 8; // pages that wait to be written pin at most this part of it
constexpr uint64_t kWriterMaxQueued = 1024;
constexpr uint64_t kCompactBytes = uint64_t{8} << 20;  // in one idle step
constexpr size_t kTimedReads = 8;  // pages, at a start that knows nothing of the disk
constexpr uint64_t kMinDiskBytes = uint64_t{64} << 20;

// ChatML, for a model file that brings no template.
constexpr char kPlainTemplate[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// A folder of this process alone, removed with everything in it.
class TemporaryFolder {
 public:
  static Result<std::unique_ptr<TemporaryFolder>> Make() {
    std::error_code error;
    std::string path = (std::filesystem::temp_directory_path(error) / "holdfast-XXXXXX").string();
    if (error || mkdtemp(path.data()) == nullptr) {
      return Status::Io("runtime: no temporary folder can be made: " + path);
    }
    return std::unique_ptr<TemporaryFolder>(new TemporaryFolder(std::move(path)));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Over all of a request that decides its answer beside the history and the tools in the prompt.
Digest ParamsDigest(const ChatRequest& r) {
  Hasher h("chat-params-1");
  const SamplingParams& s = r.sampling;
  const float floats[] = {s.temperature,       s.top_p,           s.min_p,
                          s.presence_penalty,  s.frequency_penalty, s.repetition_penalty};
  h.Values(std::span<const float>(floats)).U64(s.top_k).U64(s.repetition_window);
  h.U64(s.logit_bias.size());
  for (const auto& [token, bias] : s.logit_bias) {
    h.U64(token).Values(std::span<const float>(&bias, 1));
  }
  h.U64(r.seed.has_value()).U64(r.seed.value_or(0)).U64(r.max_tokens).U64(r.stop.size());
  for (const std::string& stop : r.stop) h.Text(stop);
  h.U64(static_cast<uint64_t>(r.tool_choice)).Text(r.tool_name).U64(r.parallel_tool_calls);
  h.U64(static_cast<uint64_t>(r.format)).Text(r.schema_json).U64(r.strict_schema);
  h.U64(static_cast<uint64_t>(r.history)).U64(r.tools.size());
  for (const Tool& tool : r.tools) h.Text(tool.name);
  h.U64(r.turn_seed.has_value()).U64(r.turn_seed.value_or(0));
  h.Values(std::span<const TokenId>(r.forced));
  if (r.reuse.approximate()) {
    const double limits[] = {r.reuse.max_kl, r.reuse.budget};
    h.Text(ReusePolicyName(r.reuse.policy)).Values(std::span<const double>(limits));
  }
  return h.Finish();
}

// The windows at which the question, which is what follows the last run, looks at most.
Result<std::vector<TokenRange>> ChooseByQuestion(Engine& engine, ProbeRequest probe) {
  Timeline timeline = std::move(probe.timeline).value();
  const int64_t tokens = timeline.size();
  AttentionMass mass(engine.model(), tokens);
  GenerateRequest request = ComputeRequest(std::move(timeline));
  request.observe_queries = QuestionProbe(
      &mass, engine.model(), probe.runs.empty() ? 0 : probe.runs.back().end, tokens);
  HOLDFAST_RETURN_IF_ERROR(ComputeOn(engine, std::move(request)).status());
  return ChooseWindows(mass.mass(), probe.runs, probe.heads, probe.budget);
}

TurnRequest TurnRequestOf(const ChatRequest& r) {
  TurnRequest t;
  t.tenant = r.tenant;
  t.session = r.session;
  t.idempotency_key = r.idempotency_key;
  t.if_head = r.if_head;
  t.on_busy = r.on_busy;
  t.history = r.history;
  t.durability = r.durability;
  t.messages = r.messages;
  t.append = r.append;
  t.tools_json = r.tools_json;
  t.template_kwargs_json = r.template_kwargs_json;
  t.params_digest = ParamsDigest(r);
  t.sampling_json = SamplingText(r);
  t.seed = r.seed;
  t.turn_seed = r.turn_seed;
  t.max_tokens = r.max_tokens;
  t.hints = r.hints;
  t.reuse = r.reuse;
  return t;
}

}  // namespace

struct Runtime::Impl {
  RuntimeOptions options;
  RealEnv env;
  StreamCount streams;
  std::atomic<bool> closing{false};
  std::atomic<bool> closed{false};

  // In order of dependence: the last is torn down first. (The pool reports sealed pages to the
  // writer; the model thread, which seals them, has ended by then.)
  std::unique_ptr<TemporaryFolder> temporary;
  std::optional<DataDir> folder;
  std::unique_ptr<Database> db;
  std::unique_ptr<PageStore> store;
  FilePageStore* file_store = nullptr;  // `store`, where it is on disk
  std::unique_ptr<Engine> engine;
  std::unique_ptr<PageWriter> writer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<ConstraintFactory> constraints;
  std::unique_ptr<Stitcher> stitcher;
  std::unique_ptr<SegmentStore> segments;
  std::unique_ptr<Keeper> keeper;

  Status OpenFolder();
  Status OpenStore();
  void StartWriter();
  Status OpenText();
  Status OpenSegments();
  Status OpenKeeper();
  void TimeReads();
  Status Check(const ChatRequest& request) const;
  Result<CompiledConstraint> Constrain(const ChatRequest& request) const;
  Result<TurnSampler> SamplerOf(const RecordedTurn& turn, const ReplayRequest& request) const;
  Result<std::unique_ptr<Replay>> StartRecompute(const ReplayRequest& request,
                                                 Recording recording);
  Result<ChatRequest> FreeChat(const ReplayRequest& request, const Recording& recording,
                               FreePlan* plan);
  Result<std::unique_ptr<ChatStream>> Start(const ChatRequest& request, std::unique_ptr<Turn> turn,
                                            CompiledConstraint constraint);
};

Status Runtime::Impl::OpenFolder() {
  std::string path = options.data_dir;
  if (path.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(temporary, TemporaryFolder::Make());
    path = temporary->path();
  }
  HOLDFAST_ASSIGN_OR_RETURN(DataDir opened, DataDir::Open(path, DataDir::Mode::kCreate));
  folder.emplace(std::move(opened));
  Database::Options db_options;
  db_options.path = folder->database_path();
  db_options.vfs = options.database_vfs;
  db_options.migrations = Keeper::Migrations();
  HOLDFAST_ASSIGN_OR_RETURN(db, Database::Open(std::move(db_options)));
  return Status();
}

Status Runtime::Impl::OpenStore() {
  if (!options.page_store) return Status();
  if (options.data_dir.empty()) {
    store = MakeMemoryPageStore(options.disk_bytes);
    return Status();
  }
  FilePageStore::Options file;
  file.path = folder->pages_path();
  file.env = options.env != nullptr ? options.env : &env;
  file.index_env = options.index_env;
  file.max_bytes = options.disk_bytes;
  if (file.max_bytes == 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const uint64_t free, env.FreeBytes(folder->path()));
    file.max_bytes = std::max(free / 4, kMinDiskBytes);
  }
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<FilePageStore> opened,
                            FilePageStore::Open(std::move(file)));
  opened->DescribeModel(engine->model().fingerprint(), engine->pool().groups());
  file_store = opened.get();
  store = std::move(opened);
  return Status();
}

void Runtime::Impl::StartWriter() {
  PageWriter::Options w;
  w.fp = engine->model().fingerprint();
  w.groups = engine->pool().groups();
  w.queue_capacity = std::clamp<uint64_t>(engine->pool().stats().slots_max / kWriterPoolPart, 1,
                                          kWriterMaxQueued);
  if (file_store != nullptr) {
    w.when_idle = [s = file_store] {
      if (auto moved = s->Compact(kCompactBytes); !moved.ok()) moved.status().IgnoreError();
    };
  }
  writer = std::make_unique<PageWriter>(store.get(), std::move(w));
  engine->pool().SetSealObserver(&PageWriter::Observe, writer.get());
}

Status Runtime::Impl::OpenText() {
  const Tokenizer& tokenizer = engine->tokenizer();
  ChatTemplateSpec spec;
  spec.source = engine->model().chat_template();
  if (spec.source.empty()) spec.source = kPlainTemplate;
  spec.bos_text = tokenizer.TokenText(tokenizer.bos());
  spec.eos_text = tokenizer.TokenText(tokenizer.eos());
  spec.special_texts = tokenizer.SpecialTexts();
  HOLDFAST_ASSIGN_OR_RETURN(chat_template, ChatTemplate::Create(spec));
  constraints = ConstraintFactory::Create(tokenizer);
  return Status();
}

Status Runtime::Impl::OpenSegments() {
  const PoolStats pool = engine->pool().stats();
  SegmentStore::Options s;
  s.db = db.get();
  s.basis = {engine->model().fingerprint(), engine->tokenizer().digest(), chat_template->digest()};
  s.page_bytes = engine->pool().page_bytes();
  s.max_bytes = options.segment_bytes;
  if (s.max_bytes == 0) {
    const uint64_t disk = store != nullptr ? store->stats().bytes_max : 0;
    s.max_bytes = std::max(disk, pool.slots_max * s.page_bytes);
  }
  HOLDFAST_ASSIGN_OR_RETURN(segments, SegmentStore::Open(s));
  return Status();
}

Status Runtime::Impl::OpenKeeper() {
  KeeperOptions k;
  k.db = db.get();
  k.tokenizer = &engine->tokenizer();
  k.chat_template = chat_template.get();
  k.pool = &engine->pool();
  k.stitcher = stitcher.get();
  k.store = store.get();
  k.segments = segments.get();
  k.find_runs = [s = segments.get()](const TenantScope& scope, std::span<const TokenId> tokens,
                                     TokenRange where) {
    return s->Find(scope, tokens, where.begin, where.end);
  };
  k.fp = engine->model().fingerprint();
  k.model_digest = engine->model().weights_digest();
  k.basis = BasisOf(*engine, *chat_template);
  k.model_name = engine->model().config().name;
  k.max_context = engine->max_context();
  k.max_resident = options.max_resident;
  k.anonymous_ttl_s = options.anonymous_ttl_s;
  k.tend_every_ms = options.tend_every_ms;
  k.gc_every_ms = options.gc_every_ms;
  k.quotas = options.quotas;
  if (writer != nullptr) {
    k.sync_pages = [w = writer.get()] { return w->Flush(); };
    k.drain_pages = [w = writer.get()](int64_t most_ms) {
      w->Drain(std::chrono::milliseconds(most_ms));
    };
  }
  const int threads = options.engine.cpu.threads;
  k.machine = std::string(engine->cpu_level()) + ", " + CpuModel() + ", " +
              std::to_string(threads > 0 ? threads : UsableCores()) + " threads";
  HOLDFAST_ASSIGN_OR_RETURN(keeper, Keeper::Open(k));
  return Status();
}

// What loading costs, where no process before has told: by one thread, so rather too much.
void Runtime::Impl::TimeReads() {
  if (file_store == nullptr || stitcher->rates().load_ms_per_page > 0) return;
  const auto page_bytes = static_cast<double>(engine->pool().page_bytes());
  stitcher->BeginWith({.load_ms_per_page = file_store->TimeReads(kTimedReads) * page_bytes});
}

Result<std::unique_ptr<Runtime>> Runtime::Open(const RuntimeOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  HOLDFAST_RETURN_IF_ERROR(impl->OpenFolder());
  HOLDFAST_ASSIGN_OR_RETURN(impl->engine, Engine::Open(options.engine));
  HOLDFAST_RETURN_IF_ERROR(impl->OpenStore());
  if (impl->store != nullptr) impl->StartWriter();
  impl->stitcher = std::make_unique<Stitcher>(&impl->engine->pool(), impl->store.get(),
                                              impl->engine->model().fingerprint());
  impl->stitcher->SetCompute(
      [engine = impl->engine.get()](Timeline timeline, const ComputeOptions& how) {
        return ComputeOn(*engine, ComputeRequest(std::move(timeline), how), how.stop);
      });
  impl->stitcher->SetChooser([engine = impl->engine.get()](ProbeRequest probe) {
    return ChooseByQuestion(*engine, std::move(probe));
  });
  impl->stitcher->SetRunning(
      [engine = impl->engine.get()] { return engine->stats().running > 0; });
  // Without one, or with one that can't be read, only exact reuse is offered.
  auto card = FindCard(impl->folder->path(), impl->engine->model().fingerprint());
  if (card.ok() && *card) {
    impl->stitcher->SetCard(std::make_shared<const ModelCard>(std::move(**card)));
  }
  HOLDFAST_RETURN_IF_ERROR(impl->OpenText());
  HOLDFAST_RETURN_IF_ERROR(impl->OpenSegments());
  HOLDFAST_RETURN_IF_ERROR(impl->OpenKeeper());
  impl->TimeReads();
  return std::unique_ptr<Runtime>(new Runtime(std::move(impl)));
}

Runtime::Runtime(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Runtime::~Runtime() { Shutdown(0); }

Status Runtime::Impl::Check(const ChatRequest& r) const {
  HOLDFAST_RETURN_IF_ERROR(ValidateSampling(r.sampling));
  if (r.max_tokens < 0) return Status::Invalid("max_tokens: must not be negative");
  const bool named = r.tool_choice == ToolChoice::kNamed;
  if ((named || r.tool_choice == ToolChoice::kRequired) && r.tools.empty()) {
    return Status::Invalid("tool_choice: there are no tools to choose from");
  }
  if (named && std::none_of(r.tools.begin(), r.tools.end(),
                            [&](const Tool& t) { return t.name == r.tool_name; })) {
    return Status::Invalid("tool_choice: there is no tool '" + r.tool_name + "'");
  }
  return Status();
}

// The constraint that the request asks for; none where nothing is enforced.
Result<CompiledConstraint> Runtime::Impl::Constrain(const ChatRequest& r) const {
  if (r.tool_choice == ToolChoice::kRequired || r.tool_choice == ToolChoice::kNamed) {
    ToolCallSpec spec;
    spec.tools = r.tools;
    if (r.tool_choice == ToolChoice::kNamed) spec.only = r.tool_name;
    if (engine->model().chat_template().find("<tool_call>") != std::string::npos) {
      spec.prefix = "<tool_call>\n";
      spec.suffix = "\n</tool_call>";
    }
    const bool many = r.parallel_tool_calls && r.tool_choice == ToolChoice::kRequired;
    spec.parallel = many ? ParallelCalls::kMany : ParallelCalls::kOne;
    return constraints->CompileToolCall(spec, SchemaMode::kRelaxed);
  }
  if (r.format == ResponseFormat::kText) return CompiledConstraint{};
  if (!r.tools.empty() && r.tool_choice != ToolChoice::kNone) {
    // A schema of the answer would forbid the calls.
    CompiledConstraint none;
    none.warning = "response_format is not enforced while tools may be called";
    return none;
  }
  if (r.format == ResponseFormat::kJsonObject) return constraints->CompileJsonObject();
  return constraints->CompileJsonSchema(
      r.schema_json, r.strict_schema ? SchemaMode::kStrict : SchemaMode::kRelaxed);
}

Result<std::unique_ptr<ChatStream>> Runtime::Chat(ChatRequest request) {
  if (impl_->closing) return Status::Unavailable("shutting down");
  HOLDFAST_RETURN_IF_ERROR(impl_->Check(request));
  HOLDFAST_ASSIGN_OR_RETURN(CompiledConstraint constraint, impl_->Constrain(request));
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<Turn> turn,
                            impl_->keeper->Begin(TurnRequestOf(request)));
  if (turn->replay()) {
    HOLDFAST_ASSIGN_OR_RETURN(StoredResponse response, DecodeResponse(*turn->replay()));
    return std::unique_ptr<ChatStream>(
        std::make_unique<ReplayStream>(&impl_->streams, *turn, std::move(response)));
  }
  return impl_->Start(request, std::move(turn), std::move(constraint));
}

Result<std::unique_ptr<ChatStream>> Runtime::Impl::Start(const ChatRequest& request,
                                                         std::unique_ptr<Turn> turn,
                                                         CompiledConstraint constraint) {
  GenerateRequest generate;
  generate.timeline = turn->TakeTimeline();
  generate.sampling = request.sampling;
  generate.turn_seed = turn->seed();
  generate.output_begin = static_cast<int64_t>(turn->prompt().size());
  generate.max_tokens = turn->max_tokens();
  generate.stop = request.stop;
  generate.top_logprobs = request.top_logprobs;
  generate.speculate = request.speculate;
  generate.constraint = std::move(constraint.constraint);
  generate.forced = request.forced;
  // Nothing from the pool either, whatever else puts the same tokens there meanwhile.
  if (request.reuse.policy == ReusePolicy::kOff) generate.chunk = options.engine.prefill_chunk;
  auto generation = engine->Submit(std::move(generate));
  if (!generation.ok()) {
    TurnOutcome outcome;
    outcome.finish = "refused";
    keeper->Abort(std::move(turn), std::move(outcome));
    return generation.status();
  }
  LiveStreamParts parts;
  parts.keeper = keeper.get();
  parts.engine = engine.get();
  parts.stitcher = stitcher.get();
  parts.alive = &streams;
  parts.turn = std::move(turn);
  parts.generation = std::move(generation).value();
  if (request.tool_choice != ToolChoice::kNone) {
    for (const Tool& tool : request.tools) parts.tool_names.push_back(tool.name);
  }
  parts.parallel = request.parallel_tool_calls ? ParallelCalls::kMany : ParallelCalls::kOne;
  parts.warning = std::move(constraint.warning);
  parts.top_logprobs = request.top_logprobs;
  parts.forced = request.forced.size();
  return std::unique_ptr<ChatStream>(std::make_unique<LiveStream>(std::move(parts)));
}

// What a recorded turn was drawn with, with what the replay wants otherwise.
Result<TurnSampler> Runtime::Impl::SamplerOf(const RecordedTurn& turn,
                                             const ReplayRequest& request) const {
  ChatRequest chat;
  HOLDFAST_RETURN_IF_ERROR(ReadSamplingText(turn.sampling, &chat));
  const std::optional<uint64_t> request_seed = chat.seed;
  HOLDFAST_RETURN_IF_ERROR(ReadSamplingText(request.sampling_json, &chat));
  HOLDFAST_RETURN_IF_ERROR(ReadToolsText(turn.tools, &chat));
  HOLDFAST_RETURN_IF_ERROR(Check(chat));
  HOLDFAST_ASSIGN_OR_RETURN(CompiledConstraint constraint, Constrain(chat));
  return TurnSampler{chat.sampling, std::move(constraint.constraint), request_seed};
}

Result<std::unique_ptr<Replay>> Runtime::Impl::StartRecompute(const ReplayRequest& request,
                                                              Recording recording) {
  RecomputeRequest recompute;
  recompute.mode = request.mode;
  recompute.tenant = request.tenant;
  recompute.from = request.from;
  recompute.to = request.to;
  recompute.top_k = request.top_k;
  recompute.seed = request.seed;
  recompute.other_sampling = !request.sampling_json.empty();
  RecomputeParts parts;
  parts.engine = engine.get();
  parts.store = store.get();
  parts.basis = BasisOf(*engine, *chat_template);
  parts.make_room = [k = keeper.get()](int64_t pages) { k->MakeRoom(pages); };
  parts.sampler = [this, request](const RecordedTurn& turn) { return SamplerOf(turn, request); };
  streams.Add();
  parts.alive = std::shared_ptr<void>(
      &streams, [](void* count) { static_cast<StreamCount*>(count)->Remove(); });
  HOLDFAST_ASSIGN_OR_RETURN(
      std::unique_ptr<Replay> started,
      Recompute::Start(recompute, std::move(recording), std::move(parts)));
  return started;
}

// The turn of a free replay, on a branch that is made for it.
Result<ChatRequest> Runtime::Impl::FreeChat(const ReplayRequest& request,
                                            const Recording& recording, FreePlan* plan) {
  ChatRequest chat;
  HOLDFAST_RETURN_IF_ERROR(ReadSamplingText(plan->turn->sampling, &chat));
  HOLDFAST_RETURN_IF_ERROR(ReadSamplingText(request.sampling_json, &chat));
  HOLDFAST_RETURN_IF_ERROR(ReadToolsText(plan->turn->tools, &chat));
  HOLDFAST_RETURN_IF_ERROR(Check(chat));
  MakeBranch make;
  make.from = recording.branch;
  make.at_item = plan->turn->first_item;
  make.name = request.name;
  make.tokens = MakeBranch::Tokens::kThisModel;
  HOLDFAST_ASSIGN_OR_RETURN(const BranchInfo made,
                            keeper->Branch(request.tenant, recording.session_id, make));
  plan->stands = made.parent_tokens;
  chat.tenant = request.tenant;
  chat.session = {recording.session_id, made.name};
  chat.append = true;
  chat.messages = plan->messages;
  chat.template_kwargs_json = plan->turn->kwargs;
  chat.top_logprobs = request.top_k;
  chat.forced = plan->forced;
  // What is not asked to be otherwise stays: also the seed, whatever the new branch's would be.
  if (!request.seed) chat.turn_seed = plan->turn->seed;
  if (request.seed) chat.seed = request.seed;
  return chat;
}

Result<std::unique_ptr<Replay>> Runtime::StartReplay(ReplayRequest request) {
  if (impl_->closing) return Status::Unavailable("shutting down");
  HOLDFAST_ASSIGN_OR_RETURN(
      Recording recording,
      request.snapshot.empty()
          ? impl_->keeper->Recorded(request.tenant, request.session, request.branch)
          : impl_->keeper->RecordedAt(request.tenant, request.session, request.snapshot));
  const auto items = static_cast<int64_t>(recording.items.size());
  for (auto [item, token] : {std::pair(request.from_item, &request.from),
                             std::pair(request.to_item, &request.to)}) {
    if (!item) continue;
    if (*item < 0 || *item > items) {
      return Status::Invalid("from_item, to_item: the branch has " + std::to_string(items) +
                             " items");
    }
    *token = *item < items ? recording.items[*item].first
                           : static_cast<int64_t>(recording.tokens.size());
  }
  if (request.mode != ReplayMode::kFree) {
    return impl_->StartRecompute(request, std::move(recording));
  }
  HOLDFAST_ASSIGN_OR_RETURN(FreePlan plan, PlanFreeReplay(recording, request));
  HOLDFAST_RETURN_IF_ERROR(MeetModel(recording, BasisOf(*impl_->engine, *impl_->chat_template),
                                     impl_->engine->tokenizer(), &plan));
  HOLDFAST_ASSIGN_OR_RETURN(ChatRequest chat, impl_->FreeChat(request, recording, &plan));
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<ChatStream> stream, Chat(std::move(chat)));
  return std::unique_ptr<Replay>(
      std::make_unique<FreeReplay>(std::move(recording), plan, std::move(stream)));
}

Result<SegmentInfo> Runtime::AddSegment(const NewSegment& request) {
  if (impl_->closing) return Status::Unavailable("shutting down");
  return holdfast::AddSegment({impl_->segments.get(), impl_->engine.get(), impl_->stitcher.get(),
                               impl_->keeper.get(), impl_->chat_template.get()},
                              request);
}

Keeper& Runtime::keeper() { return *impl_->keeper; }
SegmentStore& Runtime::segments() { return *impl_->segments; }
Stitcher& Runtime::stitcher() { return *impl_->stitcher; }
Engine& Runtime::engine() { return *impl_->engine; }
Database& Runtime::database() { return *impl_->db; }
void Runtime::SyncPages() {
  // A page that is not written is computed again.
  if (impl_->writer != nullptr) impl_->writer->Flush().IgnoreError();
}
FilePageStore* Runtime::page_store() { return impl_->file_store; }
const std::string& Runtime::data_path() const { return impl_->folder->path(); }

void Runtime::Shutdown(int grace_ms) {
  impl_->closing = true;
  if (impl_->closed.exchange(true)) return;
  impl_->streams.WaitForNone(grace_ms);
  impl_->engine->Shutdown();  // what still runs ends as cancelled
  impl_->streams.WaitForNone(kCloseMs);
  impl_->keeper->Shutdown();
  SyncPages();
}

Runtime::Stats Runtime::stats() {
  Stats s;
  s.engine = impl_->engine->stats();
  if (impl_->store != nullptr) s.store = impl_->store->stats();
  if (impl_->writer != nullptr) s.writer = impl_->writer->stats();
  s.database = impl_->db->stats();
  s.keeper = impl_->keeper->stats();
  s.segments = impl_->segments->stats();
  if (impl_->writer != nullptr) s.writer = impl_->writer->stats();
  return s;
}

}  // namespace holdfast
