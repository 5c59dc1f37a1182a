"""The performance prediction of the Pipe-it paper, as a baseline (Wang et al., arXiv 1903.05898).

What is published: the time of a layer is predicted from its descriptor alone, on every core type and count; a
convolution is a product of the image matrix (output patches x filter volume) and the filter matrix (filter volume x
filters), and its time is found by regression on these dims, for each core type; on several cores by the share of the
work that each gets after splitting.

What had to be chosen here:

- the regressors: 1, M, N, K, MN, MK, NK and MNK (M patches, N filters, K volume), all groups' products counted;
- the fit: least squares of the relative error, which serves the method better than that of seconds;
- on n cores each gets a share of M/n patches, the slowest core type's time counting where types are mixed;
- depthwise convolutions are products like all others (with groups);
- layers that are no products (pools, sums, ...), which the paper leaves out: a constant and the bytes they move;
- what the paper has no notion of is left out: other cores being busy, the cost of a cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.calibration import Calibration, Sample
from corepipe.topology.model import ALL_CORES, CoreConfig

Vector = NDArray[np.float64]

_LEAST_S = 1e-6
"""A regression can go below zero; no layer takes less than this."""


@dataclass(frozen=True)
class PaperModel:
    """The coefficients of both regressions for each core type."""

    products: Mapping[str, Vector]
    others: Mapping[str, Vector]

    def seconds(self, sample: Sample, config: CoreConfig, clusters: Mapping[str, int]) -> float:
        """Predicted seconds of a layer.

        Args:
            sample: the layer.
            config: which cores.
            clusters: the machine's clusters, and how many cores each has.
        """
        names = list(clusters) if config.cluster == ALL_CORES else [config.cluster]
        return max(self._on(name, sample, config.count) for name in names)

    def _on(self, cluster: str, sample: Sample, count: int) -> float:
        if _is_product(sample):
            return max(float(_dims(sample, count) @ self.products[cluster]), _LEAST_S)
        return max(float(_moved(sample) @ self.others[cluster]) / count, _LEAST_S)


def fit_paper(calibration: Calibration) -> PaperModel:
    """The paper's model from the measurements on one core of each type."""
    networks = {network.index: network for network in calibration.networks}
    products, others = {}, {}
    for cluster in calibration.machine.clusters:
        seen: list[tuple[Sample, float]] = []
        for measured in calibration.measurements:
            if measured.config == str(CoreConfig(cluster.name, 1)):
                seen += zip(networks[measured.network].layers, measured.layer_s, strict=True)
        products[cluster.name] = _regression([(_dims(s, 1), t) for s, t in seen if _is_product(s)], 8)
        others[cluster.name] = _regression([(_moved(s), t) for s, t in seen if not _is_product(s)], 2)
    return PaperModel(products, others)


def _is_product(sample: Sample) -> bool:
    return sample.m > 0 and sample.n > 0 and sample.k > 0


def _dims(sample: Sample, count: int) -> Vector:
    m, n, k = float(-(-sample.m // count)), float(sample.n), float(sample.k)
    times = sample.groups
    return np.array([1.0, m, n, k, m * n * times, m * k * times, n * k * times, m * n * k * times])


def _moved(sample: Sample) -> Vector:
    return np.array([1.0, float(sample.bytes_in + sample.bytes_out)])


def _regression(seen: Sequence[tuple[Vector, float]], columns: int) -> Vector:
    if not seen:
        return np.zeros(columns)
    matrix = np.array([row for row, _ in seen])
    seconds = np.maximum(np.array([t for _, t in seen]), _LEAST_S)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1.0)
    found, *_ = np.linalg.lstsq(matrix / scale / seconds[:, None], np.ones(len(seen)), rcond=None)
    return np.asarray(found / scale, dtype=np.float64)
