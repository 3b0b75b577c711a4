"""The order of a network's modules, found from their names if the file has lost it, as safetensors does.

A name such as ``body.10.conv`` is a path in a tree. Three rules hold in all public naming schemes but one, which is in
``RENAMED``. Children of one parent whose names differ only in their last number follow each other by that number;
children of other names may stand in any order between them; all names with one parent stand together. Usually these
rules, and the kinds and shapes that a network needs one after another, leave exactly one order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Union

Tree = dict[str, Union[int, "Tree"]]  # a node's children by name; a leaf is the index of a module
Places = frozenset[tuple[int, int]]  # pairs of a place in the network and the index of the module that belongs there

# pytorchcv's ShuffleNetV2 numbers a block's modules through, beginning with the second branch: compress_conv1,
# dw_conv2, expand_conv3, then dw_conv4 and expand_conv5 of the first one. Patterns, and what takes their place.
RENAMED = (
    (r"\b(?:compress|dw|expand)_(conv|bn)([123])$", r"main.\2.\1"),
    (r"\b(?:dw|expand)_(conv|bn)([45])$", r"shortcut.\2.\1"),
)
MAX_DEPTH = 32  # depth of names that are split
MAX_TRIED = 20_000  # steps of the search; the networks here need a few hundred


def orders(
    names: Sequence[str],
    kinds: Sequence[Hashable],
    wanted: Sequence[Hashable],
    tracks: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """The orders of modules that fit: none; the one that is right; or two of several, none of which can be trusted.

    ``names`` and ``kinds`` say what modules there are, ``wanted`` which kinds the network has, in its order. An order
    is a list of indices into ``names``. There is also none if the search would take too long. ``tracks``: the kinds
    of ``wanted`` in groups; only those of one group are then compared in order, so that a file may list all
    convolutions of a block before its batch norms.

    >>> orders(["body.10", "body.9", "stem"], ["wide", "wide", "narrow"], ["narrow", "wide", "wide"])
    [[2, 1, 0]]
    """
    tree = _tree(names)
    if tree is None or len(names) != len(wanted):
        return []
    track_of = dict(zip(wanted, tracks or [0] * len(wanted), strict=True))
    places: dict[Hashable, list[int]] = {}  # places of each track
    for place, kind in enumerate(wanted):
        places.setdefault(track_of[kind], []).append(place)
    tried = 0

    def find(node: int | Tree, passed: Counter[Hashable]) -> set[Places]:
        """The places that everything below a node can have when so many places of each track are taken already."""
        nonlocal tried
        tried += 1
        if isinstance(node, int):
            track = track_of.get(kinds[node])
            free = places.get(track, [])[passed[track] :][:1]
            return {frozenset([(place, node)]) for place in free if wanted[place] == kinds[node]}
        chains = _chains(node)
        found: dict[tuple[int, ...], set[Places]] = {
            (0,) * len(chains): {frozenset()}
        }  # by numbers placed of each chain
        for _ in node:
            longer: dict[tuple[int, ...], set[Places]] = {}
            for taken, begun in found.items():
                below = Counter(track_of[kinds[module]] for _, module in next(iter(begun)))
                for i, chain in enumerate(chains):
                    if taken[i] < len(chain) and tried < MAX_TRIED:
                        following = find(chain[taken[i]], passed + below)
                        if following:
                            key = (*taken[:i], taken[i] + 1, *taken[i + 1 :])
                            more = {first | second for first in begun for second in following}
                            longer[key] = set(islice(longer.get(key, set()) | more, 2))
            found = longer
        return next(iter(found.values()), set())

    result = find(tree, Counter())
    return [[module for _, module in sorted(one)] for one in result] if tried < MAX_TRIED else []


def _tree(names: Sequence[str]) -> Tree | None:
    """The tree of names, or None if a name occurs twice, or belongs to a module and to the parent of another."""
    tree: Tree = {}
    for i, name in enumerate(names):
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        *parents, leaf = name.split(".", MAX_DEPTH)
        node = tree
        for parent in parents:
            inner = node.setdefault(parent, {})
            if isinstance(inner, int):
                return None
            node = inner
        if leaf in node:
            return None
        node[leaf] = i
    return tree


def _chains(node: Tree) -> list[list[int | Tree]]:
    """The children of a node; those whose names differ only in their last number are together, in its order."""
    chains: dict[str, list[tuple[int, str]]] = {}
    for name in node:
        text = name.rstrip("0123456789")
        chains.setdefault(text, []).append((int(name[len(text) :][:18] or -1), name))
    return [[node[name] for _, name in sorted(chain)] for chain in chains.values()]
