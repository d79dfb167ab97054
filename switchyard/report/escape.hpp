#pragma once
// Text from data into HTML. Everything a run brings (names, notices, configuration, commands) passes through here.

#include <map>
#include <string>
#include <string_view>

namespace switchyard {

/// For element content and quoted attributes. Bytes that are not UTF-8, and NUL, become U+FFFD.
[[nodiscard]] std::string html_escape(std::string_view text);

/// JSON made safe inside <script type="application/json">: '<', '>' and '&' as \u escapes, so that no tag or comment opens.
/// Reads back as the same JSON, because the three characters occur only inside strings.
[[nodiscard]] std::string json_for_script(std::string_view json);

/// "sha256-..." as a Content-Security-Policy names an inline script.
[[nodiscard]] std::string script_hash(std::string_view script);

/// Replaces every {{name}} of the template once; what is put in is not searched again.
/// @throws StateError for a name without a value, or a value without a place
[[nodiscard]] std::string fill_template(std::string_view text, const std::map<std::string, std::string, std::less<>>& values);

}  // namespace switchyard
