"""Files given to a reader by the hundred thousand, and what came of it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fuzz.damage import BY_VALUE, TOKENS, damaged, with_other_values
from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.readers import readers
from benchmarks.fuzz.structured import strategies
from neurobench.errors import NeurobenchError

KEPT = Path(__file__).parents[1] / "results" / "fuzz.json"

LIMIT_S = 5.0
"""Seconds that one small file may take."""

GUIDED = ("neurobench", "yaml", "json", "csv", "zipfile")
"""Modules whose branches guide atheris."""


@dataclass
class Campaign:
    """What reading many files came to.

    Parameters
    ----------
    n, n_read
        Files; those that were read without an error.
    slowest_s, seconds
        Seconds of the slowest, and of all.
    errors
        How often each of neurobench's own errors came.
    found
        By place in the code what a file that was neither read nor refused came to, and the shortest such file.
    """

    n: int = 0
    n_read: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    found: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def bug(self, place: str, said: str, content: bytes) -> None:
        """Keep what a file came to, unless a shorter one did the same."""
        if place not in self.found or len(content) < len(self.found[place][1]):
            self.found[place] = said, content


Give = Callable[[bytes], bool]
"""Gives a file to the reader of a campaign; returns whether it was read, or refused in plain words."""


class _Late(BaseException):
    """A file took too long: no ``except Exception`` on the way takes it for what is wrong with the file."""


def _late(*_: object) -> None:
    raise _Late


@contextlib.contextmanager
def _reading(reader: Reader, done: Campaign) -> Iterator[Give]:
    """Count what comes of the files that are given to a reader."""
    # A hundred thousand files are written and read again: in memory where the system has such a folder.
    memory = Path("/dev/shm")  # noqa: S108 – a folder of a name nobody knows is made in it
    within = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    with within as temporary, warnings.catch_warnings():
        # What a parser warns of is no crash.
        warnings.simplefilter("ignore")
        folder = Path(temporary)

        def give(content: bytes) -> bool:
            reader.place(folder, content)
            done.n += 1
            started = time.process_time()
            place = ""
            try:
                signal.setitimer(signal.ITIMER_PROF, 2 * LIMIT_S)
                reader.read(folder)
                done.n_read += 1
            except NeurobenchError as error:
                done.errors[type(error).__name__] += 1
            except (Exception, _Late) as error:
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f for f in frames if "neurobench" in f.filename and "benchmarks" not in f.filename]
                place = f"{type(error).__name__} at "
                place += f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
                done.bug(place, str(error), content)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - started
            done.seconds += seconds
            done.slowest_s = max(done.slowest_s, seconds)
            if not place and seconds > LIMIT_S:
                place = "too long"
                done.bug(place, f"took {seconds:.0f} s", content)
            return not place

        # Of this process: a machine that others use as well is no reason to call a file slow.
        before = signal.signal(signal.SIGPROF, _late)
        try:
            yield give
        finally:
            signal.signal(signal.SIGPROF, before)


def _by_mutation(name: str, n: int, seed: int, give: Give) -> None:
    """Damage valid files, whatever their format."""
    reader = readers()[name]
    rng = np.random.default_rng([seed, *name.encode()])
    for _ in range(n):
        give(damaged(rng, reader))


class _Broken(Exception):
    """What hypothesis looks for the simplest example of."""


TOGETHER = 10
"""Files that hypothesis makes up in one go: what it does before and after takes longer than to make up a file."""

SEARCHED, SEARCHED_LEAST = 0.1, 2000
"""Share of the files that hypothesis searches for itself, near those it tried before and as short as can be."""

CHOICES = 100, 1000
"""Random bytes that the choices of one file are taken from: too few end in the middle of most files."""


def _by_hypothesis(name: str, n: int, seed: int, give: Give) -> None:
    """Make up files of known fields, no two alike; one that breaks the reader is made as short as it can be."""
    import hypothesis
    from hypothesis import strategies as st

    files = st.tuples(*[strategies()[name]] * TOGETHER)
    # Hypothesis varies what it made up before, and often comes to the same file: it is given once, and counts once.
    read: dict[bytes, bool] = {}

    def search_for(most: int, part: int) -> Callable[..., None]:
        settings = hypothesis.settings(
            max_examples=min(200, max(20, most // TOGETHER)),
            database=None,
            deadline=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
        )

        @hypothesis.seed(1_000_000 * seed + part)
        @settings
        @hypothesis.given(files)
        def search(contents: tuple[bytes, ...]) -> None:
            for content in contents:
                known = hashlib.sha256(content).digest()
                if known not in read:
                    read[known] = len(read) >= n or give(content)
                if not read[known]:
                    raise _Broken

        return search

    # Many short searches: a single one remembers every file, and takes longer with each.
    for part in itertools.count():
        before = len(read)
        search = search_for(n - before, part)
        with contextlib.suppress(_Broken):
            search()
        if len(read) >= min(n, max(SEARCHED_LEAST, SEARCHED * n)) or len(read) == before:
            break
    # The rest from random choices alone, which takes a fraction of the time and hardly ever comes to the same file.
    rng = np.random.default_rng([seed, *name.encode()])
    tried = before = 0
    while len(read) < n:
        with contextlib.suppress(_Broken):
            search.hypothesis.fuzz_one_input(rng.bytes(int(rng.integers(*CHOICES)) * TOGETHER))
        tried += 1
        if tried % 1000 == 0:
            if len(read) == before:
                return
            before = len(read)


def _by_coverage(name: str, n: int, seed: int, give: Give, folder: Path) -> None:
    """Let libFuzzer damage a reader's files by what they reach in our code and in YAML's; ends the process.

    Where a file is JSON, most of what it does is done to its values, so that what comes after the parser is reached.
    """
    import atheris

    reader = readers()[name]
    (folder / "samples").mkdir()
    for i, sample in enumerate(reader.samples):
        (folder / "samples" / str(i)).write_bytes(sample)
    tokens = [t for t in TOKENS if 0 < len(t) < 60]
    lines = ('"' + "".join(f"\\x{b:02x}" for b in token) + '"\n' for token in tokens)
    (folder / "tokens").write_text("".join(lines), encoding="ascii")

    reached: set[types.CodeType] = set()
    rng = np.random.default_rng(seed)
    sys.setprofile(lambda frame, *_: reached.add(frame.f_code))
    for content in (*reader.samples, *(damaged(rng, reader) for _ in range(100))):
        give(content)
    sys.setprofile(None)
    # Of everything that is imported only what a file reaches: to prepare a function takes longer than to read a file.
    for function in [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__ in reached]:
        if str(function.__module__).startswith(GUIDED):
            atheris.instrument_func(function)

    def mutate(content: bytes, most: int, number: int) -> bytes:
        own = np.random.default_rng(number)
        with contextlib.suppress(RecursionError):
            if own.random() < BY_VALUE and (other := with_other_values(own, reader, content)) is not None:
                return other[:most]
        return bytes(atheris.Mutate(content, most))

    limits = [f"-runs={n}", f"-seed={seed + 1}", "-max_len=65536", "-timeout=86400", "-rss_limit_mb=0", "-verbosity=0"]
    files = [f"-dict={folder / 'tokens'}", f"-artifact_prefix={folder}/", str(folder / "samples")]
    atheris.Setup([sys.argv[0], *limits, *files], give, custom_mutator=mutate)
    atheris.Fuzz()


ENGINES: Mapping[str, Callable[[str, int, int, Give], None]] = {"mutation": _by_mutation, "hypothesis": _by_hypothesis}

COVERAGE = "atheris"
"""The engine that never returns, and has a process of its own."""


def fuzz(name: str, n: int, seed: int = 0, engine: str = "mutation") -> Campaign:
    """Give a reader ``n`` files."""
    done = Campaign()
    with _reading(readers()[name], done) as give:
        if engine == COVERAGE:
            return _in_a_process(name, n, seed, give, done)
        ENGINES[engine](name, n, seed, give)
    return done


def _in_a_process(name: str, n: int, seed: int, give: Give, done: Campaign) -> Campaign:
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        last = folder / "last"

        def give_and_tell(content: bytes) -> bool:
            # What ends the process is told by nobody else.
            last.write_bytes(content)
            good = give(content)
            if done.n >= n:
                send.send(done)
                os._exit(0)
            return good

        process = fork.Process(target=_by_coverage, args=(name, n, seed, give_and_tell, folder))
        process.start()
        send.close()
        try:
            done = receive.recv()
        except EOFError:
            process.join()
            said = f"the process ended with exit code {process.exitcode}; what it said is on standard error"
            done.bug(COVERAGE, said, last.read_bytes() if last.is_file() else b"")
        process.join()
    return done


def keep(name: str, done: Campaign, seed: int, engine: str, path: Path = KEPT) -> None:
    """Add what was run to what is kept: another seed is other files; a seed that was run before begins anew."""
    with open(path, "a+", encoding="utf-8") as file:
        # Campaigns of other readers may run beside this one.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = json.loads(file.read() or "{}")
        of_engine = kept.setdefault(engine, {})
        before = of_engine.get(name, {})
        if seed in before.get("seeds", []):
            before = {}
        of_engine[name] = {
            "date": datetime.date.today().isoformat(),
            "files": before.get("files", 0) + done.n,
            "seeds": [*before.get("seeds", []), seed],
            "read": before.get("read", 0) + done.n_read,
            "refused": dict(sorted((done.errors + Counter(before.get("refused", {}))).items())),
            "seconds": before.get("seconds", 0) + round(done.seconds),
            "slowest_s": max(before.get("slowest_s", 0.0), round(done.slowest_s, 2)),
        }
        file.truncate(0)
        file.write(json.dumps(kept, indent=1, sort_keys=True) + "\n")
