"""What memory there is: the machine's, or less where a control group says so."""

import psutil
import pytest

from harc.memory import SHARE, available_memory_gb, budget_gb, installed_memory_gb


def group(folder, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def own(tmp_path):
    """A function that writes which control groups this process is in, and returns where they are mounted."""

    def write(text: str):
        (tmp_path / "own").write_text(text)
        return tmp_path / "groups", tmp_path / "own"

    return write


def test_the_lowest_limit_of_the_groups_above_counts_and_file_caches_are_free(own):
    groups, file = own("0::/slice/job\n")
    group(groups)
    group(
        groups / "slice",
        memory__max="3000000000",
        memory__current="2500000000",
        memory__stat="inactive_file 1000000000",
    )
    group(groups / "slice" / "job", memory__max="max", memory__current="900000000", memory__stat="anon 1")
    assert installed_memory_gb(groups, file) == 3.0
    assert available_memory_gb(groups, file) == 1.5


def test_a_group_that_is_mounted_as_the_root_and_version_1_are_read(own):
    groups, file = own("0::/not/seen/from/here\n")
    group(groups, memory__max="2000000000", memory__current="500000000", memory__stat="inactive_file 0")
    assert (installed_memory_gb(groups, file), available_memory_gb(groups, file)) == (2.0, 1.5)
    groups, file = own("5:cpu,cpuacct:/\n4:memory:/box\n")
    box = {"memory__limit_in_bytes": "1000000000", "memory__usage_in_bytes": "400000000"}
    group(groups / "memory" / "box", **box, memory__stat="total_inactive_file 100000000")
    assert (installed_memory_gb(groups, file), available_memory_gb(groups, file)) == (1.0, 0.7)


def test_without_limits_it_is_the_machines_and_a_budget_is_a_share_of_what_is_free(own, tmp_path):
    groups, file = own("0::/\n")
    total = psutil.virtual_memory().total / 1e9
    assert installed_memory_gb(groups, file) == installed_memory_gb(groups, tmp_path / "none") == total
    budget, said = budget_gb(None)
    assert 0 < budget <= SHARE * total and f"{100 * SHARE:.0f} % of the" in said
    assert budget_gb(3.0) == (3.0, "memory_budget_gb is 3")
