"""Rows of figures: kept as JSON, printed as one table."""
import json
import statistics


class Row:
    """One line: what was measured, the goal, and what stood beside it in the same run."""

    def __init__(self, scenario, what, unit, ours, goal, met, beside=(), note="", more=None):
        self.data = {
            "scenario": scenario, "what": what, "unit": unit, "ours": ours, "goal": goal, "met": met,
            "beside": [dict(name=name, value=value) for name, value in beside], "note": note, **(more or {}),
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


def table(rows):
    """Markdown."""
    lines = ["| # | what | evercred | goal | reached | beside it, in the same run |", "|---|---|---|---|---|---|"]
    for row in rows:
        # How many times the value beside it; for times and sizes less is better, and the ratio says the same.
        beside = "; ".join(
            f"{one['name']} {number(one['value'])}" + (f" (×{row['ours'] / one['value']:.3g})" if one["value"] and row["ours"] else "")
            for one in row["beside"])
        note = f" {row['note']}" if row["note"] else ""
        reached = {True: "yes", False: "no", None: ""}[row["met"]]
        lines.append(f"| {row['scenario']} | {row['what']} | {number(row['ours'])} {row['unit']} | {row['goal']} | {reached} | {beside}{note} |")
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


def into(path, results):
    """Put the table into the README, with when, where and how it was measured."""
    with open(path) as f:
        before, _, rest = f.read().partition(BEGIN)
    _, _, after = rest.partition(END)
    runs = {}
    for row in results["rows"]:
        run = row["machine"]
        runs.setdefault((run["date"], run["command"]), (run, []))[1].append(row["scenario"])
    told = "\n".join(
        f"* {', '.join(dict.fromkeys(scenarios))}: {run['date']}, `{run['command']}`, {run['cpu']}, {run['cores']} cores, "
        f"Linux {run['kernel']}, {run['file_system']}, load {run['load_at_start']:.1f} before the run"
        for run, scenarios in runs.values())
    with open(path, "w") as f:
        f.write(f"{before}{BEGIN}\n{table(results['rows'])}\n\nMeasured:\n\n{told}\n{END}{after}")
