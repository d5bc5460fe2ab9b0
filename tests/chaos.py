"""Kills random parts of running commands and damages their outputs, resumes until they are done, and compares with the undisturbed run.

    bin/chaos [--rounds 20] [--seed 0] [--copies 24] [--model embedded] [--only whole,rank,generate,fuse,judge,train]

`whole` is score | pair --workers 2 -o paired.jsonl.zst --resume, then rank | fuse | judge -o out.jsonl.gz --resume; the others are one
command each, of tiny local models. In each round processes, workers too, get SIGKILL or SIGTERM at random times until one of the
commands has ended. Between rounds a .gz or .zst output is cut, truncated, or has a bit flipped: `--resume` goes on after its last whole
record, or refuses with 65 or 66 and the file's name, and then the file of before is put back. Ends with 0 when nothing was lost,
nothing is there twice, nothing is different, and no command ended otherwise than it should.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import orjson
from chaos_pipes import SCENARIOS, Models, Pipe, damage, read, stream
from comparing import close

REFUSED = (65, 66)
# Killed, ended by SIGTERM, out of workers.
KILLED = (-signal.SIGKILL, -signal.SIGTERM, 143, 75)


def start(pipe: Pipe, said: Path) -> list[subprocess.Popen[bytes]]:
    """The commands with pipes between them; what they say goes into a file."""
    processes: list[subprocess.Popen[bytes]] = []
    with said.open("wb") as stderr:
        for number, command in enumerate(pipe.commands):
            source = processes[-1].stdout if processes else subprocess.DEVNULL
            target = subprocess.PIPE if number < len(pipe.commands) - 1 else subprocess.DEVNULL
            processes.append(subprocess.Popen(command, stdin=source, stdout=target, stderr=stderr))
            if number:
                processes[-2].stdout.close()  # type: ignore[union-attr]
    return processes


def children(pid: int) -> list[int]:
    """Of a process, where /proc tells."""
    with suppress(OSError):
        return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return []


def disturb(processes: list[subprocess.Popen[bytes]], rng: random.Random, longest: float) -> list[str]:
    """Kills parts of the running commands until one of them ends; says what was killed."""
    killed = []
    while True:
        # Late more often than early: the first seconds are imports.
        time.sleep(0.9 * longest * rng.random() ** 0.4)
        alive = {process.pid: str(process.args[3]) for process in processes if process.poll() is None}  # type: ignore[index]
        if len(alive) < len(processes):
            break
        victims = [*alive.items(), *((child, "a worker") for pid in alive for child in children(pid))]
        (pid, name), number = rng.choice(victims), rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            killed.append(f"{number.name} to {name}")
        if pid in alive:
            break
    return killed


class Game:
    """One scenario in a folder of its own: its rounds, what was damaged and how it was before."""

    def __init__(self, name: str, folder: Path, models: Models, rng: random.Random) -> None:
        self.name, self.folder, self.models, self.rng = name, folder, models, rng
        self.hurt: dict[Path, tuple[bytes, bytes]] = {}
        self.damaged = self.refused = 0

    def pipes(self) -> list[Pipe]:
        return SCENARIOS[self.name](self.folder, self.models, 2)

    def run(self, pipe: Pipe, longest: float | None) -> list[str]:
        """Runs a pipe, disturbed where `longest` says so, and sees to it that it ended as it may."""
        processes = start(pipe, self.folder / "said")
        killed = disturb(processes, self.rng, longest) if longest is not None else []
        codes = [process.wait(timeout=600) for process in processes]
        said = (self.folder / "said").read_text(errors="replace")
        refused = codes[-1] in REFUSED and pipe.output.name in said
        if refused:
            self.refused += 1
            if pipe.output in self.hurt:
                pipe.output.write_bytes(self.hurt.pop(pipe.output)[0])
        explained = (0, *(KILLED if killed else ()), *(REFUSED if killed or refused or self.hurt else ()))
        if not set(codes) <= set(explained):
            sys.exit(f"chaos: {self.name} ended with {codes}, killed: {killed}, in {self.folder}:\n{said[-2000:]}")
        return killed

    def round(self, number: int, longest: dict[Path, float]) -> None:
        """Damages or not, runs, kills, and tells."""
        pipes = self.pipes()
        # The second pipe reads what the first has so far: an upstream that is not done yet.
        pipe = pipes[-1] if number % 3 == 2 and pipes[0].output.exists() else pipes[0]
        done = []
        if pipe.output.suffix in (".gz", ".zst") and pipe.output.exists() and self.rng.random() < 0.7:
            before = pipe.output.read_bytes()
            # One damage at a time, so that what is put back is good.
            if before and (pipe.output not in self.hurt or self.hurt[pipe.output][1] != before):
                done.append(damage(pipe.output, self.rng))
                self.hurt[pipe.output] = before, pipe.output.read_bytes()
                self.damaged += 1
        refused = self.refused
        done += self.run(pipe, longest[Path(pipe.output.name)])
        done += ["refused"] if self.refused > refused else []
        size = pipe.output.stat().st_size if pipe.output.exists() else 0
        print(f"{self.name} {number + 1:2}: {', '.join(done) or 'undisturbed'}; {pipe.output.name} has {size} bytes", flush=True)

    def finish(self) -> None:
        """Undisturbed runs to the end; one whose output is damaged is run again."""
        for _ in range(2):
            for pipe in self.pipes():
                self.run(pipe, None)


def compare(disturbed: list[Pipe], calm: list[Pipe]) -> tuple[int, int, int, int]:
    """Records, and how many of them are lost, there twice, different."""
    total = lost = twice = different = 0
    for one, other in zip(disturbed, calm, strict=True):
        found, expected = read(one.output), read(other.output)
        ids, wanted = [row["id"] for row in found], {row["id"] for row in expected}
        total, lost, twice = total + len(expected), lost + len(wanted - set(ids)), twice + len(ids) - len(set(ids))
        different += sum(not close(mine, theirs) for mine, theirs in zip(found, expected, strict=False)) + len(set(ids) - wanted)
        different += sum(mine.read_bytes() != theirs.read_bytes() for mine, theirs in zip(one.exact, other.exact, strict=True))
    return total, lost, twice, different


def play(name: str, rounds: int, copies: int, root: Path, models: Models, rng: random.Random) -> bool:
    """The scenario's rounds beside its undisturbed run; whether both came to the same."""
    calm, folder = root / name / "calm", root / name / "disturbed"
    for place in (calm, folder):
        place.mkdir(parents=True)
        for file, count in (("in.jsonl", copies), ("few.jsonl", max(1, copies // 6))):
            (place / file).write_bytes(b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in stream(count)))
    quiet, longest = Game(name, calm, models, rng), {}
    for pipe in quiet.pipes():
        started = time.monotonic()
        quiet.run(pipe, None)
        longest[Path(pipe.output.name)] = time.monotonic() - started
    game = Game(name, folder, models, rng)
    for number in range(rounds):
        game.round(number, longest)
    game.finish()
    total, lost, twice, different = compare(game.pipes(), quiet.pipes())
    print(
        f"{name}: {rounds} rounds, {game.damaged} outputs damaged, {game.refused} refused: "
        f"{total} records, {lost} lost, {twice} there twice, {different} different from the undisturbed run",
        flush=True,
    )
    return not (lost or twice or different)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bin/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--copies", type=int, default=24, help="of the 12 example records; a sixth of them for local models")
    parser.add_argument("--model", default="embedded", help="the ranker of `whole`")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="some of %(default)s")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="blendkit-chaos-"))
    models = Models(root / "models", options.model)
    good = [play(name, options.rounds, options.copies, root, models, random.Random(f"{options.seed} {name}")) for name in options.only.split(",")]
    if not all(good):
        sys.exit(f"chaos: the files are in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
