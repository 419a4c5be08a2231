"""evomerge as a backend of vLLM's weight transfer: the interface by which trainers give a live engine new weights.

vLLM's own backends carry tensors from a trainer (ipc, nccl). This one carries a parcel of vllm_crossing.py, and the weights are
merged where they are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from evomerge.scoring.vllm_crossing import Arrivals


@dataclass
class NoMeeting(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not installed where types are checked: its classes are Any
    """Nothing is to be agreed upon beforehand."""


@dataclass
class Delivery(WeightTransferUpdateInfo):  # type: ignore[misc]  # Any as well
    """A parcel, field by field as vLLM wants it."""

    weights: Any = None
    recipe: Mapping[str, Any] | None = None
    key: str | None = None
    folder: str | None = None

    @property
    def parcel(self) -> dict[str, Any]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class CandidateTransfer(WeightTransferEngine):  # type: ignore[misc]  # Any as well
    """One rank's end of it; between start and finish vLLM lays each layer's weights out as its kernels want them."""

    init_info_cls = NoMeeting
    update_info_cls = Delivery

    def init_transfer_engine(self, init_info: NoMeeting) -> None: ...

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def receive_weights(self, update_info: Delivery) -> None:
        if not hasattr(self, "arrivals"):
            self.arrivals = Arrivals(self.device)
        self.model.load_weights(self.arrivals.unpack(update_info.parcel))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None: ...
