"""Whose gradients a step takes is told anew each time: under Accelerate, in a Trainer, and where a name is misspelt."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import OPTIMIZERS, build_optimizer, set_objective

TURNS = ["forget", "retain", "retain"]


def net():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def clocks(optimizer):
    return {key: int(value) for key, value in next(iter(optimizer.state.values())).items() if key.startswith("seen.")}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_uses_its_objective_up(name):
    model = net()
    optimizer = build_optimizer(name, model.named_parameters(), lr=1e-3)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.objective = "forget"
    optimizer.step()
    assert optimizer.objective is None
    with pytest.raises(RuntimeError, match="Whose gradients"):
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("objectives", [("forget", "retain"), None])
def test_a_misspelt_objective_is_refused(name, objectives):
    optimizer = build_optimizer(name, net().named_parameters(), lr=1e-3, objectives=objectives)
    optimizer.objective = "forget"
    with pytest.raises(UserError, match="froget"):
        optimizer.objective = "froget"


def test_names_that_are_nearly_the_same_can_be_listed():
    optimizer = build_optimizer("dualoptim+", net().named_parameters(), lr=1e-3, objectives=["task1", "task2"])
    optimizer.objective = "task1"
    optimizer.objective = "task2"


def test_a_copy_is_told_its_objective_anew():
    optimizer = build_optimizer("adamw", net().named_parameters(), lr=1e-3, objectives=["forget", "retain"])
    optimizer.objective = "forget"
    twin = copy.deepcopy(optimizer)
    assert twin.objective is None
    with pytest.raises(UserError, match="froget"):
        twin.objective = "froget"


def test_under_accelerate_the_wrapper_cannot_swallow_an_objective_silently():
    accelerate = pytest.importorskip("accelerate")
    model = net()
    plain = build_optimizer("dualoptim+", model.named_parameters(), lr=1e-2)
    accelerator = accelerate.Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(model, plain)
    for objective in TURNS:
        accelerator.backward(model(torch.ones(2, 6)).square().sum())
        set_objective(wrapped, objective)
        wrapped.step()
        wrapped.zero_grad()
    assert clocks(plain) == {"seen.forget": 1, "seen.retain": 2, "seen.base": 3}
    accelerator.backward(model(torch.ones(2, 6)).square().sum())
    wrapped.objective = "forget"  # lands on the wrapper alone
    with pytest.raises(RuntimeError, match="set_objective"):
        wrapped.step()
    assert clocks(plain)["seen.base"] == 3


def test_a_trainer_takes_turns_by_a_callback(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"x": torch.full((6,), float(i))}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = net()

        def forward(self, x):
            return {"loss": self.linear(x).square().mean()}

    class Turns(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
            del args, control
            set_objective(optimizer, TURNS[state.global_step % len(TURNS)])

    model = Model()
    optimizer = build_optimizer("dualoptim+", model.named_parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Rows(), optimizers=(optimizer, scheduler), callbacks=[Turns()]
    )
    trainer.train()
    assert clocks(optimizer) == {"seen.forget": 2, "seen.retain": 4, "seen.base": 6}


def test_what_holds_no_such_optimizer_is_refused():
    with pytest.raises(TypeError, match="takes turns"):
        set_objective(torch.optim.SGD(net().parameters(), lr=1.0), "forget")
