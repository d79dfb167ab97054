"""Steps to try, and how a loss function is run on them: ranks as threads that share nothing but all_reduce."""

import collections
import dataclasses
import threading
import types
from typing import Optional

import torch

from .protocol import PADDING, Batch, Group, about

TIMEOUT = 60.0  # seconds until a rank that waits for another gives up
PADDING_LOGIT = 3.0  # of expert 0: whoever counts padding sees it there, and its softmax is not flat yet


@dataclasses.dataclass
class Case:
    """One optimizer step: tokens (rows of `logits`) laid out as cells[micro_batch][rank] = rows of documents of token numbers."""

    logits: torch.Tensor  # double [L, N, E]
    cells: list
    num_chosen: int = 2
    coefficient: float = 0.5
    choices: Optional[torch.Tensor] = None  # int64 [L, N, K]; None: of the largest logits
    extra_columns: int = 0  # of padding behind each row
    columns_before: int = 0  # of padding in front of each row

    @property
    def num_micro_batches(self):
        return len(self.cells)

    @property
    def num_ranks(self):
        return len(self.cells[0])

    def tokens(self, micro_batch, rank):
        return [token for row in self.cells[micro_batch][rank] for document in row for token in document]

    @property
    def step_tokens(self):
        return sum(len(self.tokens(m, r)) for m in range(self.num_micro_batches) for r in range(self.num_ranks))

    def taken(self):
        """The experts of each token, [L, N, K]."""
        return self.logits.topk(self.num_chosen, dim=-1).indices if self.choices is None else self.choices


@dataclasses.dataclass
class Result:
    loss: float  # after what the caller does: the step's balancing loss
    gradient: torch.Tensor  # of it, at the logits of the case's tokens, [L, N, E]; copies of a token add up
    at_padding: float = 0.0  # the same at the logits of padding, sizes added up
    kept: int = 0  # numbers in tensors that the memories of the ranks hold when the step has ended


def random_logits(num_tokens, seed, num_layers=2, num_experts=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_layers, num_tokens, num_experts, generator=generator, dtype=torch.double)
    # A slant makes the experts unequal: a balanced step would hide a wrong scale.
    return logits - 0.4 * torch.arange(num_experts, dtype=torch.double)


def numbered(lengths):
    """Cells from lengths[micro_batch][rank] = lengths of sequences, tokens numbered in order, in a row each."""
    cells, token = [], 0
    for ranks in lengths:
        cells.append([])
        for sequences in ranks:
            rows = []
            for length in sequences:
                rows.append([list(range(token, token + length))])
                token += length
            cells[-1].append(rows)
    return cells, token


def make_case(lengths, seed, num_layers=2, num_experts=4, **fields):
    cells, num_tokens = numbered(lengths)
    return Case(random_logits(num_tokens, seed, num_layers, num_experts), cells, **fields)


class ThreadGroup(Group):
    def __init__(self, rank, shared):
        self.rank = rank
        self.world_size = len(shared.slots)
        self.shared = shared

    def all_reduce(self, tensor):
        total = self.shared.exchange(self.rank, tensor.detach().clone())
        with torch.no_grad():
            tensor.copy_(total)
        return tensor


class EchoedError(RuntimeError):
    """Another rank failed."""


class Shared:
    """Where ranks meet. A rank that waits for one that is done is told so at once."""

    def __init__(self, num_ranks):
        self.slots = [None] * num_ranks
        self._met = threading.Condition()
        self._arrived, self._meeting, self._total = 0, 0, None
        self._done, self._failed = [], False

    def exchange(self, rank, tensor):
        with self._met:
            self.slots[rank] = tensor
            self._arrived += 1
            if self._arrived == len(self.slots):
                self._total = torch.stack(list(self.slots)).sum(0)
                self._arrived, self._meeting = 0, self._meeting + 1
                self._met.notify_all()
                return self._total
            meeting = self._meeting
            while self._meeting == meeting:
                self._check_others(rank)
                if not self._met.wait(TIMEOUT):
                    raise RuntimeError(f"rank {rank} waited {TIMEOUT:g} s in all_reduce for the others")
            return self._total

    def _check_others(self, rank):
        if self._failed:
            raise EchoedError
        if self._done:
            raise RuntimeError(f"rank {rank} waits in all_reduce, but rank {self._done[0]} has made all its calls: ranks must "
                               "call it equally often, also with a micro-batch of padding only")

    def done(self, rank):
        with self._met:
            self._done.append(rank)
            self._met.notify_all()

    def fail(self):
        with self._met:
            self._failed = True
            self._met.notify_all()


