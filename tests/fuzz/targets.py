"""What is fuzzed, by name.

A target is a module with `sample(folder)`, which writes something valid, `cases(folder)`, hypothesis's damage to it,
`hostile()`, hand-picked cases, and `run(folder, case)`, which gives it to the library and may only raise InputError.
It may have `SECONDS`, what a case takes at most.
"""

from types import ModuleType

from . import captions, commands, headers, logs, loras, models, pictures, runs, states

TARGETS: dict[str, ModuleType] = {
    "headers": headers,
    "models": models,
    "pictures": pictures,
    "captions": captions,
    "logs": logs,
    "states": states,
    "loras": loras,
    "commands": commands,
    "runs": runs,
}
