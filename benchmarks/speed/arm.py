"""One arm: ``python -m benchmarks.speed.arm NAME WORK [check]``, started and led by ``turns.Arm``."""

import json
import sys
from pathlib import Path

from benchmarks.speed import frisket_arm, plain_arm, trl_arm
from benchmarks.speed.turns import Turns

ARMS = {**frisket_arm.ARMS, **trl_arm.ARMS, **plain_arm.ARMS}


def main() -> None:
    """Tell what the arm trains on and where its loss starts; or train until the parent says stop."""
    name, work, *rest = sys.argv[1:]
    check, run = ARMS[name]
    if rest == ["check"]:
        print(json.dumps(check(Path(work))))
        return
    run(Path(work), Turns())


if __name__ == "__main__":
    main()
