"""Results as text, as Markdown and as data."""

from .checks import CHECKS
from .judge import DOES_NOT_APPLY, FAILS, HOLDS

CELLS = {HOLDS: "holds", FAILS: "FAILS", DOES_NOT_APPLY: "-"}


def rows_of(results):
    """results: list of (name, [(id, check, Finding)]). A heading, then one row a check."""
    rows = [["", "check"] + [name for name, _ in results]]
    for index, (id_, check, _) in enumerate(results[0][1]):
        rows.append([id_, check] + [CELLS[findings[index][2].verdict] for _, findings in results])
    return rows


def notes_of(results, verdict):
    """Lines "B1 rank-scale: message [names]" of that verdict; the names are left out where they are all."""
    names_of = {}
    for name, findings in results:
        for id_, check, finding in findings:
            if finding.verdict == verdict and finding.message:
                names_of.setdefault((id_, check, finding.message), []).append(name)
    order = {(id_, check): index for index, (id_, check, _) in enumerate(CHECKS)}
    lines = []
    for (id_, check, message), names in sorted(names_of.items(), key=lambda item: order[item[0][:2]]):
        where = "" if len(names) == len(results) else f" [{', '.join(names)}]"
        lines.append(f"{id_} {check}: {message}{where}")
    return lines


def text(results):
    rows = rows_of(results)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for verdict, title in ((FAILS, "Fails"), (DOES_NOT_APPLY, "Does not apply (-)")):
        notes = notes_of(results, verdict)
        if notes:
            lines += ["", title] + [f"  {note}" for note in notes]
    number = {verdict: sum(finding.verdict == verdict for _, findings in results for _, _, finding in findings)
              for verdict in CELLS}
    return "\n".join(lines + ["", f"{number[HOLDS]} hold, {number[FAILS]} fail, {number[DOES_NOT_APPLY]} do not apply"])


def markdown(results):
    rows = rows_of(results)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(cell.replace("FAILS", "**fails**") for cell in row) + " |" for row in rows[1:]]
    for verdict, title in ((FAILS, "What fails"), (DOES_NOT_APPLY, "What does not apply (-), and why")):
        notes = notes_of(results, verdict)
        if notes:
            lines += ["", f"{title}:", ""] + [f"- {note}" for note in notes]
    return "\n".join(lines)


def data(results):
    return [{"function": name, "id": id_, "check": check, "verdict": finding.verdict, "message": finding.message}
            for name, findings in results for id_, check, finding in findings]
