"""Looking after an output folder: damage is found and named, only what nothing needs goes, merging replaces nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neurobench import runs, upkeep
from neurobench.cli import app
from neurobench.errors import StoreError
from neurobench.evidence import damage, read_table
from neurobench.identity import digest
from neurobench.results import load_results, read_record
from neurobench.store import Checkpoint, Store
from tests.fakes import write_folder
from tests.tiny_run import execute


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upkeep")
    write_folder(folder / "data", n_subjects=24)
    execute(folder / "data", folder / "out", task="age")
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def some_file(out: Path, stage: str, name: str) -> Path:
    return sorted((out / "store" / stage).glob(f"*/{name}"))[0]


# ---------------------------------------------------------------- check


def test_a_finished_run_is_whole(out: Path):
    before = everything(out)
    found = upkeep.check(out)
    assert found.problems == ()
    assert found.n_records == len(list((out / "records").iterdir()))
    assert found.n_entries > 10
    assert everything(out) == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "a file's content is not what was written"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, not"),
        (lambda p: p.unlink(), "is missing"),
        (lambda p: (p.parent / "manifest.json").write_text("{"), "its manifest cannot be read: JSONDecodeError"),
    ],
)
def test_damage_is_found_named_removed_and_made_again(finished: Path, out: Path, damage, said: str):
    path = some_file(out, "pretraining", "weights.safetensors")
    original = path.read_bytes()
    damage(path)
    (problem,) = upkeep.check(out).problems
    assert problem.path.startswith("store/pretraining/")
    assert said in problem.what
    upkeep.check(out, remove=True)
    assert not path.parent.exists()
    assert upkeep.check(out).problems == ()
    result = execute(finished / "data", out, task="age")
    assert result.n_computed == 1
    assert path.read_bytes() == original


def test_a_changed_identity_and_a_moved_entry_are_found(out: Path):
    first, second = sorted((out / "store" / "pretraining").iterdir())[:2]
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["identity"]["n_steps"] = 20_000
    (first / "manifest.json").write_text(json.dumps(manifest))
    second.rename(second.with_name("0" * 64))
    said = [p.what for p in upkeep.check(out).problems]
    assert any("its identity is not the one" in s for s in said)
    assert any("says that it is pretraining/" in s for s in said)


def test_a_changed_record_is_found_and_never_removed(finished: Path, out: Path, caplog: pytest.LogCaptureFixture):
    path = next((out / "records").iterdir())
    path.write_text(
        path.read_text().replace('"status": "ok"', '"status":  "ok"').replace('"n_subjects": 24', '"n_subjects": 25')
    )
    (problem,) = upkeep.check(out, remove=True).problems
    assert "changed after it was written" in problem.what
    assert path.is_file()
    (entry := Store(out).entries("evaluation")[0]).file("manifest.json").unlink()
    assert execute(finished / "data", out, task="age").n_computed == 1
    assert (
        f"{path} was changed after it was written: its content hash does not match. It is written anew." in caplog.text
    )
    assert f"store/evaluation/{entry.path.name} is not what was written, and is made again" in caplog.text
    assert upkeep.check(out).problems == ()


BESIDE = ("predictions/*", "identities/*", "folds/*", "cohorts/*/cohort.json", "cohorts/*/units.parquet")
"""What lies beside every record."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_what_lies_beside_records_is_looked_at_and_written_anew(finished: Path, out: Path):
    before = everything(out)
    paths = [next(out.glob(part)) for part in (*BESIDE, "evidence/*/*.parquet")]
    for number, path in enumerate(paths):
        cut(path) if number % 2 else path.unlink()
    found = {p.path: p.what for p in upkeep.check(out).problems}
    # Of evidence nobody knows what there was: only what is there can be damaged.
    assert found == {
        str(p.relative_to(out)): "cannot be read" if number % 2 else "is missing" for number, p in enumerate(paths)
    }
    said = CliRunner().invoke(app, ["store", "check", str(out)])
    assert said.exit_code == 1
    assert "written anew when their command is run again" in " ".join(said.output.split())
    assert "Records are never removed" not in said.output
    assert execute(finished / "data", out, task="age").n_computed == 0
    assert upkeep.check(out).problems == ()
    assert all(path.read_bytes() == before[str(path.relative_to(out))] for path in paths)


