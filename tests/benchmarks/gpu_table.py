"""The Markdown table of `bin/bench gpu`."""

from __future__ import annotations


def markdown(found: dict) -> str:
    """All that is known so far."""
    parts = [_title(found["machine"])]
    rows = {section: [row for row in found["rows"] if row["section"] == section] for section in ("checks", "pair", "score", "generate", "fuse")}
    for section, tabled in (("checks", _checks), ("pair", _pair), ("score", _score), ("generate", _generate), ("fuse", _fuse)):
        if rows[section]:
            parts.append(tabled(rows[section]))
    faults = [f"- {step['section']}: {step['step']}: {step['error']}" for step in found["steps"] if step["error"]]
    if faults:
        parts.append("Steps that did not end well:\n\n" + "\n".join(faults))
    if found["left_out"]:
        parts.append("Left out, as the time was up: " + ", ".join(found["left_out"]) + ".")
    return "\n\n".join(parts) + "\n"


def _title(machine: dict) -> str:
    if not machine.get("card"):
        where = f"the CPU ({machine.get('processor')})"
    else:
        where = f"{machine['card']} ({machine['memory_gib']:.0f} GiB, compute capability {machine['capability']}), driver {machine['driver'] or 'unknown'}"
    lines = [f"`bin/bench gpu`{' --tiny' if machine.get('tiny') else ''} on {where}, {machine.get('date')}."]
    libraries = [f"{name} {machine.get(name) or 'not installed'}" for name in ("torch", "triton", "transformers", "flashdeberta")]
    libraries.append(f"CUDA {machine['cuda']}" if machine.get("cuda") else "torch without CUDA")
    lines.append("; ".join(libraries) + ".")
    if machine.get("card") and not machine.get("triton"):
        lines.append("**Triton is not installed**: FlexAttention cannot be compiled here.")
    return "\n".join(lines)


def _table(head: str, rows: list[list[str]]) -> str:
    columns = head.split(" | ")
    return "\n".join(["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)])


def _checks(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        if "family" not in row:
            counts = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped" if "passed" in row else ""
            lines.append([row["form"], "", "", counts, "", _verdict(row)])
            continue
        paired = f", {row['late']} paired {'layer' if row['late'] == 1 else 'layers'}" if row["late"] else ""
        figures = [f"{row['difference']:.1e}", f"{row['bound']:.1e}"] if "difference" in row else ["", ""]
        lines.append([row["form"], row["family"] + paired, row["dtype"], *figures, _verdict(row)])
    title = f"Checks, against the plain form in float32 on the CPU: {sum(row['ok'] is True for row in rows)} of {len(rows)} hold."
    return f"{title}\n\n" + _table("attention | model | dtype | largest difference | bound | holds", lines)


def _verdict(row: dict) -> str:
    said = {True: "yes", False: "**no**", None: "not run"}[row["ok"]]
    return f"{said}: {row['error']}".replace("|", "\\|") if "error" in row else said


def _pair(rows: list[dict]) -> str:
    plain: dict[str, list[float]] = {}
    for row in rows:
        if row["variant"].startswith("plain"):
            plain.setdefault(row["model"], []).append(row["pairs_per_s"])
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for row in sorted(rows, key=lambda row: models.index(row["model"])):
        late, base = row["variant"].startswith("late"), plain.get(row["model"])
        kind, _, dtype = row["variant"].partition(":")
        name = f"late, {kind.removeprefix('late')} paired" if late else f"{kind}, batches of {row['batch_size']}" if row["batch_size"] else kind
        ratios = [f"{row['pairs_per_s'] / base[0]:.2f}", f"{row['pairs_per_s'] / max(base):.2f}"] if base else ["", ""]
        share = "" if late else f"{row['of_matmul_rate']:.0%} of {row['matmul_gflops'] / 1000:,.1f} TFLOP/s"
        difference = "another function" if late else f"{row['difference']:.1e}" if "difference" in row else ""
        rates = [f"{row['pairs_per_s']:,.1f}", *ratios, f"{row['records_per_s']:,.2f}", share, f"{row['peak_mib']:,.0f}", f"{row['first_calls_s']:.1f}"]
        lines.append([row["model"], name, dtype, *rates, difference])
    sizes = "; ".join(dict.fromkeys(f"{row['model']}: {row['pairs']} pairs of {row['mean_length']:.0f} tokens" for row in rows))
    head = (
        "model | variant | dtype | pairs/s | against plain's first | against plain's best | records/s | of the matrix-product rate | peak MiB | first calls, s"
    )
    return f"`pair` ({sizes}):\n\n" + _table(f"{head} | largest difference", lines)


def _score(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        rates = [f"{row['package_per_s']:,.1f}", f"{row['ours_per_s']:,.1f}", f"{row['ours_per_s'] / row['package_per_s']:.2f}"]
        lines.append([row["scorer"], row["against"], *rates, f"{row['difference']:.1e}"])
    head = "scorer | against | its candidates/s | ours | ratio | largest difference"
    return f"`score`, ours in {rows[0]['dtype']}:\n\n" + _table(head, lines)


def _generate(rows: list[dict]) -> str:
    rates = [[str(row["batch"]), f"{row['ours_per_s']:,.1f}", f"{row['plain_per_s']:,.1f}", f"{row['ours_per_s'] / row['plain_per_s']:.2f}"] for row in rows]
    title = f"`generate`, {rows[0]['new_tokens']} new tokens, {rows[0]['dtype']}, tokens a second:"
    return f"{title}\n\n" + _table("batch | blendkit | transformers | ratio", rates)


def _fuse(rows: list[dict]) -> str:
    lines = [
        [
            str(row["batch"]),
            f"{row['ours_per_s']:,.2f}",
            f"{row['plain_per_s']:,.2f}",
            f"{row['ours_per_s'] / row['plain_per_s']:.2f}",
            f"{row['same_texts']:.0%}",
        ]
        for row in rows
    ]
    title = f"`fuse`, GenFuser, {rows[0]['beams']} beams, {rows[0]['new_tokens']} new tokens, {rows[0]['dtype']}, answers a second:"
    return f"{title}\n\n" + _table("batch of the plain loop | blendkit | transformers | ratio | same texts", lines)
