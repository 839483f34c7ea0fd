"""Part: one command, or kind of file, under one kind of fault: how often, and what went wrong."""

import time


class Part:
    """One command under one kind of fault: how many points, what went wrong."""

    def __init__(self, name, of, chosen):
        self.name, self.of, self.chosen = name, of, len(chosen)
        self.hit, self.problems, self.said = 0, [], ""
        self.started, self.seconds = time.monotonic(), 0.0

    def note(self, point, problems):
        """Adds what was wrong at a point; until the last of these its time runs."""
        self.seconds = time.monotonic() - self.started
        self.problems += [f"{self.name} at {point[0]} {point[1]} ({point[2]}): {problem}" for problem in problems]

    def row(self):
        return (self.name, self.of, self.chosen, self.hit, len(self.problems), f"{self.seconds:.1f}")


def table(parts):
    head = ("part", "points", "tried", "hit", "violations", "seconds")
    rows = [head, *(part.row() if isinstance(part, Part) else part for part in parts)]
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
