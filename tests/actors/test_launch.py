"""Every preset composes, and a mistake is explained in one sentence."""

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from actors.launch import CONFIG_FOLDER, SCHEMAS, compose, explain
from engine.config.run import RunConfig
from engine.errors import PeriluneError

EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))
CLUSTERS = sorted(path.stem for path in (CONFIG_FOLDER / "cluster").glob("*.yaml"))
LOSSES = sorted(path.stem for path in (CONFIG_FOLDER / "loss").glob("*.yaml"))
LOSS_SCHEMAS = tuple(schema for group, _, schema in SCHEMAS if group == "loss")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment):
    config, text = compose([f"experiment={experiment}", "run.dir=somewhere", "seed=5"])
    assert isinstance(config, RunConfig)
    assert (config.seed, config.run.seed, config.run.dir) == (5, 5, "somewhere")
    assert "${" not in text, "what is written to the run folder needs no second look"


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_composes(loss):
    required = ["loss.path=package.module.factory"] if loss == "dotted" else []
    config, _ = compose([f"loss={loss}", *required])
    assert isinstance(config.loss, LOSS_SCHEMAS)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_cluster_composes(cluster):
    config, _ = compose([f"cluster={cluster}", "+cluster.resources.judge.custom.roomy=2"])
    assert config.cluster.resources.judge.custom == {"roomy": 2.0}


@pytest.mark.parametrize(("override", "words"), [
    ("learning.updats=3", ("updats", "LearningConfig", "did you mean 'updates'?")),
    ("learning.updates=-1", ("learning.updates=-1",)),
    ("schedule.max_staleness=2", ("schedule.max_staleness=2", "schedule=async")),
    ("loss=gprx", ("loss/gprx",)),
    ("learning.updates=many", ("many", "Integer")),
])
def test_a_mistake_is_explained_in_one_sentence(override, words):
    with pytest.raises((HydraException, OmegaConfBaseException, PeriluneError)) as caught:
        compose(["experiment=smoke", override])
    sentence = explain(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence
