"""The table in docs/edge.md, which mode gets through which hop, is what comes out when it is measured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.edge import profile_names
from gateway.store import Store
from tests.edge_matrix import CONTROL, MODES, Table, every_cell, measure, measure_again, written

# The hops that differ most in what they do.
FEW = ("api-gateway", "cloudflare", "cloudflare-tunnel-old", "quick-tunnel")


@pytest.fixture
async def patient_store(valkey: str, prefix: str) -> AsyncIterator[Store]:
    """A store whose leases outlast the jobs here: nobody renews them."""
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=600)
    yield store
    await store.close()


async def check(store: Store, folder: Path, cells: list[tuple[str, str]]) -> Table:
    """Measure cells, and compare them with the page. What differs is measured again, since machines are busy."""
    page = written()
    table = await measure(store, folder, cells)
    for _ in range(2):
        if different := [(mode, name) for mode, name in cells if table[mode][name] != page[mode][name]]:
            await measure_again(store, folder, table, different)
    assert {cell: table[cell[0]][cell[1]] for cell in cells} == {cell: page[cell[0]][cell[1]] for cell in cells}
    return table


@pytest.mark.usefixtures("patient_clock")
async def test_the_table_is_true_for_the_hops_that_differ_most(patient_store: Store, tmp_path: Path) -> None:
    """All modes, and the control, which every one of these hops ends."""
    table = await check(patient_store, tmp_path, [(mode, name) for mode in MODES for name in FEW])

    assert table[CONTROL]["cloudflare"] == "524"
    assert all(outcome.isdecimal() for outcome in table[CONTROL].values())
    assert all(table[mode]["cloudflare"] in {"yes", "live"} for mode in MODES if mode != CONTROL)


@pytest.mark.usefixtures("patient_clock")
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_the_whole_table_is_true(patient_store: Store, tmp_path: Path) -> None:
    """Every cell."""
    await check(patient_store, tmp_path, every_cell())


def test_the_table_has_every_hop_and_every_mode() -> None:
    """A new one has to be measured."""
    assert written().keys() == MODES.keys()
    assert all(sorted(row) == profile_names() for row in written().values())


def test_there_is_a_way_through_every_hop() -> None:
    """Polling always, and something live wherever the hop lets anything live through."""
    page = written()

    assert set(page["202 and poll"].values()) == {"yes"}
    for name in profile_names():
        live = [mode for mode in MODES if page[mode][name] == "live"]
        assert live or name == "api-gateway", name
