// Import, in two passes over the file. The first believes nothing: it checks frame, checksums, rows
// (log_check.h) and the signature, and changes nothing. The second writes the rows in small
// transactions, so that turns never wait for it, under a session that is expired from birth
// (expires_ms = 0): nobody finds it, a start after a crash removes it, and until then its head is
// held, so that no sweep does. The last transaction gives it its id, its default branch and its
// life: all or nothing.
#include <algorithm>
#include <utility>

#include "engine/kv/page_store.h"
#include "sessions/bundle.h"
#include "sessions/bundle_file.h"
#include "sessions/bundle_rows.h"
#include "sessions/keeper_impl.h"
#include "sessions/log_check.h"
#include "sessions/recording.h"

namespace holdfast {
namespace {

constexpr size_t kBatchRows = 64;            // of one transaction
constexpr size_t kBatchBytes = 1 << 20;
constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxMetaBytes = 16384;
constexpr size_t kMaxPageGroups = 64;

Status Corrupt(const BundleReader& in, const std::string& what) {
  return Status::Corrupt("bundle: " + in.Where() + ": " + what);
}

// Sections come in the order of their kinds, items and recipes after their nodes.
int RankOf(BundleSection kind) {
  if (kind == BundleSection::kItem || kind == BundleSection::kRecipe) {
    return static_cast<int>(BundleSection::kNode);
  }
  return static_cast<int>(kind);
}

bool IsId(std::string_view id, std::string_view prefix) {
  return id.starts_with(prefix) && id.size() > prefix.size() && id.size() <= 64 &&
         std::all_of(id.begin() + prefix.size(), id.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
         });
}

// Which page of the bundle a section is: its parent's number (0 = the root), tokens, payload.
struct PageSection {
  int64_t parent = 0;
  std::vector<TokenId> tokens;
  std::span<const std::byte> payload;
};

Result<PageSection> DecodePage(const BundleReader& in, int64_t before, uint64_t payload_bytes) {
  constexpr size_t kTokenBytes = kPageTokens * sizeof(TokenId);
  const std::span<const std::byte> bytes = in.payload();
  if (bytes.size() != sizeof(int64_t) + kTokenBytes + payload_bytes) {
    return Corrupt(in, "a page of another length");
  }
  PageSection page;
  std::memcpy(&page.parent, bytes.data(), sizeof(page.parent));
  page.tokens.resize(kPageTokens);
  std::memcpy(page.tokens.data(), bytes.data() + sizeof(page.parent), kTokenBytes);
  page.payload = bytes.subspan(sizeof(page.parent) + kTokenBytes);
  if (page.parent < 0 || page.parent > before) return Corrupt(in, "a page before its parent");
  if (std::any_of(page.tokens.begin(), page.tokens.end(), [](TokenId t) { return t < 0; })) {
    return Corrupt(in, "a negative token");
  }
  return page;
}

class BundleImport {
 public:
  BundleImport(Keeper::Impl& keeper, std::string_view tenant, File* file, uint64_t size,
         const ImportOptions& options)
      : k_(keeper), tenant_(tenant), file_(file), size_(size), options_(options) {}

  Result<ImportReport> Run();
  const std::string& id() const { return id_; }  // the session's, here
  bool is_foreign() const { return session_.head_model != k_.options.model_digest; }

 private:
  Status ReadFirst(BundleReader& in);
  Status Check();
  Status CheckSession(const BundleReader& in) const;
  Status CheckRow(const BundleReader& in, LogCheck& log);
  Status ChooseIds();
  Status Apply();
  Status Stage();
  Status AddSection(BundleReader& in);
  template <typename Row>
  Status AddRow(BundleReader& in, std::vector<std::pair<const char*, SqlValue>> extra);
  Status Flush();
  Status AddBasis(BundleReader& in);
  Status AddRecipe(BundleReader& in);
  Status AddPage(BundleReader& in);
  void RenameIds(std::string* id) const;
  template <typename Row>
  Status InsertNumbered(Txn& txn, Row& row, ExtraColumns extra);
  Status Publish();
  void Discard();
  std::string WhyNoPages() const;

  Keeper::Impl& k_;
  const std::string tenant_;
  File* const file_;
  const uint64_t size_;
  const ImportOptions& options_;

  BundleSession session_;
  uint64_t page_bytes_ = 0;
  ImportReport report_;
  bool take_pages_ = false;

