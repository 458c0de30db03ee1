"""Judge the submissions of a pull request: every changed bundle is verified, and no accepted record may change.

Used by ``.github/workflows/submission.yml``; by hand: ``python leaderboard/judge.py CHECKOUT ACCEPTED BASE HEAD``, with
two commits of the checkout. Prints Markdown; exits with 1 where something is refused. Runs nothing of the checkout:
git tells which files changed, and ``neurobench verify`` reads them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUNDLE = re.compile(r"leaderboard/submissions/([A-Za-z0-9][A-Za-z0-9._-]{0,80})(?:/.+)?")
RECORD = re.compile(r"leaderboard/results/[a-z0-9_-]{1,64}/([0-9a-f]{64})\.json")


def changes(checkout: Path, base: str, head: str) -> list[tuple[str, str]]:
    """Return (what happened, path) of every file under leaderboard/ since the branch left its base; A is added."""
    for commit in (base, head):
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise SystemExit(f"{commit!r} is no commit")
    command = ["git", "-C", str(checkout), "diff", "--name-status", "--no-renames", "-z", f"{base}...{head}", "--"]
    told = subprocess.run([*command, "leaderboard"], check=True, capture_output=True).stdout.decode("utf-8", "replace")
    parts = told.split("\0")[:-1]
    return list(zip(parts[::2], parts[1::2], strict=True))


def verify(bundle: Path, accepted: Path) -> dict[str, Any]:
    """Return the verdict on a bundle; a verifier that says nothing readable has believed nothing."""
    command = [sys.executable, "-I", "-m", "neurobench", "verify", str(bundle), "--against", str(accepted), "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    try:
        found: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        return {"verdict": "refused", "records": [], "findings": [], "why": run.stderr[-2000:]}
    return found


def text(value: object) -> str:
    """Return a stranger's text for Markdown: no markup, no line breaks."""
    plain = " ".join(str(value).split())[:300]
    return re.sub(r"([\\`*_{}\[\]<>()#+!|@~])", r"\\\1", plain)


def report(name: str, verdict: dict[str, Any]) -> list[str]:
    """Return the verdict as Markdown."""
    lines = [f"### {text(name)}: {text(verdict['verdict'])}", ""]
    lines += [f"    {line}" for line in str(verdict.get("why", "")).splitlines()]
    for f in verdict["findings"][:100]:
        where = f["path"] or f["subject"]
        lines.append(
            f"- **{text(f['level'])}** {text(where + ': ' if where else '')}{text(f['message'])}. {text(f['fix'])}"
        )
    for r in verdict["records"]:
        lines.append(
            f"- {text(r['row'])}, {text(r['task'])} on {text(r['dataset'])} ({text(r['source'])}): {r['level']}"
        )
    return [*lines, ""]


def judge(checkout: Path, accepted: Path, base: str, head: str) -> tuple[list[str], bool]:
    """Return Markdown, and whether everything is believed."""
    lines, good, bundles, added = ["## Submissions", ""], True, set(), {}
    for what, path in changes(checkout, base, head):
        if match := BUNDLE.fullmatch(path):
            bundles.add(match[1])
            problem = "" if what == "A" else "a submission is never changed or removed: send a new one beside it"
        elif path.startswith("leaderboard/results/"):
            match = RECORD.fullmatch(path)
            problem = "" if what == "A" else "an accepted record is superseded by a new one, never edited or removed"
            problem = problem or ("" if match else "is no leaderboard/results/SUITE/ID.json")
            if match and not problem:
                added[path] = match[1]
        else:
            continue
        if problem:
            good = False
            lines.append(f"- **error** {text(path)}: {problem}")
    believed: dict[str, set[bytes]] = {}
    for name in sorted(bundles):
        bundle = checkout / "leaderboard" / "submissions" / name
        verdict = verify(bundle, accepted)
        good &= verdict["verdict"] != "refused"
        lines += report(name, verdict)
        if verdict["verdict"] != "refused" and bundle.is_dir():
            for r in verdict["records"]:
                believed.setdefault(r["id"], set()).add((bundle / "records" / f"{r['id']}.json").read_bytes())
    for path, record_id in added.items():
        if (checkout / path).is_symlink() or (checkout / path).read_bytes() not in believed.get(record_id, set()):
            good = False
            lines.append(f"- **error** {text(path)}: is in no bundle of this pull request that was believed")
    if not bundles and not added:
        lines.append("No submission here.")
    return lines, good


def main(arguments: Sequence[str]) -> int:
    """Print the verdict on everything that changed; return the exit code."""
    checkout, accepted, base, head = arguments
    lines, good = judge(Path(checkout), Path(accepted), base, head)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
