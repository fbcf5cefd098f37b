"""The training loop: AdamW, linear warm-up then cosine, gradient clipping, validation, resume.

Lightning Fabric carries the chores (devices, processes, precision, loggers). Unlike accelerate it starts its own
processes, so that `train-head --devices 4` is the whole command, and it leaves the loop in our hands, which exact
resume needs.

A run folder can be killed at any moment; what stands in it decides how the next start goes on: `config.json` (done),
`resume.json` (go on from there, to the same weights as an uninterrupted run), or nothing. Chance is drawn from
(seed, step) anew at each step, so no generator's state has to be kept.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.fingerprint import describe_difference
from pipeline.stores import checkpoints
from pipeline.stores.atomic import atomic_write
from pipeline.train.batches import epoch_batches

Scores = dict[str, float]
Validate = Callable[[Any], Mapping[str, float]]
Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what)

RESUME_EVERY = 30.0  # seconds between two points to go on from
LOG_EVERY = 50  # steps


class Source(Protocol):
    """Where batches come from: `batches` gives, for each array of pairs, the keyword arguments of the model's
    `training_loss`. It is told of them all at once, so that it can prepare the next ones meanwhile."""

    def __len__(self) -> int: ...
    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class TrainSettings:
    """The recipe. The defaults are the paper's for 512-d CLIP features (Section 4, implementation details)."""

    lr: float = 3e-5
    """Learning rate of the head."""
    epochs: int = 5
    """Passes over all captions of the training split."""
    batch_size: int = 32
    """Caption-video pairs a step, over all devices."""
    weight_decay: float = 0.2
    """Of matrices; biases, norms and scalars have none."""
    warmup: float = 0.1
    """The part of all steps with linearly rising rate, before the cosine."""
    clip_norm: float = 1.0
    """Bound on the norm of the whole gradient."""
    seed: int = 24
    """Decides the head's start, the batches and all noise."""

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "clip_norm"):
            if not getattr(self, name) > 0:
                raise BadInput(f"--{name.replace('_', '-')}", expected="more than 0", got=getattr(self, name))
        if self.seed < 0:
            raise BadInput("--seed", expected="0 or more", got=self.seed)
        if not 0 <= self.warmup < 1:
            raise BadInput("--warmup", expected="a fraction, 0 <= warmup < 1", got=self.warmup)


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine towards 0; `step` counts from 0."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.lr * (step + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def parameter_groups(model: nn.Module, weight_decay: float, lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, everything of one dimension or less does not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim > 1]
    others = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": others, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return [group for group in groups if group["params"]]