  std::string id_, external_id_;
  bool same_ids_ = false;
  int64_t sid_ = 0, first_branch_ = 0, branches_ = 0;
  HeadLeases::Lease lease_;
  std::vector<int64_t> node_ids_, basis_ids_;  // by number, less one
  std::vector<std::function<Status(Txn&)>> batch_;
  size_t batch_bytes_ = 0;
  std::vector<PageKey> page_keys_;  // by number; 0 = the root
};

Status BundleImport::ReadFirst(BundleReader& in) {
  HOLDFAST_RETURN_IF_ERROR(in.Begin());
  HOLDFAST_ASSIGN_OR_RETURN(const bool any, in.Next());
  if (!any || in.kind() != BundleSection::kSession) {
    return Status::Corrupt("bundle: it does not begin with a session");
  }
  HOLDFAST_ASSIGN_OR_RETURN(session_, DecodeRow<BundleSession>(in.payload()));
  return Status();
}

Status BundleImport::CheckSession(const BundleReader& in) const {
  if (session_.id.size() > kMaxIdBytes || session_.model.size() > kMaxIdBytes ||
      session_.external_id.value_or("").size() > kMaxIdBytes ||
      session_.external_id.value_or("").starts_with("sess_") ||
      session_.meta.size() > kMaxMetaBytes) {
    return Corrupt(in, "an id or a text that is too long");
  }
  if (session_.page_groups.empty() || session_.page_groups.size() > kMaxPageGroups ||
      std::any_of(session_.page_groups.begin(), session_.page_groups.end(),
                  [](uint64_t b) { return b == 0 || b > kMaxBundleSectionBytes; })) {
    return Corrupt(in, "page groups");
  }
  return Status();
}

Status BundleImport::CheckRow(const BundleReader& in, LogCheck& log) {
  const auto check = [&](auto row, auto method) -> Status {
    if (!row.ok()) return Corrupt(in, row.status().message());
    Status s = (log.*method)(*row);
    return s.ok() ? s : Corrupt(in, s.message());
  };
  switch (in.kind()) {
    case BundleSection::kBasis:
      return check(DecodeRow<BundleBasis>(in.payload()), &LogCheck::Basis);
    case BundleSection::kContext:
      return check(DecodeRow<BundleContext>(in.payload()), &LogCheck::Context);
    case BundleSection::kNode: return check(DecodeRow<BundleNode>(in.payload()), &LogCheck::Node);
    case BundleSection::kItem: return check(DecodeRow<BundleItem>(in.payload()), &LogCheck::Item);
    case BundleSection::kRecipe:
      ++report_.approximate_turns;
      return check(DecodeRow<BundleRecipe>(in.payload()), &LogCheck::Recipe);
    case BundleSection::kBranch: {
      const Result<BundleBranch> branch = DecodeRow<BundleBranch>(in.payload());
      HOLDFAST_RETURN_IF_ERROR(check(branch, &LogCheck::Branch));
      const Status named = CheckBranchName("a branch's name", branch->name);
      return named.ok() ? named : Corrupt(in, named.message());
    }
    case BundleSection::kTurn: {
      Result<BundleTurn> turn = DecodeRow<BundleTurn>(in.payload());
      if (turn.ok() && turn->status < static_cast<int64_t>(TurnStatus::kCommitted)) {
        return Corrupt(in, "a turn that has not ended");
      }
      return check(std::move(turn), &LogCheck::Turn);
    }
    case BundleSection::kSnapshot:
      return check(DecodeRow<BundleSnapshot>(in.payload()), &LogCheck::Snapshot);
    case BundleSection::kEvent:
      return check(DecodeRow<BundleEvent>(in.payload()), &LogCheck::Event);
    case BundleSection::kPage:
      ++report_.pages;
      return DecodePage(in, report_.pages - 1, page_bytes_).status();
    case BundleSection::kSession:
    case BundleSection::kEnd: break;
  }
  return Corrupt(in, "a second session");
}

// The first pass.
Status BundleImport::Check() {
  BundleReader in(file_, size_, options_.key);
  HOLDFAST_RETURN_IF_ERROR(ReadFirst(in));
  HOLDFAST_RETURN_IF_ERROR(CheckSession(in));
  for (const uint64_t bytes : session_.page_groups) page_bytes_ += bytes;
  LogCheck log(k_.options.model_digest,
               static_cast<int64_t>(k_.options.tokenizer->vocab_size()));
  int rank = 0;
  while (true) {
    HOLDFAST_ASSIGN_OR_RETURN(const bool more, in.Next());
    if (!more) break;
    if (RankOf(in.kind()) < rank) return Corrupt(in, "sections in another order");
    rank = RankOf(in.kind());
    HOLDFAST_RETURN_IF_ERROR(CheckRow(in, log));
  }
  Status whole = log.Finish(session_);
  if (!whole.ok()) return Corrupt(in, whole.message());
  report_.is_signed = in.is_signed();
  report_.authentic = in.authentic();
  report_.pages_left_why = WhyNoPages();
  take_pages_ = report_.pages > 0 && report_.pages_left_why.empty();
  return Status();
}

std::string BundleImport::WhyNoPages() const {
  if (report_.pages == 0) return "";
  if (!report_.is_signed) return "the bundle is not signed";
  if (options_.key.empty()) return "no key was given";
  if (!report_.authentic) return "the signature is not of this key";
  if (k_.options.store == nullptr) return "there is no page store";
  std::vector<uint64_t> groups;
  for (const LayerGroup& g : k_.options.pool->groups()) groups.push_back(g.PayloadBytes());
  if (session_.fp != k_.options.fp || session_.page_groups != groups) {
    return "they are of another model, KV type or version of the numerics (" +
           std::to_string(session_.numerics) + ")";
  }
  return "";
}

// Ids stay where they are free; else the session and all in it get new ones.
Status BundleImport::ChooseIds() {
  report_.bundle_id = session_.id;
  external_id_ = options_.as.empty() ? session_.external_id.value_or("") : options_.as;
  bool id_free = IsId(session_.id, "sess_");
  HOLDFAST_RETURN_IF_ERROR(k_.options.db->Read([&](Reader& reader) {
    if (!external_id_.empty() &&
        FindSession(reader, {tenant_, external_id_, k_.NowMs()}).ok()) {
      return Status::Conflict("session '" + external_id_ +
                              "' is there already; import under another id (--as ID)");
    }
    Rows rows = reader.Query("SELECT 1 FROM session WHERE id = ?", session_.id);
    if (rows.Next()) id_free = false;
    return rows.status();
  }));
  same_ids_ = id_free;
  id_ = same_ids_ ? session_.id : k_.NewId("sess_");
  return Status();
}

// Gives a turn or a snapshot the id that goes with a session's new id.
void BundleImport::RenameIds(std::string* id) const {
  for (const std::string_view prefix : {"turn_", "snap_"}) {
    if (same_ids_ || !id->starts_with(prefix)) continue;
    const Digest d = Hasher("import-id-1").Text(id_).Text(*id).Finish();
    *id = std::string(prefix) + d.Hex().substr(0, 24);
  }
}

// A session that nobody finds, with its head held.
Status BundleImport::Stage() {
  sid_ = k_.next_sid++;
  first_branch_ = k_.next_branch.fetch_add(session_.branches);
  std::optional<HeadLeases::Lease> lease = k_.leases.TryTake(sid_, first_branch_);
  if (!lease) return Status::Unavailable("shutting down");
  lease_ = std::move(*lease);
  BundleSession row = session_;
  row.id = id_;
  row.external_id.reset();
  row.anonymous = 0;
  return k_.options.db->Write(
      [&](Txn& txn) -> Status {
        const std::pair<const char*, SqlValue> extra[] = {
            {"sid", sid_}, {"tenant", tenant_}, {"expires_ms", 0}};
        return InsertRow(txn, row, extra);
      },
      WriteClass::kBackground);
}

Status BundleImport::Flush() {
  if (batch_.empty()) return Status();
  std::vector<std::function<Status(Txn&)>> batch;
  batch.swap(batch_);
  batch_bytes_ = 0;
  return k_.options.db->Write(
      [&](Txn& txn) -> Status {
        for (const auto& add : batch) HOLDFAST_RETURN_IF_ERROR(add(txn));
        return Status();
      },
      WriteClass::kBackground);
}

template <typename Row>
Status BundleImport::InsertNumbered(Txn& txn, Row& row, ExtraColumns extra) {
  MapRefs(row, [&](auto& ref) {
    using Ref = std::remove_cvref_t<decltype(ref)>;
    if (ref.n == 0) return;
    if constexpr (std::same_as<Ref, NodeRef>) ref.n = node_ids_[ref.n - 1];
    if constexpr (std::same_as<Ref, BranchRef>) ref.n = first_branch_ + ref.n - 1;
    if constexpr (std::same_as<Ref, BasisRef>) ref.n = basis_ids_[ref.n - 1];
  });
  return InsertRow(txn, row, extra);
}

template <typename Row>
Status BundleImport::AddRow(BundleReader& in,
                            std::vector<std::pair<const char*, SqlValue>> extra) {
  HOLDFAST_ASSIGN_OR_RETURN(Row decoded, DecodeRow<Row>(in.payload()));
  if constexpr (requires { decoded.turn; }) RenameIds(&decoded.turn);
  if constexpr (requires { decoded.detail; }) RenameIds(&decoded.detail);
  if constexpr (requires { decoded.id; }) RenameIds(&decoded.id);
  batch_.push_back([this, row = std::move(decoded),
                    extra = std::move(extra)](Txn& txn) mutable -> Status {
    if constexpr (std::same_as<Row, BundleItem>) extra.emplace_back("node", node_ids_.back());
    HOLDFAST_RETURN_IF_ERROR(InsertNumbered(txn, row, extra));
    if constexpr (std::same_as<Row, BundleNode>) node_ids_.push_back(txn.last_insert_id());
    return Status();
  });
  batch_bytes_ += in.payload().size();
  return batch_.size() < kBatchRows && batch_bytes_ < kBatchBytes ? Status() : Flush();
}

// One that this database has already is that one: bases are known by their digests.
Status BundleImport::AddBasis(BundleReader& in) {
  HOLDFAST_ASSIGN_OR_RETURN(const BundleBasis row, DecodeRow<BundleBasis>(in.payload()));
  return k_.options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const int64_t id, InsertBasis(txn, BasisOf(row)));
        basis_ids_.push_back(id);
        return Status();
      },
      WriteClass::kBackground);
}

