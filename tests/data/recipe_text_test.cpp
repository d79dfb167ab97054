#include "switchyard/data/recipe_text.hpp"

#include <gmock/gmock.h>
#include <rapidcheck.h>

#include "switchyard/core/error.hpp"
#include "switchyard/data/compression.hpp"
#include "switchyard/data/documents.hpp"
#include "switchyard/data/html.hpp"
#include "switchyard/data/unicode.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Unicode, FindsTheFirstBadByte) {
  const auto bad = [](std::string_view text) { return find_invalid_utf8(text); };
  EXPECT_EQ(bad("plain \u00e9\u3042\U0001F600"), std::nullopt);
  EXPECT_EQ(bad(std::string_view("nul \0 too", 9)), std::nullopt);
  EXPECT_EQ(bad("ab\xE9 c"), 2U);          // Latin-1
  EXPECT_EQ(bad("\xC0\x80"), 0U);          // overlong
  EXPECT_EQ(bad("\xE0\x9F\xBF"), 0U);      // overlong
  EXPECT_EQ(bad("a\xED\xA0\x80"), 1U);     // surrogate
  EXPECT_EQ(bad("\xF4\x90\x80\x80"), 0U);  // above U+10FFFF
  EXPECT_EQ(bad("\xF4\x8F\xBF\xBF"), std::nullopt);
  EXPECT_EQ(bad("abc\xE3\x81"), 3U);  // cut off
  EXPECT_EQ(bad("\x80"), 0U);
}

TEST(Unicode, ReplacesMaximalParts) {
  EXPECT_EQ(replace_invalid_utf8("a\xE3\x81"
                                 "b\xFF"),
            "a\uFFFD"
            "b\uFFFD");
  // The example of the standard, table 3-11.
  EXPECT_EQ(replace_invalid_utf8("\xF0\x80\x80\x41"), "\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(utf8_or_latin1("caf\xE9"), "caf\u00e9");
  EXPECT_EQ(utf8_or_latin1("caf\u00e9"), "caf\u00e9");
}

TEST(Unicode, CodePointsGoRound) {
  EXPECT_TRUE(rc::check("append, then read", [] {
    const auto point =
        *rc::gen::suchThat(rc::gen::inRange<uint32_t>(0, 0x110000), [](uint32_t p) { return p < 0xD800 || p > 0xDFFF; });
    std::string text;
    append_code_point(point, text);
    size_t at = 0;
    RC_ASSERT(!find_invalid_utf8(text));
    RC_ASSERT(next_code_point(text, at) == point);
    RC_ASSERT(at == text.size());
  }));
}

TEST(Unicode, StripsEverySpace) {
  EXPECT_EQ(strip_space("\u3000 \t\nword word\u00a0\u2003\r\n"), "word word");
  EXPECT_EQ(strip_space(" \u3000 "), "");
  EXPECT_EQ(strip_space("\u00e9"), "\u00e9");
}

TEST(Html, DecodesReferences) {
  EXPECT_EQ(decode_entities("&lt;&amp;&gt; &eacute; &#233; &#xE9; &apos;&#150;"), "<&> \u00e9 \u00e9 \u00e9 '\u2013");
  EXPECT_EQ(decode_entities("AT&T &unknown; & &; &#; &#xZZ;"), "AT&T &unknown; & &; &#; &#xZZ;");
  EXPECT_EQ(decode_entities("&#xD800;&#0;"), "\uFFFD\uFFFD");
}

TEST(Html, DropsTags) {
  EXPECT_EQ(drop_tags("a<b class='x'>c</b> 1 < 2"), "ac 1 < 2");
  EXPECT_EQ(drop_tags("<>x<"), "<>x<");
}

TEST(Html, PageToText) {
  EXPECT_EQ(html_to_text("<html><HEAD><title>no</title></HEAD><body><script>x<1</script><h1>Title</h1>\n"
                         "<p>One&nbsp;two\t three<br/>four</p><ul><li>a</li><li>b</li></ul></body>"),
            "Title\nOne two three\nfour\na\nb");
  EXPECT_EQ(html_to_text("<style>p{}</style>"), "");
}

TEST(Html, FoldsNewlinesWithTheSpacesAround) { EXPECT_EQ(fold_newlines(" \n a \u3000\n\n  b  c \n"), "a\nb  c"); }

TEST(Recipes, HelpParagraphs) {
  const std::string page = R"(<p>menu</p><div id="DisplayArea"><h1 class="a">Ein  Titel</h1>
<p id="x" class="y">Satz mit <b>fett</b> &amp;
Umbruch.</p><p>  </p><pre>code</pre><param>no</param><p>offen <div id="SearchFrame"><p>search</p>)";
  EXPECT_THAT(help_paragraphs(page), ElementsAre("Ein Titel", "Satz mit fett & Umbruch.", "code"));
  EXPECT_THAT(help_paragraphs("<p>no area</p>"), IsEmpty());
}

