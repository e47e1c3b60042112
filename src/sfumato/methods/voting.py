"""Nearest candidates for many voters: exact winners, found mostly with bfloat16 products.

Which candidate is nearest to a voter is settled in three steps, each of which bounds its own rounding errors and only
passes on what it cannot rule out:

1. where features lie in tight clusters, the triangle inequality: candidates of clusters that are too far away; else one
   product of all voters with all candidates, in bfloat16 where the processor multiplies it fast;
2. for voters with many candidates left, products in float32 near a pivot of the cluster, where rounding errors shrink
   with the distances;
3. squared distances in float64, pair by pair.

So the winner is what a float64 search of all pairs finds: the lowest number among the candidates whose squared distance
is within 1e-6 (relative) of the least. It depends on the voter's own features and on the candidates, which are public;
who votes beside it, and in which order, cannot change it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato._threads import one_core_each
from sfumato.errors import InternalError
from sfumato.hardware import choose_hardware
from sfumato.pretrained.interfaces import Embeddings

TIE = 1e-6
"""Candidates whose squared distances differ relatively by no more are tied, and the lowest number wins."""
NOBODY = -1
"""The vote of a voter whose features are not finite, or where there is no candidate."""

_VOTERS = 256  # of a product, filled up to as many: few, so that their scores find room in caches and in memory at hand
_BLOCK = 2048  # voters that a core settles together, at most: step 2 reads all candidates once a block
_GROUP = 64  # candidates whose scores are looked at together first
_SAMPLE = 2048  # candidates that pivots are chosen from
_TRIED = 64  # voters that show whether clusters are tight
_NEAR = 1 / 16  # of all pairs may be left by clusters that are
_MANY = 8  # pairs left a voter, from which on step 2 is worth its while
_TOGETHER = 4  # and candidates of one cluster
_PAIRS = 128  # pairs that are measured at a time
_FLOAT32 = 2.0**-23  # relative error of one operation, however it rounds
_BFLOAT16 = 1.01 * 2.0**-8  # relative error of rounding to nearest, seen from the rounded number
_FLOAT64 = 1e-12  # far above what sums of float64 lose at these lengths
_UNDERFLOW, _OVERFLOW = 1e-30, 1e36  # beyond them float32 does not keep its relative errors; float64 decides
_NEVER = -1e38  # score of what only fills the last group


class _Pairs(NamedTuple):
    """Voters with candidates that may be nearest to them; sorted by voter, then by candidate."""

    voters: NDArray[np.int64]
    candidates: NDArray[np.int64]


class Nearest:
    """Finds the nearest of fixed candidates.

    Memory beyond the candidates' is that of one block of voters a core, however many vote.
    """

    def __init__(
        self, candidates: Embeddings, usable: NDArray[np.bool_] | None = None, *, bfloat16: bool | None = None
    ) -> None:
        """
        Args:
            candidates: float32 `(M, D)`.
            usable: bool `(M,)`; what is not usable, or not finite, is never nearest.
            bfloat16: precision of the first product; None takes what is faster here. The winners are the same.
        """
        if candidates.ndim != 2 or candidates.dtype != np.float32:
            raise InternalError("candidates must be float32 vectors")
        self.count, self.dimensions = candidates.shape
        finite = np.isfinite(candidates).all(axis=1)
        self._numbers = np.flatnonzero(finite if usable is None else finite & usable)
        if not len(self._numbers):
            return
        owner, pivots = _clusters(candidates[self._numbers])
        order = np.argsort(owner, kind="stable")  # so that a group's candidates are near each other
        self._numbers = self._numbers[order]
        self._candidates = np.ascontiguousarray(candidates[self._numbers])
        half = choose_hardware("cpu").precision == "bf16" if bfloat16 is None else bfloat16
        self._product = _Product(self._candidates, torch.bfloat16 if half else torch.float32)
        self._clusters = _Clusters(self._candidates, owner[order], self._candidates[np.argsort(order)[pivots]])

    def __call__(self, voters: Embeddings) -> NDArray[np.int64]:
        """Winners, int64 `(N,)`, for features float32 `(N, D)`; `NOBODY` where they are not finite."""
        if voters.ndim != 2 or voters.shape[1] != self.dimensions or voters.dtype != np.float32:
            raise InternalError(f"voters must be float32 vectors of length {self.dimensions}")
        winners = np.full(len(voters), NOBODY, dtype=np.int64)
        if not len(self._numbers):
            return winners

        def settle(begin: int) -> None:
            block = np.ascontiguousarray(voters[begin : begin + block_size])
            able = np.flatnonzero(np.isfinite(block).all(axis=1))
            winners[begin + able] = self._winners(block[able])

        block_size = min(_BLOCK, max(_filled(-(-len(voters) // torch.get_num_threads())), _VOTERS))
        with one_core_each() as cores:  # one compares while another multiplies
            list(cores.map(settle, range(0, len(voters), block_size)))
        return winners

    def histogram(self, blocks: Iterable[Embeddings]) -> NDArray[np.int64]:
        """Votes for every candidate, int64 `(M,)`; histograms of parts of the voters add up to that of all."""
        counts = np.zeros(self.count, dtype=np.int64)
        for block in blocks:
            winners = self(block)
            counts += np.bincount(winners[winners != NOBODY], minlength=self.count)
        return counts

    def _winners(self, voters: Embeddings) -> NDArray[np.int64]:
        """Numbers of the candidates that win, one a finite voter."""
        left = self._clusters.near(voters)
        if left is None:
            parts = [(begin, self._product.survivors(voters[begin : begin + _VOTERS])) for begin in _steps(len(voters))]
            left = _Pairs(
                np.concatenate([part.voters + begin for begin, part in parts]),
                np.concatenate([part.candidates for _, part in parts]),
            )
        if len(left.voters) > _MANY * len(voters):
            left = self._clusters.survivors(voters, left)
        counts = np.bincount(left.voters, minlength=len(voters))
        starts = np.cumsum(counts) - counts
        found = np.zeros(len(voters), dtype=np.int64)
        alone = counts == 1
        found[alone] = self._numbers[left.candidates[starts[alone]]]
        if (counts > 1).any():
            unsettled = ~alone[left.voters]
            pairs = _Pairs(left.voters[unsettled], left.candidates[unsettled])
            starts = np.flatnonzero(np.diff(pairs.voters, prepend=-1))
            distances = self._distances(voters, pairs)
            found[counts > 1] = _lowest_tied(self._numbers[pairs.candidates], distances, starts)
        for voter in np.flatnonzero(counts == 0):  # numbers at which float32 bounds nothing
            everyone = np.arange(len(self._candidates))
            distances = self._distances(voters, _Pairs(np.full(len(everyone), voter), everyone))
            found[voter] = _lowest_tied(self._numbers, distances, np.zeros(1, dtype=np.int64))[0]
        return found

    def _distances(self, voters: Embeddings, pairs: _Pairs) -> NDArray[np.float64]:
        """Squared distances in float64; each is computed from its own two rows, always in the same order."""
        found = np.zeros(len(pairs.voters))
        for begin in range(0, len(found), _PAIRS):
            part = slice(begin, begin + _PAIRS)
            difference = np.subtract(
                voters[pairs.voters[part]], self._candidates[pairs.candidates[part]], dtype=np.float64
            )
            np.einsum("ij,ij->i", difference, difference, out=found[part])
        return found


def _filled(voters: int) -> int:
    return -(-voters // _VOTERS) * _VOTERS


def _steps(voters: int) -> range:
    return range(0, max(voters, 1), _VOTERS)


def _by_voter(voters: NDArray[np.int64]) -> Iterable[tuple[int, slice]]:
    """Each voter of a sorted list with the slice it takes."""
    edges = np.flatnonzero(np.diff(voters, prepend=-1, append=-1))
    for begin, end in itertools.pairwise(edges.tolist()):
        yield int(voters[begin]), slice(begin, end)


def _lowest_tied(
    candidates: NDArray[np.int64], distances: NDArray[np.float64], starts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The winner of every voter, whose pairs begin at `starts`."""
    least = np.minimum.reduceat(distances, starts).repeat(np.diff(starts, append=len(distances)))
    tied = np.where(distances <= least * (1 + TIE), candidates, np.iinfo(np.int64).max)
    lowest: NDArray[np.int64] = np.minimum.reduceat(tied, starts)
    return lowest


