"""What every command shares: its errors, its exit code, completion, and the options that several have."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurobench import logs
from neurobench.errors import ConfigError, NeurobenchError, PluginError

if TYPE_CHECKING:
    from neurobench.components import ComponentSpec
    from neurobench.plugins import Registry
    from neurobench.verification import Repeat


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a readable message and an exit code: 2 for what was asked, 1 for the rest."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        from neurobench import console

        verbose, log_format = bool(options.get("verbose")), options.get("log_format") or "text"
        as_lines = log_format == "json"
        screen = console.make_console(stderr=True)
        stack = contextlib.ExitStack()
        try:
            stack.enter_context(logs.shown(log_format, verbose=verbose))
            command(**options)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            stopped = "Stopped; everything finished is stored. Run the same command again to go on."
            if as_lines:
                logs.tell("message", stopped, level=logging.WARNING)
            else:
                screen.print(f"\n{stopped}")
            raise typer.Exit(130) from None
        except NeurobenchError as error:
            if as_lines:
                console.tell_error(error)
            else:
                if verbose:
                    screen.print(traceback.format_exc(), markup=False)
                console.print_error(error, screen)
            raise typer.Exit(2 if isinstance(error, ConfigError | PluginError) else 1) from None
        except Exception as error:
            if as_lines:
                logs.tell("message", level=logging.ERROR, **logs.failure(error))
                raise typer.Exit(1) from None
            text = traceback.format_exc()
            if verbose:
                where = "Above is the full traceback."
                screen.print(text, markup=False)
            else:
                handle, name = tempfile.mkstemp(prefix="neurobench-", suffix=".txt")
                os.close(handle)
                Path(name).write_text(text, encoding="utf-8")
                where = f"The full traceback is in {name}; -v shows it."
            message = " ".join(str(error).split())
            screen.print(f"Unexpected {type(error).__name__}: {message}. {where}", markup=False, style="red")
            raise typer.Exit(1) from None
        finally:
            stack.close()

    return run


def complete(kind: str) -> Callable[[str], list[str]]:
    """Return the completion of a component option; names come from entry points, so nothing is imported."""

    def candidates(incomplete: str) -> list[str]:
        from importlib.metadata import entry_points

        before, comma, last = incomplete.rpartition(",")
        names = (p.name.partition("-") for p in entry_points(group="neurobench"))
        return sorted({before + comma + n for k, _, n in names if k == (kind or k) and n.startswith(last)})

    return candidates


def choice(*words: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [w for w in words if w.startswith(incomplete)]


KINDS: tuple[str, ...] = ("backbone", "mask", "dataset", "task", "baseline", "figure")
"""Kinds of plugins; said here too, because nothing heavy is imported before a command runs."""

Names = list[str] | None
PluginFiles = Annotated[
    list[Path] | None, typer.Option("--plugin", help="Python file with a plugin; repeatable.", metavar="FILE")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show full tracebacks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of results and of everything stored; neurobench-results without."),
]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", autocompletion=complete("dataset"))]
DataDir = Annotated[
    Names, typer.Option("--data-dir", metavar="[NAME=]PATH", help="Folder of a dataset's recordings; repeatable.")
]


def open_registry(plugin_files: Any) -> Registry:
    from neurobench.plugins import load_registry

    return load_registry(tuple(plugin_files))


Rerun = Annotated[bool, typer.Option("--rerun", help="Run records again with the code installed here.")]
Recordings = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Recordings of real people, to run those again; without, simulated ones are."
    ),
]


@contextlib.contextmanager
def repeating(rerun: bool, registry: Registry, data_dir: Path | None, *, shown: bool) -> Iterator[Repeat | None]:
    """Give what runs records again, in a folder that is gone afterwards; None without ``rerun``."""
    from neurobench import console, repetition

    if data_dir is not None and not rerun:
        raise ConfigError("--data-dir is of no use without --rerun.", next_step="Add --rerun, or leave it out.")
    if data_dir is not None and not data_dir.is_dir():
        raise ConfigError(
            f"--data-dir: the folder {data_dir} does not exist.", next_step="Give the folder that holds the recordings."
        )
    if not rerun:
        yield None
        return
    side = console.make_console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="neurobench-") as folder, contextlib.ExitStack() as stack:
        progress = stack.enter_context(console.Terminal(side)) if shown and side.is_terminal else None
        yield lambda todo: repetition.repeat(todo, registry, Path(folder) / "runs", progress, data_dir)


def build(spec: ComponentSpec, registry: Registry) -> Any:
    return registry.get(spec.kind, spec.name)(**spec.arguments)
