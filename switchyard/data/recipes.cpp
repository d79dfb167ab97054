#include "switchyard/data/recipes.hpp"

#include <map>
#include <unordered_set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/compression.hpp"
#include "switchyard/data/html.hpp"
#include "switchyard/data/recipe_text.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

std::string file_text(PackageFile file) { return utf8_or_latin1(gunzip_if_gzip(std::move(file.bytes))); }

// Files below `folder` (with its closing slash) that end in `ending`; hidden files and folders are passed over.
FileFilter below(std::string folder, std::string ending) {
  return [folder = std::move(folder), ending = std::move(ending)](std::string_view path) {
    return path.starts_with(folder) && path.ends_with(ending) && path.find("/.") == kNotFound;
  };
}

void add_files(const PackageReader& read, std::string_view package, const FileFilter& wanted, DocumentSink& sink) {
  for (PackageFile& file : read(package, wanted)) {
    if (sink.full()) return;
    sink.add(file_text(std::move(file)));
  }
}

using Paragraphs = std::vector<std::string>;

std::vector<Paragraphs> help_pages(const PackageReader& read, const std::string& package) {
  // usr/share/libreoffice/help/<language>/text/...
  const FileFilter wanted = [](std::string_view path) {
    constexpr std::string_view kFolder = "usr/share/libreoffice/help/";
    if (!path.starts_with(kFolder) || !path.ends_with(".html")) return false;
    path.remove_prefix(kFolder.size());
    const size_t slash = path.find('/');
    return slash != kNotFound && path.substr(slash).starts_with("/text/");
  };
  std::vector<Paragraphs> pages;
  for (PackageFile& file : read(package, wanted)) pages.push_back(help_paragraphs(file_text(std::move(file))));
  return pages;
}

using Keep = std::string (*)(std::string_view text);

std::string keep_all(std::string_view text) { return std::string(text); }

// The help of LibreOffice: each paragraph once, without what is still English.
void add_help(const PackageReader& read, const std::string& language, Keep keep, DocumentSink& sink) {
  std::unordered_set<std::string> seen;
  for (Paragraphs& page : help_pages(read, "libreoffice-help-en-us")) seen.insert(page.begin(), page.end());
  for (const Paragraphs& page : help_pages(read, "libreoffice-help-" + language)) {
    std::string document;
    for (const std::string& paragraph : page) {
      if (seen.insert(paragraph).second) document += (document.empty() ? "" : "\n") + paragraph;
    }
    if (sink.full()) return;
    sink.add(keep(document));
  }
}

void add_manual_pages(const PackageReader& read, const std::string& language, Keep keep, DocumentSink& sink) {
  for (const std::string& package : {"manpages-" + language, "manpages-" + language + "-dev"}) {
    for (PackageFile& file : read(package, below("usr/share/man/", ".gz"))) {
      if (sink.full()) return;
      sink.add(keep(man_to_text(file_text(std::move(file)))));
    }
  }
}

void add_language(const PackageReader& read, const std::string& language, Keep keep, DocumentSink& sink) {
  add_help(read, language, keep, sink);
  add_manual_pages(read, language, keep, sink);
}

// A SWORD module: <base>ot.bzs, .bzz (Old Testament) and nt; commentaries by chapter use 'c' for 'b'.
void add_sword(const PackageReader& read, std::string_view package, const std::string& folder, char block_kind,
               DocumentSink& sink) {
  const std::string base = "usr/share/sword/modules/" + folder + "/";
  std::map<std::string, std::string> parts;
  for (PackageFile& file : read(package, below(base, ""))) parts[file.path] = std::move(file.bytes);
  for (const std::string testament : {"ot.", "nt."}) {
    const std::string stem = base + testament + block_kind + "z";
    if (!parts.contains(stem + "s") || !parts.contains(stem + "z")) continue;
    for (const std::string& document : sword_documents(parts[stem + "s"], parts[stem + "z"])) sink.add(document);
  }
}

void extract_chess(const PackageReader& read, DocumentSink& sink) {
  for (const std::string ending : {".olv", ".pgn"}) {
    for (PackageFile& file : read("pychess", below("usr/share/pychess/learn/", ending))) {
      for (const std::string& document : chess_documents(file_text(std::move(file)))) sink.add(document);
    }
  }
}

