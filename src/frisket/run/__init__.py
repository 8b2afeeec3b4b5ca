"""The composition root: recipe to objects to loop. What the command line and Python call."""

from frisket.run.again import evaluate_run
from frisket.run.comparing import compare_runs
from frisket.run.exporting import export
from frisket.run.folder import where_stopped
from frisket.run.grid import load_grid, make_grid, train_grid
from frisket.run.listing import Listed, list_methods
from frisket.run.matching import MatchReport, match_report, module_names
from frisket.run.opening import Chat, open_run
from frisket.run.planning import Plan, make_plan
from frisket.run.training import Given, train
from frisket.run.undoing import undo
from frisket.run.viewing import view

__all__ = [
    "Chat",
    "Given",
    "Listed",
    "MatchReport",
    "Plan",
    "compare_runs",
    "evaluate_run",
    "export",
    "list_methods",
    "load_grid",
    "make_grid",
    "make_plan",
    "match_report",
    "module_names",
    "open_run",
    "train",
    "train_grid",
    "undo",
    "view",
    "where_stopped",
]
