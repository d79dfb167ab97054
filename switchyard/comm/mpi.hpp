#pragma once
// Ranks as processes under mpirun or srun. In a build without MPI (SWITCHYARD_WITH_MPI=OFF) these exist too, and say so when
// used.

#include <memory>

#include "switchyard/comm/communicator.hpp"

namespace switchyard {

/// Who pushes started operations on while the caller computes.
enum class MpiProgress {
  InCalls,  // nobody: they move when ready(), wait() or another operation is called
  Thread,   // a thread of the session; needs MPI_THREAD_SERIALIZED and a share of a core
};

/// Whether this build has MPI.
[[nodiscard]] bool has_mpi();

/// Whether a launcher (Open MPI's mpirun, srun, any PMIx or PMI starter) started this process: then main makes a session.
[[nodiscard]] bool started_by_mpi();

/// MPI from MPI_Init to MPI_Finalize. One in a process, made in main; outlives its communicators.
///
/// The destructor ends MPI, which waits for all ranks. While an exception passes, or after a communicator failed, it does not:
/// the process is then to end with an exit code that is not 0, at which mpirun ends the other ranks.
class MpiSession {
 public:
  /// @throws CommError if MPI cannot start, was started before, or has not the threads that `progress` needs;
  ///         UsageError in a build without MPI
  explicit MpiSession(MpiProgress progress = MpiProgress::InCalls);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// A communicator of all ranks. Each call returns a new one; messages of one never mix with those of another. Collective.
  [[nodiscard]] std::unique_ptr<Communicator> world();

  /// Ends the processes of all ranks, this one too, without clean-up: what main calls when a rank failed and has said why.
  [[noreturn]] void end_all_ranks(int exit_code);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace switchyard
