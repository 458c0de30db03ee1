"""`neurobench new`: a plugin of one's own, as a package that works from the first minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurobench.commands import KINDS, Verbose, choice, guarded, open_registry


@guarded
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS), autocompletion=choice(*KINDS))],
    name: Annotated[str, typer.Argument(help="Such as my_net: lower-case letters, digits and _.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to put it; neurobench-NAME without.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Start a plugin: a small package with one that works, its entry point, its tests and a README.

    Example: neurobench new backbone my_net
    """
    from neurobench import console
    from neurobench.new import EXAMPLES, new_plugin

    folder = to or Path(f"neurobench-{name.replace('_', '-')}")
    files = new_plugin(kind, name, folder, open_registry(()))
    screen = console.make_console()
    screen.print(f"{files[0]} is the plugin; change it into what it is to be.", highlight=False, soft_wrap=True)
    then = f'cd {folder} && pip install -e ".[test]" && neurobench check {name}'
    screen.print(f"Next: {then}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"Then: {EXAMPLES[kind].format(name=name)}", highlight=False, markup=False, soft_wrap=True)
