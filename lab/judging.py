"""What weights of the bundled base know and can do, however they came about."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frisket.evaluate import forgetting, learning
from frisket.evaluate.calibration import Calibration, calibration
from frisket.hf.load import load_model
from frisket.recipe import Recipe
from frisket.run import measuring
from frisket.run.prepare import prepare
from frisket.watch import Silent


@dataclass(frozen=True)
class Scores:
    """What was measured of some weights.

    Attributes:
        learning: set to measure to mean: ``loss``, and ``exact_match`` where the set asks for it.
        calibration: of the first learning set.
        text: kind of text to bits per character.
    """

    learning: Mapping[str, Mapping[str, float]]
    calibration: Calibration
    text: Mapping[str, float]


class Judge:
    """The sets of a recipe, and one copy of the base in fp32 that takes any weights.

    Attributes:
        base: the base's own weights, by name.
    """

    def __init__(self, recipe: Recipe) -> None:
        prepared = prepare(recipe, Silent())
        self._model = load_model(prepared.recipe.model, torch.float32, torch.device("cpu"))
        self._model.eval()
        sets = measuring.make_sets(prepared, self._model, Silent(), None)
        if sets is None:
            raise ValueError("the recipe measures nothing")
        self._sets = sets
        self.base = {name: value.detach().clone() for name, value in self._model.named_parameters()}

    def of(self, weights: Mapping[str, Tensor]) -> Scores:
        """Measure the base with these weights in the place of its own."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights.get(name, self.base[name]))
        of, instruments = self._sets, self._sets.instruments
        learned = {}
        for each in of.learning:
            scores = learning.measure(self._model, each, instruments)
            learned[each.settings.name] = {name: measure.value for name, measure in scores.measures.items()}
        texts = {}
        for each in of.forgetting:
            found = forgetting.measure_base(self._model, each, instruments, keep_base=False)
            texts |= {name: measure.value for name, measure in found.measures.items()}
        return Scores(learned, calibration(self._model, of.learning[0].samples, instruments), texts)


def mean_text(scores: Scores) -> float:
    """Bits per character, the mean of the kinds of text."""
    return float(np.mean(list(scores.text.values())))
