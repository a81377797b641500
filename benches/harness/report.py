"""Rows of figures: kept as JSON, printed as one table."""
import json
import statistics


class Goal:
    """What is to be reached: a number (none: it cannot be known in this run), its words, and what must hold besides."""

    def __init__(self, sign, bound, words=None, also=True):
        self.text = " ".join(filter(None, [sign, words if words is not None else number(bound)]))
        self.sign, self.bound, self.also = sign, bound, also

    def met(self, value):
        if self.bound is None or value is None:
            return None
        return {"≥": value >= self.bound, "≤": value <= self.bound, "": value == self.bound}[self.sign] and self.also


def at_least(bound, words=None):
    return Goal("≥", bound, words)


def at_most(bound, words=None, also=True):
    return Goal("≤", bound, words, also)


def exactly(bound):
    return Goal("", bound)


def no_goal(words=""):
    return Goal("", None, words)


class Row:
    """One line: what was measured, the goal, and what stood beside it in the same run."""

    def __init__(self, scenario, what, unit, ours, goal, beside=(), note="", more=None):
        self.data = {
            "scenario": scenario, "what": what, "unit": unit, "ours": ours, "goal": goal.text, "bound": goal.bound,
            "met": goal.met(ours), "beside": [dict(name=name, value=value) for name, value in beside], "note": note,
            **(more or {}),
        }


def median(values):
    return statistics.median(values) if values else None


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


def number(value):
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def distance(row):
    """How far it is from the goal: the quotient, or the difference from a goal of zero."""
    if row["ours"] is None or row["bound"] is None:
        return ""
    if not row["bound"]:
        return f"{row['ours']:+g}"
    quotient = row["ours"] / row["bound"]
    # Beside one, a digit more: it is not to look reached where it is not.
    return f"×{quotient:.{4 if 0.99 < quotient < 1.01 else 3}g}"


def table(rows):
    """Markdown."""
    lines = ["| # | what | evercred | goal | ÷ goal | reached | beside it, in the same run |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        # How many times the value beside it; for times and sizes less is better, and the ratio says the same.
        beside = "; ".join(
            f"{one['name']} {number(one['value'])}" + (f" (×{row['ours'] / one['value']:.3g})" if one["value"] and row["ours"] else "")
            for one in row["beside"])
        note = f" {row['note']}" if row["note"] else ""
        reached = {True: "yes", False: "no", None: ""}[row["met"]]
        cells = [row["scenario"], row["what"], f"{number(row['ours'])} {row['unit']}", row["goal"], distance(row), reached, beside + note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def merge(path, rows, facts):
    """Replace the rows of the scenarios that ran; each row tells of the run that it is from."""
    try:
        with open(path) as f:
            old = json.load(f)["rows"]
    except FileNotFoundError:
        old = []
    ran = {row["scenario"] for row in rows}
    kept = [row for row in old if row["scenario"] not in ran]
    every = sorted(kept + [row | {"machine": facts} for row in rows], key=lambda row: int(row["scenario"][1:]))
    return {"schema": 1, "rows": every}


BEGIN, END = "<!-- table: written by benches/run --record -->", "<!-- end of the table -->"


def into(path, results, scenarios):
    """Put the table into the README, with when, where and how it was measured, and which scenarios were not."""
    with open(path, "a+") as f:
        f.seek(0)
        before, _, rest = f.read().partition(BEGIN)
    _, _, after = rest.partition(END)
    runs = {}
    for row in results["rows"]:
        run = row["machine"]
        runs.setdefault((run["date"], run["command"]), (run, []))[1].append(row["scenario"])
    told = "\n".join(
        f"* {', '.join(dict.fromkeys(ran))}: {run['date']}, `{run['command']}`, {run['cpu']}, {run['cores']} cores, "
        f"Linux {run['kernel']}, {run['file_system']}, load {run['load_at_start']:.1f} before the run"
        for run, ran in runs.values())
    absent = [name for name in scenarios if not any(row["scenario"] == name for row in results["rows"])]
    if absent:
        told += f"\n* {', '.join(absent)}: not recorded yet"
    with open(path, "w") as f:
        f.write(f"{before}{BEGIN}\n{table(results['rows'])}\n\nMeasured:\n\n{told}\n{END}{after}")
