"""TorchScript archives: the same tensors as torch.jit.load gives, and nothing of the archive is run."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.clip.loading import build_model
from pipeline.clip.torchscript import is_archive, read_tensors
from pipeline.errors import BadInput


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2)
        self.names, self.scale, self.absent = ["a", "b"], 3.0, None
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu_(1), persistent=False)
        self.register_buffer("ids", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        return x + self.attn(y, y, y)[0] * self.scale


class TinyClip(nn.Module):
    """Made like OpenAI's: half precision, a transposed view, shared weights, an empty tensor."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.proj = nn.Parameter(torch.randn(6, width).t())
        self.tied = self.proj
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("part", torch.arange(20.0).view(4, 5)[1:3, 2:])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv1(image).flatten(2).permute(2, 0, 1)
        for block in self.blocks:
            x = block(x)
        return x.mean(0) @ self.proj * self.logit_scale.exp()


class Hostile(nn.Module):
    """Overwrites a file when it is loaded."""

    target: str

    def __init__(self, target: str):
        super().__init__()
        self.target, self.weight = target, nn.Parameter(torch.ones(3))

    def forward(self) -> torch.Tensor:
        return self.weight

    @torch.jit.export
    def __getstate__(self):
        return self.target, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.target, self.training = state[0], state[2]
        self.weight = state[1]  # type: ignore[assignment]
        torch.save(state[1], state[0])


class Outer(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.bias = inner, nn.Parameter(torch.zeros(2))

    def forward(self) -> torch.Tensor:
        return self.bias


def archive(folder: Path, module: nn.Module) -> str:
    path = str(folder / "weights.pt")
    torch.jit.save(torch.jit.script(module), path)
    return path


def rewrite(path: str, **members: bytes | None) -> str:
    """The archive with other contents under data.pkl (`data_pkl`) and so on; None leaves the member out."""
    out = f"{path}.changed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            name = member.filename.split("/", 1)[1]
            data = members.get(name.replace(".", "_").replace("/", "_"), old.read(member))
            if data is not None:
                new.writestr(member.filename, data)
    return out


def data_pickle(path: str) -> bytes:
    with zipfile.ZipFile(path) as zipped:
        return zipped.read("weights/data.pkl")


@pytest.mark.parametrize("half", [False, True])
def test_the_tensors_are_those_of_torch_jit_load(tmp_path, half):
    module = TinyClip().half() if half else TinyClip()
    path = archive(tmp_path, module)
    expected = torch.jit.load(path, map_location="cpu").state_dict()
    found = read_tensors(path, set(expected))
    assert is_archive(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert set(read_tensors(path, {"proj", "no_such"})) == {"proj"}


def test_nothing_of_a_hostile_archive_is_run(tmp_path):
    target = tmp_path / "mine.txt"
    target.write_text("my notes")
    path = archive(tmp_path, Outer(Hostile(str(target))))
    assert target.read_text() == "my notes"
    torch.jit.load(path)  # what was called before
    assert target.read_bytes() != b"my notes", "the attack does not work: this test shows nothing"
    target.write_text("my notes")
    assert list(read_tensors(path, {"bias", "inner.weight"})) == ["bias"]
    with pytest.raises(BadInput, match="does not hold weights of") as caught:
        build_model("shapes-clip", path)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "my notes"


class RunsCommand:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_the_system_is_refused(tmp_path, protocol):
    touched = tmp_path / "touched"
    path = archive(tmp_path, TinyClip())
    bad = rewrite(path, data_pkl=pickle.dumps(RunsCommand(f"touch {touched}"), protocol))
    with pytest.raises(BadInput, match=r"its pickle (asks for|has the instruction)") as caught:
        read_tensors(bad, {"proj"})
    assert "\n" not in str(caught.value)
    plain = str(tmp_path / "plain.pt")
    torch.save({"state_dict": RunsCommand(f"touch {touched}")}, plain)
    with pytest.raises(BadInput, match="cannot be loaded"):
        build_model("shapes-clip", plain)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data_pkl": b"\x80\x02N."}, "it holds no module"),
        ({"data_pkl": b""}, "no TorchScript archive"),
        ({"data_pkl": b"\x80\x02Nr\xff\xff\xff\x7f."}, "memo without bounds"),
        ({"data_pkl": None}, "no item named|There is no item"),
        ({"data_0": b"1234"}, "has 4 bytes"),
        ({"data_0": None}, "no item named"),
        ({"byteorder": b"big"}, "big-endian"),
    ],
)
def test_a_damaged_archive_is_refused_in_one_line(tmp_path, members, message):
    path = archive(tmp_path, TinyClip())
    with pytest.raises(BadInput, match=message) as caught:
        read_tensors(rewrite(path, **members), set(torch.jit.load(path).state_dict()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (b"(K\x08K\x06t", b"(K\x09K\x06t"),  # the shape of the projection
        (b"(K\x08K\x06t", b"(K\x08J\xff\xff\xff\xfft"),
        (b"(K\x08K\x06t", b"(K\x08Nt"),
        (b"(K\x08K\x06t", b"(K\x08t"),
        (b"(K\x01K\x08t", b"(K\x01K\x09t"),  # its strides
        (b"(K\x01K\x08t", b"(K\x00K\x08t"),
    ],
)
def test_no_tensor_leaves_its_storage(tmp_path, was, now):
    path = archive(tmp_path, TinyClip())
    data = data_pickle(path)
    assert data.count(was) == 1
    changed = rewrite(path, data_pkl=data.replace(was, now))
    if now == b"(K\x00K\x08t":  # other numbers of its own storage: within bounds
        assert read_tensors(changed, {"proj"})["proj"].shape == (8, 6)
    else:
        with pytest.raises(BadInput, match=r"leaves its storage|no valid shape"):
            read_tensors(changed, {"proj"})


def test_flipped_bytes_change_nothing_or_are_refused(tmp_path):
    path = Path(archive(tmp_path, TinyClip()))
    names = set(torch.jit.load(str(path)).state_dict())
    whole, expected = path.read_bytes(), read_tensors(str(path), names)
    generator = torch.Generator().manual_seed(0)
    bad = tmp_path / "bad.pt"
    for _ in range(150):
        place = int(torch.randint(len(whole), (), generator=generator))
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        if is_archive(str(bad)):
            try:
                found = read_tensors(str(bad), names)
            except BadInput:
                continue
            assert set(found) == set(expected)
            assert all(torch.equal(found[name], expected[name]) for name in names)


def test_a_compressed_storage_is_refused(tmp_path):
    path = archive(tmp_path, TinyClip())
    out = str(tmp_path / "bomb.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(BadInput, match="is compressed"):
        read_tensors(out, {"proj"})