def train(
    model: nn.Module,
    source: Source,
    groups: Sequence[dict[str, Any]],
    settings: TrainSettings,
    run_dir: Path,
    *,
    identity: Mapping[str, Any],
    validate: Validate,
    fabric: Any,
    progress: Progress | None = None,
) -> "RunState":
    """Train `model` and leave it with the weights of its best epoch.

    Args:
        model: Has `training_loss(**batch) -> (loss, {name: loss})` for the source's batches.
        groups: AdamW's parameter groups, each with an `lr_scale` on the learning rate.
        run_dir: Where the state for resume, metrics and, through `fabric`, TensorBoard events go.
        identity: Everything that makes this run what it is (head, encoder, settings).
        validate: Gives {"R@1": %, "MnR": mean rank, ...} on the validation split, never on the test split; the best
            epoch has the highest R@1, the lower mean rank deciding between equals.
        fabric: A launched `lightning_fabric.Fabric`.

    Returns:
        The final state, with the history of validations and the best of them.

    Raises:
        FingerprintMismatch: `run_dir` holds an unfinished run of another identity.
        RuntimeError: The gradient is no longer finite; found when something is logged or kept.
    """
    world = fabric.world_size
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    state = RunState.begin_or_resume(run_dir, identity, model, optimizer)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("training_loss")
    per_epoch = len(epoch_batches(len(source), settings.batch_size, settings.seed, 0, world))
    steps = per_epoch * settings.epochs
    clock = time.monotonic()
    finite = torch.ones((), dtype=torch.bool, device=fabric.device)  # looked at now and then: reading it waits

    def require_finite() -> None:
        if not finite:
            raise RuntimeError(f"non-finite gradient at or before step {state.step}; try a lower --lr")

    def keep(validated: bool) -> None:
        nonlocal clock
        require_finite()
        now = time.monotonic()
        state.seconds, clock = state.seconds + now - clock, now
        if fabric.is_global_zero:
            state.save(model, optimizer, history_too=validated)

    while state.step < steps:
        epoch, done = divmod(state.step, per_epoch)
        model.train()
        outstanding = epoch_batches(len(source), settings.batch_size, settings.seed, epoch, world)[done:]
        for batch in source.batches(outstanding):
            torch.manual_seed(settings.seed * 1_000_003 + state.step)  # the same on every device, as its loss is
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.step, steps, settings) * group["lr_scale"]
            with fabric.autocast():  # on one device Fabric calls `training_loss` as it is, whatever the precision
                loss, terms = wrapped.training_loss(**batch)
            wrapped_optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            norm = fabric.clip_gradients(
                wrapped, wrapped_optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
            finite.logical_and_(torch.isfinite(norm))
            wrapped_optimizer.step()
            state.step += 1
            if state.step % LOG_EVERY == 0:
                require_finite()
                fabric.log_dict({f"train/{name}": value.item() for name, value in terms.items()}, state.step)
            if progress:
                progress(state.step, steps, f"epoch {epoch + 1}/{settings.epochs}")
            if state.step % per_epoch and time.monotonic() - clock > RESUME_EVERY:
                keep(validated=False)
        require_finite()
        with evaluating(model):
            scores = {name: float(value) for name, value in validate(model).items()}
        fabric.log_dict({f"val/{name}": value for name, value in scores.items()}, state.step)
        state.note(model, epoch + 1, scores)
        keep(validated=True)
    model.load_state_dict(state.best_weights)
    return state


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@dataclass
class RunState:
    """How far a run has come, and the best that it has seen."""

    run_dir: Path
    identity: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin_or_resume(
        cls, run_dir: Path, identity: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> "RunState":
        state = cls(run_dir, json.loads(json.dumps(identity)))
        found = checkpoints.load_resume(run_dir)
        if found is None:
            return state
        tensors, about = found
        if difference := describe_difference(about["identity"], state.identity):
            raise FingerprintMismatch(
                f"{run_dir} holds an unfinished run with other settings ({difference})",
                fix="give this run another --run name, or delete that folder",
            )
        state.step, state.seconds = about["step"], about["seconds"]
        state.history, state.best = about["history"], about["best"]
        model.load_state_dict(_with_prefix(tensors, "model."))
        state.best_weights = _with_prefix(tensors, "best.")
        _load_optimizer(optimizer, _with_prefix(tensors, "optimizer."))
        return state

    def note(self, model: nn.Module, epoch: int, scores: Scores) -> None:
        """Record a validation; keep the weights if it is the best so far."""
        row = {"epoch": epoch, "step": self.step, **scores}
        self.history.append(row)
        if not self.best or (row["R@1"], -row["MnR"]) > (self.best["R@1"], -self.best["MnR"]):
            self.best = row
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, history_too: bool) -> None:
        tensors = {
            **{f"model.{name}": tensor for name, tensor in model.state_dict().items()},
            **{f"best.{name}": tensor for name, tensor in self.best_weights.items()},
            **{f"optimizer.{name}": tensor for name, tensor in _optimizer_tensors(optimizer).items()},
        }
        about = asdict(self)
        del about["run_dir"], about["best_weights"]
        checkpoints.save_resume(self.run_dir, tensors, about)
        if history_too:
            with atomic_write(self.run_dir / "metrics.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, of in state.items() for name, tensor in of.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
