"""The options of prediction, in three groups: how a scene is looked at, what computes, what is written and kept.

Every function that predicts takes them as keywords, `predict_scene(..., window=512, tta="d4")`, and the command line as
options of the same names. What they are called, what they are unless given and what they mean is said here alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from rs_biformer.errors import ConfigError
from rs_biformer.geometry import Blend, stride_of
from rs_biformer.predict.cluster import Cluster
from rs_biformer.predict.outputs import ScoreDtype
from rs_biformer.predict.recipe import Device, Passes, Precision
from rs_biformer.predict.tta import View, Views, views

Quality = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Windows:
    """How a scene is looked at.

    window, overlap, blend: windows of `window` pixels that share `overlap` of their side with their neighbours;
        `blend` is that of `geometry.axis_weights`. A scene smaller than a window is padded by reflection. Where neither
        window nor overlap is given, or a quality is, what is not given follows from the quality; else the window is
        that of training (256 for a model that does not tell) and the overlap a half.
    quality: `fast`, `balanced` or `best`, see quality.py; `balanced` where it decides and is not given, but `best` for
        a model of which nothing is known.
    tta, scales: the views whose probabilities are averaged: `none`, `flips` (4) or `d4` (8), at every scale.

    Raises ConfigError for what cannot be meant and, once the window is known, for two scales whose views have one size:
    sides are rounded, see `tta.View`, and such a view would be counted twice.
    """

    window: int | None = None
    overlap: float | None = None
    blend: Blend = "hann"
    tta: Views = "none"
    scales: tuple[float, ...] = (1.0,)
    quality: Quality | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.quality is not None and self.quality not in get_args(Quality):
            raise ConfigError(f"quality is {self.quality!r}; it must be one of {', '.join(get_args(Quality))}")
        stride_of(256 if self.window is None else self.window, 0.5 if self.overlap is None else self.overlap)
        if self.window is not None:
            self.require_distinct(self.window)

    def require_distinct(self, window: int) -> None:
        """Raise ConfigError where two scales give views of one size of windows of `window` pixels."""
        scale_of: dict[int, float] = {}
        for view in views("none", self.scales):
            side = view.side(window)
            if side in scale_of:
                raise ConfigError(
                    f"scales {scale_of[side]:g} and {view.scale:g} give the same views, of {side} pixels with windows "
                    f"of {window}; leave one of them out"
                )
            scale_of[side] = view.scale

    @property
    def views(self) -> tuple[View, ...]:
        """The views of a window that are averaged."""
        return views(self.tta, self.scales)


@dataclass(frozen=True)
class Compute:
    """What computes, and with how much at a time. It decides the time; of the map only bits in the last place.

    batch_size: windows per forward pass, at most; fewer where memory is short, or where the quality chose windows so
        much larger than those of training that a pass would hold more pixels than it did. Left out, 64 on GPUs, whose
        time goes into starting kernels with fewer (benchmarks/RESULTS.md), and 8 elsewhere.
    device: `auto` is all visible GPUs for a module and the CPU for any other callable; see `pick_devices`. Several
        devices share out the strips, each with a copy of the model (a callable that is no module is called from as many
        threads); the bytes are those of one.
    precision: `bf16` runs the model under autocast. `auto` does so where the hardware is good at it and the model
        normalises by itself; other callables run as they are.
    max_memory: bytes that prediction may allocate beside the loaded program, the model and the activations of its
        forward pass; see `plan.Memory`. Left out, a quarter of the machine's memory, at most 2 GB for each device. On a
        cluster it holds for each worker.
    compile: run the model through torch.compile.
    passes: how a CPU makes forward passes: `fused` has batch norms, activations and weights of bfloat16 in the
        convolutions, see fusing.py; `plain` runs the model as it is. `auto` fuses what runs in bfloat16 and normalises
        by itself, unless it is compiled. On GPUs batch norms are folded in either case.
    cluster: `dask` for processes on this machine, the address of a Dask scheduler, or what else `cluster.connect`
        takes: the strips are inferred by its workers, which must be able to read the scene.
    """

    batch_size: int | None = None
    device: Device | Sequence[Device] = "auto"
    precision: Precision = "auto"
    max_memory: int | None = None
    compile: bool = False
    cluster: str | Cluster | None = None
    passes: Passes = "auto"

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be 1 or more")


@dataclass(frozen=True)
class Output:
    """What is written beside the pixels of the maps, and what a run that does not end leaves behind.

    probability_dtype: of all maps but the classes: `uint8` in steps of 1/250 with nodata 255, or `float16` with nodata
        NaN.
    style: write a QGIS style (.qml) beside the class map where the classes have names.
    resume: leave what is finished when the run is interrupted or fails, in a hidden folder beside each map, and go on
        from there when the same call is made again. Not with a callable that is no module: it could be anything.
    restart: start over, also where the folder belongs to other options.
    """

    probability_dtype: ScoreDtype = "uint8"
    style: bool = True
    resume: bool = True
    restart: bool = False


_GROUPS: Mapping[str, type] = {"windows": Windows, "compute": Compute, "output": Output}


@dataclass(frozen=True)
class Options:
    """All of them."""

    windows: Windows = field(default_factory=Windows)
    compute: Compute = field(default_factory=Compute)
    output: Output = field(default_factory=Output)

    @classmethod
    def of(cls, **keywords: Any) -> "Options":
        """The options of these names, each in its group: `Options.of(window=512, device="cpu").windows.window` is 512.

        Raises TypeError for a name that is none, as a function does, and ConfigError like the groups.
        """
        homes = {item.name: group for group, kind in _GROUPS.items() for item in fields(kind)}
        given: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
        for name, value in keywords.items():
            if name not in homes:
                near = get_close_matches(name, homes, n=1)
                raise TypeError(
                    f"prediction has no option {name!r}; "
                    + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(homes))}")
                )
            given[homes[name]][name] = value
        return cls(**{group: kind(**given[group]) for group, kind in _GROUPS.items()})
