"""The package keeps its structure: which module may import which, how many lie at its root, what its face shows."""

import pkgutil

import paperlib


def modules_at_the_root(package):
    return {module.name for module in pkgutil.iter_modules(package.__path__)}


def test_no_public_name_is_also_a_module():
    """Importing `paperlib.NAME` would put the module where the public name was."""
    assert not modules_at_the_root(paperlib) & set(paperlib.__all__)
