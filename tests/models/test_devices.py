"""The device of a command: what is asked for, or the first that is there."""

import pytest
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import ACCELERATORS, TrainerConfig
from stepwise_pl.models.devices import accelerator_of, device_of


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Torch's answers on a machine with CUDA, with MPS, with both or with neither."""
    has_cuda, has_mps = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)


@pytest.mark.parametrize(
    "machine,found,device",
    [((True, False), "gpu", "cuda"), ((True, True), "gpu", "cuda"), ((False, True), "mps", "mps"), ((False, False), "cpu", "cpu")],
    indirect=["machine"],
)  # fmt: skip
def test_auto_takes_the_first_device_that_is_there(machine: None, found: str, device: str) -> None:
    assert accelerator_of("auto") == found and device_of("auto") == torch.device(device)
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("machine", [(False, False)], indirect=True)
@pytest.mark.parametrize("asked,lacks", [("gpu", "no CUDA device"), ("mps", "no GPU that torch reaches through MPS")])
def test_a_device_that_is_not_there_is_refused_in_one_line(machine: None, asked: str, lacks: str) -> None:
    with pytest.raises(
        UserError, match=f"^trainer.accelerator={asked}: this machine has {lacks}; trainer.accelerator=auto takes"
    ):
        accelerator_of(asked, "trainer.accelerator")


def test_the_settings_name_these_devices() -> None:
    for asked in ACCELERATORS:
        assert TrainerConfig(accelerator=asked).accelerator == asked
    for words, message in (
        ({"accelerator": "tpu"}, "trainer.accelerator=tpu"),
        ({"accelerator": "mps", "devices": 2}, "trains on one device"),
    ):
        with pytest.raises(UserError, match=message):
            TrainerConfig(**words)  # type: ignore[arg-type]
