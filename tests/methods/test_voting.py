"""Voting: the winners of a float64 search of all pairs, whatever the features, the precision, and the company."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sfumato.errors import InternalError
from sfumato.methods import voting
from sfumato.methods.voting import NOBODY, TIE, Nearest

Features = NDArray[np.float32]


def brute_force(voters: Features, candidates: Features) -> NDArray[np.int64]:
    """Lowest number among the candidates within the tie of the least squared distance, in float64."""
    exact = candidates.astype(np.float64)
    winners = []
    for voter in voters.astype(np.float64):
        distances = np.square(voter - exact).sum(axis=1)
        winners.append(np.flatnonzero(distances <= distances.min() * (1 + TIE))[0])
    return np.array(winners)


def gaussian(voters: int, candidates: int, dimensions: int) -> tuple[Features, Features]:
    draw = np.random.default_rng(1)
    return (
        draw.standard_normal((voters, dimensions), dtype=np.float32),
        draw.standard_normal((candidates, dimensions), dtype=np.float32),
    )


def clustered(voters: int, candidates: int, dimensions: int, centres: int, spread: float) -> tuple[Features, Features]:
    draw = np.random.default_rng(2)
    middle = draw.standard_normal((centres, dimensions), dtype=np.float32)

    def some(count: int) -> Features:
        noise = draw.standard_normal((count, dimensions), dtype=np.float32)
        return middle[draw.integers(0, centres, count)] + np.float32(spread) * noise

    return some(voters), some(candidates)


CASES = {
    "gaussian": gaussian(1100, 700, 128),
    "clustered": clustered(1100, 700, 128, 15, 0.1),
    "tight": clustered(300, 400, 128, 4, 0.002),
    "far from zero": tuple(np.abs(part) + 30 for part in gaussian(300, 300, 64)),
    "tiny": tuple(part * np.float32(1e-15) for part in gaussian(60, 90, 32)),
    "beyond float32 squares": tuple(part * np.float32(1e20) for part in gaussian(20, 90, 32)),
    "one candidate": gaussian(5, 1, 16),
}


@pytest.mark.parametrize("bfloat16", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_winners_are_those_of_brute_force(case: str, bfloat16: bool) -> None:
    voters, candidates = CASES[case]
    assert (Nearest(candidates, bfloat16=bfloat16)(voters) == brute_force(voters, candidates)).all()


@pytest.mark.parametrize("bfloat16", [True, False], ids=["bfloat16", "float32"])
def test_near_ties_that_no_short_float_tells_apart(bfloat16: bool) -> None:
    """Two candidates differ in the last bits of one coordinate only; only exact arithmetic knows who is nearer."""
    voters, candidates = gaussian(200, 40, 256)
    near = candidates.copy()
    near[:, 0] = np.nextafter(near[:, 0], np.float32(np.inf))
    both = np.concatenate((near, candidates))[np.random.default_rng(0).permutation(80)]
    assert (Nearest(both, bfloat16=bfloat16)(voters) == brute_force(voters, both)).all()


def test_roundings_that_all_err_the_same_way() -> None:
    """In bfloat16 the voter's own double looks farther than another candidate: each coordinate rounds against it."""
    below, above = np.float32(1 + 0.499 * 2**-7), np.float32(1 + 0.501 * 2**-7)
    voter = np.full((1, 64), below)
    pair = np.stack((np.full(64, above), np.full(64, below)))
    candidates = np.concatenate((pair, -pair)).astype(np.float32)
    assert Nearest(candidates, bfloat16=True)(voter).tolist() == [1]


def test_equal_candidates_lose_to_the_lowest_number() -> None:
    voters, candidates = gaussian(300, 50, 32)
    winners = Nearest(np.tile(candidates, (4, 1)))(voters)
    assert (winners == brute_force(voters, candidates)).all()
    assert winners.max() < 50


