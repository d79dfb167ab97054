#pragma once
// zlib and gzip data in memory.

#include <string>
#include <string_view>

namespace switchyard {

/// Inflates one zlib stream, or a gzip file of one or more members. @throws DataError when it is damaged or cut off
[[nodiscard]] std::string inflate_bytes(std::string_view compressed);

/// Inflates gzip data; anything else is returned as it is.
[[nodiscard]] std::string gunzip_if_gzip(std::string bytes);

}  // namespace switchyard