class _Product:
    """Step 1. Scores `y r - |r|^2 / 2` (more is nearer), y and r being voter and candidate seen from a common centre.

    Half the squared norm of a candidate is carried by three more coordinates, against ones in the voters. The errors:
    rounding the operands costs at most `|y~ - y| |r~| + |y| |r~ - r|` (Cauchy-Schwarz on the roundings as they are, not
    as they could be); summing n terms in float32 at most `n 2^-23` of the sum of their sizes, in any order; rounding
    the score its own relative error.
    """

    def __init__(self, candidates: Embeddings, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._half = dtype == torch.bfloat16
        self._centre = candidates.mean(axis=0, dtype=np.float64).astype(np.float32)
        count, dimensions = candidates.shape
        self._groups = -(-count // _GROUP)
        length = -(-(dimensions + 3) // 32) * 32
        operand = torch.zeros(self._groups * _GROUP, length, dtype=dtype)
        norms, exact_norms, errors = np.zeros(count), np.zeros(count), np.zeros(count)
        for begin in range(0, count, _VOTERS):
            part = slice(begin, min(begin + _VOTERS, count))
            exact = candidates[part].astype(np.float64) - self._centre
            operand[part, :dimensions] = torch.from_numpy(exact.astype(np.float32)).to(dtype)
            rounded = operand[part, :dimensions].double().numpy()
            norms[part], exact_norms[part] = _norms(rounded), _norms(exact)
            errors[part] = _norms(rounded - exact)
        # A shift common to all candidates changes no comparison and keeps scores small, where bfloat16 is dense.
        half_squares = exact_norms**2 / 2
        left = -(half_squares - half_squares.mean())
        pieces = np.zeros(count)
        for column in range(dimensions, dimensions + 3):
            piece = torch.from_numpy(left.astype(np.float32)).to(dtype)
            operand[:count, column] = piece
            left = left - piece.double().numpy()
            pieces += np.abs(piece.double().numpy())
        operand[count:, dimensions] = _NEVER
        self._shift = float(half_squares.mean())
        self._norm, self._error = float(norms.max(initial=0)), float(errors.max(initial=0))
        self._pieces = float(pieces.max(initial=0))
        self._lost = float(np.abs(left).max(initial=0)) + _FLOAT64 * float(half_squares.max(initial=0))
        self._summing = 1.01 * length * _FLOAT32
        self._length, self._dimensions = length, dimensions
        self._multiply = _multiplication(operand)

    def survivors(self, voters: Embeddings) -> _Pairs:
        """What may be nearest; a voter for whom nothing can be said keeps nothing."""
        seen = voters - self._centre  # each coordinate rounded once, by 2^-24 at most
        operand = torch.zeros(_filled(len(voters)), self._length, dtype=self._dtype)
        operand[: len(voters), : self._dimensions] = torch.from_numpy(seen).to(self._dtype)
        operand[: len(voters), self._dimensions : self._dimensions + 3] = 1
        rounded = operand[: len(voters), : self._dimensions].float().numpy()
        norm = _norms(seen) * (1 + _FLOAT32)
        rounding = _norms(seen - rounded) + _FLOAT32 * norm
        rounded_norm = norm + rounding
        error = (
            rounding * self._norm
            + norm * self._error
            + self._summing * (rounded_norm * self._norm + self._pieces)
            + self._lost
            + _UNDERFLOW * (1 + norm + self._norm)
        ) * (1 + _FLOAT64)
        scores = self._multiply(operand)[: len(voters)].view(len(voters), _GROUP, self._groups)
        best_of_groups = scores.amax(dim=1)
        best = best_of_groups.amax(dim=1).double().numpy()
        own = _BFLOAT16 if self._half else 0.0
        least = best - own * np.abs(best) - error  # the best candidate's exact score is at least this
        nearest_square = np.maximum(norm**2 - 2 * (least - self._shift), 0)
        tied = 0.51 * TIE * nearest_square + _FLOAT64 * (norm**2 + np.abs(least) + self._shift)
        needed = least - tied - error
        needed[~(rounded_norm * self._norm < _OVERFLOW)] = np.nan
        threshold = _not_above(np.where(needed > 0, needed / (1 + own), needed / (1 - own)), self._dtype)
        rows, groups = (best_of_groups >= threshold[:, None]).nonzero(as_tuple=True)
        hits, members = (scores[rows, :, groups] >= threshold[rows, None]).nonzero(as_tuple=True)
        return _pairs(rows[hits].numpy(), (members * self._groups + groups[hits]).numpy())


def _pairs(voters: NDArray[np.int64], candidates: NDArray[np.int64]) -> _Pairs:
    """Sorted."""
    code = np.sort(voters << 32 | candidates)
    return _Pairs(code >> 32, code & 0xFFFFFFFF)


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Lengths, summed in float64."""
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return lengths


def _not_above(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """Rounded down."""
    rounded = torch.from_numpy(values).to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > torch.from_numpy(values), below, rounded)


def _multiplication(right: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiplies rows with the rows of `right`, in its type, with sums in float32; `right` is brought in order once."""
    if right.dtype == torch.bfloat16:
        with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):
            packed = torch.ops.mkldnn._reorder_linear_weight(right, _VOTERS)
            torch.ops.mkldnn._linear_pointwise(right[:1].contiguous(), packed, None, "none", [], "")
            return lambda left: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")
    if torch.get_float32_matmul_precision() != "highest":
        raise InternalError(
            "votes need float32 products that are float32: torch.set_float32_matmul_precision('highest')"
        )
    return lambda left: left @ right.T


def _clusters(candidates: Embeddings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster of every candidate, that of its nearest pivot; and the pivots, which are far apart (Gonzalez 1985)."""
    rows = torch.from_numpy(candidates)
    places = torch.arange(0, len(rows), max(1, len(rows) // _SAMPLE))
    some = rows[places]
    squares = some.square().sum(dim=1)
    nearest, pivots = torch.full((len(some),), torch.inf), []
    for _ in range(min(2 * math.isqrt(len(rows)) + 1, len(some))):
        pivots.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, squares - 2 * (some @ some[pivots[-1]]) + squares[pivots[-1]])
    owner = torch.addmm(squares[pivots], rows, some[pivots].T, alpha=-2).argmin(dim=1)
    return owner.numpy(), places[pivots].numpy()


class _Clusters:
    """Steps 1 and 2. Squared distances `|y|^2 + |r|^2 - 2 y r` in float32, seen from the pivot of a cluster.

    Close to a pivot both y and r are short, and so are the errors: at most `n 2^-23 |y| |r|` for the sum, and, as each
    coordinate of y and r is rounded once, `2^-23 |y| |r|` for the product and `2^-22 (|y|^2 + |r|^2)` for the squares.
    """

    def __init__(self, candidates: Embeddings, owner: NDArray[np.int64], pivots: Embeddings) -> None:
        """Candidates sorted by their cluster `owner`, and the pivot of every cluster."""
        self._pivots, self._owner = pivots, owner
        self._starts = np.searchsorted(owner, np.arange(len(pivots) + 1))
        self._seen, self._norms = [], []
        for pivot, (begin, end) in zip(self._pivots, itertools.pairwise(self._starts), strict=True):
            self._seen.append(candidates[begin:end] - pivot)
            self._norms.append(_norms(self._seen[-1]))
        self._summing = 1.01 * (candidates.shape[1] + 2) * _FLOAT32
        self._sizes = np.diff(self._starts)
        self._radii = np.array([norms.max(initial=0) for norms in self._norms]) * (1 + 2 * _FLOAT32)
        self._centre = pivots.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._pivots_seen = pivots - self._centre

    def near(self, voters: Embeddings) -> _Pairs | None:
        """Each voter with all candidates of the clusters that may hold its nearest; None where those are too many.

        A candidate of a cluster is no nearer to y than `|y - pivot| - radius`, and the nearest one is no farther than
        the nearest pivot, for pivots are candidates.
        """
        if not self._tight(self._may_hold(voters[:_TRIED])):
            return None
        near = self._may_hold(voters)
        if not self._tight(near):
            return None
        rows, clusters = near.nonzero()
        sizes = self._sizes[clusters]
        firsts = np.repeat(self._starts[clusters] - (np.cumsum(sizes) - sizes), sizes)
        return _Pairs(np.repeat(rows, sizes), firsts + np.arange(len(firsts)))

    def _tight(self, near: NDArray[np.bool_]) -> bool:
        return bool((near @ self._sizes).sum() <= _NEAR * len(near) * self._sizes.sum())

    def _may_hold(self, voters: Embeddings) -> NDArray[np.bool_]:
        """Whether a cluster may hold the nearest candidate of a voter, `(voters, clusters)`."""
        seen = voters - self._centre
        squares, error = self._squares(seen, _norms(seen), self._pivots_seen, _norms(self._pivots_seen))
        most = np.sqrt(squares + error).min(axis=1, keepdims=True)
        least = np.sqrt(np.maximum(squares - error, 0)) - self._radii
        near: NDArray[np.bool_] = ~(least > most * (1 + TIE))  # also where float32 bounds nothing
        return near

    def survivors(self, voters: Embeddings, left: _Pairs) -> _Pairs:
        """What may still be nearest; a voter whose candidates are few, or of many clusters, keeps what it has."""
        owners = self._owner[left.candidates]
        runs = np.flatnonzero(np.diff(left.voters, prepend=-1) | np.diff(owners, prepend=-1))
        of, cluster_of = left.voters[runs], owners[runs]  # each voter with each cluster it has candidates of
        pairs = np.bincount(left.voters, minlength=len(voters))
        many = pairs >= _TOGETHER * np.bincount(of, minlength=len(voters)).clip(min=1)
        asked = many[left.voters]
        of, cluster_of = of[many[of]], cluster_of[many[of]]
        order = np.argsort(cluster_of, kind="stable")
        of, cluster_of = of[order], cluster_of[order]
        found_voters, found, lows = [left.voters[~asked]], [left.candidates[~asked]], [np.zeros((~asked).sum())]
        most = np.full(len(voters), np.inf)
        for cluster, part in _by_voter(cluster_of):
            rows = of[part]
            seen = voters[rows] - self._pivots[cluster]
            squares, error = self._squares(seen, _norms(seen), self._seen[cluster], self._norms[cluster])
            most[rows] = np.minimum(most[rows], (squares + error).min(axis=1, initial=np.inf))
            squares -= error
            row, member = (squares <= most[rows, None] * (1 + 2 * TIE)).nonzero()
            found_voters.append(rows[row])
            found.append(self._starts[cluster] + member)
            lows.append(squares[row, member])
        every, candidates = np.concatenate(found_voters), np.concatenate(found)
        kept = np.concatenate(lows) <= most[every] * (1 + 2 * TIE)
        return _pairs(every[kept], candidates[kept])

    def _squares(
        self, left: Embeddings, left_norms: NDArray[np.float64], right: Embeddings, right_norms: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squared distances of rows to rows, and bounds of their errors; NaN where float32 does not bound them."""
        lengths = left_norms[:, None] * right_norms
        squares = left_norms[:, None] ** 2 + right_norms**2
        error = 2 * self._summing * lengths + 4 * _FLOAT32 * squares + _UNDERFLOW
        error[~(lengths < _OVERFLOW)] = np.nan
        squares -= 2 * (torch.from_numpy(left) @ torch.from_numpy(right).T).double().numpy()
        return squares, error