def test_a_tie_of_one_millionth_goes_to_the_lowest_number() -> None:
    candidates = np.array([[1 + 3e-7, 0], [1, 0], [5, 5]], dtype=np.float32)
    assert Nearest(candidates)(np.zeros((1, 2), np.float32)).tolist() == [0]
    farther = np.array([[1 + 3e-6, 0], [1, 0], [5, 5]], dtype=np.float32)
    assert Nearest(farther)(np.zeros((1, 2), np.float32)).tolist() == [1]


def test_a_vote_does_not_depend_on_the_company() -> None:
    voters, candidates = clustered(1500, 300, 64, 10, 0.05)
    nearest = Nearest(candidates)
    together = nearest(voters)
    order = np.random.default_rng(0).permutation(len(voters))
    assert (nearest(voters[order]) == together[order]).all()
    assert (nearest(voters[700:]) == together[700:]).all()
    assert all(nearest(voters[place : place + 1])[0] == together[place] for place in (0, 1, 1023, 1024, 1499))


def test_shards_add_up() -> None:
    voters, candidates = gaussian(900, 120, 48)
    nearest = Nearest(candidates)
    whole = nearest.histogram([voters])
    assert whole.sum() == 900
    assert (nearest.histogram([voters[:123]]) + nearest.histogram([voters[123:500], voters[500:]]) == whole).all()
    assert (whole == np.bincount(brute_force(voters, candidates), minlength=120)).all()


def test_unusable_candidates_and_voters_without_features() -> None:
    voters, candidates = gaussian(200, 60, 32)
    usable = np.arange(60) % 3 > 0
    candidates[4] = np.nan
    voters[7], voters[9, 3] = np.inf, np.nan
    winners = Nearest(candidates, usable)(voters)
    allowed = np.flatnonzero(usable & (np.arange(60) != 4))
    kept = np.delete(np.arange(200), [7, 9])
    assert winners[7] == winners[9] == NOBODY
    assert (winners[kept] == allowed[brute_force(voters[kept], candidates[allowed])]).all()
    assert (Nearest(candidates, np.zeros(60, bool))(voters) == NOBODY).all()
    assert len(Nearest(candidates)(voters[:0])) == 0


def test_most_voters_are_settled_by_the_first_product() -> None:
    voters, candidates = gaussian(1000, 2000, 512)
    left = Nearest(candidates, bfloat16=True)._product.survivors(voters)
    assert len(left.voters) < 6 * len(voters)


def test_tight_clusters_need_no_product() -> None:
    voters, candidates = clustered(500, 2000, 128, 20, 0.1)
    nearest = Nearest(candidates)
    left = nearest._clusters.near(voters)
    assert left is not None
    assert len(left.voters) < 500 * 2000 / 10
    winners = brute_force(voters, candidates)
    place = np.argsort(nearest._numbers)[winners]  # of each winner in the order of clusters
    assert all(place[voter] in left.candidates[left.voters == voter] for voter in range(500))
    assert nearest._clusters.near(gaussian(500, 1, 128)[0]) is None


def test_a_cluster_is_kept_for_its_rim() -> None:
    """The nearest candidate lies on the rim of a wide cluster, whose pivot is farther away than those of all others."""
    draw = np.random.default_rng(3)
    rim = np.array([[1.0, 0.0], [9.0, 0.0]], dtype=np.float32)  # one cluster: the second is its pivot or the first
    others = np.array([[0.0, 3.0], [0.0, -3.0]], dtype=np.float32)
    candidates = np.concatenate((others, rim))
    clusters = voting._Clusters(candidates, np.array([0, 1, 2, 2]), candidates[[0, 1, 3]])
    voters = 0.1 * draw.standard_normal((50, 2)).astype(np.float32)
    near = clusters._may_hold(voters)
    assert near[:, 2].all()
    assert not clusters._may_hold(candidates[:1])[0, 1]  # on the first pivot, six from the second


def test_reduced_float32_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voting.torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.raises(InternalError, match="float32"):
        Nearest(gaussian(1, 5, 8)[1], bfloat16=False)