def test_a_number_that_changed_on_the_disk_is_found_beside_records(finished: Path, out: Path):
    path = next((out / "predictions").iterdir())
    whole = path.read_bytes()
    table = read_table(path)
    silent = 0
    # Behind the pages of numbers is what describes them, whose length is said at the end.
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(4, pages, 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        silent += not damage(path) and not read_table(path).equals(table)
    assert silent == 0
    at = pages - 9
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert [p.path for p in upkeep.check(out).problems] == [str(path.relative_to(out))]
    execute(finished / "data", out, task="age")
    assert path.read_bytes() == whole


def test_what_belongs_to_another_record_is_found(out: Path):
    first, second = sorted((out / "identities").iterdir())[:2]
    shutil.copyfile(first, second)
    folds = next((out / "folds").iterdir())
    folds.write_text(folds.read_text().replace('"index": 0', '"index": 9', 1))
    found = {p.path: p.what for p in upkeep.check(out).problems}
    assert found == dict.fromkeys(
        (f"folds/{folds.name}", f"identities/{second.name}"), "its name is not the hash of what it holds"
    )


def test_a_flipped_bit_is_not_used_by_a_run(finished: Path, out: Path, caplog: pytest.LogCaptureFixture):
    path = some_file(out, "embedding", "features.npy")
    original = path.read_bytes()
    flip(path)
    # Whatever rests on it has to be computed again to notice.
    shutil.rmtree(out / "store" / "evaluation")
    with caplog.at_level(logging.WARNING, logger="neurobench.store"):
        execute(finished / "data", out, task="age")
    assert path.read_bytes() == original
    assert f"store/embedding/{path.parent.name} is not what was written" in caplog.text
    table, reference = load_results(out), load_results(finished / "out")
    assert table["score"].equals(reference["score"])


# ---------------------------------------------------------------- garbage


def test_what_records_rest_on_stays(out: Path):
    assert upkeep.collect_garbage(out, keep_days=0) == []
    assert upkeep.check(out).problems == ()


def supersede(out: Path) -> list[Path]:
    """Write older entries of the same labels, as other code left them."""
    store, made = Store(out), []
    for entry in store.entries("pretraining"):
        identity = {**entry.manifest["identity"], "code": "0" * 64}
        with store.write("pretraining", identity, str(entry.manifest["label"])) as folder:
            (folder / "weights.safetensors").write_bytes(b"old" * 1000)
        path = store.root / "pretraining" / digest(identity)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {"written": "2020-01-01T00:00:00Z"}))
        made.append(path)
    return made


def test_superseded_entries_go_and_the_next_run_computes_nothing(finished: Path, out: Path):
    old = supersede(out)
    found = upkeep.collect_garbage(out, remove=False)
    assert {g.path for g in found} == set(old)
    assert all(p.is_dir() for p in old)
    upkeep.collect_garbage(out)
    assert not any(p.exists() for p in old)
    assert execute(finished / "data", out, task="age").n_computed == 0


def test_what_is_young_may_belong_to_a_run_that_has_not_ended(out: Path):
    old = supersede(out)
    for path in old:
        manifest = json.loads((path / "manifest.json").read_text())
        newest = max(e.manifest["written"] for e in Store(out).entries("pretraining"))
        (path / "manifest.json").write_text(json.dumps(manifest | {"written": newest}))
    assert upkeep.collect_garbage(out) == []


def leave_unfinished(out: Path, what: str, written: str = "") -> Checkpoint:
    """Leave what a pretraining that was stopped does."""
    checkpoint = Store(out).checkpoint("pretraining", digest({"what": what}), f"pretrain {what}")
    checkpoint.write({"n_done": 3}, b"arrays")
    if written:
        told = {k: v for k, v in checkpoint.about.items() if k != "digest"} | {"written": written}
        (checkpoint.folder / "checkpoint.json").write_text(json.dumps(told | {"digest": digest(told)}))
    return checkpoint


def test_what_is_unfinished_is_named_and_no_stage(out: Path):
    before = upkeep.check(out)
    checkpoint = leave_unfinished(out, "it")
    found = upkeep.check(out)
    assert (found.n_entries, found.problems) == (before.n_entries, ())
    (said,) = found.unfinished
    assert said.startswith("pretrain it, stopped 20")
    output = CliRunner().invoke(app, ["store", "check", str(out)]).output
    assert "unfinished, goes on when its command is run again: pretrain it" in output
    flip(next(checkpoint.folder.glob("*.safetensors")))
    (problem,) = upkeep.check(out, remove=True).problems
    assert problem.what == "checkpoint: its arrays are not what was written"
    assert not checkpoint.folder.exists()
    checkpoint = leave_unfinished(out, "it")
    (checkpoint.folder / "checkpoint.json").write_text("{")
    (problem,) = upkeep.check(out, remove=True).problems
    assert problem.what.startswith("checkpoint: Expecting property name")
    assert not checkpoint.folder.exists()
    checkpoint.folder.mkdir()
    assert upkeep.check(out).problems == (), "one is being written for the first time"


