"""Several models as one: the mean of their probabilities (Lakshminarayanan et al. 2017), whichever library runs each.

The models answer one after the other, so their number costs time, and of memory their weights alone. Where one of them
is torch's, probabilities are summed in tensors on its device; exported models are handed numpy arrays and run by
onnxruntime. Each model averages its own test-time views; then the means of the models are averaged.

B batch, C bands, K classes, S window.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rs_biformer.errors import ConfigError
from rs_biformer.predict.arrays import Array, library_of
from rs_biformer.predict.backends import Backend, backend, backend_of, is_module
from rs_biformer.predict.onnx import OnnxModel
from rs_biformer.predict.recipe import Device, Model, Recipe, Worker
from rs_biformer.predict.tta import averaged


class Ensemble:
    """Models for `predict_scene` that give the same classes of the same bands; see there what a model is.

    Raises ConfigError for fewer than two.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        if len(members) < 2:
            raise ConfigError(f"an ensemble is of two models or more, got {len(members)}")
        self.members = tuple(members)
        self.normalisation = getattr(members[0], "normalisation", None)

    def make_backend(self) -> Backend:
        """What runs the models, each by its own library; see backends.py."""
        return _Together([backend_of(member).NAME for member in self.members], self.members)


def members_of(model: Model) -> tuple[Model, ...]:
    """The models of an ensemble, or the one model that it is."""
    return model.members if isinstance(model, Ensemble) else (model,)


def backend_names(model: Model) -> tuple[str, ...]:
    """The NAME of the back end of each model of an ensemble, or of the one: all that a survey of workers needs."""
    return tuple(backend_of(member).NAME for member in members_of(model))


def named_backend(names: Sequence[str]) -> Backend:
    """The back end that runs models of these back ends together, where the models themselves are not at hand."""
    return backend(names[0]) if len(names) == 1 else _Together(names, [None] * len(names))


def is_movable(model: Model) -> bool:
    """Whether all that torch runs of a model can be brought to a GPU."""
    return all(is_module(member) for member in members_of(model) if not isinstance(member, OnnxModel))


class _Together:
    """The back ends of several models as one. A device is that of torch, where a model needs it.

    names: of the back ends. members: the models; None for each where they are not at hand.
    """

    NAME = "ensemble"

    def __init__(self, names: Sequence[str], members: Sequence[Model | None]) -> None:
        self._members = members
        self._exported = [name == OnnxModel.backend for name in names]
        self._backends = [backend(name) for name in names]
        # The one whose arrays and devices are those of all: torch's where there is any.
        self._leader = self._backends[min(range(len(names)), key=self._exported.__getitem__)]

    def software(self) -> str:
        return ", ".join(dict.fromkeys(one.software() for one in self._backends))

    def threads(self) -> int:
        return self._leader.threads()

    def use_threads(self, count: int) -> None:
        for one in self._backends:
            one.use_threads(count)

    def pick_devices(self, names: Device | Sequence[Device], movable: bool = True) -> list[Any]:
        return self._leader.pick_devices(names, movable)

    def good_at_bf16(self, device: Any) -> bool:
        return self._leader.good_at_bf16(device)

    def hardware(self, device: Any, threads: int, model: Any = None) -> str:
        kinds = [
            one.hardware(self._device_of(exported, device), threads, member)
            for one, exported, member in zip(self._backends, self._exported, self._members, strict=True)
        ]
        return " with ".join(dict.fromkeys(kinds))

    def prepare(self, recipe: Recipe, model: Any, device: Any, copy: bool = False) -> Worker:
        own = replace(recipe, models=1, disagreement=False)
        # A file computes in the numbers that it has.
        as_exported = replace(own, precision="32", compile=False, passes="plain")
        workers = [
            one.prepare(as_exported if exported else own, member, self._device_of(exported, device), copy)
            for one, exported, member in zip(self._backends, self._exported, self._members, strict=True)
        ]
        arrays = next(worker.arrays for worker, one in zip(workers, self._backends, strict=True) if one is self._leader)

        def answers(image: Array, valid: Array) -> Iterator[Array]:
            for worker in workers:
                if type(worker.arrays) is type(arrays):
                    yield _stacked(worker.predict(image, valid))
                else:
                    theirs = worker.arrays.placed(arrays.on_host(image)), worker.arrays.placed(arrays.on_host(valid))
                    yield arrays.placed(worker.arrays.on_host(_stacked(worker.predict(*theirs))))

        def predict(image: Array, valid: Array) -> Iterable[Array]:
            mean: Iterable[Array] = averaged(answers(image, valid), recipe.disagreement)
            return mean

        return Worker(predict, arrays)

    def _device_of(self, exported: bool, device: Any) -> Any:
        """The device of a member: what runs exported models takes the CPU, or a GPU where it has one."""
        if not exported or all(self._exported):
            return device
        return "cpu" if str(device).startswith("cpu") else "auto"


def _stacked(values: Iterable[Array]) -> Array:
    """(B, K, S, S), out of one array or one for each window."""
    whole: Array = values
    if getattr(values, "ndim", 0) != 4:
        each = list(values)
        whole = library_of(each[0]).stack(each)
    return whole
