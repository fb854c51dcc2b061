"""Whether modules compute exactly what their classes say: asked before the same is computed in a faster way.

An allow-list. A subclass, a hook, a parametrization, an adapter, a quantised layer, a compiled module and a method that
was replaced, in the module or in its class, all make the answer no.
"""

import inspect
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

CALLS = ("__call__", "_call_impl")  # of every module: what runs `forward` and the hooks
PLAIN = (nn.Parameter, Tensor, type(None))  # parameters; a quantised or distributed one is of a class of its own

# Of each noted class the names of its methods; and, for each name and each class that may define it (itself and its
# parents), that class's namespace, the name, and what stands there: None where nothing does.
_names: dict[type, frozenset[str]] = {}
_definitions: dict[type, list[tuple[Mapping[str, object], str, object]]] = {}


def note(*classes: type[nn.Module]) -> None:
    """Take note of the methods that `classes` have now, so that what replaces one later is seen."""
    for cls in classes:
        if cls not in _names:
            spaces = [vars(parent) for parent in cls.__mro__[: cls.__mro__.index(nn.Module) + 1]]
            names = {name for space in spaces[:-1] for name, member in space.items() if _is_method(name, member)}
            _names[cls] = frozenset([*names, *CALLS])
            _definitions[cls] = [(space, name, space.get(name)) for space in spaces for name in _names[cls]]


def are_exact(parts: Iterable[tuple[object, type[nn.Module]]]) -> bool:
    """Whether calling each module is what the class beside it, which is noted, says: see the file's first lines. Of
    `parts` no more is taken than up to the first that is not."""
    if torch_module._has_any_global_hook():
        return False
    unchanged: set[type] = set()
    for module, cls in parts:
        if type(module) is not cls or (cls not in unchanged and not _is_unchanged(cls)):
            return False
        unchanged.add(cls)
        own = vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return False
        if not _names[cls].isdisjoint(own) or own.get("_compiled_call_impl"):
            return False
        if not all([type(parameter) in PLAIN for parameter in own["_parameters"].values()]):
            return False
    return True


def is_exact(module: object, cls: type[nn.Module]) -> bool:
    """The same of one module."""
    return are_exact([(module, cls)])


def has_methods_of(module: object, cls: type[nn.Module], but: Collection[str] = ()) -> bool:
    """Whether `module` is of the class `cls` itself and has its methods, those named in `but` aside: what matters where
    its methods are called and not the module, which is where hooks are."""
    return type(module) is cls and _is_unchanged(cls, but) and _names[cls] & vars(module).keys() <= set(but)


def needs_gradients(module: nn.Module, state: dict[str, Tensor] | None) -> bool:
    """Whether what `module` computes after `state` has a gradient."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in (*module.parameters(), *(state or {}).values()))


def _is_unchanged(cls: type[nn.Module], but: Collection[str] = ()) -> bool:
    return all([space.get(name) is member or name in but for space, name, member in _definitions[cls]])


def _is_method(name: str, member: object) -> bool:
    return not name.startswith("__") and (inspect.isroutine(member) or isinstance(member, property))
