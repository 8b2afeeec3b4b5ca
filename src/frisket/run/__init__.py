"""The composition root: recipe to objects to loop. What the command line and Python call."""

from frisket.run.again import evaluate_run
from frisket.run.exporting import export
from frisket.run.opening import Chat, open_run
from frisket.run.planning import Plan, make_plan, module_names
from frisket.run.training import Given, train
from frisket.run.viewing import view

__all__ = ["Chat", "Given", "Plan", "evaluate_run", "export", "make_plan", "module_names", "open_run", "train", "view"]
