#include "tests/data/support.hpp"

#include <archive.h>
#include <archive_entry.h>
#include <zlib.h>

#include <fstream>
#include <memory>
#include <stdexcept>

#include "switchyard/core/files.hpp"

namespace switchyard::test {
namespace {

namespace fs = std::filesystem;

using Archive = std::unique_ptr<archive, decltype(&archive_write_free)>;
using Entry = std::unique_ptr<archive_entry, decltype(&archive_entry_free)>;

void require(bool done, const char* what) {
  if (!done) throw std::runtime_error(what);
}

Entry new_entry(const std::string& name, size_t size) {
  Entry entry(archive_entry_new(), &archive_entry_free);
  archive_entry_set_pathname(entry.get(), name.c_str());
  archive_entry_set_size(entry.get(), static_cast<la_int64_t>(size));
  archive_entry_set_filetype(entry.get(), AE_IFREG);
  archive_entry_set_perm(entry.get(), 0644);
  return entry;
}

void add_entry(archive* writer, const std::string& name, const std::string& bytes) {
  const Entry entry = new_entry(name, bytes.size());
  require(archive_write_header(writer, entry.get()) == ARCHIVE_OK, "cannot write an archive header");
  require(archive_write_data(writer, bytes.data(), bytes.size()) == static_cast<la_ssize_t>(bytes.size()),
          "cannot write archive data");
}

std::string archive_bytes(const fs::path& scratch, void (*choose)(archive*), const auto& add) {
  const Archive writer(archive_write_new(), &archive_write_free);
  choose(writer.get());
  require(archive_write_open_filename(writer.get(), scratch.c_str()) == ARCHIVE_OK, "cannot open an archive");
  add(writer.get());
  require(archive_write_close(writer.get()) == ARCHIVE_OK, "cannot close an archive");
  std::string bytes = read_file(scratch);
  fs::remove(scratch);
  return bytes;
}

void choose_tar_xz(archive* writer) {
  archive_write_set_format_gnutar(writer);
  archive_write_add_filter_xz(writer);
}

void choose_ar(archive* writer) { archive_write_set_format_ar_svr4(writer); }

void add_links(archive* writer, const DebContent& content) {
  const std::string target = "./" + content.files.at(0).first;
  if (!content.symbolic_link.empty()) {
    const Entry entry = new_entry("./" + content.symbolic_link, 0);
    archive_entry_set_filetype(entry.get(), AE_IFLNK);
    archive_entry_set_symlink(entry.get(), target.c_str());
    require(archive_write_header(writer, entry.get()) == ARCHIVE_OK, "cannot write a symbolic link");
  }
  if (!content.hard_link.empty()) {
    const Entry entry = new_entry("./" + content.hard_link, 0);
    archive_entry_set_hardlink(entry.get(), target.c_str());
    require(archive_write_header(writer, entry.get()) == ARCHIVE_OK, "cannot write a hard link");
  }
}

}  // namespace

void put_file(const fs::path& path, std::string_view bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << bytes;
  require(out.good(), "cannot write a test file");
}

fs::path make_deb(const fs::path& folder, const DebContent& content) {
  const fs::path scratch = folder / "scratch.tar";
  const std::string control = archive_bytes(scratch, choose_tar_xz, [&](archive* writer) {
    add_entry(writer, "./control", "Package: " + content.name + "\nVersion: " + content.version + "\nArchitecture: all\n");
  });
  const std::string data = archive_bytes(scratch, choose_tar_xz, [&](archive* writer) {
    for (const auto& [path, bytes] : content.files) add_entry(writer, "./" + path, bytes);
    if (!content.files.empty()) add_links(writer, content);
  });
  const std::string deb = archive_bytes(scratch, choose_ar, [&](archive* writer) {
    add_entry(writer, "debian-binary", "2.0\n");
    add_entry(writer, "control.tar.xz", control);
    add_entry(writer, "data.tar.xz", data);
  });
  const fs::path path = folder / (content.name + "_" + content.version + "_all.deb");
  put_file(path, deb);
  return path;
}

std::string deflated(std::string_view bytes, Container container) {
  z_stream stream{};
  const int window = container == Container::Gzip ? 15 + 16 : 15;
  require(deflateInit2(&stream, 6, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY) == Z_OK, "cannot start zlib");
  std::string out(deflateBound(&stream, bytes.size()) + 32, '\0');
  std::string input(bytes);
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const bool done = deflate(&stream, Z_FINISH) == Z_STREAM_END;
  out.resize(stream.total_out);
  deflateEnd(&stream);
  require(done, "cannot deflate");
  return out;
}

}  // namespace switchyard::test
