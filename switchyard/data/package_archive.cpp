#include "switchyard/data/package_archive.hpp"

#include <archive.h>
#include <archive_entry.h>

#include <algorithm>
#include <array>
#include <memory>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

using Archive = std::unique_ptr<archive, decltype(&archive_read_free)>;

[[noreturn]] void throw_unreadable(const fs::path& deb, archive* reader) {
  const char* reason = archive_error_string(reader);
  throw DataError(join_text("cannot read package ", deb.string(), ": ", reason == nullptr ? "damaged" : reason,
                            "; delete the file to have it downloaded again"));
}

// The next member, or null at the end.
archive_entry* next_entry(const fs::path& deb, archive* reader) {
  archive_entry* entry = nullptr;
  const int result = archive_read_next_header(reader, &entry);
  if (result == ARCHIVE_EOF) return nullptr;
  if (result != ARCHIVE_OK && result != ARCHIVE_WARN) throw_unreadable(deb, reader);
  return entry;
}

std::string read_entry(const fs::path& deb, archive* reader) {
  std::string bytes;
  const auto buffer = std::make_unique<std::array<char, size_t{1} << 18>>();
  while (true) {
    const la_ssize_t count = archive_read_data(reader, buffer->data(), buffer->size());
    if (count < 0) throw_unreadable(deb, reader);
    if (count == 0) return bytes;
    bytes.append(buffer->data(), static_cast<size_t>(count));
  }
}

// A .deb is an ar archive with members control.tar.* and data.tar.*.
std::string read_member(const fs::path& deb, std::string_view prefix) {
  const Archive reader(archive_read_new(), &archive_read_free);
  archive_read_support_format_ar(reader.get());
  if (archive_read_open_filename(reader.get(), deb.c_str(), size_t{1} << 16) != ARCHIVE_OK) throw_unreadable(deb, reader.get());
  while (archive_entry* entry = next_entry(deb, reader.get())) {
    if (std::string_view(archive_entry_pathname(entry)).starts_with(prefix)) return read_entry(deb, reader.get());
  }
  throw DataError(
      join_text("cannot read package ", deb.string(), ": it has no member ", prefix, "*, so it is no Debian package"));
}

std::string_view plain_path(std::string_view path) {
  if (path.starts_with("./")) path.remove_prefix(2);
  return path;
}

// Copies what an earlier member of the archive holds under another name.
PackageFile hard_link(const fs::path& deb, const std::vector<PackageFile>& files, std::string_view path,
                      std::string_view target) {
  const auto found = std::find_if(files.begin(), files.end(), [&](const PackageFile& file) { return file.path == target; });
  SWITCHYARD_CHECK(found != files.end(), DataError, "cannot read package ", deb.string(), ": ", path, " is a hard link to ",
                   target, ", which the recipe does not read");
  return {std::string(path), found->bytes};
}

std::vector<PackageFile> read_tar(const fs::path& deb, const std::string& tar, const FileFilter& wanted) {
  const Archive reader(archive_read_new(), &archive_read_free);
  archive_read_support_format_tar(reader.get());
  archive_read_support_filter_all(reader.get());
  if (archive_read_open_memory(reader.get(), tar.data(), tar.size()) != ARCHIVE_OK) throw_unreadable(deb, reader.get());
  std::vector<PackageFile> files;
  while (archive_entry* entry = next_entry(deb, reader.get())) {
    const char* name = archive_entry_pathname(entry);
    const std::string path(plain_path(name == nullptr ? "" : name));
    if (!wanted(path)) continue;
    if (const char* target = archive_entry_hardlink(entry)) {
      files.push_back(hard_link(deb, files, path, plain_path(target)));
    } else if (archive_entry_filetype(entry) == AE_IFREG) {
      files.push_back({path, read_entry(deb, reader.get())});
    }
  }
  return files;
}

std::string control_field(const std::string& control, std::string_view field) {
  const std::string key = "\n" + std::string(field) + ": ";
  const std::string text = "\n" + control;
  const size_t at = text.find(key);
  if (at == kNotFound) return {};
  const size_t begin = at + key.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace

std::vector<PackageFile> read_package(const fs::path& deb, const FileFilter& wanted) {
  std::vector<PackageFile> files = read_tar(deb, read_member(deb, "data.tar"), wanted);
  std::sort(files.begin(), files.end(),
            [](const PackageFile& left, const PackageFile& right) { return left.path < right.path; });
  return files;
}

PackageControl read_package_control(const fs::path& deb) {
  const auto files = read_tar(deb, read_member(deb, "control.tar"), [](std::string_view path) { return path == "control"; });
  SWITCHYARD_CHECK(!files.empty(), DataError, "cannot read package ", deb.string(), ": it has no control file");
  PackageControl control{control_field(files.front().bytes, "Package"), control_field(files.front().bytes, "Version")};
  SWITCHYARD_CHECK(!control.name.empty() && !control.version.empty(), DataError, "cannot read package ", deb.string(),
                   ": its control file lacks Package or Version");
  return control;
}

}  // namespace switchyard
