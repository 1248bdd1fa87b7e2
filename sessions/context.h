// Context: what decides the tokens of a prompt beside its messages: model, tokenizer, template, its
// arguments, and the tools. Rows of table `context` keep the last two as they were rendered.
//
// Clients send the same tools in another order, or write them otherwise. So histories are told
// apart by the tools as a set, and what is rendered is the text that the session has for that set:
// the tokens before all messages, and their KV, stay.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "sessions/keeper_impl.h"

namespace holdfast {

struct PromptContext {
  std::string tools, kwargs;  // JSON as it is rendered, or ""
  Digest digest;              // over exactly these, model and template
  Digest lineage;             // the same over the tools as a set: names histories
};
// kInvalid: the tools are no array.
Result<PromptContext> MakeContext(const Keeper::Impl& keeper, std::string tools,
                                  std::string kwargs);

struct TurnContext {
  std::string tools, kwargs;  // JSON, or ""
};
Status InsertContext(Txn& txn, int64_t sid, const Digest& digest, const TurnContext& context);
// nullopt: it was not recorded.
Result<std::optional<TurnContext>> LoadContext(Reader& reader, int64_t sid, const Digest& digest);

// The `lineage` of a recorded context; its `digest` where that can't be told.
Result<Digest> LineageContext(Reader& reader, const Keeper::Impl& keeper, int64_t sid,
                              const Digest& digest);

// Takes the tools of a branch's head among these where they are the same set as the context's.
Status TakeRecordedTools(Reader& reader, const Keeper::Impl& keeper, const SessionTree& tree,
                         std::span<const BranchRow* const> branches, PromptContext* context);

// Why the context is not the recorded one: model, the first tool by name that differs, arguments.
Miss ContextMiss(const std::optional<TurnContext>& recorded, const PromptContext& now);

}  // namespace holdfast