Status BundleImport::AddSection(BundleReader& in) {
  switch (in.kind()) {
    case BundleSection::kBasis: return AddBasis(in);
    case BundleSection::kContext: return AddRow<BundleContext>(in, {{"sid", sid_}});
    case BundleSection::kNode: return AddRow<BundleNode>(in, {{"sid", sid_}});
    case BundleSection::kItem: return AddRow<BundleItem>(in, {});
    case BundleSection::kRecipe: return AddRecipe(in);
    case BundleSection::kBranch:
      return AddRow<BundleBranch>(in, {{"sid", sid_}, {"id", first_branch_ + branches_++}});
    case BundleSection::kTurn:
      return AddRow<BundleTurn>(
          in, {{"sid", sid_}, {"tenant", tenant_}, {"response", std::span<const std::byte>()}});
    case BundleSection::kSnapshot: return AddRow<BundleSnapshot>(in, {{"sid", sid_}});
    case BundleSection::kEvent: return AddRow<BundleEvent>(in, {{"sid", sid_}});
    case BundleSection::kPage: return take_pages_ ? AddPage(in) : Status();
    case BundleSection::kSession:
    case BundleSection::kEnd: break;
  }
  return Status();
}

// The node's answer rested on KV that is not here and stays so: it counts as hardened.
Status BundleImport::AddRecipe(BundleReader& in) {
  HOLDFAST_ASSIGN_OR_RETURN(const BundleRecipe row, DecodeRow<BundleRecipe>(in.payload()));
  Recipe recipe;
  recipe.reuse.policy = static_cast<ReusePolicy>(row.policy);
  recipe.hardened = true;
  batch_.push_back([this, recipe = std::move(recipe)](Txn& txn) {
    return PutRecipe(txn, node_ids_.back(), recipe);
  });
  return Status();
}

