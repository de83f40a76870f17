"""Small files that say what would take the machine: each is refused within a second and half a gigabyte."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.errors import UserError
from cogvideox.model_loaders.checkpoints import check_component
from cogvideox.model_loaders.component_files import read_header
from cogvideox.model_loaders.files.gguf_guard import check_gguf_header
from cogvideox.model_loaders.files.headers import Entry
from cogvideox.model_loaders.files.tensor_specs import TensorSpec, check_quantization_notes
from cogvideox.model_loaders.files.torch_files import open_torch, read_torch_header
from cogvideox.model_loaders.files.torch_guard import walk_pickles
from cogvideox.tests.guard import bounded
from cogvideox.tests.layout_files import write_gguf, write_sat

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with which torch's older files begin


def code(function: str, arguments: bytes) -> bytes:
    """Instructions that call a function with a tuple of arguments."""
    return b"c" + function.replace(" ", "\n").encode() + b"\n" + arguments + b"R"


def whole(number: int) -> bytes:
    data = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(letters: str) -> bytes:
    return b"X" + struct.pack("<I", len(letters)) + letters.encode()


def one(argument: bytes) -> bytes:
    return argument + b"\x85"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + whole(count) + b"tQ"


def sides(*numbers: int) -> bytes:
    return b"(" + b"".join(map(whole, numbers)) + b"t"


def tensor(of: bytes, shape: bytes, strides: bytes, offset: int = 0) -> bytes:
    arguments = b"(" + of + whole(offset) + shape + strides + b"\x89" + code("collections OrderedDict", b")") + b"t"
    return code("torch._utils _rebuild_tensor_v2", arguments)


def table(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def zipped(path: Path, program: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, whose pickle is `program`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("a/byteorder", b"little")
        for name, data in (records or {}).items():
            archive.writestr(f"a/data/{name}", data)
        archive.writestr("a/version", b"3\n")
    return path


def old(path: Path, program: bytes) -> Path:
    """A file as torch.save wrote it before zip files."""
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + b"\x80\x02" + program + b"." + pickle.dumps([], 2) + bytes(64))
    return path


ONE = {"0": bytes(4)}
PROGRAMS: dict[str, bytes] = {
    "a bytearray of a length": table(a=code("__builtin__ bytearray", one(whole(10**11)))),
    "a bytearray, by its new name": table(a=code("builtins bytearray", one(whole(10**11)))),
    "a tensor's class, called": table(a=code("torch FloatTensor", one(whole(10**11)))),
    "a tensor's class, made": table(a=b"ctorch\nFloatTensor\n" + one(whole(10**11)) + b"\x81"),
    "a parameter, made": table(
        a=b"ctorch.nn.parameter\nParameter\n" + one(code("torch Tensor", one(whole(10**11)))) + b"\x81"
    ),
    "an expanded tensor": table(a=tensor(storage("0", 1), sides(10**7, 400), sides(0, 0))),
    "an expanded tensor of one row": table(a=tensor(storage("0", 1), sides(10**9, 1), sides(0, 1))),
    "strides beyond the end": table(a=tensor(storage("0", 1), sides(1), sides(1), offset=10**12)),
    "a storage larger than the file": table(a=tensor(storage("0", 10**12), sides(10**12), sides(1))),
    "many storages": table(**{f"a{i}": tensor(storage(str(i), 400), sides(400), sides(1)) for i in range(50)}),
    "a negative size": table(a=tensor(storage("0", 1), sides(-1), sides(1))),
    "None instead of a storage": table(a=tensor(b"N", sides(10**9), sides(0))),
    "a meta tensor": table(
        a=code(
            "torch._utils _rebuild_meta_tensor_no_storage", b"(ctorch\nfloat32\n" + sides(10**9) + sides(1) + b"\x89t"
        )
    ),
    "a function that calls another": table(
        a=code(
            "torch._tensor _rebuild_from_type_v2",
            b"(" + b"cbuiltins\nbytearray\nctorch\nTensor\n" + one(whole(10**11)) + b"Nt",
        )
    ),
    # each tuple holds the one before it twice, so that the hash of the last has 2^60 parts
    "a key without end": b"}(" + b"N" + b"q\x00h\x00\x86" * 60 + b"K\x01u",
    "a set without end": code("__builtin__ set", one(b"](" + b"N" + b"q\x00h\x00\x86" * 60 + b"e")),
    "the same list over and over": b"]("
    + b"K\x01" * 100_000
    + b"eq\x01("
    + code("__builtin__ set", one(b"h\x01")) * 20_000
    + b"t",
    "an OrderedDict of lists": code("collections OrderedDict", one(b"](" + b"K\x01K\x01\x86" * 1000 + b"e")),
    "a state for a tensor": table(
        a=tensor(storage("0", 1), sides(1), sides(1)) + b"(" + storage("0", 1) + sides(10**9) + b"tb"
    ),
    "instructions without end": b"](" + b"N" * 250_000 + b"e",
    "a name of a million letters": table(**{"a" * 10**6: tensor(storage("0", 1), sides(1), sides(1))}),
    "no end": b"](NNN",
}


@pytest.mark.parametrize("write", [zipped, old])
@pytest.mark.parametrize("what", PROGRAMS)
def test_pickles(tmp_path: Path, what: str, write: Callable) -> None:
    """What torch's reader of plain data would do, at any cost, because the file says so."""
    path = zipped(tmp_path / "a.pt", PROGRAMS[what], ONE) if write is zipped else old(tmp_path / "a.pt", PROGRAMS[what])
    for call in (read_header, open_torch):
        with (
            bounded(),
            pytest.raises(UserError, match="Download it again|without named tensors|can run code") as caught,
        ):
            call(path)
        assert len(str(caught.value)) < 500


