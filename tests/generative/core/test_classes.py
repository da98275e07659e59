"""Classes of ours are found by their names, wherever their files lie."""

from __future__ import annotations

import pytest

from generative.core.classes import class_modules, current_path, find_class, module_of
from generative.core.errors import UserError


def test_a_class_is_found_without_its_module() -> None:
    found = find_class("DiT", "generative.somewhere.before")
    assert found.__name__ == "DiT" and found.__module__ == module_of("DiT")
    assert current_path("generative.old.place.DiT") == f"{found.__module__}.DiT"


def test_a_right_hint_is_taken_and_chooses_among_several() -> None:
    several = next(name for name, modules in class_modules().items() if len(modules) > 1)
    for module in class_modules()[several]:
        assert module_of(several, module) == module
    with pytest.raises(UserError, match=f"class '{several}' stands in"):
        module_of(several, "generative.nowhere")


def test_unknown_and_foreign_names() -> None:
    with pytest.raises(UserError, match="there is no class 'NoSuchClass'"):
        find_class("NoSuchClass", "generative.x")
    assert current_path("torch.optim.AdamW") == "torch.optim.AdamW"


def test_what_is_saved_has_a_name_of_its_own() -> None:
    """Networks, formulations, samplers and pipelines are looked up by name in saved folders."""
    from diffusers import ConfigMixin

    for name, modules in class_modules().items():
        if len(modules) > 1:
            kinds = [find_class(name, module) for module in modules]
            assert sum(issubclass(kind, ConfigMixin) for kind in kinds) <= 1, name
