"""Weights come from plain safetensors inside the folder, whatever an index or a config names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.judges import load_similarity
from dualoptim_cli.model.adapter import WEIGHTS, read_adapter
from dualoptim_cli.model.load import load, locate
from dualoptim_cli.model.locate import Located
from dualoptim_cli.model.lora import attach
from dualoptim_cli.model.merge import merge
from dualoptim_cli.model.save import save_model
from dualoptim_cli.model.weights import INDEX, SINGLE, has_weights, weight_files
from dualoptim_cli.record.hashing import model_files


@pytest.fixture(autouse=True)
def _no_unpickler(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("torch's unpickler was reached")

    monkeypatch.setattr(torch, "load", reached)
    monkeypatch.setattr(pickle, "load", reached)


@pytest.fixture
def model(town: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(town / "model", tmp_path / "model"))


def shard(model: Path, *names: Any, **more: Any) -> Path:
    """Replace the one file of weights by an index in which these names take turns."""
    keys = sorted(load_file(model / SINGLE))
    (model / SINGLE).rename(model.with_name("weights"))
    places = {key: names[number % len(names)] for number, key in enumerate(keys)}
    (model / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places, **more}))
    return model


def refused(model: Path, match: str = "names .* as a file of its weights") -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(locate(str(model)), device="cpu")
    assert caught.value.code == 2
    with pytest.raises(UserError, match=match):  # of a folder that changed after it was looked at, or of the hub
        load(Located(str(model), model, {}, base=str(model)), device="cpu")
    with pytest.raises(UserError, match=match):
        load_similarity(str(model))


NAMES = [
    *("weights.bin", "pytorch_model.bin", "model.pt", "model.safetensors.bin", "../weights", "../weights.safetensors"),
    *("/etc/passwd", "/tmp/x.safetensors", "part/x.safetensors", "a\\x.safetensors", "C:x.safetensors", "", ".", 7),
    *("x\0.safetensors", "./model.safetensors"),
]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_names_only_plain_safetensors(name: Any, model: Path) -> None:
    refused(shard(model, name))


def test_one_hostile_name_among_good_ones_is_enough(model: Path) -> None:
    torch_weights = model / "weights.bin"
    torch_weights.write_bytes(pickle.dumps({}))
    refused(shard(model, "model-00001-of-00002.safetensors", "weights.bin"))


@pytest.mark.parametrize("name", [*NAMES, "adapter_model.bin", "../x.safetensors.index.json"])
def test_a_config_names_only_plain_safetensors_as_weights(name: Any, model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "transformers_weights": name}))
    if isinstance(name, str):
        refused(model)
    else:
        assert weight_files(model) == [SINGLE]


def test_the_weights_that_a_config_names_are_those_that_are_checked_and_loaded(model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "transformers_weights": "mine.safetensors"}))
    assert not has_weights(model)
    (model / SINGLE).rename(model / "mine.safetensors")
    assert has_weights(model)
    load(locate(str(model)), device="cpu")


NO_INDEX = ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": {}}}', "[" * 10**5]


@pytest.mark.parametrize("text", NO_INDEX)
def test_what_is_no_index_is_said_to_be_none(text: str, model: Path) -> None:
    shard(model, "x.safetensors")
    (model / INDEX).write_text(text)
    refused(model, "is not an index of weights")


def link_out(path: Path, target: Path) -> None:
    path.symlink_to(target)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


def device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="makes links and pipes")
@pytest.mark.parametrize("name", [SINGLE, "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("put", [link_out, fifo, folder, device])
def test_weights_are_regular_files_of_their_folder(put: Callable[[Path, Path], None], name: str, model: Path) -> None:
    if name == SINGLE:
        (model / SINGLE).rename(model.with_name("weights"))
    else:
        shard(model, name)
    put(model / name, model.with_name("weights"))
    with pytest.raises(UserError, match=r"leads out of its folder|is no regular file|holds no weights") as caught:
        load(locate(str(model)), device="cpu")
    assert caught.value.code == 2


def test_links_inside_the_folder_and_in_a_cache_of_the_hub_still_work(model: Path, tmp_path: Path) -> None:
    expected = load(locate(str(model)), device="cpu").model.state_dict()
    (model / SINGLE).rename(model / "blob")
    (model / SINGLE).symlink_to("blob")
    assert has_weights(model)
    load(locate(str(model)), device="cpu")
    for blobs in ("models--a--b/blobs", "blobs/ab"):  # of the repository, and shared by all of a cache
        repository = tmp_path / blobs.replace("/", "-") / "models--a--b"
        snapshot = Path(shutil.copytree(model, repository / "snapshots" / ("0" * 40), symlinks=True))
        blob = repository.parent / blobs / "0123"
        blob.parent.mkdir(parents=True)
        (snapshot / "blob").rename(blob)
        (snapshot / SINGLE).unlink()
        (snapshot / SINGLE).symlink_to(blob)
        loaded = load(locate(str(snapshot)), device="cpu").model.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_what_is_loaded_is_what_is_hashed_and_no_more_is_loaded(model: Path) -> None:
    tensors = load_file(model / SINGLE)
    shard(model, "a.safetensors", "b.safetensors")
    names = json.loads((model / INDEX).read_text())["weight_map"]
    for file in ("a.safetensors", "b.safetensors"):
        part = {key: tensor for key, tensor in tensors.items() if names[key] == file}
        save_file(part, model / file, {"format": "pt"})
    (model / "pytorch_model.bin").write_bytes(b"not read")
    assert weight_files(model) == ["a.safetensors", "b.safetensors"]
    assert {*weight_files(model), INDEX} <= {*model_files(model)}
    assert "pytorch_model.bin" not in model_files(model)
    load(locate(str(model)), device="cpu")


def test_an_adapter_is_a_regular_file_of_its_folder(town: Path, tmp_path: Path) -> None:
    made, pickled = tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.bin"
    save_model(attach(load(locate(str(town / "model")), device="cpu"), rank=2), made)
    read_adapter(made)
    (made / WEIGHTS).rename(tmp_path / "weights")
    pickled.write_bytes(b"pickle")
    acts: list[Callable[[], object]] = [
        lambda: read_adapter(made),
        lambda: load(locate(str(made)), device="cpu"),
        lambda: attach(load(locate(str(town / "model")), device="cpu"), adapter=made),
        lambda: merge([str(made)], tmp_path / "out"),
    ]
    for act in acts:
        with pytest.raises(UserError, match="has only pickled weights"):
            act()
    if os.name != "nt":
        (made / WEIGHTS).symlink_to(tmp_path / "weights")
        for act in acts:
            with pytest.raises(UserError, match="leads out of its folder"):
                act()