TEST(Recipes, ManPage) {
  const std::string page = R"(.\" comment
.TH LS 1
.de XX
hidden
..
.SH "NAME"
ls \- list \fIdirectory\fR con\%tents
.PP
.BR ls (1),
.B "\-\-all"
.IP "\(bu" 2
It\(aqs \f[B]bold\f[R] \s+1big\s0 \[u00E9] \(lqq\(rq \[xyz]end
.unknown stays out
'IR italic roman
a\e b)";
  EXPECT_EQ(man_to_text(page),
            "NAME\nls - list directory contents\n\nls(1),\n--all\n\u2022\nIt's bold big \u00e9 \u201cq\u201d "
            "end\nitalicroman\na\\ b");
  EXPECT_EQ(man_to_text(".Dd June\n.Sh NAME\n.Nm cat\n.Nd copy\n\n\n\n\nend"), "NAME\ncat\ncopy\n\nend");
  EXPECT_EQ(man_to_text(".ig\nnever closed\n.SH X"), "");
}

TEST(Recipes, KeepsForeignLines) {
  EXPECT_EQ(keep_non_ascii_lines("\u3042\u3044\u3046 abcde\nEnglish only\n\n\u0416abc\n\u0416ab"),
            "\u3042\u3044\u3046 abcde\n\n\u0416ab");
}

std::string triple(uint32_t offset, uint32_t size, uint32_t inflated) {
  std::string bytes;
  for (const uint32_t word : {offset, size, inflated}) {
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(word >> shift & 0xFF);
  }
  return bytes;
}

TEST(Recipes, SwordModule) {
  const std::string first = test::deflated(
      "<title>Genesis</title><verse>In the<note n='1'>a note</note> beginning</verse>&amp;<l>x</l>", test::Container::Zlib);
  const std::string second = test::deflated("Second\xFF", test::Container::Zlib);
  const auto size = [](const std::string& text) { return static_cast<uint32_t>(text.size()); };
  const std::string index = triple(0, size(first), 90) + triple(0, 0, 0) + triple(size(first), size(second), 7) + "tail";
  EXPECT_THAT(sword_documents(index, first + second), ElementsAre("Genesis\nIn the beginning\n&\nx", "Second\uFFFD"));
  EXPECT_THAT(error_of<DataError>([&] { (void)sword_documents(triple(5, 100, 1), first); }),
              HasSubstr("points at bytes 5..105"));
  EXPECT_THAT(error_of<DataError>([&] { (void)sword_documents(triple(1, 20, 1), first); }), HasSubstr("damaged"));
}

TEST(Recipes, FastaChessAndCuts) {
  EXPECT_THAT(fasta_sequences(">one\nACnnGT\nAC..\n>two\nTTT\n"), ElementsAre("ACGT\nAC", "TTT"));
  EXPECT_THAT(chess_documents("a: 1\n---\nb: 2\n---\n[Event \"x\"]\n1. e4\n\n[Event \"y\"]\n1. d4"),
              ElementsAre("a: 1", "b: 2", "[Event \"x\"]\n1. e4\n", "[Event \"y\"]\n1. d4"));
  EXPECT_THAT(cut_at_blank_lines("aaaa\n\nbb\n\ncccc\n\n\nd", 5), ElementsAre("aaaa\n\nbb", "cccc", "d"));
}

TEST(Compression, RoundTripAndDamage) {
  const std::string text(200000, 'x');
  EXPECT_EQ(gunzip_if_gzip(test::deflated(text, test::Container::Gzip)), text);
  EXPECT_EQ(gunzip_if_gzip(test::deflated("ab", test::Container::Gzip) + test::deflated("cd", test::Container::Gzip)), "abcd");
  EXPECT_EQ(inflate_bytes(test::deflated(text, test::Container::Zlib)), text);
  EXPECT_EQ(gunzip_if_gzip("plain"), "plain");
  const std::string whole = test::deflated("some text to squeeze", test::Container::Gzip);
  EXPECT_THAT(error_of<DataError>([&] { (void)inflate_bytes(whole.substr(0, whole.size() - 9)); }), HasSubstr("cut off"));
  EXPECT_THROW((void)inflate_bytes("no zlib at all"), DataError);
}

TEST(Documents, SinkCleansAndCaps) {
  DocumentSink sink(12);
  sink.add("\n\none\n");
  sink.add(std::string_view("o\0ne", 4));  // the same without its NUL
  sink.add("\n");
  sink.add("three");
  EXPECT_FALSE(sink.full());
  sink.add("12");  // 4 + 6 + 3 > 12
  EXPECT_TRUE(sink.full());
  sink.add("1");
  const DomainText text = sink.take();
  EXPECT_THAT(text.documents, ElementsAre("one", "three"));
  EXPECT_EQ(text.bytes, 10);
  // printf 'one\0three\0' | sha256sum
  EXPECT_EQ(text_hash(text), "1ff2a85de366746667fe98a52bdd71aa4d871eb68bc07896762c32efbeb533bf");
}

}  // namespace
}  // namespace switchyard
