"""Strangers' pickles: none of them runs, whatever it is wrapped in; sound ones give the very tensors that torch wrote."""
import ast
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from modules.checkpoints import read
from modules.core.errors import CheckpointError, UnsafeFileError

ROOT = Path(__file__).resolve().parents[2]
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"


def text(word: str) -> bytes:
    raw = word.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(dotted: str, *arguments: str) -> bytes:
    """The pickle that calls a function with texts."""
    module, name = dotted.rsplit(".", 1)
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n(" + b"".join(map(text, arguments)) + b"tR."


def dotted_call(module: str, path: str, *arguments: str) -> bytes:
    """Protocol 4 takes a name with dots, and walks along attributes."""
    return b"\x80\x04" + text(module) + text(path) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


def storage(key: str = "0", count: int = 4) -> bytes:
    return b"(" + text("storage") + FLOATS + text(key) + text("cpu") + b"J" + struct.pack("<i", count) + b"tQ"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"
    return TENSOR + b"(" + storage(count=count) + numbers([offset])[1:-1] + numbers(shape) + numbers(stride) + b"\x89}tR"


def table(*pairs: bytes) -> bytes:
    """The pickle of a dictionary: name, value, name, value ..."""
    return b"\x80\x02}(" + b"".join(pairs) + b"u."


def zipped(program: bytes, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in (members if members is not None else {"archive/data/0": bytes(16), "archive/version": b"3\n"}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def legacy(program: bytes, keys: tuple[str, ...] = ("0",), data: bytes = struct.pack("<q", 4) + bytes(16)) -> bytes:
    """torch's form before 1.6."""
    begin = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(value, 2) for value in begin) + program + pickle.dumps(list(keys), 2) + data


def calls(canary: Path) -> dict[str, bytes]:
    """Programs that make the canary file, or would do other harm, when they are run."""
    make, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    shell = {name: call(name, make) for name in (
        "os.system", "posix.system", "nt.system", "os.popen", "subprocess.getoutput", "subprocess.check_output", "subprocess.Popen",
        "pty.spawn", "commands.getoutput")}
    python = {name: call(name, code) for name in (
        "builtins.eval", "builtins.exec", "__builtin__.eval", "timeit.timeit", "cProfile.run", "pdb.run", "code.interact", "bdb.run",
        "numpy.testing._private.utils.runstring", "torch.jit.unsupported_tensor_ops.execWrapper", "trace.run", "doctest.debug_script")}
    files = {name: call(name, str(canary), "w") for name in (
        "builtins.open", "io.open", "_io.FileIO", "codecs.open", "shelve.open", "dbm.open", "os.open", "tempfile.NamedTemporaryFile")}
    loaders = {name: call(name, str(canary)) for name in (
        "pickle.loads", "_pickle.loads", "marshal.loads", "torch.load", "torch.storage._load_from_bytes", "torch.hub.load",
        "torch.jit.load", "numpy.load", "joblib.load", "dill.loads", "runpy.run_path", "importlib.import_module", "builtins.__import__",
        "ctypes.CDLL",
        "shutil.rmtree", "os.remove", "pathlib.Path", "webbrowser.open", "socket.create_connection", "urllib.request.urlopen")}
    chains = {
        "getattr": call("builtins.getattr", "x", "__class__"),
        "getattr of a lightning class": b"\x80\x02cbuiltins\ngetattr\n(cpytorch_lightning\nTrainer\n" + text("__init__") + b"tR.",
        "resolve_name": call("pkgutil.resolve_name", "os:system"),
        "resolve_name, called": b"\x80\x02cpkgutil\nresolve_name\n(" + text("os:system") + b"tR(" + text(make) + b"tR.",
        "attrgetter": call("operator.attrgetter", "system"), "methodcaller": call("operator.methodcaller", "system", make),
        "partial": b"\x80\x02cfunctools\npartial\n(cos\nsystem\n" + text(make) + b"tR.",
        "map": b"\x80\x02cbuiltins\nmap\n(cos\nsystem\n(" + text(make) + b"ltR.",
        "walking from collections": dotted_call("collections", "OrderedDict.fromkeys", "x"),
        "walking from torch": dotted_call("torch", "serialization.os.system", make),
        "walking from torch._utils": dotted_call("torch._utils", "_rebuild_tensor_v2.__globals__.get", "os"),
        "walking from lightning": dotted_call("pytorch_lightning", "os.system", make),
        "lightning in name only": call("pytorch_lightningx.os.system", make),
        "a space before the module": call(" os.system", make), "a line end in the module": dotted_call("os\n", "system", make),
        "old class opcode": b"\x80\x02(" + text(make) + b"ios\nsystem\n.",
        "object opcode": b"\x80\x02(cos\nsystem\n" + text(make) + b"o.",
        "new object": b"\x80\x02csubprocess\nPopen\n(" + text(make) + b"t\x81.",
        "new object with keywords": b"\x80\x04csubprocess\nPopen\n(" + text(make) + b"t}\x92.",
        "extension registry": b"\x80\x02\x82\x01.", "global in a list in a table": table(text("a"), b"](cos\nsystem\ne"),
        "as a key": b"\x80\x02}cos\nsystem\nK\x01s.",
        "nested pickle": call("pickle.loads", call("os.system", make).decode("latin-1")),
        "beside sound tensors": table(text("w"), tensor((2, 2), (2, 1)), text("evil"), call("os.system", make)[2:-1]),
        "in the state of an inert object":
            b"\x80\x02cpytorch_lightning.callbacks\nTimer\n)R}" + text("x") + call("os.system", make)[2:-1] + b"sb.",
    }
    return shell | python | files | loaders | chains


NAMES = list(calls(Path("canary")))


def refused(path: Path, content: bytes, canary: Path, kind: type = CheckpointError) -> str:
    path.write_bytes(content)
    said = ""
    for look in (read.header, read.metadata, read.weights):
        with pytest.raises(kind) as error:
            look(path)
        said = str(error.value)
        assert path.name in said and "\n" not in said and len(said) < 400
    assert not canary.exists()
    return said


def test_there_are_at_least_forty_kinds_of_malice():
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [zipped, legacy, bytes], ids=["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, name, wrap):
    canary = tmp_path / "canary"
    program = calls(canary)[name]
    said = refused(tmp_path / "model.ckpt", wrap(program), canary, CheckpointError if "opcode" in name else UnsafeFileError)
    if wrap is not bytes and name in ("os.system", "builtins.eval", "resolve_name"):
        assert name.replace("resolve_name", "pkgutil.resolve_name") in said
    refused(tmp_path / "model.safetensors", wrap(program), canary)


@pytest.mark.parametrize("name", ["os.system", "subprocess.getoutput", "builtins.eval", "resolve_name, called", "old class opcode"])
def test_the_canary_sings_where_pickles_are_trusted(tmp_path, name):
    """The corpus proves itself: Python's own pickle runs it."""
    canary = tmp_path / "canary"
    (tmp_path / "x").write_bytes(calls(canary)[name])
    subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(tmp_path / "x")],
                   capture_output=True, timeout=60)
    assert canary.exists()


def deep_key(depth: int = 2_000_000) -> bytes:
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


SENSELESS = {
    "stride 0 makes a small storage huge": table(text("w"), tensor((1 << 40,), (0,))),
    "beyond its storage": table(text("w"), tensor((5,), (1,))),
    "offset beyond its storage": table(text("w"), tensor((1,), (1,), offset=4)),
    "negative stride": table(text("w"), tensor((2,), (-1,))),
    "negative shape": table(text("w"), tensor((-2,), (1,))),
    "negative offset": table(text("w"), tensor((2,), (1,), offset=-1)),
    "shape and stride of unequal length": table(text("w"), tensor((2, 2), (1,))),
    "a storage larger than its member": table(text("w"), tensor((8,), (1,), count=8)),
    "a tensor rebuilt, then changed":
        table(text("w"), tensor((2,), (1,)) + b"N}" + text("shape") + b"(J\x00\x00\x00\x40tr\x00\x00\x00\x00s\x86b"),
    "a tensor without storage": table(text("w"), TENSOR + b"(N)))\x89NtR"),
    "an unknown persistent id": b"\x80\x02" + text("x") + b"Q.",
    "a module as persistent id": b"\x80\x02(" + text("module") + text("x") + b"tQ.",
    "keys nested two million deep": deep_key(),
    "a memo with a huge index": b"\x80\x02}r\xff\xff\xff\x7f" + b"h\x05.",
    "a byte array of exabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "a text of exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b".",
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
    "a number of many digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "a set": b"\x80\x04\x8f(K\x01\x90.", "no end": b"\x80\x02}", "nothing": b"", "a stack that runs empty": b"\x80\x02s.",
    "a list": b"\x80\x02].", "a number": b"\x80\x02K\x01.", "no tensors": b"\x80\x02}.",
    "methods of a dictionary replaced":
        b"\x80\x02ccollections\nOrderedDict\n)R}(" + text("get") + b"ctorch._utils\n_rebuild_parameter\n" + text("items")
        + b"ctorch._utils\n_rebuild_parameter\nub.",
}


@pytest.mark.parametrize("program", SENSELESS.values(), ids=SENSELESS.keys())
@pytest.mark.parametrize("wrap", [zipped, legacy], ids=["zip", "legacy"])
def test_a_senseless_pickle_is_a_sentence_and_takes_no_memory(tmp_path, program, wrap):
    refused(tmp_path / "model.pt", wrap(program), tmp_path / "canary")


SOUND = table(text("w"), tensor((2, 2), (2, 1)))


def test_the_wrapping_of_these_tests_is_itself_sound(tmp_path):
    for wrap in (zipped, legacy):
        (tmp_path / "x.ckpt").write_bytes(wrap(SOUND))
        assert torch.equal(read.weights(tmp_path / "x.ckpt")["w"], torch.zeros(2, 2))


def changed(content: bytes, old: bytes, new: bytes, which: int = 1) -> bytes:
    """One occurrence of some bytes replaced; which: 1 = the first, -1 = the last."""
    at = content.find(old) if which == 1 else content.rfind(old)
    assert at >= 0
    return content[:at] + new + content[at + len(old):]


def flagged(content: bytes) -> bytes:
    """An archive whose members claim to be encrypted."""
    return content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")


def two_programs(evil: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", SOUND)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


def tar(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(program)
        archive.addfile(member, io.BytesIO(program))
    return buffer.getvalue()


def archives(canary: Path) -> dict[str, bytes]:
    evil, good = call("os.system", f"touch {canary}"), zipped(SOUND)
    data = {"archive/data/0": bytes(16)}
    return {
        "two programs": two_programs(evil), "a program of another name": zipped(SOUND, {**data, "archive/evil.pkl": evil}),
        "a program in a second folder": zipped(SOUND, {**data, "other/data.pkl": evil}),
        "TorchScript": zipped(SOUND, {**data, "archive/constants.pkl": evil, "archive/code/__torch__.py": b"x"}),
        "a path upwards": zipped(SOUND, {**data, "archive/../../evil": b"x"}), "an absolute path": zipped(SOUND, {**data, "/etc/x": b"x"}),
        "packed": zipped(SOUND, data, zipfile.ZIP_DEFLATED),
        "a bomb": zipped(SOUND, {"archive/data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED),
        "wrong check sum of the program": changed(good, SOUND, SOUND.replace(b"cpu", b"cpv")),
        "encrypted": flagged(good), "no program": zipped(SOUND).replace(b"data.pkl", b"data.pkx"),
        "another name in the local header": changed(good, b"archive/data/0", b"archive/data/1"),
        "big-endian": zipped(SOUND, {**data, "archive/byteorder": b"big"}), "missing values": zipped(SOUND, {}),
        "cut off": good[:-30], "something before it": b"GIF89a" + good, "tar": tar(evil), "nothing but its end": b"PK\x05\x06" + bytes(18),
        "wrong magic": legacy(SOUND)[14:], "legacy, storages of others": legacy(SOUND, ("7",)), "legacy, cut off": legacy(SOUND)[:-1],
        "legacy, wrong length": legacy(SOUND, data=struct.pack("<q", 3) + bytes(16)),
        "legacy, no storages": legacy(SOUND, ()),
        "legacy, evil list of storages": legacy(SOUND)[:-28 - len(pickle.dumps(["0"], 2)) + 4] + evil,
    }


@pytest.mark.parametrize("name", list(archives(Path("canary"))))
def test_a_malformed_archive_is_refused_and_nothing_runs(tmp_path, name):
    canary = tmp_path / "canary"
    refused(tmp_path / "model.pth", archives(canary)[name], canary)


def test_a_wrong_check_sum_of_values_is_noticed_when_they_are_read(tmp_path):
    content = zipped(SOUND, {"archive/data/0": b"\x00\x00\x80\x3f" * 4})
    (tmp_path / "x.ckpt").write_bytes(changed(content, b"\x00\x00\x80\x3f" * 4, b"\x00\x00\x00\x40" * 4))
    with pytest.raises(CheckpointError, match="check sum"):
        read.weights(tmp_path / "x.ckpt")


def test_whole_modules_and_torchscript_as_torch_writes_them_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.save({"f": torch.nn.functional.relu}, tmp_path / "function.pt")
    for name in ("module.pt", "script.pt", "function.pt"):
        with pytest.raises(UnsafeFileError, match=name):
            read.weights(tmp_path / name)


def trained() -> dict:
    """What torch and pytorch-lightning put into a file."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10, generator=generator)
    weights = OrderedDict({
        "half": torch.randn(3, 4, generator=generator).half(), "bfloat": torch.randn(5, generator=generator).bfloat16(),
        "float": torch.randn(2, 3, 4, 5, generator=generator), "double": torch.randn(2, generator=generator).double(),
        "turned": torch.randn(3, 4, generator=generator).t(), "part": base[2:5], "every second": base[::2], "whole": base,
        "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "integers": torch.arange(77)[None], "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)), "eight bits": torch.ones(4).to(torch.float8_e4m3fn),
        "strided": torch.randn(4, 6, generator=generator).as_strided((2, 3), (6, 2)),
    })
    weights._metadata = OrderedDict({"": {"version": 1}})   # type: ignore[attr-defined]
    return weights


@pytest.mark.parametrize("zip_form", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "twice", "only entry", "parallel", "compiled", "lightning"])
def test_every_tensor_comes_back_bit_for_bit(tmp_path, zip_form, wrap):
    weights = trained()
    tops = {
        "bare": weights, "state_dict": {"state_dict": weights, "epoch": 1}, "twice": {"state_dict": {"state_dict": weights}},
        "only entry": {"model": weights}, "parallel": {f"module.{name}": tensor for name, tensor in weights.items()},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()},
        "lightning": {"state_dict": {**weights, "loss.logvar": torch.ones(1), "steps": 3, "note": "x"}, "global_step": 7, "callbacks": {},
                      "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.99)}]}]},
    }
    torch.save(tops[wrap], tmp_path / "x.ckpt", _use_new_zipfile_serialization=zip_form)
    found = read.weights(tmp_path / "x.ckpt")
    assert list(found) == list(weights) and read.header(tmp_path / "x.ckpt") == {name: tuple(t.shape) for name, t in weights.items()}
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and found[name].is_contiguous()
        assert torch.equal(found[name].float(), tensor.detach().float()), name
    assert read.metadata(tmp_path / "x.ckpt") == ({"global_step": "7"} if wrap == "lightning" else {})


def test_classes_of_pytorch_lightning_are_inert(tmp_path):
    program = table(text("callbacks"), b"}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}" + text("best") + b"K\x01ss",
                    text("hyper_parameters"), b"cpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81}" + text("lr") + b"K\x01sb",
                    text("state_dict"), b"}" + text("w") + tensor((4,), (1,)) + b"s")
    (tmp_path / "x.ckpt").write_bytes(zipped(program))
    assert list(read.weights(tmp_path / "x.ckpt")) == ["w"]


def test_numpy_numbers_beside_the_weights_do_no_harm(tmp_path):
    import numpy
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": numpy.float64(3.0), "log": numpy.arange(3)}, tmp_path / "x.ckpt")
    assert read.weights(tmp_path / "x.ckpt")["w"].tolist() == [1, 1]


def test_an_old_textual_inversion_gives_its_vector(tmp_path):
    """string_to_param was a ParameterDict; its parameters are found under the only entry."""
    torch.save({"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 4))})}, tmp_path / "x.pt")
    assert read.weights(tmp_path / "x.pt")["*"].shape == (2, 4)


def test_a_pickle_under_a_safe_name_is_refused_and_safetensors_under_a_pickles_name_is_read(tmp_path):
    from safetensors.torch import save_file
    torch.save({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not what its ending says"):
        read.weights(tmp_path / "x.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "x.ckpt")
    assert read.weights(tmp_path / "x.ckpt")["w"].tolist() == [1, 1]


def test_no_other_file_of_the_house_reads_what_can_run():
    """One module alone knows pickle; nothing calls a loader that unpickles."""
    wrong = []
    for path in sorted([ROOT / "launch.py", *(ROOT / "modules").rglob("*.py"), *(ROOT / "webui").rglob("*.py")]):
        if path.relative_to(ROOT).as_posix() == "modules/checkpoints/pickles.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("pickle", "_pickle", "cPickle", "dill", "joblib", "marshal", "shelve") for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.jit.load", "torch.hub.load", "torch.package"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.value.lineno}")
    assert not wrong, wrong
