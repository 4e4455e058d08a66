"""State has one owner: only its own module assigns attributes of a `Lane` or a `KeyOrder`."""

import ast
import pathlib

import pytest

from hookline_service.pipeline.dispatch.key_order import KeyOrder
from hookline_service.pipeline.dispatch.lane import Lane
from tests.architecture.repository import python_files, tree

DISPATCH = pathlib.PurePosixPath("service/hookline_service/pipeline/dispatch")
OWNERS = {Lane: DISPATCH / "lane.py", KeyOrder: DISPATCH / "key_order.py"}
INSTANCES = {Lane: {"lane"}, KeyOrder: {"order"}}
"""Names, or last parts of names, under which code holds an instance."""


def assigned(module: ast.Module) -> list[ast.Attribute]:
    """Every attribute that a module assigns or deletes, also in a tuple or augmented."""
    return [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    ]


def foreign_assignments(module: ast.Module, owner: type) -> list[int]:
    """Return the lines that assign an attribute of an owner's instance, found by its name."""
    names = INSTANCES[owner]
    return sorted(
        node.lineno
        for node in assigned(module)
        if ast.unparse(node.value).rpartition(".")[2].rpartition("_")[2] in names
    )


def test_only_its_own_module_assigns_the_state_of_a_lane_or_its_key_order() -> None:
    found = {
        f"{path}:{line}"
        for path in python_files()
        for owner, home in OWNERS.items()
        if path != home
        for line in foreign_assignments(tree(path), owner)
    }
    assert found == set()


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_in_the_dispatch_package_no_other_name_assigns_the_attributes(
    owner: type[Lane | KeyOrder],
) -> None:
    """Whatever the variable is called; attributes of the same name on `self` are its own."""
    found = {
        f"{path}:{node.lineno}"
        for path in python_files()
        if path.parent == DISPATCH and path != OWNERS[owner]
        for node in assigned(tree(path))
        if node.attr in owner.__slots__ and ast.unparse(node.value) != "self"
    }
    assert found == set()


def test_an_assignment_from_outside_would_be_found() -> None:
    code = (
        "lane.queue = 1\njob.lane.in_flight += 1\na, old_lane.x = 1, 2\n"
        "self.lane = 1\nlane = Lane()\nlane.queue.append(1)\ndel lane.fault"
    )
    assert foreign_assignments(ast.parse(code), Lane) == [1, 2, 3, 7]
    assert foreign_assignments(ast.parse("lane.order.is_missed = True"), KeyOrder) == [1]