def batch_of(case, micro_batch, rank, training=True):
    """The micro-batch as a model would see it, and the token number of each of its rows (-1: padding)."""
    rows = case.cells[micro_batch][rank]
    width = max([sum(map(len, row)) for row in rows], default=0) + case.columns_before + case.extra_columns
    num_layers, _, num_experts = case.logits.shape
    source = torch.full((len(rows), width), PADDING, dtype=torch.long)
    documents = torch.full((len(rows), width), PADDING, dtype=torch.long)
    label = 0
    for r, row in enumerate(rows):
        column = case.columns_before
        for document in row:
            source[r, column:column + len(document)] = torch.tensor(document, dtype=torch.long)
            documents[r, column:column + len(document)] = label
            column, label = column + len(document), label + 1
    source = source.reshape(-1)
    filler = torch.zeros(num_experts, dtype=torch.double)
    filler[0] = PADDING_LOGIT
    logits, choices, taken = [], [], case.taken()
    for layer in range(num_layers):
        rows_of = case.logits[layer][source.clamp_min(0)].clone() if len(source) else torch.empty(0, num_experts).double()
        rows_of[source < 0] = filler
        ids = taken[layer][source.clamp_min(0)].clone()
        ids[source < 0] = torch.arange(case.num_chosen)
        logits.append(rows_of.requires_grad_(training))
        choices.append(ids)
    return Batch(logits=logits, choices=choices, mask=(documents >= 0).long(), documents=documents, num_experts=num_experts,
                 num_chosen=case.num_chosen, coefficient=case.coefficient, step_tokens=case.step_tokens,
                 micro_batch=micro_batch, num_micro_batches=case.num_micro_batches, training=training), source


def caller_weight(declared, case, micro_batch, rank):
    """By what the caller multiplies a rank's gradient of a micro-batch."""
    if declared.micro_batches == "tokens":
        return len(case.tokens(micro_batch, rank)) / max(case.step_tokens, 1)
    weight = 1.0 / case.num_micro_batches if declared.micro_batches == "mean" else 1.0
    return weight / case.num_ranks if declared.ranks == "mean" else weight


def call(function, case, micro_batch, rank, group, memory, recompute):
    """Loss and gradients of one micro-batch on one rank."""
    batch, source = batch_of(case, micro_batch, rank)
    if recompute == "reentrant":  # the first run keeps no graph
        with torch.no_grad():
            function(batch, group, memory)
    loss = function(batch, group, memory)
    if recompute == "non-reentrant":  # the graph is that of the first run
        function(batch, group, memory)
    if loss is None or (isinstance(loss, torch.Tensor) and loss.numel() != 1):
        given = "None" if loss is None else f"a tensor of shape {list(loss.shape)}"
        raise TypeError(f"the function returned {given}; expected one number, the loss of the micro-batch")
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return float(loss), [torch.zeros_like(logits) for logits in batch.logits], source
    return loss.item(), torch.autograd.grad(loss, batch.logits, allow_unused=True), source


def numbers_in(memory):
    """How many numbers are in the tensors of a memory. What has a bounded length does not grow without end, so it is left out."""
    total, found, seen = 0, [memory], set()
    while found:
        value = found.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, Group)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            total += value.numel()
        elif isinstance(value, dict):
            found.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)) or (isinstance(value, collections.deque) and value.maxlen is None):
            found.extend(value)
        elif hasattr(value, "__dict__"):
            found.append(vars(value))
    return total


def evaluate_once(function, case, micro_batch, rank, group, memory):
    """Other tokens than those of the micro-batch before it, under the same number."""
    batch, _ = batch_of(case, (micro_batch + 1) % case.num_micro_batches, rank, training=False)
    with torch.no_grad():
        function(dataclasses.replace(batch, micro_batch=micro_batch), group, memory)


def run_rank(function, cases, rank, shared, results, recompute, evaluate):
    group, memory, declared = ThreadGroup(rank, shared), {}, about(function)
    for case, result in zip(cases, results):
        for micro_batch in range(case.num_micro_batches):
            weight = caller_weight(declared, case, micro_batch, rank)
            loss, gradients, source = call(function, case, micro_batch, rank, group, memory, recompute)
            result.parts[rank].append((weight, loss, gradients, source))
            if evaluate:
                evaluate_once(function, case, micro_batch, rank, group, memory)
        if declared.end_step is not None:
            declared.end_step(memory)
        if evaluate:
            evaluate_once(function, case, 0, rank, group, memory)
        result.kept[rank] = numbers_in(memory)


class Gathered:
    """What the ranks leave of a step."""

    def __init__(self, num_ranks):
        self.parts = [[] for _ in range(num_ranks)]
        self.kept = [0] * num_ranks


def collect(case, gathered):
    result = Result(0.0, torch.zeros_like(case.logits), kept=sum(gathered.kept))
    for weight, loss, gradients, source in (part for rank in gathered.parts for part in rank):
        result.loss += weight * loss
        valid = source >= 0
        for layer, gradient in enumerate(gradients):
            if gradient is not None:
                result.gradient[layer].index_add_(0, source[valid], weight * gradient[valid])
                result.at_padding += (weight * gradient[~valid]).abs().sum().item()
    return result


def run_steps(function, cases, recompute=None, evaluate=False):
    """Runs the steps one after another on all ranks; memory lasts from step to step. An error of a rank is raised here."""
    num_ranks = cases[0].num_ranks
    shared, errors = Shared(num_ranks), [None] * num_ranks
    results = [Gathered(num_ranks) for _ in cases]

    def body(rank):
        try:
            run_rank(function, cases, rank, shared, results, recompute, evaluate)
            shared.done(rank)
        except BaseException as error:  # handed to the caller below; sys.exit() would only end this thread
            errors[rank] = error
            shared.fail()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [error for error in errors if error is not None]
    if raised:
        raise next((error for error in raised if not isinstance(error, EchoedError)), raised[0])
    return [collect(case, gathered) for case, gathered in zip(cases, results)]


def run(function, case, **options):
    return run_steps(function, [case], **options)[0]