def test_what_is_finished_is_not_unfinished(out: Path):
    # Killed after it had put the entry in its place, and before it removed the checkpoint.
    store = Store(out)
    entry = store.entries("pretraining")[0]
    checkpoint = store.checkpoint("pretraining", digest(entry.manifest["identity"]), "it")
    checkpoint.write({"n_done": 3}, b"arrays")
    assert (store.unfinished(), upkeep.check(out).unfinished) == ([], ())
    with store.lock("pretraining", digest(entry.manifest["identity"])):
        Store(out)
        assert checkpoint.is_there, "somebody is at work on it"
    Store(out)
    assert not checkpoint.folder.exists()


def test_abandoned_checkpoints_go(out: Path):
    old, young = leave_unfinished(out, "old", "2020-01-01T00:00:00Z"), leave_unfinished(out, "young")
    half = Store(out).checkpoint("pretraining", digest({"what": "half"}), "")
    half.folder.mkdir()
    (half.folder / ".half").write_bytes(b"1234")
    os.utime(half.folder, (1577836800, 1577836800))
    begun = Store(out).checkpoint("pretraining", digest({"what": "begun"}), "")
    begun.folder.mkdir()
    found = upkeep.collect_garbage(out, remove=False)
    assert {(g.stage, g.label, g.path) for g in found} == {
        ("unfinished", "pretrain old", old.folder),
        ("unfinished", "", half.folder),
    }
    assert old.folder.exists()
    store = Store(out)
    with store.lock("pretraining", digest({"what": "old"})):
        assert [g.path for g in upkeep.collect_garbage(out)] == [half.folder], "somebody is at work on the other"
    assert "unfinished: 1 abandoned" in CliRunner().invoke(app, ["store", "gc", str(out)]).output
    assert {c.folder for c in store.unfinished()} == {young.folder, begun.folder}


def test_what_is_finished_while_somebody_looks_is_neither_damaged_nor_old(out: Path, monkeypatch: pytest.MonkeyPatch):
    opened = Checkpoint._opened

    def finished_meanwhile(self: Checkpoint):
        shutil.rmtree(self.folder, ignore_errors=True)
        return opened(self)

    leave_unfinished(out, "it")
    monkeypatch.setattr(Checkpoint, "_opened", finished_meanwhile)
    found = upkeep.check(out)
    assert (found.problems, found.unfinished) == ((), ())
    leave_unfinished(out, "it")
    monkeypatch.setattr(
        Checkpoint, "about", property(lambda self: shutil.rmtree(self.folder, ignore_errors=True) or {})
    )
    assert [g for g in upkeep.collect_garbage(out) if g.stage == "unfinished"] == []


