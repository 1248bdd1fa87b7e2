// ChatTemplate, Constraint and ConstraintFactory over ffi.h.
#include <cstring>
#include <future>

#include "engine/text/bridge.h"
#include "engine/text/tool_list.h"

namespace holdfast {

struct ChatTemplate::Impl {
  TemplateHandle handle;
  Digest digest;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(const ChatTemplateSpec& spec) {
  std::vector<HfSlice> specials = AsSlices(spec.special_texts);
  HfTemplate* handle = nullptr;
  ForeignBytes err;
  int32_t code = hf_template_new(AsSlice(spec.source), AsSlice(spec.bos_text),
                                 AsSlice(spec.eos_text), specials.data(), specials.size(), &handle,
                                 err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  auto impl = std::make_unique<Impl>();
  impl->handle.reset(handle);
  impl->digest =
      Hasher("chat-template-1").Text(spec.source).Text(spec.bos_text).Text(spec.eos_text).Finish();
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
}

Result<Rendered> ChatTemplate::Render(const RenderArgs& args) const {
  HfRenderArgs foreign{AsSlice(args.messages_json), AsSlice(args.tools_json),
                       AsSlice(args.extra_json), args.generation_prompt == GenerationPrompt::kAdd,
                       args.now_unix_s};
  ForeignBytes text, plain, err;
  int32_t code =
      hf_template_render(impl_->handle.get(), &foreign, text.out(), plain.out(), err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  Rendered rendered{text.text(), {}};
  for (const HfRange& range : plain.values<HfRange>()) {
    rendered.plain.push_back({range.begin, range.end});
  }
  return rendered;
}

Result<std::vector<CanonicalTool>> CanonicalTools(std::string_view tools_json) {
  std::vector<CanonicalTool> tools;
  if (tools_json.empty()) return tools;
  ForeignBytes lines, err;
  HOLDFAST_RETURN_IF_ERROR(
      AsStatus(hf_tools_canonical(AsSlice(tools_json), lines.out(), err.out()), err));
  const std::string text = lines.text();
  for (size_t at = 0; at < text.size();) {
    const size_t tab = text.find('\t', at), end = text.find('\n', tab);
    tools.push_back({text.substr(at, tab - at), text.substr(tab + 1, end - tab - 1)});
    at = end + 1;
  }
  return tools;
}

const Digest& ChatTemplate::digest() const { return impl_->digest; }

struct Constraint::Impl {
  ConstraintHandle handle;
  uint32_t complete = 0, finished = 0;  // as of the last Refresh

  Status Refresh() {
    ForeignBytes err;
    int32_t code = hf_constraint_state(handle.get(), &complete, &finished, err.out());
    return AsStatus(code, err);
  }
};

Constraint::Constraint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Constraint::~Constraint() = default;

Status Constraint::FillMask(std::span<uint32_t> bits) {
  if (bits.empty()) return Status::Invalid("constraint: the mask has a wrong length");
  ForeignBytes err;
  int32_t code = hf_constraint_mask(impl_->handle.get(), bits.data(), bits.size(), err.out());
  return AsStatus(code, err);
}

Status Constraint::Accept(TokenId id) {
  ForeignBytes err;
  int32_t code = hf_constraint_accept(impl_->handle.get(), static_cast<uint32_t>(id), err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  return impl_->Refresh();
}

bool Constraint::IsComplete() const { return impl_->complete != 0; }
bool Constraint::IsFinished() const { return impl_->finished != 0; }

std::vector<TokenId> Constraint::Forced() {
  ForeignBytes ids, err;
  if (hf_constraint_forced(impl_->handle.get(), ids.out(), err.out()) != 0) return {};
  return ids.values<TokenId>();
}

Result<std::unique_ptr<Constraint>> Constraint::Clone() const {
  HfConstraint* handle = nullptr;
  ForeignBytes err;
  int32_t code = hf_constraint_clone(impl_->handle.get(), &handle, err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  auto impl = std::make_unique<Impl>();
  impl->handle.reset(handle);
  impl->complete = impl_->complete;
  impl->finished = impl_->finished;
  return std::unique_ptr<Constraint>(new Constraint(std::move(impl)));
}

struct ConstraintFactory::Impl {
  std::shared_future<Result<FactoryHandle>> made;

  static Result<FactoryHandle> Make(const Tokenizer::Impl& vocabulary) {
    std::vector<std::string> words = vocabulary.texts;
    for (size_t i = 0; i < words.size(); ++i) {
      TokenType type = vocabulary.types[i];
      bool byte = type == TokenType::kByte && words[i].size() == 1;
      bool text = type == TokenType::kNormal || type == TokenType::kUserDefined || byte;
      if (!text) words[i].insert(0, 1, '\xff');
    }
    std::vector<uint32_t> ends(vocabulary.ends.begin(), vocabulary.ends.end());
    std::vector<HfSlice> slices = AsSlices(words);
    HfFactory* handle = nullptr;
    ForeignBytes err;
    int32_t code = hf_factory_new(vocabulary.handle.get(), slices.data(), slices.size(),
                                  ends.data(), ends.size(), &handle, err.out());
    HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
    return FactoryHandle(handle);
  }

  Result<CompiledConstraint> Compile(const HfGrammar& grammar) const {
    const Result<FactoryHandle>& handle = made.get();
    HOLDFAST_RETURN_IF_ERROR(handle.status());
    HfConstraint* raw = nullptr;
    ForeignBytes warning, err;
    int32_t code = hf_factory_compile(handle->get(), &grammar, &raw, warning.out(), err.out());
    HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
    auto impl = std::make_unique<Constraint::Impl>();
    impl->handle.reset(raw);
    HOLDFAST_RETURN_IF_ERROR(impl->Refresh());
    return CompiledConstraint{std::unique_ptr<Constraint>(new Constraint(std::move(impl))),
                              warning.text()};
  }
};

ConstraintFactory::ConstraintFactory(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ConstraintFactory::~ConstraintFactory() = default;

std::unique_ptr<ConstraintFactory> ConstraintFactory::Create(const Tokenizer& tokenizer) {
  auto impl = std::make_unique<Impl>();
  const Tokenizer::Impl& vocabulary = *tokenizer.impl_;
  impl->made = std::async(std::launch::async, [&vocabulary] { return Impl::Make(vocabulary); });
  return std::unique_ptr<ConstraintFactory>(new ConstraintFactory(std::move(impl)));
}

namespace {

enum GrammarKind : uint32_t { kSchema = 0, kObject = 1, kRegex = 2, kToolCall = 3 };

}  // namespace

Result<CompiledConstraint> ConstraintFactory::CompileJsonSchema(std::string_view schema_json,
                                                                SchemaMode mode) const {
  HfGrammar grammar{};
  grammar.kind = kSchema;
  grammar.relaxed = mode == SchemaMode::kRelaxed;
  grammar.text = AsSlice(schema_json);
  return impl_->Compile(grammar);
}

Result<CompiledConstraint> ConstraintFactory::CompileJsonObject() const {
  HfGrammar grammar{};
  grammar.kind = kObject;
  return impl_->Compile(grammar);
}

Result<CompiledConstraint> ConstraintFactory::CompileRegex(std::string_view regex) const {
  HfGrammar grammar{};
  grammar.kind = kRegex;
  grammar.text = AsSlice(regex);
  return impl_->Compile(grammar);
}

Result<CompiledConstraint> ConstraintFactory::CompileToolCall(const ToolCallSpec& spec,
                                                              SchemaMode mode) const {
  std::vector<HfTool> tools;
  for (const Tool& tool : spec.tools) {
    if (!spec.only.empty() && tool.name != spec.only) continue;
    tools.push_back({AsSlice(tool.name), AsSlice(tool.parameters_json)});
  }
  if (tools.empty()) {
    return Status::Invalid(spec.only.empty() ? "tools: none given"
                                             : "tools: no tool is named '" + spec.only + "'");
  }
  HfGrammar grammar{};
  grammar.kind = kToolCall;
  grammar.relaxed = mode == SchemaMode::kRelaxed;
  grammar.many = spec.parallel == ParallelCalls::kMany;
  grammar.prefix = AsSlice(spec.prefix);
  grammar.suffix = AsSlice(spec.suffix);
  grammar.tools = tools.data();
  grammar.tools_len = tools.size();
  return impl_->Compile(grammar);
}

}  // namespace holdfast
