from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualoptim_cli.errors import UserError
from dualoptim_cli.model.load import load, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fault(name: object) -> str:
    with pytest.raises(UserError) as caught:
        locate(str(name))
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.hint}"


@pytest.fixture
def broken(town: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(town / "model", tmp_path / "broken"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of hub repositories, and no way to the hub itself."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put(hub: Path, name: str, files: Path) -> Path:
    """A repository in the cache, laid out as huggingface_hub lays it out."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(files, repository / "snapshots" / COMMIT))


def test_a_folder_loads_as_float32_on_the_cpu(town: Path) -> None:
    loaded = load(locate(str(town / "model")), device="cpu")
    assert loaded.dtype == next(loaded.model.parameters()).dtype == torch.float32
    assert loaded.tokenizer("Ada").input_ids


def test_dtype_can_be_chosen(town: Path) -> None:
    loaded = load(locate(str(town / "model")), device="cpu", dtype="bfloat16")
    assert next(loaded.model.parameters()).dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradients(town: Path) -> None:
    grads = []
    for checkpointing in (False, True):
        loaded = load(locate(str(town / "model")), device="cpu", gradient_checkpointing=checkpointing)
        loaded.model.train()
        ids = torch.arange(4, 20)[None]
        loaded.model(input_ids=ids, labels=ids).loss.backward()
        assert loaded.model.is_activation_checkpointing is checkpointing
        grads.append([p.grad for p in loaded.model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_width_is_known_before_loading(town: Path) -> None:
    assert locate(str(town / "model")).width == 64


def test_a_wrong_path_is_said_to_be_one() -> None:
    assert "There is no model folder ./nowhere" in fault("./nowhere")


def test_all_faults_of_a_folder_are_found_at_once(broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    for file in [*broken.glob("tokenizer*"), broken / "model.safetensors"]:
        file.unlink()
    said = fault(broken)
    assert "it is BertForMaskedLM" in said
    assert "has no tokenizer" in said
    assert "holds no weights" in said


def test_a_model_called_weights_has_its_other_faults_named_where_no_weights_are_needed(
    town: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(town / "model" / "config.json", folder)
    with pytest.raises(UserError, match="has no tokenizer") as caught:
        locate(str(folder), weights=False)
    assert "safetensors" not in caught.value.message
    for file in (town / "model").glob("tokenizer*"):
        shutil.copy(file, folder)
    locate(str(folder), weights=False)


def test_pickled_weights_are_refused_with_the_reason(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "only pickled weights" in fault(broken)


def test_a_folder_with_a_model_and_an_adapter_is_refused_for_what_would_be_made_of_it(broken: Path) -> None:
    (broken / "adapter_config.json").write_text("{}")
    assert "holds a model and an adapter" in fault(broken)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_broken_config_is_a_fault_of_the_folder(broken: Path, text: str) -> None:
    (broken / "config.json").write_text(text)
    assert "config.json is not a JSON object" in fault(broken)


@pytest.mark.parametrize(
    "counts",
    [
        {"num_hidden_layers": 10**7},
        {"n_layer": 10**7},
        {"text_config": {"num_hidden_layers": 10**7}},
        {"num_local_experts": 10**6},
    ],
)
def test_a_config_that_asks_for_millions_of_layers_is_refused_before_they_are_laid_out(
    broken: Path, counts: dict[str, int]
) -> None:
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**settings, **counts}))
    with pytest.raises(UserError, match="no model has so many"):
        locate(str(broken))


@pytest.mark.parametrize("size", [None, "wide", [], 1e400])
def test_a_width_that_is_none_is_not_known(town: Path, size: object) -> None:
    located = locate(str(town / "model"))
    assert replace(located, settings={"text_config": {"hidden_size": size}}).width == 0


def test_broken_weights_are_the_users_fault_and_not_a_crash(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(locate(str(broken)), device="cpu")


def test_weights_that_are_missing_are_not_made_up(broken: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(locate(str(broken)), device="cpu")


def test_tokenizer_of_a_larger_model_is_refused(broken: Path) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"extra{i}": 5000 + i for i in range(500)}
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="the tokenizer knows"):
        load(locate(str(broken)), device="cpu")


def test_device_that_is_not_there_is_named(town: Path) -> None:
    with pytest.raises(UserError, match="is not a device"):
        load(locate(str(town / "model")), device="gpu please")


def test_hub_name_loads_from_the_cache_while_offline(hub: Path, town: Path) -> None:
    put(hub, "meta-llama/Llama-2-7b-hf", town / "model")
    located = locate("meta-llama/Llama-2-7b-hf")
    assert load(located, device="cpu").model.config.hidden_size == 64
    assert located.note == ""


def test_original_format_repository_gives_way_to_its_conversion(hub: Path, town: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    (original / "params.json").write_text("{}")
    put(hub, "meta-llama/Llama-2-7b", original)
    put(hub, "meta-llama/Llama-2-7b-hf", town / "model")
    located = locate("meta-llama/Llama-2-7b")
    assert located.name == "meta-llama/Llama-2-7b-hf"
    assert "original-format weights" in located.note
    assert load(located, device="cpu").model.config.hidden_size == 64


def test_conversion_in_the_cache_serves_when_the_original_was_never_fetched(hub: Path, town: Path) -> None:
    put(hub, "meta-llama/Llama-2-7b-hf", town / "model")
    located = locate("meta-llama/Llama-2-7b")
    assert located.name == "meta-llama/Llama-2-7b-hf"
    assert "not in the local cache" in located.note


@pytest.mark.usefixtures("hub")
def test_being_offline_without_the_model_says_how_to_get_it() -> None:
    said = fault("some/model")
    assert "the hub cannot be reached" in said
    assert "hf download some/model" in said


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one gated repository and no other."""

    def do_GET(self) -> None:
        gated = "/gated/model" in self.path
        listing = "/api/models/gated/model/" in self.path
        if listing and "/tree/" in self.path:
            return self._say(200, [{"type": "file", "path": "config.json", "size": 2, "oid": "a" * 40}])
        if listing or self.path.endswith("/api/models/gated/model"):
            return self._say(200, {"id": "gated/model", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]})
        if gated:
            return self._say(403, {"error": "no access"}, {"X-Error-Code": "GatedRepo"})
        return self._say(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def _say(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def online(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on the loopback address."""
    from huggingface_hub import constants, hf_api

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert not list(hub.iterdir())
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("online")
def test_gated_model_says_where_to_ask() -> None:
    said = fault("gated/model")
    assert "is gated" in said
    assert "huggingface.co/gated/model" in said
    assert "hf auth login" in said


@pytest.mark.usefixtures("online")
def test_missing_model_says_to_check_the_name() -> None:
    assert "There is no model missing/model" in fault("missing/model")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["a b", "-x-", "a//b", "*"])
def test_what_is_no_name_at_all_is_said_to_be_none(name: str) -> None:
    assert "neither a folder nor a hub name" in fault(name) or "no model folder" in fault(name)