def test_one_number_under_many_names(tmp_path: Path) -> None:
    """Tensors may share their values, but not thousands of them: each would be cast, and so copied."""
    shared = tensor(storage("0", 250_000), sides(250_000), sides(1))
    path = zipped(tmp_path / "a.pt", table(**{f"a{i}": shared for i in range(1000)}), {"0": bytes(1_000_000)})
    with bounded(), pytest.raises(UserError, match="under too many names"):
        read_header(path)


def test_what_torch_saves_is_taken(tmp_path: Path) -> None:
    """Views, tied weights, transposed and empty tensors, parameters and what trainers put beside them."""
    weight = torch.arange(12.0).reshape(3, 4)
    saved = {
        "state_dict": {
            "a": weight,
            "tied": weight,
            "b": weight.T,
            "c": weight[1:, :2],
            "row": weight[2],
            "empty": torch.zeros(0, 5),
            "scalar": torch.tensor(3.0),
            "parameter": torch.nn.Parameter(weight.bfloat16()),
            "fp8": weight.to(torch.float8_e4m3fn),
            "codes": weight.to(torch.int8),
        },
        "step": 10**30,
        "args": {"lr": 1e-4, "betas": (0.9, 0.95), "names": ["a", {"b": None}], "seen": {1, 2}, "raw": b"abc"},
        "size": torch.Size([1, 2]),
        "type": torch.bfloat16,
        "device": torch.device("cpu"),
        "mutable": bytearray(b"abc"),
        "module": torch.nn.Linear(2, 2).state_dict(),
    }
    for modern in (True, False):
        if not modern:  # torch itself reads no fp8 from its older files
            del saved["state_dict"]["fp8"]
        path = tmp_path / f"{modern}.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=modern)
        found = open_torch(path)
        assert found.keys() == saved["state_dict"].keys() == read_torch_header(path).entries.keys()
        assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in saved["state_dict"].items())


def test_zip_directories_that_lie(tmp_path: Path) -> None:
    """A record that is shorter than its tensor would let it read what comes after it."""
    program = table(a=tensor(storage("0", 4), sides(4), sides(1)))
    for records in ({}, {"0": bytes(4)}, {"0": bytes(64)}):
        with bounded(), pytest.raises(UserError, match="tensors whose bytes are missing"):
            read_header(zipped(tmp_path / "a.pt", program, records))
    assert read_header(zipped(tmp_path / "b.pt", program, {"0": bytes(16)})).entries["a"].shape == (4,)
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("a/other.pkl", b"")
    with pytest.raises(UserError, match="no data.pkl"):
        read_header(tmp_path / "c.pt")


def test_walk_sees_what_torch_sees(tmp_path: Path) -> None:
    """The storages of a saved file, byte for byte."""
    torch.save({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int8)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        sizes = walk_pickles(io.BytesIO(archive.read(name)), 10_000, in_zip=True)
    assert sorted(sizes.values()) == [5, 48]


def safetensors(path: Path, header: dict | bytes, data: int = 0) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(data))
    return path


