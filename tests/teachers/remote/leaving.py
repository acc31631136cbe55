"""A program that opens a teacher in processes, prints their ids, and then does as it is told."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from far_toys import Plain, Slow, source

from decoct.outputs import Needs
from decoct.teachers.remote.process import ProcessTeacher
from decoct.teachers.remote.running_ahead import RunsAhead


def main(how: str) -> None:
    context = ProcessTeacher().open(Slow(0.2), Plain(), Needs())
    teacher = context.__enter__()
    batches = iter(RunsAhead(source(), [teacher]))
    teacher(next(batches))
    print(os.getpid(), *teacher.pids(), flush=True)
    if how == "wait":
        time.sleep(600)
    else:
        sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
