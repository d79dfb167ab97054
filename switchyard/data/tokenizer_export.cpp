#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>

#include "switchyard/core/files.hpp"
#include "switchyard/data/tokenizer.hpp"
#include "switchyard/data/tokenizer_impl.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

bool is_learned(const sentencepiece::SentencePieceProcessor& processor, int id) {
  return id != kNewlinePiece && !processor.IsByte(id) && !processor.IsControl(id) && !processor.IsUnknown(id) &&
         !processor.IsUnused(id);
}

// SentencePiece merges the two neighbours whose union is the best piece; tokenizers wants the pairs in order of preference.
// So every way to split a piece into two pieces is a merge, ranked by the piece's score.
Json merges_of(const sentencepiece::SentencePieceProcessor& processor) {
  std::unordered_map<std::string, int> ids;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    if (is_learned(processor, id)) ids.emplace(processor.IdToPiece(id), id);
  }
  struct Merge {
    float score;
    int left, right;
  };
  std::vector<Merge> merges;
  for (const auto& [piece, id] : ids) {
    for (size_t at = 0; at < piece.size();) {
      (void)next_code_point(piece, at);
      const auto left = ids.find(piece.substr(0, at));
      const auto right = ids.find(piece.substr(at));
      if (at < piece.size() && left != ids.end() && right != ids.end()) {
        merges.push_back({processor.GetScore(id), left->second, right->second});
      }
    }
  }
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(b.score, a.left, a.right) < std::tie(a.score, b.left, b.right);
  });
  Json json = Json::array();
  for (const Merge& merge : merges) json.push_back({processor.IdToPiece(merge.left), processor.IdToPiece(merge.right)});
  return json;
}

Json replace_step(std::string_view from, std::string_view to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

enum class Special { No, Yes };

Json added_token(int64_t id, std::string_view content, Special special) {
  return {{"id", id},
          {"content", content},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", special == Special::Yes}};
}

std::string tokenizer_config_json(const Tokenizer& tokenizer) {
  // split_special_tokens: "</s>" in a text is text, not the end of a document.
  const Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                     {"bos_token", tokenizer.piece(kBeginPiece)},
                     {"eos_token", tokenizer.piece(kEndPiece)},
                     {"unk_token", tokenizer.piece(kUnknownPiece)},
                     {"split_special_tokens", true},
                     {"clean_up_tokenization_spaces", false},
                     {"add_prefix_space", false},
                     {"model_max_length", 1'000'000'000'000'000}};
  return json.dump(2) + "\n";
}

}  // namespace

std::string tokenizer_json(const Tokenizer& tokenizer) {
  const sentencepiece::SentencePieceProcessor& processor = tokenizer.impl_->processor;
  Json vocabulary = Json::object();
  for (int id = 0; id < processor.GetPieceSize(); ++id) vocabulary[processor.IdToPiece(id)] = id;
  const Json added = {added_token(kUnknownPiece, tokenizer.piece(kUnknownPiece), Special::Yes),
                      added_token(kBeginPiece, tokenizer.piece(kBeginPiece), Special::Yes),
                      added_token(kEndPiece, tokenizer.piece(kEndPiece), Special::Yes),
                      added_token(kNewlinePiece, "\n", Special::No)};
  const Json normalizer = {
      {"type", "Sequence"},
      {"normalizers",
       {replace_step(kEscape, kEscapedEscape), replace_step(kSpaceMark, kEscapedSpaceMark), replace_step(" ", kSpaceMark)}}};
  const Json decoder = {{"type", "Sequence"},
                        {"decoders",
                         {replace_step(kSpaceMark, " "), Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}},
                          replace_step(kEscapedSpaceMark, kSpaceMark), replace_step(kEscapedEscape, kEscape)}}};
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", tokenizer.piece(kUnknownPiece)},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", true},
                      {"ignore_merges", false},
                      {"vocab", vocabulary},
                      {"merges", merges_of(processor)}};
  const Json json = {{"version", "1.0"},          {"truncation", nullptr},    {"padding", nullptr},
                     {"added_tokens", added},     {"normalizer", normalizer}, {"pre_tokenizer", nullptr},
                     {"post_processor", nullptr}, {"decoder", decoder},       {"model", model}};
  return json.dump(1) + "\n";
}

void export_tokenizer_for_transformers(const std::filesystem::path& model_path, const std::filesystem::path& out_dir) {
  const Tokenizer tokenizer(model_path);
  write_file_atomically(out_dir / "tokenizer.json", tokenizer_json(tokenizer));
  write_file_atomically(out_dir / "tokenizer_config.json", tokenizer_config_json(tokenizer));
}

}  // namespace switchyard
