"""One picture per scenario, from results.json: for each figure evercred's bar, and under it what stood beside it. Bars of
one figure share a scale that begins at zero; figures of different kinds are not compared."""
import os
from html import escape

from .report import number

WIDTH, LEFT, BAR, GAP = 860, 300, 18, 6
OURS, THEIRS, LIMIT, INK, FAINT = "#1f5fa8", "#9aa5b1", "#d9a441", "#1c2733", "#5b6875"


def colour(name):
    stock = any(word in name for word in ("Credmon", "its slowest", "HTCondor's storer"))
    return THEIRS if stock else LIMIT


def draw(scenario, rows, facts):
    """The SVG of one scenario."""
    parts, y = [], 56
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] and not row["unit"].startswith("/") else row["unit"]
        verdict = {True: " – reached", False: " – not reached", None: ""}[row["met"]]
        goal = f"goal {row['goal']}{verdict}" if row["goal"] else ""
        parts.append(f'<text x="20" y="{y}" font-weight="600" fill="{INK}">{escape(row["what"])}</text>')
        parts.append(f'<text x="{WIDTH - 20}" y="{y}" text-anchor="end" fill="{FAINT}">{escape(goal)}</text>')
        y += 10
        bars = ([("evercred", row["ours"], OURS)] if row["ours"] is not None else []) + [
            (one["name"], one["value"], colour(one["name"])) for one in row["beside"] if one["value"] is not None]
        most = max(value for _, value, _ in bars) or 1
        for name, value, fill in bars:
            length = max(1.5, (WIDTH - LEFT - 130) * value / most)
            parts.append(f'<text x="{LEFT - 10}" y="{y + BAR - 5}" text-anchor="end" fill="{INK}">{escape(name)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{fill}"/>')
            parts.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + BAR - 5}" fill="{INK}">{number(value)}{escape(unit)}</text>')
            y += BAR + GAP
        y += 26
    foot = f"{facts['date']} · {facts['cpu']}, {facts['cores']} cores · Linux {facts['kernel']} · {facts['command']}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" font-family="system-ui, sans-serif" '
            f'font-size="13"><rect width="100%" height="100%" fill="#ffffff"/>'
            f'<text x="20" y="28" font-size="17" font-weight="700" fill="{INK}">{scenario}</text>{"".join(parts)}'
            f'<text x="20" y="{y}" font-size="11" fill="{FAINT}">{escape(foot)}</text></svg>\n')


def write(directory, results):
    os.makedirs(directory, exist_ok=True)
    scenarios = dict.fromkeys(row["scenario"] for row in results["rows"])
    for scenario in scenarios:
        rows = [row for row in results["rows"] if row["scenario"] == scenario]
        with open(f"{directory}/{scenario}.svg", "w") as f:
            f.write(draw(scenario, rows, rows[0]["machine"]))
