"""`frisket methods`: every method on one model, counted on the meta device without a weight."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from pydantic import ValidationError

from frisket.adapt.base import Attached, MethodSettings, Moment
from frisket.adapt.methods import Method, attach
from frisket.adapt.peft import PACKS, Peft
from frisket.adapt.peft_types import ABOUT
from frisket.adapt.rates import rate_of
from frisket.errors import FrisketError
from frisket.explain import method_name
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.train.optim import state_bytes
from frisket.train.settings import TrainSettings

LONG_RUN = 1000
"""Steps for which default rates are told: short runs may have another."""
SMALL = 100_000_000
"""Parameters of a model that may be made with (random) weights only to count."""


@dataclass(frozen=True)
class Listed:
    """One method, as it is by default, or as a recipe sets it.

    Attributes:
        name: ``adapt.method``, or for PEFT's other types ``peft: TYPE``.
        is_own: whether the settings are the recipe's.
        moves: what moves, in words.
        source: paper and section.
        parameters: how many move; None where ``why_not`` says why that is not known.
        share: of them in the base's parameters.
        optimizer_bytes: of its optimizer, masters and gradients apart.
        merges: whether the result can be folded into the base's weights.
        packs: whether several samples may share a row, as a forest, as mask-free rows or as isolated ones.
        quantised: whether it works on a base in 4 or 8 bit.
        rate: default peak rate of a long run on this model, and its source.
    """

    name: str
    is_own: bool
    moves: str
    source: str
    parameters: int | None
    share: float | None
    optimizer_bytes: int | None
    merges: bool
    packs: bool
    quantised: bool
    rate: float
    rate_source: str
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self)


def list_methods(settings: ModelSettings, own: MethodSettings | None = None) -> list[Listed]:
    """Every method of the union with its defaults, and PEFT's further types, on one model.

    Args:
        own: settings of a recipe, which take the place of their method's defaults.

    Raises:
        ConfigError: the model's configuration cannot be read.
    """
    config = load.load_config(settings)
    with torch.device("meta"):
        total = sum(p.numel() for p in load.empty_model(config).parameters())
    every = {name: (method, why) for name, method, why in _every_method()}
    if own is not None:
        every[_name(own)] = own, ""
    return [_listed(config, total, name, method, why, method is own) for name, (method, why) in every.items()]


def _name(method: MethodSettings) -> str:
    name = method_name(type(method))
    return f"{name}: {method.label}" if isinstance(method, Peft) else name


def _every_method() -> Iterator[tuple[str, MethodSettings, str]]:
    """Name, settings, and what they still need."""
    for kind in get_args(get_args(Method)[0]):
        name = method_name(kind)
        if kind is Peft:
            typed = {method_name(other).upper() for other in get_args(get_args(Method)[0])}
            for peft_type in sorted(PACKS - typed):
                typed_peft = Peft(peft_type=peft_type)
                yield _name(typed_peft), typed_peft, ""
            continue
        try:
            yield name, kind(method=name), ""
        except ValidationError as error:  # a setting without a default, which only a user knows
            missing = [str(each["loc"][-1]) for each in error.errors()]
            yield name, kind.model_construct(**dict.fromkeys(missing, "…")), f"needs adapt.{missing[0]}"


def _listed(config: Any, total: int, name: str, method: MethodSettings, why_not: str, is_own: bool) -> Listed:
    attached, failed = _attached(config, total, method)
    why_not = why_not or failed
    rate = rate_of(method.declared_rate, config.get_text_config().hidden_size, LONG_RUN)
    about = ABOUT.get(method.label, method.about) if isinstance(method, Peft) else method.about
    moving = None if attached is None else sum(p.numel() for p in attached.parameters().values())
    return Listed(
        name,
        is_own,
        about.moves,
        about.source,
        moving,
        None if moving is None else moving / total,
        None if attached is None else _state_bytes(attached),
        about.merges,
        method.packs,
        about.quantised,
        rate.value,
        rate.why,
        why_not,
    )


def _attached(config: Any, total: int, method: MethodSettings) -> tuple[Attached | None, str]:
    """The method on a model without weights, on a small one with some where it needs them; or why it cannot be."""
    try:
        return _on(config, method, "meta"), ""
    except FrisketError as error:
        return None, str(error).partition("\n")[0]
    except (NotImplementedError, RuntimeError):  # some of PEFT's types compute with the weights when they start
        if total > SMALL:
            return None, f"needs weights to be built, and they are counted only up to {SMALL:,} parameters"
    try:
        return _on(config, method, "cpu"), ""
    except FrisketError as error:
        return None, str(error).partition("\n")[0]


def _on(config: Any, method: MethodSettings, device: str) -> Attached:
    with torch.device(device):
        model = load.empty_model(config)
    return attach(method, model, torch.Generator().manual_seed(0))


def _state_bytes(attached: Attached) -> int:
    """Of the method's own update rule, or of AdamW."""
    settings = TrainSettings()
    masters = {name: parameter.detach() for name, parameter in attached.parameters().items()}
    own = attached.make_update(masters, Moment(settings.betas, settings.epsilon, settings.weight_decay))
    if own is None:
        return state_bytes("adamw", [master.shape for master in masters.values()])
    return sum(tensor.nbytes for state in own.state.values() for tensor in state.values() if torch.is_tensor(tensor))
