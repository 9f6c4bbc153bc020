"""What is shown: tables for people, JSON for programs, pictures for the documentation."""

import html

from rows import median

COLUMNS = ("", "median", "min .. max", "p50 us", "p99 us", "p99.9 us")
# Of an I/O: name in a sample -> head of the column, form of the number.
PER_IO = {
    "enters": ("enters", ".3f"),
    "busy_ns": ("busy ns", ".0f"),
    "controller_ns": ("controller ns", ".0f"),
    "sq_doorbells": ("SQ doorbells", ".3f"),
    "cq_doorbells": ("CQ doorbells", ".3f"),
}
COLUMNS += (*(head for head, _ in PER_IO.values()), "copies", "held against")


def human(value):
    """Three digits and a unit."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def amount(row, sample):
    """The number that a row shows of a sample."""
    if row.unit == "GB/s":
        return sample["gb_per_s"]
    if row.unit == "ns":
        return sample["ns"]
    return sample["rate"]


def shown(row, value):
    text = human(value)
    return f"{text} {row.unit}" if row.unit != "IOPS" else text


def result(row, rounds):
    """All that is known of a row after some rounds; `None` if it was not measured."""
    samples = [one[row.key] for one in rounds if row.key in one]
    if not samples:
        return None
    values = [amount(row, sample) for sample in samples]
    found = {"unit": row.unit, "median": median(values), "min": min(values), "max": max(values), "rounds": values}
    latency = [sample["latency_us"] for sample in samples if sample.get("latency_us")]
    if latency:
        found["latency_us"] = {name: median([one[name] for one in latency]) for name in latency[0]}
    for name in PER_IO:
        having = [sample[name] for sample in samples if name in sample]
        if having:
            found[f"{name}_per_io"] = median(having)
    if row.copies is not None:
        found["copies"] = row.copies
    found["bars"] = []
    for bar in row.bars:
        values = bar.values(row, rounds)
        if values:
            value = median(values)
            known = {"text": bar.text(values), "value": value, "min": min(values), "max": max(values)}
            found["bars"].append({**known, "reached": bar.reached(value)})
    return found


def verdict(bar):
    return bar["text"] if bar["reached"] is None else f"{bar['text']}: {'reached' if bar['reached'] else 'MISSED'}"


def cells(row, found):
    latency = found.get("latency_us", {})
    number = lambda value, form: "" if value is None else format(value, form)
    return (
        row.key,
        shown(row, found["median"]),
        f"{human(found['min'])} .. {human(found['max'])}",
        *(number(latency.get(name), ".1f") for name in ("p50", "p99", "p99_9")),
        *(number(found.get(f"{name}_per_io"), form) for name, (_, form) in PER_IO.items()),
        number(found.get("copies"), "d"),
        "; ".join(verdict(bar) for bar in found["bars"]),
    )


def text(table, rounds):
    """A table for people; empty if nothing of it was measured."""
    lines = [COLUMNS]
    for row in table.rows:
        found = result(row, rounds)
        if found:
            lines.append(cells(row, found))
    if len(lines) == 1:
        return ""
    return f"\n{table.title}\n\n{columns(lines, left=(0, len(COLUMNS) - 1))}\n"


def columns(lines, left=(0,)):
    """Lines of cells below a head, numbers at the right; columns that no line fills are left out."""
    used = [at for at in range(len(lines[0])) if any(line[at] for line in lines[1:])]
    width = {at: max(len(line[at]) for line in lines) for at in used}
    pad = lambda line, at: line[at].ljust(width[at]) if at in left else line[at].rjust(width[at])
    return "\n".join("  ".join(pad(line, at) for at in used).rstrip() for line in lines)


def counted(tables, rounds):
    """Bars reached, bars missed."""
    judged = [
        bar["reached"]
        for table in tables
        for row in table.rows
        for bar in (result(row, rounds) or {"bars": []})["bars"]
        if bar["reached"] is not None
    ]
    return judged.count(True), judged.count(False)


def as_json(tables, rounds, facts):
    return {
        **facts,
        "rounds": len(rounds),
        "tables": {
            table.name: {row.key: found for row in table.rows if (found := result(row, rounds))} for table in tables
        },
    }


# Pictures: text at fixed places, so that every viewer shows the same.
LINE, LEFT, BAR, RIGHT, TOP = 22, 380, 380, 300, 56
STYLE = """
text { font: 12px sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: bold } .small { fill: #57606a }
.bar { fill: #4c8bf5 } .against { fill: #c4c9d0 } .missed { fill: #d9822b } line { stroke: #24292f }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9da7b1 } line { stroke: #e6edf3 } }
"""


def picture(table, rounds):
    """Bars of the medians with whiskers from the slowest to the fastest round; `None` if there is nothing to draw.

    Each unit has a scale of its own.
    """
    having = [(row, found) for row in table.rows if (found := result(row, rounds))]
    if not having:
        return None
    widest = {}
    for row, found in having:
        widest[row.unit] = max(widest.get(row.unit, 0), found["max"])
    height = TOP + LINE * len(having) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + BAR + RIGHT} {height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="22">{html.escape(table.title)}</text>',
        f'<text class="small" x="8" y="40">median of {len(rounds)} rounds, whiskers: slowest and fastest; '
        "grey: what is held against; orange: a bar is missed</text>",
    ]
    for number, (row, found) in enumerate(having):
        top = TOP + number * LINE
        place = lambda value, unit=row.unit: LEFT + BAR * value / (widest[unit] or 1)
        missed = any(bar["reached"] is False for bar in found["bars"])
        kind = "missed" if missed else "bar" if found["bars"] else "against"
        middle, width = top + LINE / 2, place(found["median"]) - LEFT
        note = "; ".join([shown(row, found["median"]), *(bar["text"].split(" (")[0] for bar in found["bars"][:1])])
        out += [
            f'<text x="{LEFT - 8}" y="{middle + 4:g}" text-anchor="end">{html.escape(row.key)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{top + 4}" width="{width:.1f}" height="{LINE - 8}"/>',
            f'<line x1="{place(found["min"]):.1f}" y1="{middle:g}" x2="{place(found["max"]):.1f}" y2="{middle:g}"/>',
            f'<text x="{place(found["max"]) + 8:.1f}" y="{middle + 4:g}">{html.escape(note)}</text>',
        ]
        for end in ("min", "max"):
            at = f"{place(found[end]):.1f}"
            out.append(f'<line x1="{at}" y1="{middle - 4:g}" x2="{at}" y2="{middle + 4:g}"/>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
