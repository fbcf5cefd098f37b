"""What a run trains: a head alone, or a head that learns another run's aligned texts.

A task gives the run (`pipeline.train.run`) its model, batches, parameter groups and validation. Training CLIP with the
head is the third task, `pipeline.train.finetune.FinetuneTask`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dits_head.distill import Student
from dits_head.head import RetrievalHead
from dits_head.inference import align_texts
from dits_head.pooling import mean_frames
from pipeline.device import free_bytes
from pipeline.errors import BadInput
from pipeline.resolve import ResolvedStore, open_head
from pipeline.train.batches import BatchSource, PairData, Split
from pipeline.train.loop import Source, TrainSettings, Validate, parameter_groups
from pipeline.workspace import Workspace

# sims (T, V), rows are texts; the row in V of each text's video (T,) -> {"R@1": %, "MnR": mean rank, ...}
Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]

FIT_BLOCK = 1024  # videos whose frames are averaged at once
NARROW = 256  # width of a head below which threads do not pay


class HeadTask:
    """Train a head alone, on the embeddings of the store; other tasks override what they do otherwise.

    A run calls the methods in the order in which they stand here.

    `precision`: in which it trains, of `pipeline.train.precision.PRECISIONS`; None: in the task's own.
    """

    label = ""  # joins the run's default name
    own_precision = "float32"
    shares_batch = False  # whether several devices share the work of a batch

    def __init__(self, precision: str | None = None):
        self._given_precision = precision
        self.precision = precision or self.own_precision

    def identity(self) -> dict[str, Any]:
        """What the run is made of, beside head, encoder, settings and start."""
        return self._precision_identity()

    def _precision_identity(self) -> dict[str, Any]:
        """Runs from before there was a choice are those in which none was made."""
        given = self._given_precision
        return {} if given in (None, HeadTask.own_precision) else {"precision": given}

    def build(self, workspace: Workspace, chosen: ResolvedStore, head: RetrievalHead) -> nn.Module:
        """The model whose `training_loss` is minimised. Raises BadInput where the task cannot be done."""
        self.head = head
        return head

    def to(self, device: torch.device, devices: int) -> None:
        """Work on `device`, one of `devices` that share this machine; the model is there already."""

    def source(self, split: Split, device: torch.device, rank: int, world: int) -> Source:
        """Batches of the training split for device `rank` of `world`. Of a head alone each device takes all pairs: the
        head is small, its loss needs every pair with every video, and so nothing has to be sent."""
        data = PairData.of(*split)
        fit_closed_form(self.head, data)
        return BatchSource(data, device, free_bytes(device))

    def parameter_groups(self, model: Any, settings: TrainSettings) -> Sequence[dict[str, Any]]:
        return parameter_groups(model, settings.weight_decay)

    def validator(self, split: Split, measure: Measure, device: torch.device) -> Validate:
        """A function from the model in training to `measure` on the validation split, all of it at once."""
        data = PairData.of(*split)
        return lambda _: score_split(self.head, data, measure)

    def threads(self, device: torch.device) -> AbstractContextManager[None]:
        """The context to train in."""
        return one_thread_if(device.type == "cpu" and self.head.config.dim < NARROW)

    def publish(self, workspace: Workspace, chosen: ResolvedStore, run: str) -> dict[str, Any] | None:
        """Write what the run leaves beside its head. Returns the settings of the encoder that the head now belongs to,
        or None where it is still the store's."""
        return None


class DistillTask(HeadTask):
    """Distil the aligned text embeddings of another run, the teacher, into the head.

    The head takes the teacher's equally named weights first, pooling and temperature above all.
    """

    def __init__(self, teacher: str, precision: str | None = None):
        super().__init__(precision)
        self.teacher_run = teacher

    def identity(self) -> dict[str, Any]:
        distilled = {"run": self.teacher_run, "contrast": 0.0}  # contrast: so that old runs are found
        return {"distilled_from": distilled, **super().identity()}

    def build(self, workspace: Workspace, chosen: ResolvedStore, head: RetrievalHead) -> nn.Module:
        super().build(workspace, chosen, head)
        self._teacher = open_head(workspace.head_dir(chosen.dataset, self.teacher_run), chosen.store).head
        for who, config in (("teacher", self._teacher.config), ("student", head.config)):
            solved = "it is solved in closed form" if config.head in ("cca", "three-views") else ""
            if reason := config.needs_video or solved or ("" if config.aligns_text else "it leaves texts as they are"):
                raise BadInput(
                    f"--distill: the {who} ({config.head}) aligns no text by itself: {reason}",
                    fix="distil a dits, mlp, diffusion or fixed-prior run into a head of these",
                )
        head.start_from(self._teacher.state_dict())
        return Student(head)

    def source(self, split: Split, device: torch.device, rank: int, world: int) -> Source:
        _, texts = split
        aligned = align_texts(self._teacher.to(device), texts.text_embeds)
        return TeacherSource(BatchSource(PairData.of(*split), device, free_bytes(device)), aligned)


class TeacherSource:
    """`source`'s batches with `targets` (B, D) beside them: the rows of the teacher's aligned texts (T, D)."""

    def __init__(self, source: BatchSource, aligned: np.ndarray):
        self._source, self._aligned = source, torch.from_numpy(aligned).to(source.device)

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        rows = torch.from_numpy(np.stack(batches)).to(self._source.device)  # once an epoch: no step waits for the host
        for pairs, batch in zip(rows, self._source.batches(batches), strict=True):
            yield {**batch, "targets": self._aligned[pairs]}


def fit_closed_form(head: RetrievalHead, data: PairData) -> None:
    """Solve, on a training split, for what the head does not learn by gradients."""
    if not head.closed_form:
        return
    device = next(head.parameters()).device
    means = []
    for start in range(0, len(data.frame_mask), FIT_BLOCK):
        frames, mask = (torch.from_numpy(x[start : start + FIT_BLOCK]) for x in (data.frame_embeds, data.frame_mask))
        means.append(mean_frames(frames.to(device), mask.to(device)))
    texts, owners = torch.from_numpy(data.text_embeds), torch.from_numpy(data.text_to_video)
    head.fit(texts.to(device), torch.cat(means), owners.to(device))


def score_split(head: RetrievalHead, data: PairData, measure: Measure) -> Mapping[str, float]:
    """`measure` of the head's exact scores over a split."""
    device = next(head.parameters()).device
    frames = torch.from_numpy(data.frame_embeds[:]).to(device, torch.float32)
    texts, mask = (torch.from_numpy(array).to(device) for array in (data.text_embeds, data.frame_mask))
    return measure(head.score(texts, frames, mask).cpu().numpy(), data.text_to_video)


@contextmanager
def one_thread_if(narrow: bool) -> Iterator[None]:
    """One torch thread for narrow heads on a CPU: sharing such small matrices takes longer than multiplying them (a
    DITS step at D = 128, batch 128, took 0.24 s with one thread and 0.33 to 0.5 s with two)."""
    before = torch.get_num_threads()
    if narrow:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
