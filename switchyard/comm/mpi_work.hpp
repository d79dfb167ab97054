#pragma once
// The engine under the MPI communicator; included by mpi*.cpp only. Point-to-point messages throughout, so that a rank knows
// who has not arrived, every rank sees every header, and operations in flight cannot be confused (each has its own tags).

#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "switchyard/comm/call.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::mpi {

/// @throws CommError "MPI_Isend: <MPI's text>" unless MPI_SUCCESS
void check(int code, const char* function);

/// One collective of one rank, as a machine whose state advances when its messages have arrived:
///   announce: headers to and from all; data of at most kInlineBytes rides along, so small calls take one round
///   exchange: data too large to ride along; of an all-reduce each rank gets one chunk of all vectors and adds it in rank order
///   share:    all-reduce only: the summed chunks to all
class Machine {
 public:
  static constexpr size_t kInlineBytes = 4096;

  Machine(MPI_Comm comm, int64_t rank, int64_t size, Call call);
  ~Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  /// Does what can be done without blocking. Afterwards see done().
  void advance();
  [[nodiscard]] bool done() const { return stage_ == Stage::Done; }
  [[nodiscard]] const std::string& mismatch() const { return mismatch_; }
  [[nodiscard]] const CallHeader& header() const { return call_.header; }
  [[nodiscard]] CallMode mode() const { return call_.mode; }

  /// What has not come, or not been taken, and of which ranks: "not arrived: rank 3", "data of rank 3 is missing".
  [[nodiscard]] std::string what_is_missing() const;
  /// Withdraws what can be withdrawn. What was matched already may still arrive: after an error that breaks the group the memory
  /// given to it must stay until the program ends, as it should (comm/communicator.hpp).
  void cancel();

 private:
  enum class Stage { Announce, Exchange, Share, Done };
  enum class Direction { Send, Receive };
  struct Transfer {
    int64_t peer;
    Direction direction;
  };

  [[nodiscard]] bool rides_along(size_t bytes) const { return bytes <= kInlineBytes; }
  [[nodiscard]] size_t header_bytes() const;
  [[nodiscard]] std::span<std::byte> chunk(int64_t owner) const;
  void announce();
  void read_headers();
  void take_inline_data();
  void exchange();
  void add_chunk();
  void share();
  void post_send(std::span<const std::byte> data, int64_t peer, Stage stage);
  void post_receive(std::span<std::byte> data, int64_t peer, Stage stage);
  /// Ranks of the stage's open requests.
  [[nodiscard]] std::vector<int64_t> open_peers(Direction direction) const;

  MPI_Comm comm_;
  int64_t rank_;
  int64_t size_;
  Call call_;
  Stage stage_ = Stage::Announce;
  std::string mismatch_;
  std::vector<std::vector<std::byte>> sent_R_;      // header, then inline data
  std::vector<std::vector<std::byte>> received_R_;  // the same from each peer
  std::vector<std::vector<std::byte>> staging_R_;   // all-reduce: this rank's chunk of each peer
  std::vector<MPI_Request> requests_;  // of the stage
  std::vector<Transfer> transfers_;    // what each of them is
};

}  // namespace switchyard::mpi
