"""Nearest-neighbour balls of large feature sets: float32 speed, float64 answers, tiles instead of matrices.

Squared distances come from float32 products, tile by tile. A bound on their error is known beforehand, so
each comparison of a distance with a radius is either certain or not; what is not certain is computed again,
in bulk by float64 products where it comes in masses, and pair by pair from float64 differences in the end.
Every count is therefore what float64 differences of the given features give.

The bound. In units where the longest centred row has length about 1, with u the unit roundoff (2^-24 in
float32): rounding the centred rows changes x.y by at most 2u|x||y|; a sum of D products in any order by
gamma_D |x||y|, gamma_D = D u / (1 - D u) (Higham, "Accuracy and Stability of Numerical Algorithms", section
3.1); the norms and the two additions by some u (|x|^2 + |y|^2). Together |error| <= a (|x|^2 + |y|^2) with
a = (D + 16) u / (1 - (D + 16) u).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 2048  # A float32 tile of 2048 x 2048 is 16 MiB: it stays in the last cache between its few passes.
#: Squared distance over squared norms below which two float32 feature vectors are the same (their rounding is 6e-8).
_EQUAL_RELATIVE = 1e-12
_SPARE_NEIGHBOURS = 8  # Neighbours kept beyond k: those that rounding may have put behind the k-th.
_UNDERFLOW = 1e-30  # More than float32 can lose to underflow in a product sum, in units of the longest squared norm.
_PAIR_ELEMENTS = 2**20  # Feature values per chunk of pairs: 8 MiB in float64.
_BULK_ELEMENTS = 2**22  # Float64 distances per chunk: 32 MiB.
_BULK_GAIN = 64  # A pair by differences costs about as much as this many pairs by a float64 product.


def _relative_error(dim: int, unit_roundoff: float) -> float:
    """a of the module's docstring."""
    growth = (dim + 16) * unit_roundoff
    return growth / (1.0 - growth)


class Cloud:
    """A feature set about a centre, in units of a power of two near its longest row.

    Args:
        features: (N, D) float32 or float64, on the CPU.
        center: (D,) of the features' dtype.
        scale: Power of two that the centred rows are multiplied by.
        norms: (N,) float64 squared lengths of the centred, scaled rows.
        block_rows: Rows per block.
    """

    def __init__(self, features: np.ndarray, center: np.ndarray, scale: float, norms: np.ndarray, block_rows: int) -> None:
        self.features = features
        self.center = center
        self.scale = scale
        self.norms = norms
        self.norms32 = norms.astype(np.float32)
        self.block_rows = block_rows
        dim = features.shape[1]
        # Rows that count as equal have distance 0, which shifts a distance by up to _EQUAL_RELATIVE more.
        self.error32 = _relative_error(dim, 2.0**-24) + _EQUAL_RELATIVE
        self.error64 = _relative_error(dim, 2.0**-53)

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> list[slice]:
        """Return the slices of the blocks."""
        return [slice(start, min(start + self.block_rows, len(self))) for start in range(0, len(self), self.block_rows)]

    def rows32(self, block: slice) -> np.ndarray:
        """Return centred, scaled rows (b, D) float32."""
        rows = self.features[block] - self.center
        rows *= self.features.dtype.type(self.scale)
        return rows.astype(np.float32, copy=False)

    def rows64(self, rows: np.ndarray) -> np.ndarray:
        """Return centred, scaled rows (b, D) float64."""
        return (self.features[rows].astype(np.float64) - self.center) * self.scale


def clouds(first: Tensor, second: Tensor, block_rows: int = BLOCK_ROWS) -> tuple[Cloud, Cloud]:
    """Put two feature sets (N, D), (M, D) about the mean of the first, which changes no distance and keeps digits.

    Raises:
        ValueError: If a value is not finite.
    """
    sets = [_array(features) for features in (first, second)]
    dtype = np.result_type(*sets)
    total = np.zeros(sets[0].shape[1])
    for start in range(0, len(sets[0]), block_rows):
        total += sets[0][start : start + block_rows].sum(0, dtype=np.float64)
    norms = []
    if np.isfinite(total).all():
        center = (total / len(sets[0])).astype(dtype)
        norms = [_squared_norms(features, center, block_rows) for features in sets]
    largest = float(np.max(np.concatenate(norms))) if norms else np.nan  # NaN if any is.
    if not np.isfinite(largest):
        raise ValueError("features hold NaN or infinity: precision and recall need finite features; extract them again.")
    # A power of two changes no digit.
    exponent = np.frexp(np.sqrt(largest))[1] if largest > 0.0 else 0
    scale = float(np.ldexp(1.0, -int(exponent)))
    first_cloud, second_cloud = (
        Cloud(features, center, scale, values * scale * scale, block_rows) for features, values in zip(sets, norms, strict=True)
    )
    return first_cloud, second_cloud


