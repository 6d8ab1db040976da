"""Nodes: what their keys follow, and the order of a chain."""

import dataclasses

import pytest

from pipelines.runner.stage import Node
from tests.pipelines.runner.stages_at_work import TRACE, TraceConfig, node


def test_key_follows_config_inputs_and_version_but_not_options():
    base = node(TraceConfig(text="a"))
    assert base.key == node(TraceConfig(text="a")).key
    assert base.key != node(TraceConfig(text="b")).key
    assert base.key != node(TraceConfig(text="a"), up=node(TraceConfig(text="b"))).key
    assert base.key == Node(TRACE, "one", TraceConfig(text="a"), {}, {"processes": 2}).key
    assert base.key != node(TraceConfig(text="a"), spec=dataclasses.replace(TRACE, version=2)).key


def test_key_follows_a_local_file_that_the_config_names(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("1")
    before = node(TraceConfig(text=str(file))).key
    file.write_text("22")
    assert node(TraceConfig(text=str(file))).key != before


def test_chain_lists_every_needed_stage_once_in_order():
    root = node(TraceConfig(text="root"), "root")
    left, right = node(TraceConfig(text="l"), "l", up=root), node(TraceConfig(text="r"), "r", up=root)
    labels = [one.label for one in node(TraceConfig(), "end", left=left, right=right).chain()]
    assert labels == ["root", "l", "r", "end"]


@pytest.mark.parametrize("label", ["../..", "a/b", "", ".hidden", "/tmp"])
def test_a_label_that_leads_out_of_the_stages_folder_is_refused(label):
    with pytest.raises(ValueError, match="expected a plain file name"):
        node(TraceConfig(), label)
