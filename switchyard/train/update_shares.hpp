#pragma once
// Ranks that hold the same parameters divide the work of the optimizer: each sums, and moves, an equal part of the rows of each
// matrix and hands the new rows on (the optimizer's part of ZeRO, arXiv 1910.02054, section 5.1). Every number is what it would be
// if every rank did everything, but for the last bits of the norm, whose sums end where the rows of a rank do; moments exist once
// over all ranks.

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/parameter.hpp"

namespace switchyard {

/// Sets Parameter::update of the parameters that are divided: trained, whole on every rank, not small, and with rows that the ranks
/// divide evenly; none by one rank. No messages.
void share_updates(const ParameterRefs& parameters, const Communicator& comm);

/// Parameter::grad of a divided parameter, in the compute type or the master's, becomes Parameter::grad_parts: of this rank's rows
/// what every rank has, for norm and optimizer to add up. Undefined on one rank: zeros there. Collective
void exchange_rows(const ParameterRefs& parameters, Communicator& comm);

/// After the optimizer's step: every rank gets the rows of what computes that the others moved. Of masters kept in halves these are the
/// upper ones; the lower ones stay behind until a checkpoint gathers them. Collective
void gather_updates(const ParameterRefs& parameters, Communicator& comm);

}  // namespace switchyard