def _array(features: Tensor) -> np.ndarray:
    features = features.detach().cpu()
    return (features if features.dtype in (torch.float32, torch.float64) else features.float()).numpy()


def _squared_norms(features: np.ndarray, center: np.ndarray, block_rows: int) -> np.ndarray:
    norms = np.empty(len(features))
    for start in range(0, len(features), block_rows):
        rows = features[start : start + block_rows].astype(np.float64) - center
        norms[start : start + block_rows] = np.square(rows, out=rows).sum(1)
    return norms


def pair_distances(x: Cloud, i: np.ndarray, y: Cloud, j: np.ndarray) -> np.ndarray:
    """Squared distances of the pairs x[i], y[j] from float64 differences, 0 where the two count as equal: (P,) float64."""
    distances = np.empty(len(i))
    step = max(1, _PAIR_ELEMENTS // x.features.shape[1])
    for start in range(0, len(i), step):
        pairs = slice(start, start + step)
        gaps = x.features[i[pairs]].astype(np.float64)
        gaps -= y.features[j[pairs]]
        gaps *= x.scale
        distances[pairs] = np.square(gaps, out=gaps).sum(1)
    distances[distances < _EQUAL_RELATIVE * (x.norms[i] + y.norms[j])] = 0.0
    return distances


def _bulk_distances(x: Cloud, i: np.ndarray, y: Cloud, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of x[i] to y[j] from float64 products, and the sums of squared norms: two (len(i), len(j))."""
    norms = x.norms[i][:, None] + y.norms[j]
    distances = x.rows64(i) @ y.rows64(j).T
    distances *= -2.0
    distances += norms
    return distances, norms


def _tile(x_rows: np.ndarray, x_norms: np.ndarray, y_rows: np.ndarray, y_norms: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Squared distances (b, c) float32, in the buffer. numpy's product: torch may take bfloat16 for float32."""
    tile = buffer[: len(x_rows) * len(y_rows)].reshape(len(x_rows), len(y_rows))
    np.matmul(x_rows, y_rows.T, out=tile)
    tile *= -2.0
    tile += x_norms[:, None]
    tile += y_norms
    return tile


def _buffer(x: Cloud, y: Cloud) -> np.ndarray:
    return np.empty(min(x.block_rows, len(x)) * min(y.block_rows, len(y)), dtype=np.float32)


def _slack(cloud: Cloud, rows: np.ndarray | slice, radii: np.ndarray) -> np.ndarray:
    """Error bound of the float32 distance of a row to any point, in deciding whether that point is within ``radii``.

    A point within the radius r has length |x| + r at most, which bounds its own share of the error. The factor
    covers points beyond the radius (the bound grows slower than the distance) and points equal to the row.
    """
    norms = cloud.norms[rows]
    farthest = np.square(np.sqrt(norms) + np.sqrt(radii))
    return cloud.error32 * (1.01 + 4.0 * cloud.error32) * (norms + farthest) + _UNDERFLOW


@dataclass
class _Nearest:
    """The nearest points of each row so far, by float32 distance: values (N, L) float32 and indices (N, L) int64."""

    values: np.ndarray
    indices: np.ndarray

    def merge(self, rows: slice, tile: np.ndarray, first_column: int) -> None:
        """Take the distances (b, c) of ``rows`` to the columns from ``first_column`` on."""
        length = self.values.shape[1]
        best = torch.topk(torch.from_numpy(tile), min(length, tile.shape[1]), dim=1, largest=False, sorted=False)
        values = np.concatenate([self.values[rows], best.values.numpy()], axis=1)
        indices = np.concatenate([self.indices[rows], best.indices.numpy() + first_column], axis=1)
        kept = np.argpartition(values, length - 1, axis=1)[:, :length]
        self.values[rows] = np.take_along_axis(values, kept, axis=1)
        self.indices[rows] = np.take_along_axis(indices, kept, axis=1)


def ball_radii(cloud: Cloud, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th neighbour, itself excluded by index (a duplicate counts).

    Args:
        cloud: N rows.
        k: 1 to N - 1.

    Returns:
        (N,) float64, in the cloud's units.
    """
    count = len(cloud)
    length = min(k + _SPARE_NEIGHBOURS, count - 1)
    nearest = _Nearest(np.full((count, length), np.inf, np.float32), np.full((count, length), -1, np.int64))
    buffer = _buffer(cloud, cloud)
    for index, row_block in enumerate(cloud.blocks()):
        rows = cloud.rows32(row_block)
        for column_block in cloud.blocks()[index:]:
            columns = rows if column_block == row_block else cloud.rows32(column_block)
            tile = _tile(rows, cloud.norms32[row_block], columns, cloud.norms32[column_block], buffer)
            if column_block == row_block:
                np.fill_diagonal(tile, np.inf)
            else:
                nearest.merge(column_block, np.ascontiguousarray(tile.T), row_block.start)
            nearest.merge(row_block, tile, column_block.start)
    return _exact_radii(cloud, nearest, k)


def _exact_radii(cloud: Cloud, nearest: _Nearest, k: int) -> np.ndarray:
    """Turn the lists of nearest rows into exact radii."""
    count, length = nearest.values.shape
    values = nearest.values.astype(np.float64)
    listed = nearest.indices >= 0
    errors = cloud.error32 * (cloud.norms[:, None] + cloud.norms[nearest.indices]) + _UNDERFLOW
    above = np.partition(np.maximum(values + errors, 0.0), k - 1, axis=1)[:, k - 1]  # The radius is at most this.
    reach = above + _slack(cloud, slice(None), above)
    # A row is complete if the list reaches beyond everything that could be the k-th neighbour.
    complete = (values.max(1) > reach) | (length == count - 1)
    row, place = np.nonzero((values <= reach[:, None]) & listed & complete[:, None])
    exact = np.full((count, length), np.inf)
    exact[row, place] = pair_distances(cloud, row, cloud, nearest.indices[row, place])
    radii = np.partition(exact, k - 1, axis=1)[:, k - 1]
    crowded = np.flatnonzero(~complete)
    step = max(1, _BULK_ELEMENTS // count)
    for start in range(0, len(crowded), step):
        rows = crowded[start : start + step]
        radii[rows] = _crowded_radii(cloud, rows, k)
    return radii


def _crowded_radii(cloud: Cloud, rows: np.ndarray, k: int) -> np.ndarray:
    """Exact radii of rows with very many near neighbours: (len(rows),) float64."""
    upper = np.empty((len(rows), len(cloud)))
    lower = np.empty_like(upper)
    for block in cloud.blocks():
        distances, norms = _bulk_distances(cloud, rows, cloud, np.arange(block.start, block.stop))
        errors = cloud.error64 * norms
        is_equal = distances + errors < _EQUAL_RELATIVE * norms
        upper[:, block] = np.where(is_equal, 0.0, np.maximum(distances + errors, 0.0))
        # A pair that may or may not count as equal may have distance 0.
        is_doubtful = distances - errors < _EQUAL_RELATIVE * norms
        lower[:, block] = np.where(is_doubtful, 0.0, distances - errors)
    own = (np.arange(len(rows)), rows)
    upper[own] = lower[own] = np.inf
    above = np.partition(upper, k - 1, axis=1)[:, k - 1 : k]
    exact = np.where(upper == 0.0, 0.0, np.inf)
    row, column = np.nonzero((upper > 0.0) & (lower <= above) & (above > 0.0))
    exact[row, column] = pair_distances(cloud, rows[row], cloud, column)
    return np.partition(exact, k - 1, axis=1)[:, k - 1]


@dataclass
class Balls:
    """A feature set with a ball about each row.

    Args:
        cloud: The N centres.
        radii: (N,) float64 squared radii, in the cloud's units.
    """

    cloud: Cloud
    radii: np.ndarray

    def __post_init__(self) -> None:
        slack = _slack(self.cloud, slice(None), self.radii)
        #: Float32 distances up to ``certain`` are inside, those above ``possible`` outside: (N,) float32 each.
        self.certain = np.nextafter((self.radii - slack).astype(np.float32), np.float32(-np.inf))
        self.possible = np.nextafter((self.radii + slack).astype(np.float32), np.float32(np.inf))

    def hold(self, centers: np.ndarray, cloud: Cloud, points: np.ndarray) -> np.ndarray:
        """Return whether the balls ``centers`` hold the ``points`` of ``cloud``, pair by pair, exactly: (P,) bool."""
        radii = self.radii[centers]
        rows, row_of_pair = np.unique(centers, return_inverse=True)
        columns, column_of_pair = np.unique(points, return_inverse=True)
        if len(centers) <= _BULK_GAIN or len(centers) * _BULK_GAIN < len(rows) * len(columns):
            return pair_distances(self.cloud, centers, cloud, points) <= radii
        inside = np.empty(len(centers), dtype=bool)
        doubtful = np.empty(len(centers), dtype=bool)
        step = max(1, _BULK_ELEMENTS // len(columns))
        order = np.argsort(row_of_pair, kind="stable")
        bounds = np.searchsorted(row_of_pair[order], np.arange(0, len(rows) + step, step))
        for chunk, start in enumerate(range(0, len(rows), step)):
            pairs = order[bounds[chunk] : bounds[chunk + 1]]
            distances, norms = _bulk_distances(self.cloud, rows[start : start + step], cloud, columns)
            place = (row_of_pair[pairs] - start, column_of_pair[pairs])
            # Equal rows have distance 0, inside any radius.
            gap = distances[place] - np.maximum(radii[pairs], _EQUAL_RELATIVE * norms[place])
            inside[pairs] = gap < 0.0
            doubtful[pairs] = np.abs(gap) <= self.cloud.error64 * norms[place] + np.finfo(np.float64).tiny
        inside[doubtful] = pair_distances(self.cloud, centers[doubtful], cloud, points[doubtful]) <= radii[doubtful]
        return inside


@dataclass
class BallCounts:
    """Who lies in whose balls.

    Args:
        num_real_balls: (M,) int64, the number of real balls each fake lies in.
        is_real_covered: (N,) bool, whether a real ball holds a fake.
        is_real_recalled: (N,) bool, whether a real lies in a fake ball.
    """

    num_real_balls: np.ndarray
    is_real_covered: np.ndarray
    is_real_recalled: np.ndarray


def count_in_balls(real: Balls, fake: Balls) -> BallCounts:
    """Count the fakes in real balls and the reals in fake balls, exactly."""
    counts = BallCounts(np.zeros(len(fake.cloud), np.int64), np.zeros(len(real.cloud), bool), np.zeros(len(real.cloud), bool))
    buffer = _buffer(real.cloud, fake.cloud)
    for row_block in real.cloud.blocks():
        rows = real.cloud.rows32(row_block)
        for column_block in fake.cloud.blocks():
            columns = fake.cloud.rows32(column_block)
            tile = _tile(rows, real.cloud.norms32[row_block], columns, fake.cloud.norms32[column_block], buffer)
            _count_real_balls(real, fake, tile, row_block, column_block, counts)
            _find_recalled(real, fake, tile, row_block, column_block, counts)
    return counts


def _count_real_balls(real: Balls, fake: Balls, tile: np.ndarray, rows: slice, columns: slice, counts: BallCounts) -> None:
    certain = tile <= real.certain[rows, None]
    possible = tile <= real.possible[rows, None]
    if not possible.any():
        return
    counts.num_real_balls[columns] += certain.view(np.uint8).sum(0, dtype=np.int32)
    counts.is_real_covered[rows] |= certain.any(1)
    i, j = _true_places(np.logical_xor(possible, certain, out=possible), rows, columns)
    if len(i):
        inside = real.hold(i, fake.cloud, j)
        np.add.at(counts.num_real_balls, j[inside], 1)
        counts.is_real_covered[i[inside]] = True


def _find_recalled(real: Balls, fake: Balls, tile: np.ndarray, rows: slice, columns: slice, counts: BallCounts) -> None:
    possible = tile <= fake.possible[columns]
    if not possible.any():
        return
    counts.is_real_recalled[rows] |= (tile <= fake.certain[columns]).any(1)
    # A row once recalled needs no more answers; among the others every possible pair is an uncertain one.
    possible[counts.is_real_recalled[rows]] = False
    i, j = _true_places(possible, rows, columns)
    if len(i):
        counts.is_real_recalled[i[fake.hold(j, real.cloud, i)]] = True


def _true_places(mask: np.ndarray, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return i + rows.start, j + columns.start
