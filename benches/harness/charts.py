"""One picture per scenario, from results.json: for each figure evercred's bar, under it what stood beside it, and across
them the goal. Bars of one figure share a scale that begins at zero; figures of different kinds are not compared."""
import os
from html import escape

from .report import distance, number

WIDTH, LEFT, BAR, GAP = 860, 300, 18, 6
OURS, THEIRS, LIMIT, GOAL, INK, FAINT = "#1f5fa8", "#9aa5b1", "#d9a441", "#b3261e", "#1c2733", "#5b6875"
# A bar so many times longer than evercred's and the goal is cut: otherwise the distance of these two could not be seen.
CUT = 4


def colour(name):
    stock = any(word in name for word in ("Credmon", "its slowest", "HTCondor's storer"))
    return THEIRS if stock else LIMIT


def verdict(row):
    """Goal, distance, and whether it was reached."""
    if not row["goal"]:
        return ""
    far = f"{distance(row)} of it" if row["bound"] else distance(row)
    told = [f"goal {row['goal']}", far, {True: "reached", False: "not reached", None: ""}[row["met"]]]
    return " · ".join(filter(None, told))


def bars(row, y):
    """The bars of one figure and its goal; and where they end."""
    parts, values, begin = [], [], y
    unit = f" {row['unit']}" if row["unit"] and not row["unit"].startswith("/") else row["unit"]
    every = ([("evercred", row["ours"], OURS)] if row["ours"] is not None else []) + [
        (one["name"], one["value"], colour(one["name"])) for one in row["beside"] if one["value"] is not None]
    own = max(row["ours"] or 0, row["bound"] or 0)
    most = max([row["bound"] or 0, *(value for _, value, _ in every)]) or 1
    most = min(most, CUT * own) if own else most
    whole = WIDTH - LEFT - 130
    for name, value, fill in every:
        length = max(1.5, whole * min(value / most, 1))
        parts.append(f'<text x="{LEFT - 10}" y="{y + BAR - 5}" text-anchor="end" fill="{INK}">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{fill}"/>')
        if value > most:
            parts.append(f'<path d="M{LEFT + whole - 30} {y + BAR + 1}l8 -{BAR + 2}" stroke="#ffffff" stroke-width="5"/>')
        values.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + BAR - 5}" fill="{INK}" stroke="#ffffff" stroke-width="4" '
                      f'paint-order="stroke">{number(value)}{escape(unit)}</text>')
        y += BAR + GAP
    if row["bound"] is not None:
        x = LEFT + whole * row["bound"] / most
        parts.append(f'<path d="M{x:.1f} {begin - 3}V{y - GAP + 3}" stroke="{GOAL}" stroke-width="1.5" stroke-dasharray="4 3"/>')
    return parts + values, y


def draw(scenario, rows, facts):
    """The SVG of one scenario."""
    parts, y = [], 56
    for row in rows:
        parts.append(f'<text x="20" y="{y}" font-weight="600" fill="{INK}">{escape(row["what"])}</text>')
        y += 18
        if verdict(row):
            parts.append(f'<text x="{LEFT}" y="{y}" fill="{FAINT}">{escape(verdict(row))}</text>')
            y += 10
        drawn, y = bars(row, y)
        parts += drawn
        y += 26
    foot = f"{facts['date']} · {facts['cpu']}, {facts['cores']} cores · Linux {facts['kernel']} · {facts['command']}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" font-family="system-ui, sans-serif" '
            f'font-size="13"><rect width="100%" height="100%" fill="#ffffff"/>'
            f'<text x="20" y="28" font-size="17" font-weight="700" fill="{INK}">{scenario}</text>'
            f'<text x="{WIDTH - 20}" y="28" text-anchor="end" font-size="11" fill="{FAINT}">dashed: the goal; '
            f'a bar with a gap is longer than drawn</text>{"".join(parts)}'
            f'<text x="20" y="{y}" font-size="11" fill="{FAINT}">{escape(foot)}</text></svg>\n')


def write(directory, results):
    os.makedirs(directory, exist_ok=True)
    scenarios = dict.fromkeys(row["scenario"] for row in results["rows"])
    for scenario in scenarios:
        rows = [row for row in results["rows"] if row["scenario"] == scenario]
        with open(f"{directory}/{scenario}.svg", "w") as f:
            f.write(draw(scenario, rows, rows[0]["machine"]))