Status BundleImport::AddPage(BundleReader& in) {
  const auto before = static_cast<int64_t>(page_keys_.size()) - 1;
  HOLDFAST_ASSIGN_OR_RETURN(PageSection page, DecodePage(in, before, page_bytes_));
  PageHeader header;
  header.fp = session_.fp;
  header.parent = page_keys_[page.parent];
  header.key = NextKey(header.parent, page.tokens, Digest{});
  header.tokens = std::move(page.tokens);
  page_keys_.push_back(header.key);
  std::vector<std::span<const std::byte>> parts;
  for (const uint64_t bytes : session_.page_groups) {
    parts.push_back(page.payload.first(bytes));
    page.payload = page.payload.subspan(bytes);
  }
  const Status put = k_.options.store->Put(header, parts);
  if (put.ok()) {
    ++report_.pages_taken;
  } else {  // it is computed again
    report_.pages_left_why = put.message();
  }
  return Status();
}

Status BundleImport::Publish() {
  const int64_t now = k_.NowMs();
  const SqlValue expires = session_.ttl_s > 0 ? SqlValue(now + session_.ttl_s * 1000) : SqlValue();
  const SqlValue external = external_id_.empty() ? SqlValue() : SqlValue(external_id_);
  Status s = k_.options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(k_.quotas.CheckNewSession(txn, tenant_, now));
        HOLDFAST_RETURN_IF_ERROR(txn.Run(
            "UPDATE session SET external_id = ?, anonymous = ?, default_branch = ?, "
            "expires_ms = ? WHERE sid = ?",
            external, options_.as.empty() ? session_.anonymous : 0,
            first_branch_ + session_.default_branch.n - 1, expires, sid_));
        return InsertEvent(txn, {sid_, now, "session_imported", "", "", report_.bundle_id});
      },
      WriteClass::kTurn);
  if (s.code() == Code::kConflict) {
    return Status::Conflict("session '" + external_id_ +
                            "' is there already; import under another id (--as ID)");
  }
  return s;
}