def test_what_is_unfinished_stays_here(out: Path, tmp_path: Path):
    leave_unfinished(out, "it")
    upkeep.export(out, tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert not [name for name in tar.getnames() if "unfinished" in name]
    upkeep.merge(tmp_path / "new", [out])
    assert Store(tmp_path / "new").unfinished() == []


# ---------------------------------------------------------------- export and merge


def test_two_machines_become_one(finished: Path, tmp_path: Path):
    execute(finished / "data", tmp_path / "a", task="age", mask="roi")
    execute(finished / "data", tmp_path / "b", task="age", mask="random_tube")
    execute(finished / "data", tmp_path / "whole", task="age", mask="roi,random_tube")
    (merged,) = upkeep.merge(tmp_path / "a", [tmp_path / "b"])
    assert merged.conflicts == merged.damaged == ()
    assert merged.n_known > 0, "the baselines are the same"
    assert upkeep.check(tmp_path / "a").problems == ()
    ours, whole = (load_results(tmp_path / n).set_index("id")["score"].sort_index() for n in ("a", "whole"))
    assert ours.equals(whole)
    assert execute(finished / "data", tmp_path / "a", task="age", mask="roi,random_tube").n_computed == 0
    # What neither has: each network under the other's mask, in both folds, and what that makes of its score.
    both = execute(finished / "data", tmp_path / "a", task="reconstruction", mask="roi,random_tube")
    of_the_matrix = [
        e
        for e in Store(tmp_path / "a", read_only=True).entries("reconstruction")
        if e.manifest["label"].startswith(
            ("reconstruct tiny · roi under random_tube", "reconstruct tiny · random_tube under roi")
        )
    ]
    assert both.failed == ()
    assert len(of_the_matrix) == 4
    (again,) = upkeep.merge(tmp_path / "a", [tmp_path / "b"])
    assert (again.n_entries, again.n_records) == (0, 0)


@pytest.mark.parametrize("name", ["results.tar", "results.tar.gz"])
def test_what_is_exported_can_be_merged(finished: Path, out: Path, tmp_path: Path, name: str):
    upkeep.export(out, tmp_path / name)
    (merged,) = upkeep.merge(tmp_path / "new", [tmp_path / name])
    assert merged.n_records == len(list((out / "records").iterdir()))
    assert not (tmp_path / "new/store/cohort").exists(), "recordings and participants stay where they are"
    assert load_results(tmp_path / "new")["score"].equals(load_results(out)["score"])
    assert execute(finished / "data", tmp_path / "new", task="age").n_stored > 5
    with pytest.raises(StoreError, match="exists already"):
        upkeep.export(out, tmp_path / name)


def test_a_twin_that_was_written_at_another_time_is_the_same_cohort(out: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(out, other)
    store = Store(other)
    entry = store.entries("cohort")[0]
    kept = {name: entry.file(name).read_bytes() for name in entry.manifest["files"]}
    whole = json.loads(kept["cohort.json"])
    recording = whole["recordings"][0]
    prepared = store.root / Path(recording["path"]).parent
    manifest = json.loads((prepared / "manifest.json").read_text())
    # Its key holds when the file was last changed.
    identity = manifest["identity"] | {"source": [["another.npy", 1, 2]]}
    with store.write("prepared", identity, manifest["label"]) as folder:
        for name in manifest["files"]:
            shutil.copyfile(prepared / name, folder / name)
    recording["path"] = f"prepared/{digest(identity)}/{Path(recording['path']).name}"

    def written(whole: dict) -> upkeep.Merge:
        shutil.rmtree(entry.path)
        with store.write("cohort", entry.manifest["identity"], str(entry.manifest["label"])) as folder:
            for name, content in (kept | {"cohort.json": json.dumps(whole).encode()}).items():
                (folder / name).write_bytes(content)
        (merged,) = upkeep.merge(out, [other])
        return merged

    found = written(whole)
    assert found.conflicts == found.damaged == ()
    assert found.n_entries == 0, "its recordings are there already"
    whole["recordings"][0]["n_times"] += 1
    assert len(written(whole).conflicts) == 1, "what is in it counts"


def test_a_conflict_is_shown_and_nothing_is_replaced(out: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(out, other)
    store = Store(other)
    entry = store.entries("pretraining")[0]
    shutil.rmtree(entry.path)
    with store.write("pretraining", entry.manifest["identity"], str(entry.manifest["label"])) as folder:
        (folder / "weights.safetensors").write_bytes(b"computed elsewhere")
    flip(some_file(other, "embedding", "features.npy"))
    before = everything(out)
    result = CliRunner().invoke(app, ["store", "merge", str(out), str(other)])
    assert result.exit_code == 1
    assert f"conflict, kept as it was: pretraining/{entry.path.name[:12]} ({entry.manifest['label']})" in result.output
    assert "  not taken: embedding/" in result.output
    after = everything(out)
    assert {k: v for k, v in after.items() if not k.startswith("store/locks")} == {
        k: v for k, v in before.items() if not k.startswith("store/locks")
    }


def test_a_folder_that_was_half_copied_says_what_it_lacks_and_a_whole_one_fills_that_in(out: Path, tmp_path: Path):
    half = tmp_path / "half"
    shutil.copytree(out, half)
    shutil.rmtree(half / "predictions")
    lost = next((half / "identities").iterdir())
    cut(lost)
    (merged,) = upkeep.merge(tmp_path / "new", [half])
    n = len(list((out / "records").iterdir()))
    assert merged.n_records == n, "numbers are worth having alone"
    said = sorted(merged.damaged)
    assert said[0] == f"identities/{lost.name}: cannot be read"
    assert said[1].startswith("predictions/")
    assert said[1].endswith(f".parquet: is missing (and {n - 1} more of predictions/)")
    assert len(said) == 2
    assert len(upkeep.check(tmp_path / "new").problems) == n + 1
    (whole,) = upkeep.merge(tmp_path / "new", [out])
    assert (whole.n_records, whole.damaged, whole.conflicts) == (0, (), ())
    assert upkeep.check(tmp_path / "new").problems == ()
    for part in BESIDE:
        ours, theirs = (sorted(p.read_bytes() for p in folder.glob(part)) for folder in (out, tmp_path / "new"))
        assert ours == theirs


def test_a_record_that_says_something_else_is_a_conflict_that_says_where(out: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(out, other)
    path, broken, newer = sorted((other / "records").iterdir())[:3]
    record = read_record(path)
    path.write_text(record.model_copy(update={"notes": ["edited"], "skill": 0.5}).hashed().as_text)
    cut(out / "records" / broken.name)
    newer.write_text(newer.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    before = everything(out / "records")
    (merged,) = upkeep.merge(out, [other])
    assert merged.conflicts == (
        f"record {path.stem[:12]} ({record.row} on age): it says something else (skill, notes)",
        f"record {broken.stem[:12]} ({read_record(broken).row} on age): the one that is there is damaged; move it "
        "away, and merge again",
    )
    assert merged.damaged == (
        f"records/{newer.stem[:12]}: is a record of schema version 2, and this neurobench reads up to 1.",
    )
    assert everything(out / "records") == before


def test_a_folder_of_a_newer_version_is_refused_before_anything_is_made(out: Path, tmp_path: Path):
    (out / "neurobench.json").write_text('{"format": 2, "made_by": "neurobench"}')
    with pytest.raises(StoreError, match=r"out is an output folder of another version .* Use the neurobench that made"):
        upkeep.merge(tmp_path / "new", [out])
    assert not (tmp_path / "new").exists()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(out / "neurobench.json", "neurobench.json")
    with pytest.raises(StoreError, match=r"x\.tar is an output folder of another version"):
        upkeep.merge(tmp_path / "new", [tmp_path / "x.tar"])


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


@pytest.mark.parametrize(
    "member",
    [tarfile.TarInfo("../evil.txt"), tarfile.TarInfo("/tmp/evil.txt"), link("store", "/etc")],
    ids=["up", "absolute", "link"],
)
def test_a_tar_file_cannot_leave_its_folder(tmp_path: Path, member: tarfile.TarInfo):
    path = packed(tmp_path / "evil.tar", (member, b""))
    with pytest.raises(StoreError, match="which is no file inside it"):
        upkeep.merge(tmp_path / "out", [path])
    assert not (tmp_path / "evil.txt").exists()


def test_a_manifest_cannot_name_files_of_others(out: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    folder = next((out / "store" / "baseline").iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../../../secret.txt"] = ["0" * 64, 6]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (merged,) = upkeep.merge(tmp_path / "new", [out])
    assert any("is no file inside it" in text for text in merged.damaged)


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b\x08\x00half"])
def test_what_is_no_tar_file_is_said(tmp_path: Path, content: bytes):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(StoreError):
        upkeep.merge(tmp_path / "out", [tmp_path / "x.tar"])


def test_the_commands(out: Path, tmp_path: Path):
    def said(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["store", *words])
        assert result.exit_code == code, result.output
        return result.output

    assert "records read." in said("check", str(out))
    assert "0 entries removed" in said("gc", str(out))
    assert "files in" in said("export", str(out), str(tmp_path / "x.tar.gz"))
    assert "records taken" in said("merge", str(tmp_path / "new"), str(tmp_path / "x.tar.gz"))
    assert read_record(next((tmp_path / "new/records").iterdir())).status == "ok"
    assert "is not an output folder" in " ".join(said("check", str(tmp_path), code=1).split())
    flip(some_file(out, "baseline", "features.npy"))
    assert "1 entries are damaged" in said("check", str(out), code=1).replace("1 entry is", "1 entries are")


# ---------------------------------------------------------------- while runs are under way


def small(out: Path, *names: str) -> Store:
    store = Store(out)
    for name in names:
        with store.write("pretraining", {"of": name}, "a label") as folder:
            (folder / "weights").write_text(name)
    return store


def test_what_is_made_anew_meanwhile_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    store = small(out, "a")
    (entry,) = store.entries("pretraining")
    entry.file("weights").write_text("damaged")
    with store.lock("pretraining", entry.path.name):
        assert len(upkeep.check(out, remove=True).problems) == 1
        assert entry.path.is_dir(), "somebody makes it anew"
    looked = upkeep._damage
    n_looks = 0

    def just_before(of: Store, folder: Path) -> tuple[str, int]:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 3:
            small(out, "a")
        return looked(of, folder)

    monkeypatch.setattr(upkeep, "_damage", just_before)
    upkeep.check(out, remove=True)
    assert n_looks == 3
    assert Store(out).get("pretraining", entry.path.name) is not None


def test_what_a_run_under_way_plans_to_use_stays(tmp_path: Path):
    out = tmp_path / "out"
    store = small(out, "old", "older", "new")
    entries = {e.file("weights").read_text(): e for e in store.entries("pretraining")}
    for year, name in (("2001", "old"), ("2000", "older")):
        told = entries[name].file("manifest.json")
        told.write_text(json.dumps(json.loads(told.read_text()) | {"written": f"{year}-01-01T00:00:00Z"}))
    now = time.time()
    runs.write_state(out, runs.State("r", "", "elsewhere", 1, "", "", started=now, heard=now))
    key = entries["old"].path.name[: runs.KEY]
    runs.write_plan(out, "r", [runs.PlannedRow("d", 0, "row", "pretrained", "", "", {"pretraining": key})])
    assert [g.path for g in upkeep.collect_garbage(out)] == [entries["older"].path]


def test_what_killed_processes_left_half_written_goes_once_it_is_old(tmp_path: Path):
    out = tmp_path / "out"
    small(out, "a")
    (out / "predictions").mkdir()
    old, young = out / "predictions" / ".a.parquet.12-0a1b2c3d", out / ".neurobench.json.13-0a1b2c3d"
    kept = out / "predictions" / ".hidden"
    for path in (old, young, kept):
        path.write_bytes(b"half")
    long_ago = time.time() - 30 * 86400
    os.utime(old, (long_ago, long_ago))
    os.utime(kept, (long_ago, long_ago))
    assert [(g.stage, g.path) for g in upkeep.collect_garbage(out, remove=False)] == [("half-written", old)]
    said = CliRunner().invoke(app, ["store", "gc", str(out)])
    assert "half-written: 1 left behind" in said.output
    assert (old.exists(), young.exists(), kept.exists()) == (False, True, True)


def test_what_is_half_written_is_not_exported_and_what_vanishes_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    small(out, "a")
    (out / "records").mkdir()
    (out / "records" / ".x.json.12-0a1b2c3d").write_text("{")
    upkeep.export(out, tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert not [name for name in tar.getnames() if "x.json" in name]

    def gone(self: tarfile.TarFile, name: Path, **options: object) -> None:
        raise FileNotFoundError(2, "No such file", str(name))

    monkeypatch.setattr(tarfile.TarFile, "add", gone)
    with pytest.raises(StoreError, match="was there and is gone"):
        upkeep.export(out, tmp_path / "y.tar")
    assert not (tmp_path / "y.tar").exists()


def test_nothing_is_merged_where_one_source_cannot_be(tmp_path: Path):
    small(tmp_path / "good", "a")
    for wrong, says in (("nowhere", "does not exist"), ("empty", "is not an output folder")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        sources = [str(tmp_path / "good"), str(tmp_path / wrong)]
        done = CliRunner().invoke(app, ["store", "merge", str(tmp_path / "out"), *sources])
        assert done.exit_code == 1
        assert says in " ".join(done.output.split())
        assert not (tmp_path / "out").exists()
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    sources = [str(tmp_path / "good"), str(tmp_path / "broken.tar")]
    done = CliRunner().invoke(app, ["store", "merge", str(tmp_path / "out"), *sources])
    assert done.exit_code == 1
    assert "1 entries and 0 records taken" in " ".join(done.output.split()), "what the first gave is said"


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_tar_file_that_is_damaged_within_is_said(tmp_path: Path, kind: str):
    small(tmp_path / "out", "a")
    path = tmp_path / f"x.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as tar:
        info = tarfile.TarInfo("store/big")
        content = os.urandom(1 << 20)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 4096] = b"\xff" * 4096
    path.write_bytes(bytes(whole))
    with pytest.raises(StoreError):
        upkeep.merge(tmp_path / "new", [path])