NAME = "transformer.lora_A"  # from which the patterns of LoRA keys begin
NAMES = {
    "long": "x" * 1001,
    "megabytes": NAME + ".lora_A" * 1_500_000,
    "letters": NAME + "." + "a" * 10_000_000,
    "digits": "layers." + "1" * 10_000_000,
}


@pytest.mark.parametrize("what", NAMES)
def test_names_without_end(tmp_path: Path, what: str) -> None:
    """Patterns are tried on every name, and one of 50 MB hung the server."""
    header = {NAMES[what]: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for path in (safetensors(tmp_path / "a.safetensors", header, 4), gguf(tmp_path / "a.gguf", tensors=[NAMES[what]])):
        with bounded(), pytest.raises(UserError, match="Download it again") as caught:
            read_header(path)
        assert len(str(caught.value)) < 500


def test_a_model_under_thousands_of_prefixes(tmp_path: Path) -> None:
    """Each prefix took a walk through all names: 64 million steps here, and hours for a file of 4 MB."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {f"p{n}.transformer_blocks.0.norm1.linear.weight": entry for n in range(8_000)}
    path = safetensors(tmp_path / "a.safetensors", header)
    with bounded(), pytest.raises(UserError, match="holds a transformer 8000 times"):
        check_component(path, "transformer")


def test_names_of_the_length_that_is_allowed(tmp_path: Path) -> None:
    save_file({"x" * 1000: torch.zeros(1)}, tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors").entries


def test_headers_of_more_than_any_model(tmp_path: Path) -> None:
    """Names by the hundred thousand, lists in lists, and notes that fill the header."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"t{i}": entry for i in range(33_000)}
    for header in (
        many,
        b'{"a":' + b"[]," * 10,
        b'{"a":[' + b"[]," * 6_000_000,
        {"__metadata__": {"a": "b" * (1 << 24)}},
    ):
        with bounded(2.0), pytest.raises(UserError, match="Download it again"):
            read_header(safetensors(tmp_path / "a.safetensors", header))


def test_a_note_as_large_as_a_model(tmp_path: Path) -> None:
    """ComfyUI's note on a quantised layer is read as a list of numbers, of which each takes eight bytes and more."""
    entry = Entry((4, 4), torch.float8_e4m3fn)
    tensors = {"a.weight": torch.zeros(4, 4), "a.comfy_quant": torch.zeros(1).expand(10**9)}
    with bounded(), pytest.raises(UserError, match="does not read"):
        check_quantization_notes({"a.weight": TensorSpec(entry, "a.weight")}, tensors, "here")


@pytest.mark.parametrize(
    "layers", [[], 3, "x", {"a": {"format": "y" * 10**6}}, {"a": {"format": [1]}}], ids=lambda c: str(c)[:9]
)
def test_notes_of_another_kind(tmp_path: Path, layers: object) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"_quantization_metadata": json.dumps({"layers": layers})})
    with bounded(), pytest.raises(UserError) as caught:
        check_component(path, "transformer")
    assert len(str(caught.value)) < 700


def gguf_text(letters: str) -> bytes:
    return struct.pack("<Q", len(letters)) + letters.encode()


def gguf(
    path: Path,
    fields: list[bytes] | None = None,
    tensors: list[str | bytes] | None = None,
    counts: tuple[int, int] | None = None,
) -> Path:
    """A GGUF file of crafted parts. counts: of tensors and notes, as announced."""
    fields, tensors = fields or [], tensors or []
    made = [t if isinstance(t, bytes) else gguf_tensor(t, [1]) for t in tensors]
    found = counts or (len(made), len(fields))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *found) + b"".join([*fields, *made]) + bytes(256))
    return path


def gguf_tensor(name: str, shape: list[int]) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)


