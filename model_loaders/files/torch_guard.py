"""Walk through the pickle of a PyTorch file before torch reads it.

torch's reader of plain data (weights_only) runs no code of the file, but it does what the pickle's instructions say,
whatever they cost: a bytearray of any length, a constructor that is called a million times with the same long list, a
key whose hash takes for ever, a tensor that spreads one number over a terabyte. Here the same instructions are followed
on stand-ins, so that nothing is made of them.

Sources: Python's pickletools; torch's _weights_only_unpickler.py (the instructions that it reads) and _utils.py (the
functions that make tensors).
"""

import math
import pickle
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .headers import LimitError

_MOST_STEPS = 200_000  # a checkpoint of a thousand tensors takes 30,000
_MOST_DIMENSIONS = 8
# A tensor's bytes may belong to a second name (tied weights, an average of them), but not to thousands.
_MOST_COPIES = 4
_ITEM_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_ITEM_BYTES |= {"ComplexFloat": 8, "ComplexDouble": 16, "QInt32": 4}
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
# The rest of torch's functions and classes is not needed for weights, and much of it allocates what it is told to.
_HARMLESS = ("torch.device", "torch.serialization._get_layout")


@dataclass(frozen=True)
class GlobalName:
    """A class or function of the file. torch decides whether it is one that it knows."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The bytes of one or more tensors. key: the name of its record in a zip file."""

    key: str
    size: int
    item: int


@dataclass(frozen=True)
class Made:
    """What a function of the file would return. by: its name, "tensor" for all that make one."""

    by: str


@dataclass
class Container:
    """A list, a dict or a set. has_tuple: whether it holds something whose hash may take for ever."""

    kind: str
    length: int = 0
    has_tuple: bool = False

    def add(self, items: Iterable[Any]) -> None:
        for item in items:
            self.length += 1
            self.has_tuple |= isinstance(item, tuple | Container)


@dataclass
class _Walk:
    """Stacks and memo as an unpickler has them. size: of the file, which bounds what its tensors may claim."""

    size: int
    stack: list[Any] = field(default_factory=list)
    marked: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    stored: int = 0  # bytes of all storages
    tensor_bytes: int = 0  # bytes of all tensors
    argument_items: int = 0  # lengths of all that functions were called with
    steps: int = 0

    def follow(self, file: BinaryIO) -> Any:
        """What one pickle makes, as a stand-in."""
        self.stack, self.marked, self.memo = [], [], {}
        for code, argument, _ in pickletools.genops(file):
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise LimitError(f"more than {_MOST_STEPS} instructions")
            if code.name == "STOP":
                return self.stack.pop()
            self._step(code.name, argument)
        raise ValueError("a pickle without an end")

    def _step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _VALUES:
            stack.append(argument)
        elif code in _EMPTY:
            stack.append(Container(_EMPTY[code]))
        elif code == "GLOBAL":
            stack.append(GlobalName(argument.replace(" ", ".").replace("__builtin__.", "builtins.")))
        elif code == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif code in _TUPLES:
            count = _TUPLES[code]
            items = self._pop_marked() if count is None else [stack.pop() for _ in range(count)][::-1]
            self.stack.append(tuple(items))
        elif code in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(code)
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif code == "BUILD":
            stack.pop()
            if not isinstance(stack[-1], Made):
                raise ValueError("a state for something other than an object")
        elif code == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code != "PROTO":
            raise pickle.UnpicklingError(f"Unsupported operand {code}")

    def _pop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _fill(self, code: str) -> None:
        count = {"APPEND": 1, "SETITEM": 2}.get(code)
        items = self._pop_marked() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        into = self.stack[-1]
        kind = "list" if code.startswith("APPEND") else "dict"
        if isinstance(into, Made) and into.by == "collections.OrderedDict":
            into = Container("dict")
        if not isinstance(into, Container) or into.kind != kind:
            raise ValueError(f"items for something other than a {kind}")
        if kind == "dict" and not all(isinstance(key, _KEYS) for key in items[::2]):
            raise LimitError("a table whose keys are neither texts nor numbers")
        into.add(items)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("Unsupported call")
        name = function.name
        self.argument_items += sum(_length(item) for item in arguments)
        if self.argument_items > self.size:
            raise LimitError("values that are used over and over again")
        if name in _REBUILD:
            return self._tensor(*arguments[:4])
        if name in _PARAMETER:
            return arguments[0] if arguments[0] == _TENSOR else self._refuse(name)
        if name == "torch.Size" and isinstance(arguments[0], tuple):
            return arguments[0]
        if name == "builtins.bytearray" and not all(isinstance(item, str | Made) for item in arguments):
            raise LimitError("a bytearray of a length instead of values")
        if name == "collections.OrderedDict" and arguments:
            raise ValueError("an OrderedDict with values")
        # Their elements are hashed.
        if any(isinstance(item, Container) and item.has_tuple for item in arguments):
            raise LimitError("nested values")
        if name.startswith("torch.") and name not in _HARMLESS:
            return self._refuse(name)
        return Made(name)

    def _refuse(self, name: str) -> Any:
        raise pickle.UnpicklingError(f"Unsupported GLOBAL {name[:100]}")

    def _storage(self, arguments: Any) -> Storage:
        match arguments:
            case ("storage", GlobalName(name), key, _, int(count), *view) if count >= 0 and not any(view):
                item = _ITEM_BYTES.get(name.rpartition(".")[2].removesuffix("Storage"), 1)
            case _:
                raise ValueError("a reference to something other than a tensor's bytes")
        storage = Storage(str(key), count * item, item)
        if storage.key not in self.storages:
            self.storages[storage.key] = storage
            self.stored += storage.size
        if self.storages[storage.key] != storage:
            raise ValueError("a storage that has two sizes")
        if self.stored > self.size:
            raise ValueError("tensors of more bytes than the file has")
        return storage

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Made:
        sides = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(side) is int and side >= 0 for side in sides):
            raise ValueError("a tensor without a shape")
        if len(shape) > _MOST_DIMENSIONS or len(shape) != len(strides):
            raise LimitError("a tensor of too many dimensions")
        count, total = math.prod(shape), storage.size // storage.item
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides)) if count else 0
        # Expanded tensors, whose strides of 0 repeat a few numbers, would be copied at their full size.
        if count and (offset + count > total or last >= total):
            raise LimitError(f"a tensor of {count} values, of which the file has {total}")
        self.tensor_bytes += count * storage.item
        if self.tensor_bytes > _MOST_COPIES * self.size:
            raise LimitError("the same values under too many names")
        return _TENSOR


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_TENSOR = Made("tensor")
_KEYS = (str, bytes, int, float, bool, type(None))


def _length(item: Any) -> int:
    """What a function may do with an argument, once for each of its elements."""
    if isinstance(item, Container):
        return item.length
    return len(item) if isinstance(item, str | bytes | tuple) else 1


def walk_pickles(file: BinaryIO, size: int, in_zip: bool) -> dict[str, int]:
    """Follow the pickles of `file`; returns the bytes of each storage that their tensors lie in, by key.

    size: of the whole file. in_zip: there is one pickle; torch's older files begin with a number, and have four more.

    Raises LimitError for what costs more than weights do. Raises ValueError, EOFError, IndexError, KeyError, TypeError
    or pickle.UnpicklingError for a pickle that is damaged, that needs what the file does not have, or that holds other
    objects than torch's reader takes.
    """
    walk = _Walk(size)
    first = walk.follow(file)
    for _ in range(4 if isinstance(first, int) and not in_zip else 0):
        walk.follow(file)
    return {key: storage.size for key, storage in walk.storages.items()}
