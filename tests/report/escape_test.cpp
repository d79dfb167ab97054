#include "switchyard/report/escape.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(HtmlEscape, LeavesNoMarkup) {
  EXPECT_EQ(html_escape("</script><img src=x onerror=\"a('b')\">&amp;"),
            "&lt;/script&gt;&lt;img src=x onerror=&quot;a(&#39;b&#39;)&quot;&gt;&amp;amp;");
}

TEST(HtmlEscape, KeepsOtherAlphabetsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(html_escape("\xE6\x97\xA5"), "\xE6\x97\xA5");
  EXPECT_EQ(html_escape("a\xFFz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(html_escape(std::string("a\0z", 3)), "a\xEF\xBF\xBDz");
}

TEST(JsonForScript, ReadsBackAsTheSameValue) {
  const nlohmann::json value = {{"</script><!--", "<script>&"}};
  const std::string text = json_for_script(value.dump());
  EXPECT_THAT(text, Not(HasSubstr("<")));
  EXPECT_THAT(text, Not(HasSubstr("&")));
  EXPECT_EQ(nlohmann::json::parse(text), value);
}

TEST(ScriptHash, IsWhatContentSecurityPolicyAsksFor) {
  // printf %s TEXT | openssl dgst -sha256 -binary | base64
  EXPECT_EQ(script_hash(""), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
  EXPECT_EQ(script_hash("abc"), "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
}

TEST(FillTemplate, PutsValuesInOnceAndDoesNotSearchThem) {
  EXPECT_EQ(fill_template("a{{x}}b{{y}}{{x}}", {{"x", "{{y}}"}, {"y", "1"}}), "a{{y}}b1{{y}}");
}

TEST(FillTemplate, RefusesWhatDoesNotMatch) {
  EXPECT_THROW(static_cast<void>(fill_template("{{x}}", {})), StateError);
  EXPECT_THROW(static_cast<void>(fill_template("", {{"x", "1"}})), StateError);
  EXPECT_THROW(static_cast<void>(fill_template("{{x", {{"x", "1"}})), StateError);
}

}  // namespace
}  // namespace switchyard