void extract_cpp(const PackageReader& read, DocumentSink& sink) {
  add_files(read, "libeigen3-dev", below("usr/include/eigen3/", ""), sink);
}

void extract_de(const PackageReader& read, DocumentSink& sink) { add_language(read, "de", keep_all, sink); }
void extract_fr(const PackageReader& read, DocumentSink& sink) { add_language(read, "fr", keep_all, sink); }
void extract_ja(const PackageReader& read, DocumentSink& sink) { add_language(read, "ja", keep_non_ascii_lines, sink); }
void extract_ru(const PackageReader& read, DocumentSink& sink) { add_language(read, "ru", keep_non_ascii_lines, sink); }
void extract_el(const PackageReader& read, DocumentSink& sink) { add_help(read, "el", keep_all, sink); }

void extract_dna(const PackageReader& read, DocumentSink& sink) {
  const FileFilter wanted = below("usr/share/microbiomeutil-data/", "/rRNA16S.gold.fasta");
  for (PackageFile& file : read("microbiomeutil-data", wanted)) {
    for (const std::string& sequence : fasta_sequences(file_text(std::move(file)))) sink.add(sequence);
  }
}

void extract_erlang(const PackageReader& read, DocumentSink& sink) {
  for (const std::string ending : {".erl", ".hrl"}) {
    for (PackageFile& file : read("erlang-src", below("", ending))) {
      const std::string text = file_text(std::move(file));
      const bool generated =
          text.find("yeccpars2") != kNotFound || text.find("Generated by the Erlang ASN.1") != kNotFound;
      if (!generated) sink.add(text);
    }
  }
}

void extract_essay_en(const PackageReader& read, DocumentSink& sink) {
  for (PackageFile& file : read("anarchism", below("usr/share/doc/anarchism/html/", ".html"))) {
    if (sink.full()) return;
    sink.add(html_to_text(file_text(std::move(file))));
  }
}

void extract_hol(const PackageReader& read, DocumentSink& sink) {
  for (const std::string ending : {".ml", ".hl"}) add_files(read, "hol-light", below("", ending), sink);
}

void extract_metamath(const PackageReader& read, DocumentSink& sink) {
  constexpr size_t kDocumentBytes = 65536;
  for (PackageFile& file : read("metamath-databases", below("usr/share/metamath/databases/", "/set.mm"))) {
    for (const std::string& piece : cut_at_blank_lines(file_text(std::move(file)), kDocumentBytes)) sink.add(piece);
  }
}

void extract_python(const PackageReader& read, DocumentSink& sink) {
  for (const std::string_view package : {"libpython3.*-minimal", "libpython3.*-stdlib", "libpython3.*-testsuite"}) {
    add_files(read, package, below("", ".py"), sink);
  }
}

void extract_scripture(const PackageReader& read, DocumentSink& sink) {
  add_sword(read, "sword-text-kjv", "texts/ztext/engKJV2006eb", 'b', sink);
  add_sword(read, "sword-text-web", "texts/ztext/engWEB2015eb", 'b', sink);
  add_sword(read, "sword-comm-mhcc", "comments/zcom/mhcc", 'b', sink);
  add_sword(read, "sword-comm-tdavid", "comments/zcom/tdavid", 'c', sink);
}

void extract_tex(const PackageReader& read, DocumentSink& sink) {
  for (const std::string ending : {".sty", ".tex", ".cls"}) add_files(read, "texlive-science", below("", ending), sink);
}

// common/<language>.xml of the stylesheets: tables of translated words, one file a language.
bool is_locale_file(std::string_view path) {
  constexpr std::string_view kFolder = "/common/";
  const size_t at = path.rfind(kFolder);
  if (at == kNotFound || !path.ends_with(".xml")) return false;
  const std::string_view name = path.substr(at + kFolder.size());
  const auto is_lower = [](char letter) { return letter >= 'a' && letter <= 'z'; };
  return name.size() >= 6 && name.find('/') == kNotFound && is_lower(name[0]) && is_lower(name[1]);
}

void extract_xml(const PackageReader& read, DocumentSink& sink) {
  for (const std::string ending : {".xsl", ".xml"}) {
    const FileFilter xml = below("", ending);
    add_files(
        read, "docbook-xsl", [&](std::string_view path) { return xml(path) && !is_locale_file(path); }, sink);
  }
  add_files(read, "libgtk-3-dev", below("", ".gir"), sink);
}

