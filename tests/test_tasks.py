"""Tasks on a column of the participants table: their targets and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench.errors import ConfigError
from neurobench.metrics import FUNCTIONS
from neurobench_tasks.age import Age
from neurobench_tasks.diagnosis import Diagnosis
from neurobench_tasks.fluid_intelligence import FluidIntelligence
from neurobench_tasks.sex import Sex
from neurobench_tasks.target import Target


def cohort(n=40, **columns):
    return SimpleNamespace(dataset="mine", participants=pd.DataFrame(columns, index=[f"s{i:02d}" for i in range(n)]))


TABLE = {
    "age": np.linspace(20, 80, 40),
    "sex": ["F", "M"] * 20,
    "diagnosis": ["control"] * 15 + ["adhd"] * 25,
    "full_iq": np.arange(40.0),
    "name": [f"text {i}" for i in range(40)],
}


@pytest.mark.parametrize("task", [Age(), FluidIntelligence(), Diagnosis(), Sex(), Target(column="full_iq")])
def test_metrics_exist(task):
    assert task.metrics[0].name in ("mae", "auroc")
    assert {m.name for m in task.metrics} <= set(FUNCTIONS[task.kind])


def test_targets():
    table = cohort(**TABLE).participants
    assert not Age().refuses(cohort(**TABLE))
    assert Age().target(table).tolist() == TABLE["age"].tolist()
    assert Sex().target(table).tolist() == [0.0, 1.0] * 20
    assert Diagnosis().target(table).sum() == 25
    assert Target(column="full_iq").target(table).sum() == sum(range(40))


def test_missing_values_stay_missing():
    table = pd.DataFrame(
        {
            "age": ["31", "n/a", None, "x"],
            "sex": ["F", "M", None, "?"],
            "diagnosis": ["TD", "Healthy Control", "", None],
        }
    )
    np.testing.assert_array_equal(Age().target(table), [31, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(Sex().target(table), [0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(Diagnosis().target(table), [0, 0, np.nan, np.nan])


@pytest.mark.parametrize("label", ["control", "TD", "typically developing", "Healthy-Control", "HC", "TDC"])
def test_controls_are_class_0(label):
    table = pd.DataFrame({"diagnosis": [label, "migraine"]})
    assert Diagnosis().target(table).tolist() == [0.0, 1.0]
    assert Target(column="diagnosis").target(table).tolist() == [0.0, 1.0]


def test_a_missing_column_names_those_that_could_be_targets():
    reason = FluidIntelligence().refuses(cohort(**TABLE))
    assert reason == (
        "mine has no column 'fluid_intelligence' in its participants table; "
        "columns that could be targets: age, sex, diagnosis, full_iq"
    )
    assert "did you mean 'full_iq'?" in Target(column="fulliq").refuses(cohort(**TABLE))
    assert Age().refuses(cohort(n=3, x=[1, 2, 3])).endswith("could be targets: none")


def test_too_little_to_score():
    few = cohort(age=[30.0, 40.0] * 9 + [np.nan] * 22)
    assert Age().refuses(few) == "18 subjects of mine have a usable age; at least 20 are needed"
    assert Age().refuses(cohort(age=30.0)) == "age is the same for all 40 subjects"
    assert Sex().refuses(cohort(sex="F")) == "sex of mine has 40 F, 0 M; at least 5 of each class are needed"
    rare = cohort(diagnosis=["migraine"] * 37 + ["control"] * 3)
    assert Diagnosis().refuses(rare).startswith("diagnosis of mine has 3 control, 37 patient")
    other = cohort(diagnosis=["migraine", "cluster"] * 20)
    assert "names a control group: cluster, migraine; use target[column=diagnosis]" in Diagnosis().refuses(other)


def test_target_infers_its_kind():
    number, classes, coded = Target(column="full_iq"), Target(column="sex"), Target(column="smoker")
    people = cohort(**TABLE, smoker=[1, 2] * 20)
    assert not number.refuses(people)
    assert number.kind == "regression"
    assert not classes.refuses(people)
    assert classes.kind == "classification"
    assert classes.classes == ("F", "M")
    assert classes.metrics[0].name == "auroc"
    assert not coded.refuses(people)
    assert coded.classes == ("1", "2")
    assert coded.target(people.participants).tolist() == [0.0, 1.0] * 20


def test_target_refuses_text():
    assert "holds 40 different texts" in Target(column="name").refuses(cohort(**TABLE))


def test_target_needs_a_column():
    with pytest.raises(ConfigError, match=r"which column.*target\[column=full_iq\]"):
        Target()