def gguf_array(key: str, inner: int, count: int, data: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<IIQ", 9, inner, count) + data


GGUFS: dict[str, dict] = {
    "tensors without end": {"counts": (2**60, 0)},
    "notes without end": {"counts": (0, 2**60)},
    "more tensors than any model": {"tensors": [gguf_tensor(str(i), []) for i in range(40_000)]},
    "more notes than any model": {"fields": [gguf_text(str(i)) + struct.pack("<IB", 0, 1) for i in range(40_000)]},
    "a text of 2^60": {"fields": [gguf_text("a") + struct.pack("<IQ", 8, 2**60)]},
    "a text of 2^64 - 1": {"fields": [gguf_text("a") + struct.pack("<IQ", 8, 2**64 - 1)]},
    "a key of 2^60": {"fields": [struct.pack("<Q", 2**60) + b"a"]},
    "a list of 2^60": {"fields": [gguf_array("a", 4, 2**60, b"")]},
    "a list of lists": {"fields": [gguf_array("a", 9, 1, struct.pack("<IQ", 9, 1) * 10_000)]},
    "an endless list of texts": {"fields": [gguf_array("a", 8, 2**40, struct.pack("<Q", 0) * 1000)]},
    "lists that are long together": {"fields": [gguf_array(str(i), 0, 400_000, bytes(400_000)) for i in range(2)]},
    "a value of an unknown kind": {"fields": [gguf_text("a") + struct.pack("<I", 99)]},
    "sides whose product overflows": {"tensors": [gguf_tensor("a", [2**32, 2**32])]},
    "sides whose product is one": {"tensors": [gguf_tensor("a", [2**63 + 1, 2**63 + 1])]},
    "a side of 2^63": {"tensors": [gguf_tensor("a", [2**63])]},
    "a shape of 1000 sides": {"tensors": [gguf_text("a") + struct.pack("<I", 1000) + bytes(8000)]},
    "a shape of 2^32 sides": {"tensors": [gguf_text("a") + struct.pack("<I", 2**32 - 1)]},
    "a recorded shape of 20,000 sides": {
        "fields": [gguf_array("comfy.gguf.orig_shape.a", 10, 20_000, (2**63 - 1).to_bytes(8, "little") * 20_000)],
        "tensors": [gguf_tensor("a", [1])],
    },
    "a recorded shape that is a text": {
        "fields": [gguf_text("comfy.gguf.orig_shape.a") + struct.pack("<IQ", 8, 5) + b"12345"],
        "tensors": [gguf_tensor("a", [1])],
    },
    "an alignment of 0": {
        "fields": [gguf_text("general.alignment") + struct.pack("<II", 4, 0)],
        "tensors": [gguf_tensor("a", [1])],
    },
    "an alignment of 2^31": {
        "fields": [gguf_text("general.alignment") + struct.pack("<II", 4, 2**31)],
        "tensors": [gguf_tensor("a", [1])],
    },
}


@pytest.mark.parametrize("what", GGUFS)
def test_gguf_headers(tmp_path: Path, what: str) -> None:
    """Counts, lengths and shapes that no file of this size can have."""
    path = gguf(tmp_path / "a.gguf", **GGUFS[what])
    with bounded(), pytest.raises(UserError, match="Download it again") as caught:
        read_header(path)
    assert len(str(caught.value)) < 500


def test_layouts_are_still_read(tmp_path: Path) -> None:
    """The guards must let through what the tests of layouts write."""
    weights = {"a.weight": torch.ones(8, 32), "b": torch.ones(3)}
    write_sat(tmp_path / "a.pt", {"transformer_blocks.0.norm1.norm.weight": torch.ones(3)})
    write_gguf(tmp_path / "a.gguf", weights, "Q8_0")
    assert read_header(tmp_path / "a.pt").entries and len(read_header(tmp_path / "a.gguf").entries) == 2


def test_the_tokenizer_in_a_gguf_of_t5_is_taken(tmp_path: Path) -> None:
    """llama.cpp's converter writes three lists of 32,128 and sentencepiece's table of 237,539 bytes."""
    count = 32_128
    fields = [
        gguf_array("tokenizer.ggml.tokens", 8, count, gguf_text("a") * count),
        gguf_array("tokenizer.ggml.scores", 6, count, bytes(4 * count)),
        gguf_array("tokenizer.ggml.token_type", 5, count, bytes(4 * count)),
        gguf_array("tokenizer.ggml.precompiled_charsmap", 0, 237_539, bytes(237_539)),
    ]
    check_gguf_header(gguf(tmp_path / "a.gguf", fields, ["a"]))


def test_many_tensors_are_taken(tmp_path: Path) -> None:
    """A checkpoint of weights, their average and an optimizer has thousands."""
    torch.save({str(i): torch.ones(1) for i in range(5000)}, tmp_path / "a.pt")
    assert len(read_header(tmp_path / "a.pt").entries) == 5000