std::string known_names(std::string_view what, std::string_view given, const std::vector<std::string_view>& names) {
  const std::vector<std::string> known(names.begin(), names.end());
  return unknown_name(what, given, known);
}

}  // namespace

const std::vector<Recipe>& recipe_table() {
  static constexpr std::string_view kHelpAndManuals = "MPL-2.0 (help); manpages-l10n: GPL-3+ and per page GPL, BSD, verbatim";
  static const std::vector<Recipe> kTable{
      {"chess", "chess problems (YAML) and games (PGN)", "GPL-3+", {"pychess"}, extract_chess},
      {"cpp", "C++ templates: Eigen", "MPL-2.0, parts BSD and LGPL-2.1+", {"libeigen3-dev"}, extract_cpp},
      {"de",
       "German: LibreOffice help, manual pages",
       kHelpAndManuals,
       {"libreoffice-help-de", "libreoffice-help-en-us", "manpages-de", "manpages-de-dev"},
       extract_de},
      {"dna", "16S ribosomal RNA genes", "BSD-3-Clause", {"microbiomeutil-data"}, extract_dna},
      {"el", "Greek: LibreOffice help", "MPL-2.0", {"libreoffice-help-el", "libreoffice-help-en-us"}, extract_el},
      {"erlang", "Erlang sources", "Apache-2.0", {"erlang-src"}, extract_erlang},
      {"essay_en", "English political essays", "GPL-2", {"anarchism"}, extract_essay_en},
      {"fr",
       "French: LibreOffice help, manual pages",
       kHelpAndManuals,
       {"libreoffice-help-fr", "libreoffice-help-en-us", "manpages-fr", "manpages-fr-dev"},
       extract_fr},
      {"hol", "formal proofs: HOL Light", "BSD-2-Clause", {"hol-light"}, extract_hol},
      {"ja",
       "Japanese: LibreOffice help, manual pages",
       "MPL-2.0 (help); manual pages: mixed DFSG-free, per page",
       {"libreoffice-help-ja", "libreoffice-help-en-us", "manpages-ja", "manpages-ja-dev"},
       extract_ja},
      {"metamath", "formal proofs: Metamath set.mm", "CC0-1.0", {"metamath-databases"}, extract_metamath},
      {"python",
       "Python standard library and its tests",
       "PSF-2.0",
       {"libpython3.*-minimal", "libpython3.*-stdlib", "libpython3.*-testsuite"},
       extract_python},
      {"ru",
       "Russian: LibreOffice help, manual pages",
       kHelpAndManuals,
       {"libreoffice-help-ru", "libreoffice-help-en-us", "manpages-ru", "manpages-ru-dev"},
       extract_ru},
      {"scripture",
       "English Bible translations and commentaries",
       "public domain",
       {"sword-text-kjv", "sword-text-web", "sword-comm-mhcc", "sword-comm-tdavid"},
       extract_scripture},
      {"tex", "LaTeX packages for the sciences", "LPPL-1.x and GPL, per file", {"texlive-science"}, extract_tex},
      {"xml",
       "XSLT stylesheets, GObject interfaces",
       "MIT-like, few MPL and GPL (docbook-xsl); LGPL-2+ (libgtk-3-dev)",
       {"docbook-xsl", "libgtk-3-dev"},
       extract_xml},
  };
  return kTable;
}

const std::vector<Preset>& preset_table() {
  static const std::vector<Preset> kTable = [] {
    Preset all{"mix16", {}};
    for (const Recipe& recipe : recipe_table()) all.domains.push_back(recipe.name);
    return std::vector<Preset>{{"mix8", {"chess", "cpp", "de", "dna", "fr", "ja", "metamath", "ru"}}, all};
  }();
  return kTable;
}

const Preset& find_preset(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Preset& preset : preset_table()) {
    if (preset.name == name) return preset;
    names.push_back(preset.name);
  }
  throw UsageError(known_names("preset", name, names));
}

const Recipe& find_recipe(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Recipe& recipe : recipe_table()) {
    if (recipe.name == name) return recipe;
    names.push_back(recipe.name);
  }
  throw UsageError(known_names("domain", name, names));
}

}  // namespace switchyard
