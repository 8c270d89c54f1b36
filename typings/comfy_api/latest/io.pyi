from enum import Enum
from typing import Any

class Input:
    id: str
    def __init__(
        self, id: str, display_name: str | None = None, optional: bool = False, tooltip: str | None = None, **more: Any
    ) -> None: ...

class Output:
    def __init__(
        self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None, **more: Any
    ) -> None: ...

class Combo:
    class Input(Input):
        options: list[str]

class Boolean:
    class Input(Input): ...

class Int:
    class Input(Input):
        min: int
        max: int

    class Output(Output): ...

class Float:
    class Input(Input):
        min: float
        max: float

    class Output(Output): ...

class String:
    class Input(Input): ...
    class Output(Output): ...

class _Wire:
    class Input(Input): ...
    class Output(Output): ...

class Image(_Wire): ...
class Mask(_Wire): ...
class Latent(_Wire): ...
class Model(_Wire): ...
class Clip(_Wire): ...
class Vae(_Wire): ...
class LoraModel(_Wire): ...
class LossMap(_Wire): ...

class MultiType:
    class Input:
        def __init__(self, id: Input | str, types: list[Any], **more: Any) -> None: ...

class ControlAfterGenerate(str, Enum):
    fixed = ...

class Hidden(str, Enum):
    unique_id = ...

def Custom(io_type: str) -> type[_Wire]: ...

class Schema:
    inputs: list[Any]
    outputs: list[Any]
    def __init__(
        self,
        node_id: str,
        display_name: str = ...,
        category: str = ...,
        inputs: list[Any] = ...,
        outputs: list[Any] = ...,
        hidden: list[Hidden] = ...,
        description: str = ...,
        search_aliases: list[str] = ...,
        is_input_list: bool = ...,
        is_output_node: bool = ...,
        is_deprecated: bool = ...,
        not_idempotent: bool = ...,
    ) -> None: ...

class NodeOutput:
    def __init__(self, *values: Any, ui: Any = None, block_execution: str | None = None) -> None: ...

class ComfyNode:
    hidden: Any
    @classmethod
    def define_schema(cls) -> Schema: ...
    @classmethod
    def execute(cls, **inputs: Any) -> NodeOutput: ...
