// Stands in for mpi.cpp in a build without MPI.
#include <exception>

#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {

struct MpiSession::Impl {};

bool has_mpi() { return false; }

MpiSession::MpiSession(MpiProgress) {
  throw UsageError("this build has no MPI: configure with -DSWITCHYARD_WITH_MPI=ON, or start a single process");
}
MpiSession::~MpiSession() = default;
std::unique_ptr<Communicator> MpiSession::world() { return nullptr; }  // no session can exist
void MpiSession::end_all_ranks(int) { std::terminate(); }

}  // namespace switchyard
