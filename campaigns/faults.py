# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Kills, stops and starves runs of scripts/train.py, resumes them, and compares them with a run left in peace.

    python -m campaigns.faults --output results/faults/campaign.json

Most runs are forks of this process, which has imported everything once; some are fresh processes of the script. Each
is resumed, and disturbed again, until it ends. Whenever it has been disturbed, every folder with the name of a
checkpoint must load, hold the very weights that the undisturbed run has after that step, and not be older than the
last one before; at the end weights and losses must equal the undisturbed run's bit for bit, with not a file more.
"""

import argparse
import ctypes
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from modeling_hc.commands import train
from modeling_hc.data import stdlib_files
from modeling_hc.training.safe_trainer import UNFINISHED

ROOT = Path(__file__).parents[1]

MODEL = {
    "model_type": "hc_llama",
    "num_streams": 2,
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
}
RESUME = ["--resume_from_checkpoint", "true"]
PATIENCE = 300
"""Seconds after which a process that should have ended counts as hanging."""


@dataclass
class Row:
    """What came of the runs that one fault has disturbed."""

    fault: str
    runs: int = 0
    disturbed: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    equal: int = 0
    checkpoints_seen: int = 0
    not_whole: int = 0
    lost: int = 0
    leftover_bytes: int = 0
    most_checkpoints_on_disk: float = 0.0
    slowest_end: float = 0.0
    problems: list[str] = field(default_factory=list)

    def count(self, moment: str, status: int) -> None:
        self.disturbed += 1
        self.moments[moment] = self.moments.get(moment, 0) + 1
        self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1


class Campaign:
    """Runs of one small model in one folder.

    Args:
        home: an empty folder.
        steps: optimizer steps of a run; it saves every fourth part of them, and keeps two checkpoints.
        seed: of the moments.
    """

    def __init__(self, home: Path, steps: int = 20, seed: int = 0) -> None:
        self.home, self.steps = home, steps
        self.random = random.Random(seed)
        self.number = 0
        texts = [path.read_text(encoding="utf-8")[:1500] for path in stdlib_files("train")[:30]]
        (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        (home / "model.json").write_text(json.dumps(MODEL))
        self.fields = {
            "config": str(home / "model.json"),
            "train_files": [str(home / "text.jsonl")],
            "block_size": 32,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": steps,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": steps // 2,
            "save_steps": max(1, steps // 4),
            "save_total_limit": 2,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "report_to": "none",
        }
        self.every_step = self.undisturbed("every-step", save_steps=1, save_total_limit=None)
        self.peace = self.undisturbed("peace")
        self.checkpoint_bytes = size(self.every_step / "checkpoint-1")

    # ---- runs -------------------------------------------------------------------------------------------------------

    def command(self, folder: Path, *flags: str, **fields: Any) -> list[str]:
        """Returns the arguments of scripts/train.py for a run in a folder."""
        recipe = self.home / f"{folder.name}.yaml"
        recipe.write_text(yaml.safe_dump(self.fields | {"output_dir": str(folder)} | fields))
        return [str(recipe), *flags]

    def fork(self, arguments: list[str], operation: int | None = None, **environment: str) -> int:
        """Starts a run in a fork and returns its process id.

        Args:
            arguments: of scripts/train.py.
            operation: kill the process with SIGKILL before its so-many-th change to the file system.
            **environment: to add.
        """
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the script does
            log = os.open(self.home / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # a test runner may have replaced them
            os.environ.update(environment)
            AcceleratorState._reset_state(reset_partial_state=True)  # a test before may have left it
            GradientState._reset_state()
            sys.argv = ["scripts/train.py", *arguments]
            changes = count_changes(operation)
            status = train.run()
            if "CHANGES" in environment:
                Path(environment["CHANGES"]).write_text(str(changes[0]))
        except SystemExit as end:
            print(end.code, file=sys.stderr)
            status = 1
        except BaseException:  # what the interpreter would do
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def undisturbed(self, name: str, **fields: Any) -> Path:
        folder = self.home / name
        changes = self.home / "changes.txt"
        pid = self.fork(self.command(folder, **fields), CHANGES=str(changes))
        wait_for((folder / "run.json").exists, pid)
        start = time.monotonic()
        status = end(pid)
        self.duration = time.monotonic() - start
        if status != 0:
            raise RuntimeError(f"The run in peace ended with {status}: {self.log()[-3000:]}")
        self.changes = int(changes.read_text())
        return folder

    def wait(self, pid: int, folder: Path) -> None:
        """Waits until a random moment of a run, in three cases of four after its beginning."""
        started = time.time()
        if self.random.random() < 0.25:
            time.sleep(self.random.uniform(0.1, 1))
        else:
            record = folder / "run.json"
            wait_for(lambda: record.exists() and record.stat().st_mtime > started, pid)
            time.sleep(self.random.uniform(0, self.duration))

    def log(self) -> str:
        return (self.home / "log.txt").read_text()

    def folder(self) -> Path:
        self.number += 1
        return self.home / f"run-{self.number}"

    # ---- what must hold ---------------------------------------------------------------------------------------------

    def check(self, row: Row, folder: Path, before: int, status: int) -> int:
        """Looks at a folder after a disturbance. Returns the step of its last checkpoint, -1 if there is none."""
        row.count(moment(folder), status)
        last = -1
        for checkpoint in folder.glob("checkpoint-*"):
            row.checkpoints_seen += 1
            step = int(checkpoint.name.rpartition("-")[2])
            last = max(last, step)
            try:
                self.check_checkpoint(checkpoint, step)
            except Exception as error:
                row.not_whole += 1
                row.problems.append(f"{checkpoint}: {error!r}")
        if last < before:
            row.lost += 1
            row.problems.append(f"{folder}: checkpoint-{before} was there, and then checkpoint-{last}")
        if folder.exists():
            on_disk = (size(folder) - size(folder / "model.safetensors")) / self.checkpoint_bytes
            row.most_checkpoints_on_disk = max(row.most_checkpoints_on_disk, round(on_disk, 2))
        return last

    def check_checkpoint(self, checkpoint: Path, step: int) -> None:
        reference = self.every_step / checkpoint.name
        names = {path.name for path in reference.iterdir()}
        if missing := names - {path.name for path in checkpoint.iterdir()}:
            raise ValueError(f"lacks {sorted(missing)}")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.load(checkpoint / name, weights_only=False)
        if json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] != step:
            raise ValueError("is of another step")
        require_equal(checkpoint / "model.safetensors", reference / "model.safetensors")

    def compare(self, row: Row, folder: Path, peace: Path | None = None) -> None:
        """Compares a run that has ended at last with one left in peace."""
        peace = peace or self.peace
        row.runs += 1
        try:
            require_equal(folder / "model.safetensors", peace / "model.safetensors")
            if losses(folder) != losses(peace):
                raise ValueError("has other losses")
            row.equal += 1
        except Exception as error:
            row.problems.append(f"{folder}: {error!r}")
        expected = {path.relative_to(peace) for path in peace.rglob("*")}
        if len(list(folder.glob("checkpoint-*"))) <= len(list(peace.glob("checkpoint-*"))):
            # SIGTERM saves at other steps; what counts is that save_total_limit holds.
            expected |= {path.relative_to(folder) for path in folder.glob("checkpoint-*/*")}
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder) not in expected:
                row.leftover_bytes += path.stat().st_size
                row.problems.append(f"{path} is left over")
        shutil.rmtree(folder)

    def resume(self, folder: Path, **fields: Any) -> list[str]:
        """Returns the arguments with which a run goes on, or begins if it had not yet begun."""
        return self.command(folder, *(RESUME if folder.exists() else []), **fields)

    def end_of(self, row: Row, folder: Path, **fields: Any) -> None:
        """Resumes a run, undisturbed, and compares it."""
        if (status := end(self.fork(self.resume(folder, **fields)))) != 0:
            row.problems.append(f"{folder} could not be resumed ({status}): {self.log()[-600:]}")
        self.compare(row, folder)

    # ---- the faults -------------------------------------------------------------------------------------------------

    def killed(self, kind: str, runs: int, kills: int = 2) -> Row:
        """SIGKILL "at a random time", "before a random file operation" or "in the middle of a save"."""
        row = Row(f"SIGKILL, {kind}")
        for _ in range(runs):
            folder, last = self.folder(), -1
            for _ in range(self.random.randint(1, kills)):
                operation = self.random.randint(1, self.changes) if kind == "before a random file operation" else None
                pid = self.fork(self.resume(folder), operation)
                if kind == "at a random time":
                    self.wait(pid, folder)
                elif kind == "in the middle of a save":
                    name = f"checkpoint-{self.random.randint(1, 4) * self.fields['save_steps']}"
                    wait_for((folder / UNFINISHED / name).exists, pid)
                    time.sleep(self.random.uniform(0, 0.03))
                if operation is None:
                    os.kill(pid, signal.SIGKILL)
                status = end(pid)
                if status == 0:  # it had ended before
                    break
                last = self.check(row, folder, last, status)
            self.end_of(row, folder)
        return row

    def terminated(self, runs: int) -> Row:
        """SIGTERM after a random time: it must be told, and end with a checkpoint of the step."""
        row = Row("SIGTERM, at a random time")
        for _ in range(runs):
            folder = self.folder()
            pid = self.fork(self.resume(folder))
            self.wait(pid, folder)
            start = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            status = end(pid)
            row.slowest_end = max(row.slowest_end, round(time.monotonic() - start, 2))
            if status != 0:
                last = self.check(row, folder, -1, status)
                if status == train.STOPPED and f"SIGTERM stopped the run after step {last}." not in self.log():
                    row.problems.append(f"{folder}: status {status} without a checkpoint of the step")
                elif status not in (1, train.STOPPED):
                    row.problems.append(f"{folder}: status {status}")
            self.end_of(row, folder)
        return row

    def full_disk(self, runs: int) -> Row:
        """A file system of random size, too small for the checkpoints; then it is enlarged."""

        def scenario(disk: Path) -> Row:
            row = Row("full disk")
            for _ in range(runs):
                room = int(self.checkpoint_bytes * self.random.uniform(0.3, 6))
                mount(disk, size=room)
                folder = disk / f"run-{self.number}"
                self.number += 1
                status = end(self.fork(self.command(folder, save_total_limit=None)))
                told = self.log().splitlines()[-1]
                if status != 1 or not ("cannot be written" in told or "No space left" in told):
                    row.problems.append(f"{room} bytes: status {status}, {told}")
                self.check(row, folder, -1, status)
                mount(disk, size=100 * self.checkpoint_bytes, remount=True)
                if (status := end(self.fork(self.resume(folder, save_total_limit=2)))) != 0:
                    row.problems.append(f"{room} bytes: could not be resumed ({status})")
                self.compare(row, folder)
                unmount(disk)
            return row

        return self.with_mounts("full disk", scenario)

    def read_only(self, runs: int) -> Row:
        """A folder that is read-only at the start, or becomes so after a random time; then it is writable again."""

        def scenario(disk: Path) -> Row:
            row = Row("read-only folder")
            for i in range(runs):
                mount(disk, size=100 * self.checkpoint_bytes)
                folder = disk / f"run-{self.number}"
                self.number += 1
                pid = None
                if i % 2:
                    pid = self.fork(self.command(folder))
                    wait_for((folder / "run.json").exists, pid)
                    time.sleep(self.random.uniform(0, self.duration / 2))
                mount(disk, size=100 * self.checkpoint_bytes, remount=True, read_only=True)
                status = end(pid or self.fork(self.command(folder)))
                told = self.log().splitlines()[-1]
                if status != 1 or "ead-only" not in told:
                    row.problems.append(f"status {status}, {told}")
                self.check(row, folder, -1, status)
                mount(disk, size=100 * self.checkpoint_bytes, remount=True)
                self.end_of(row, folder)
                unmount(disk)
            return row

        return self.with_mounts("read-only folder", scenario)

    def with_mounts(self, fault: str, scenario: Callable[[Path], Row]) -> Row:
        """Runs a scenario in a fork with mounts of its own, if this system lets it."""
        disk, answer = self.home / "disk", self.home / "answer.json"
        disk.mkdir(exist_ok=True)
        answer.unlink(missing_ok=True)
        if not (pid := os.fork()):
            try:
                private_mounts()
                answer.write_text(json.dumps(asdict(scenario(disk))))
            except PermissionError as error:
                answer.write_text(json.dumps({"fault": fault, "problems": [f"skipped: {error}"]}))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        self.number += 1000
        return Row(**json.loads(answer.read_text()))

    def side_by_side(self, faults: list[Callable[[], Row]], jobs: int, seed: int) -> list[Row]:
        """Tries several faults at once, each in a fork with a folder of its own."""
        home = self.home
        for i, fault in enumerate(faults):
            if i >= jobs:
                os.wait()
            if os.fork():
                continue
            try:
                self.home = home / f"fault-{i}"
                self.home.mkdir()
                self.random = random.Random(f"{seed} {i}")
                row = asdict(fault())
                (home / f"row-{i}.json").write_text(json.dumps(row))
                print(json.dumps(row), flush=True)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        for _ in faults[-jobs:]:
            os.wait()
        return [Row(**json.loads((home / f"row-{i}.json").read_text())) for i in range(len(faults))]

    def lost_rank(self, runs: int) -> Row:
        """SIGKILL for one of two processes after a random time: the other must end by itself."""
        row = Row("one of two processes killed")
        peace = self.home / "two"
        fields = {"ddp_timeout": 30, "gradient_accumulation_steps": 1}
        if any(statuses := [end(pid) for pid in self.fork_two(peace, **fields)]):
            raise RuntimeError(f"Two processes in peace ended with {statuses}: {self.log()[-3000:]}")
        for _ in range(runs):
            folder = self.folder()
            pids = self.fork_two(folder, **fields)
            self.wait(pids[0], folder)
            killed = self.random.randrange(2)
            start = time.monotonic()
            os.kill(pids[killed], signal.SIGKILL)
            end(pids[killed])
            status = end(pids[1 - killed])
            row.slowest_end = max(row.slowest_end, round(time.monotonic() - start, 2))
            if status == 0 and not (folder / "log_history.json").exists():
                row.problems.append(f"{folder}: the other process ended with 0")
            for checkpoint in folder.glob("checkpoint-*"):
                row.checkpoints_seen += 1
                if {path.name for path in checkpoint.iterdir()} != {
                    path.name for path in (peace / f"checkpoint-{self.steps}").iterdir()
                }:
                    row.not_whole += 1
            row.count(moment(folder), status)
            if any(statuses := [end(pid) for pid in self.fork_two(folder, **fields)]):
                row.problems.append(f"{folder} could not be resumed ({statuses}): {self.log()[-600:]}")
            self.compare(row, folder, peace)
        return row

    def fork_two(self, folder: Path, **fields: Any) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        arguments = self.resume(folder, **fields)
        return [self.fork(arguments, RANK=rank, LOCAL_RANK=rank, **address) for rank in ("0", "1")]

    def fresh_processes(self, signals: list[int]) -> Row:
        """The script in processes of its own, which get a signal while they train."""
        row = Row("fresh processes of the script, " + ", ".join(signal.Signals(number).name for number in signals))
        for number in signals:
            folder = self.folder()
            process = self.script(self.command(folder, max_steps=self.steps))
            wait_for(lambda folder=folder: any(folder.glob("checkpoint-*")), process.pid)
            process.send_signal(number)
            status = process.wait(PATIENCE)
            if status not in (-signal.SIGKILL, train.STOPPED):
                row.problems.append(f"{folder}: {signal.Signals(number).name} ended it with {status}")
            self.check(row, folder, 0, status)
            if (status := self.script(self.resume(folder)).wait(PATIENCE)) != 0:
                row.problems.append(f"{folder} could not be resumed ({status}): {self.log()[-600:]}")
            self.compare(row, folder)
        return row

    def script(self, arguments: list[str]) -> subprocess.Popen:
        log = (self.home / "log.txt").open("a")
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/train.py"), *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def moment(folder: Path) -> str:
    """Returns when a run was disturbed, by what is in its folder."""
    if not (folder / "run.json").exists():
        return "before training"
    if (folder / "model.safetensors").exists():
        return "after training"
    return "while saving" if (folder / UNFINISHED).exists() else "while training"


def count_changes(limit: int | None) -> list[int]:
    """Counts what this process changes in the file system, and kills it before the `limit`-th change."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            count[0] += 1
            if count[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def end(pid: int) -> int:
    """Waits for a process. Returns its status, negative for a signal."""
    wait_for(lambda: False, pid)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def wait_for(condition: Callable[[], bool], pid: int) -> None:
    """Waits until a condition holds or a child has ended, which is left to be waited for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"The process did not end in {PATIENCE} s.")
        time.sleep(0.002)


def require_equal(path: Path, other: Path) -> None:
    """Raises ValueError unless two files hold the same tensors, bit for bit."""
    one, two = load_file(path), load_file(other)
    if one.keys() != two.keys() or not all(torch.equal(one[name], two[name]) for name in one):
        raise ValueError("has other weights")


def losses(folder: Path) -> list[tuple[int, float | None, float | None]]:
    history = json.loads((folder / "log_history.json").read_text())
    kept = [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in history]
    return [entry for entry in kept if entry[1:] != (None, None)]


def size(path: Path) -> int:
    """Returns the bytes of a file or of all files in a folder, 0 if there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ---- mounts, which Python has no functions for ----------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18


def call(name: str, *args: Any) -> None:
    if getattr(LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        kind = PermissionError if number in (1, 13, 22) else OSError
        raise kind(number, f"{name}: {os.strerror(number)}")


def private_mounts() -> None:
    """Gives this process mounts that only it and its children see.

    Raises:
        PermissionError: this system does not let it.
    """
    user, group = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def mount(folder: Path, size: int, remount: bool = False, read_only: bool = False) -> None:
    """Mounts, or changes, a file system in memory of so many bytes."""
    flags = MS_REMOUNT * remount | MS_RDONLY * read_only
    for patience in range(100):
        try:
            return call("mount", b"tmpfs", bytes(folder), b"tmpfs", flags, f"size={size}".encode())
        except OSError:  # a file is just being written
            if patience == 99:
                raise
            time.sleep(0.01)


def unmount(folder: Path) -> None:
    call("umount2", bytes(folder), 2)


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "| fault | runs disturbed and resumed | times | when | equal bit for bit | checkpoints seen, not whole, lost "
        "| leftover bytes | most on disk, in checkpoints | slowest end |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        when = ", ".join(f"{count} {moment}" for moment, count in sorted(row.moments.items()))
        seen = f"{row.checkpoints_seen}, {row.not_whole}, {row.lost}"
        slowest = f"{row.slowest_end} s" if row.slowest_end else ""
        lines.append(
            f"| {row.fault} | {row.runs} | {row.disturbed} | {when} | {row.equal} | {seen} | {row.leftover_bytes} | "
            f"{row.most_checkpoints_on_disk or ''} | {slowest} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the whole campaign, prints its table, and ends with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/faults/campaign.json"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults to try at once")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        campaign = Campaign(Path(home))
        faults = [
            lambda: campaign.fresh_processes([signal.SIGKILL, signal.SIGTERM]),
            lambda: campaign.killed("at a random time", 10),
            lambda: campaign.killed("before a random file operation", 12),
            lambda: campaign.killed("in the middle of a save", 8),
            lambda: campaign.terminated(8),
            lambda: campaign.lost_rank(4),
            lambda: campaign.full_disk(6),
            lambda: campaign.read_only(4),
        ]
        rows = campaign.side_by_side(faults, args.jobs, args.seed)
        report = {
            "command": "python -m campaigns.faults " + " ".join(sys.argv[1:]),
            "steps": campaign.steps,
            "checkpoint_bytes": campaign.checkpoint_bytes,
            "seconds": round(time.monotonic() - start),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rows": [asdict(row) for row in rows],
        }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(rows))
    sys.exit(any(row.problems for row in rows))


if __name__ == "__main__":
    main()