// Where this fails too, the next start does it.
void BundleImport::Discard() {
  k_.options.db
      ->Write([&](Txn& txn) { return txn.Run("DELETE FROM session WHERE sid = ?", sid_); },
              WriteClass::kBackground)
      .IgnoreError();
}

Status BundleImport::Apply() {
  HOLDFAST_RETURN_IF_ERROR(Stage());
  BundleReader in(file_, size_, "");
  Status s = ReadFirst(in);
  page_keys_.push_back(RootKey(session_.fp, TenantScope(tenant_), Digest{}));
  while (s.ok()) {
    Result<bool> more = in.Next();
    s = more.status();
    if (!s.ok() || !*more) break;
    s = k_.shut ? Status::Unavailable("shutting down") : AddSection(in);
  }
  if (s.ok()) s = Flush();
  if (s.ok() && report_.pages_taken > 0) {
    if (const Status sync = k_.options.store->Sync(); !sync.ok()) {
      report_.pages_left_why = sync.message();
    }
  }
  if (s.ok()) s = Publish();
  if (!s.ok()) Discard();
  return s;
}

Result<ImportReport> BundleImport::Run() {
  HOLDFAST_RETURN_IF_ERROR(Check());
  HOLDFAST_RETURN_IF_ERROR(ChooseIds());
  Status applied = Apply();
  lease_.Release();
  HOLDFAST_RETURN_IF_ERROR(std::move(applied));
  ++k_.sessions;
  return std::move(report_);
}

}  // namespace

Result<ImportReport> Keeper::Import(std::string_view tenant, File* file, uint64_t size,
                                    const ImportOptions& options) {
  HOLDFAST_RETURN_IF_ERROR(CheckBundleKey(options.key));
  if (options.as.starts_with("sess_") || options.as.size() > kMaxIdBytes) {
    return Status::Invalid("as: an id of your own of at most 256 bytes that does not begin with "
                           "'sess_'");
  }
  if (impl_->shut) return Status::Unavailable("shutting down");
  if (impl_->options.db->degraded()) {
    return Status::Exhausted("store_degraded: nothing durable can be taken: " +
                             impl_->options.db->degraded_reason());
  }
  HOLDFAST_RETURN_IF_ERROR(impl_->CheckNewSession(tenant));
  HOLDFAST_RETURN_IF_ERROR(impl_->quotas.CheckDisk(tenant, impl_->options.pool->page_bytes()));
  BundleImport import(*impl_, tenant, file, size, options);
  HOLDFAST_ASSIGN_OR_RETURN(ImportReport report, import.Run());
  HOLDFAST_ASSIGN_OR_RETURN(report.session, Get(tenant, import.id()));
  if (!import.is_foreign() || report.session.items == 0) return report;
  MakeBranch anew;
  anew.default_branch = MakeBranch::Default::kMove;
  anew.tokens = MakeBranch::Tokens::kThisModel;
  const Result<BranchInfo> made = Branch(tenant, import.id(), anew);
  if (!made.ok()) {  // this model's template refuses its messages: all of it or nothing
    Delete(tenant, import.id()).IgnoreError();
    return made.status();
  }
  Miss& miss = report.miss.emplace();
  miss.reason = "model_changed";
  miss.field = "model";
  miss.at_token = made->parent_tokens;
  HOLDFAST_ASSIGN_OR_RETURN(report.session, Get(tenant, import.id()));
  return report;
}

}  // namespace holdfast
