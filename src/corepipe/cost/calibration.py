"""The calibration of a machine: what was measured, and what was fitted to it; a versioned document."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from corepipe.cost.table import EngineName, HopCosts, Seconds, TableMachine
from corepipe.document import Document, Part
from corepipe.network.model import Descriptor

Count = Annotated[int, Field(ge=0)]
Sizes = tuple[Count, ...]

CHANNEL_BLOCK = 16
"""What calibrations go by that do not tell the size of their blocks."""


class Sample(Part):
    """A measured layer: its descriptor and its place (see `corepipe.cost.predict.layout`)."""

    kind: str
    op_types: tuple[str, ...]
    m: Count = 0
    n: Count = 0
    k: Count = 0
    groups: Annotated[int, Field(ge=1)] = 1
    flops: Count = 0
    bytes_in: Count = 0
    bytes_out: Count = 0
    bytes_weights: Count = 0
    kernel: Sizes = ()
    strides: Sizes = ()
    dilations: Sizes = ()
    dtype: str = "float32"
    blocked: bool = False
    reorders: Count = 0
    reorder_bytes: Count = 0
    footprint: Count = 0
    moves: bool = False
    copies: Count = 0

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor alone."""
        place = {"blocked", "reorders", "reorder_bytes", "footprint", "moves", "copies"}
        return Descriptor(**self.model_dump(exclude=place))


class SampleNetwork(Part):
    """A network of the calibration set, by its number, with its layers and the bytes at its two ends."""

    index: Count
    layers: tuple[Sample, ...] = Field(min_length=1)
    end_bytes: Count = 0


class Measurement(Part):
    """One network of the calibration set on one core config.

    Attributes:
        layer_s, busy_layer_s: each layer, alone and with every other core busy (None where there is no other core).
        whole_s, busy_whole_s: the whole network; what exceeds the layers is the cost of being a segment.
        cuts, cut_bytes, cuts_extra_s: how much longer it took in `cuts` + 1 segments with `cut_bytes` at both sides
            of the cuts.
        call_s: what calling the engine costs for next to no work.
        spread: relative half-width of the middle half of the measured whole times.
        left_out: the largest share of runs that did not count, because the cores were disturbed.
        passes: how many times, at different moments, the whole network was timed; the quickest counts.
    """

    config: str
    network: Count
    layer_s: tuple[Seconds, ...]
    busy_layer_s: tuple[Seconds, ...] | None = None
    whole_s: Seconds
    busy_whole_s: Seconds | None = None
    cuts: Count = 0
    cut_bytes: Count = 0
    cuts_extra_s: float = 0.0
    call_s: Seconds = 0.0
    spread: Seconds = 0.0
    left_out: Annotated[float, Field(ge=0, le=1)] = 0.0
    passes: Annotated[int, Field(ge=1)] = 1


class PartialCalibration(Document):
    """What has been measured so far, so that an interrupted calibration goes on where it stopped."""

    KIND: ClassVar[str] = "corepipe-partial-calibration"

    set_version: int
    measurements: tuple[Measurement, ...] = ()
    hop: HopCosts | None = None


class Condition(Part):
    """What was fitted to one core config, alone or busy.

    Attributes:
        coefficients: seconds per unit of each term (see `corepipe.cost.predict.terms`); zero ones are left out.
        low, high: for each family of kernels, what share of the prediction 10 % and 90 % of left-out layers lie below.
        segment_s, segment_s_per_byte: see `corepipe.cost.table.ConfigCosts`.
        error: mean relative error of left-out layers, weighted by their time.
    """

    config: str
    busy: bool = False
    coefficients: dict[str, Seconds]
    low: dict[str, Seconds] = Field(default_factory=dict)
    high: dict[str, Seconds] = Field(default_factory=dict)
    segment_s: Seconds = 0.0
    segment_s_per_byte: Seconds = 0.0
    error: Seconds = 0.0


class ScalingLaw(Part):
    """How one core type's time falls with the count of cores, for counts that were not measured.

    Attributes:
        serial: share of the computing that does not divide.
        memory_cores: how many cores it takes to use up the bandwidth that they share.
        barrier_s: added to each kernel call for each further core.
        crossing_s_per_byte: on several cores, per byte that another core may have written.
    """

    cluster: str
    serial: Annotated[float, Field(ge=0, le=1)] = 0.0
    memory_cores: Annotated[float, Field(ge=1)] = 1.0
    barrier_s: Seconds = 0.0
    crossing_s_per_byte: Seconds = 0.0


class Calibration(Document):
    """All that predicting needs of a machine, with the data it comes from.

    Attributes:
        set_version: of the calibration set.
        spread: median spread of the measurements; `trustworthy` is false where it was too large.
        networks, measurements: the data.
        channel_block: channels in a block of the engine's kernels (see `corepipe.cost.predict.layout`).
        own_cache_bytes: a core's own cache (the smallest of the clusters, 0 where unknown).
        shared_cache_bytes: what a core effectively has of the shared cache; found by the fit.
        others_bytes_per_s: how fast others (other machines on the same chip) push theirs through it; found by the fit.
        tiles: which of the known kernel tilings fitted best.
        conditions, laws: the fit.
    """

    KIND: ClassVar[str] = "corepipe-calibration"

    machine: TableMachine
    engine: EngineName
    created: str = ""
    emulated: bool = False
    set_version: int
    spread: Seconds = 0.0
    trustworthy: bool = True
    hop: HopCosts = HopCosts()
    networks: tuple[SampleNetwork, ...] = Field(min_length=1)
    measurements: tuple[Measurement, ...] = Field(min_length=1)
    channel_block: Annotated[int, Field(ge=1)] = CHANNEL_BLOCK
    own_cache_bytes: Count = 0
    shared_cache_bytes: Count = 0
    others_bytes_per_s: Seconds = 0.0
    tiles: str = ""
    conditions: tuple[Condition, ...] = ()
    laws: tuple[ScalingLaw, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layers = {network.index: len(network.layers) for network in self.networks}
        for number, one in enumerate(self.measurements):
            if one.network not in layers:
                raise ValueError(f"measurements.{number}: there is no network {one.network}")
            for name, values in (("layer_s", one.layer_s), ("busy_layer_s", one.busy_layer_s)):
                if values is not None and len(values) != layers[one.network]:
                    raise ValueError(
                        f"measurements.{number}: {name} needs {layers[one.network]} entries, has {len(values)}"
                    )
        return self
