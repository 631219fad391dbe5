"""Any model file -> header, metadata, weights; each kind of broken file is a sentence that names file and cause."""
import json
import os
import struct

import psutil
import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints import read
from modules.core.errors import CheckpointError


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape=(2,), span=(0, 8), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


EIGHT = bytes(8)
BROKEN = {
    "empty": (b"", "empty"), "seven bytes": (b"1234567", "cut off"), "only a length": (struct.pack("<Q", 40), "cut off"),
    "html": (b"<!DOCTYPE html><html><body>Login</body></html>", "web page"), "html, indented": (b"\n\n  <html lang=en>", "web page"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n", "git-lfs"),
    "GGUF": (b"GGUF" + bytes(60), "GGUF"), "header of 2^60 bytes": (file_of({"w": entry()}, EIGHT, length=1 << 60), "header claims"),
    "header larger than the file": (file_of({"w": entry()}, EIGHT, length=4000), "header claims"),
    "cut in the values": (file_of({"w": entry()}, bytes(7)), "cut off"),
    "cut in the header": (file_of({"w": entry()}, EIGHT)[:30], "header"),
    "bytes behind the end": (file_of({"w": entry()}, bytes(9)), "follow the last tensor"),
    "not JSON": (file_of(b"{not json}"), "not JSON"), "not UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "no table": (file_of(b"{" * 20), "not JSON"),
    "a name twice": (file_of(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2), EIGHT), "twice"),
    "a field twice": (file_of(b'{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', EIGHT), "twice"),
    "overlap": (file_of({"a": entry(), "b": entry(span=(4, 12))}, bytes(12)), "overlaps"),
    "same place": (file_of({"a": entry(), "b": entry()}, EIGHT), "overlaps"),
    "a hole": (file_of({"a": entry(), "b": entry(span=(12, 20))}, bytes(20)), "unexplained"),
    "a span backwards": (file_of({"a": entry(span=(8, 0))}, EIGHT), "bytes where its shape needs"),
    "a shape that is not its bytes": (file_of({"a": entry(shape=(3,))}, EIGHT), "bytes where its shape needs"),
    "an absurd shape": (file_of({"a": entry(shape=(1 << 62, 1 << 62))}, EIGHT), "senseless"),
    "a negative shape": (file_of({"a": entry(shape=(-2, -1))}, EIGHT), "senseless"),
    "a fractional shape": (file_of({"a": entry(shape=(2.0,))}, EIGHT), "senseless"),
    "a boolean shape": (file_of({"a": entry(shape=(True,))}, EIGHT), "senseless"),
    "nine dimensions": (file_of({"a": entry(shape=(1,) * 8 + (2,))}, EIGHT), "senseless"),
    "three offsets": (file_of({"a": entry(span=(0, 8, 8))}, EIGHT), "senseless"),
    "offsets beyond": (file_of({"a": entry(span=(0, 1 << 60))}, EIGHT), "senseless"),
    "an unknown type": (file_of({"a": entry(dtype="F4")}, EIGHT), "type that Easel does not read"),
    "an entry without place": (file_of({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "incomplete"),
    "an entry that is text": (file_of({"a": "b"}), "incomplete"),
    "metadata that are numbers": (file_of({"__metadata__": {"a": 1}, "w": entry()}, EIGHT), "not texts"),
    "metadata that are a text": (file_of({"__metadata__": "a", "w": entry()}, EIGHT), "not texts"),
    "no tensors": (file_of({"__metadata__": {}}), "no tensors"),
    "deep JSON": (file_of(b'{"a":' * 100_000), "not JSON"), "noise": (bytes(range(256)) * 4, "none of the formats"),
    "two names for one tensor": (file_of({"w": entry(), "module.w": entry(span=(8, 16))}, bytes(16)), "twice"),
    "not a number": (file_of({"w": entry()}, struct.pack("<ff", 1, float("nan"))), "no finite numbers in w"),
    "infinite": (file_of({"w": entry()}, struct.pack("<ff", float("-inf"), float("inf"))), "no finite numbers in w"),
    "not a number in 16 bits": (file_of({"w": entry((4,), dtype="F16")}, struct.pack("<4e", 1, 2, float("nan"), 0)), "no finite numbers"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_is_refused_with_its_cause_and_is_left_alone(tmp_path, name):
    content, cause = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = psutil.Process().memory_info().rss
    with pytest.raises(CheckpointError, match=cause) as said:
        read.weights(path)
    assert path.name in str(said.value) and "\n" not in str(said.value) and str(tmp_path) not in str(said.value)
    assert psutil.Process().memory_info().rss - before < 50 << 20
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["folder", "pipe", "gone", "broken link", "loop"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, name):
    path = tmp_path / f"{name}.safetensors"
    if name == "folder":
        path.mkdir()
    if name == "pipe":
        os.mkfifo(path)
    if name in ("broken link", "loop"):
        path.symlink_to(path if name == "loop" else tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=path.name):
        read.header(path)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_may_not_be_read_is_refused(unprivileged, which):
    folder = unprivileged / "folder"
    folder.mkdir()
    path = folder / "x.safetensors"
    save_file({"w": torch.ones(2)}, path)
    barred = path if which == "file" else folder
    barred.chmod(0)
    try:
        with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read \(Permission denied\)"):
            read.header(path)
    finally:
        barred.chmod(0o700)


def test_every_type_comes_back_bit_for_bit(tmp_path):
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16]
    weights = {str(dtype): (torch.arange(24).reshape(2, 3, 4) % 2).to(dtype) for dtype in types}
    weights |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "loss.x": torch.ones(1)}
    save_file(weights, tmp_path / "x.safetensors", metadata={"a": '{"b": 1}'})
    found = read.weights(tmp_path / "x.safetensors")
    del weights["loss.x"]
    assert found.keys() == weights.keys() == read.header(tmp_path / "x.safetensors").keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].double(), tensor.double()), name
    assert read.metadata(tmp_path / "x.safetensors") == {"a": '{"b": 1}'}


def test_large_finite_values_are_no_fault_and_schedule_tables_may_be_infinite(tmp_path):
    save_file({"w": torch.full((1000,), 3e38), "h": torch.full((1000,), 65504.0).half(),
               "sqrt_recip_alphas_cumprod": torch.full((1000,), float("inf"))}, tmp_path / "x.safetensors")
    assert len(read.weights(tmp_path / "x.safetensors")) == 3


def test_the_header_is_read_without_the_values(tmp_path):
    """A file of a terabyte, all of it a hole: only its header costs anything."""
    path = tmp_path / "x.safetensors"
    size = 1 << 40
    path.write_bytes(file_of({"w": entry((size // 4,), (0, size))}))
    os.truncate(path, path.stat().st_size + size)
    assert read.header(path) == {"w": (size // 4,)}


def test_tensors_that_are_not_wanted_are_not_read(tmp_path):
    save_file({"w": torch.ones(2), "model_ema.w": torch.full((2,), float("nan"))}, tmp_path / "x.safetensors")
    assert list(read.weights(tmp_path / "x.safetensors", lambda name: not name.startswith("model_ema."))) == ["w"]


def test_weights_outlive_their_file(tmp_path):
    """A file that is truncated in place would kill a process that maps it into memory."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(1 << 16, dtype=torch.float32)}, path)
    found = read.weights(path)["w"]
    os.truncate(path, 0)
    path.unlink()
    assert found.sum().item() == torch.arange(1 << 16, dtype=torch.float32).sum().item()


def test_the_peak_is_the_result_and_one_tensor(tmp_path):
    """Sixteen float16 tensors of 8 MiB become float32: never 128 + 256 MiB at once, since each source goes as soon as it is turned."""
    save_file({f"w{n}": torch.ones(4 << 20, dtype=torch.float16) for n in range(16)}, tmp_path / "x.safetensors")
    process, seen = psutil.Process(), []
    before = process.memory_info().rss

    def turned(name, tensor):
        result = tensor.float()
        seen.append(process.memory_info().rss - before)
        return result

    found = read.weights(tmp_path / "x.safetensors", change=turned)
    assert len(found) == 16 and max(seen) < (256 + 48) << 20
