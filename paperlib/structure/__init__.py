"""The channel counts of a network as plain data, so that pruned shapes travel with their weights.

Knows only torch.nn. `describe_structure` reads the shapes of a module, `reshape_` gives them to another module of the
same architecture, `select_channels` reduces one layer to chosen channels. A `Bypass` replaces a removed block.
"""

from paperlib.structure.copies import (
    IMMUTABLE,
    MODULE_FIELDS,
    copy_modules,
    copy_network,
    is_immutable,
    left_tensors,
    module_digest,
    shallow_copy,
    shapes_only,
    shared_tensors,
    tensors_digest,
)
from paperlib.structure.cutting import cuts_whole_groups, select_channels, select_values
from paperlib.structure.shapes import (
    Bypass,
    ChannelSplit,
    Shape,
    Structure,
    describe_structure,
    note_resized,
    reshape_,
    set_code_sizes,
)

__all__ = [
    "IMMUTABLE",
    "MODULE_FIELDS",
    "Bypass",
    "ChannelSplit",
    "Shape",
    "Structure",
    "copy_modules",
    "copy_network",
    "cuts_whole_groups",
    "describe_structure",
    "is_immutable",
    "left_tensors",
    "module_digest",
    "note_resized",
    "reshape_",
    "select_channels",
    "select_values",
    "set_code_sizes",
    "shallow_copy",
    "shapes_only",
    "shared_tensors",
    "tensors_digest",
]
