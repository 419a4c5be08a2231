"""What `--ray` refuses in one line; whole clusters are in tests/system/test_cluster.py."""

import importlib.util
import socket

import pytest

from evomerge.errors import MissingExtra, StudyError
from evomerge.study.cluster import Cluster
from evomerge.study.search import search

installed = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(installed, reason="Ray is installed here")
def test_without_ray_a_search_says_how_to_get_it_and_writes_nothing(laboratory):
    with pytest.raises(MissingExtra, match=r'^--ray: Ray is not installed: pip install "evomerge\[ray\]"$'):
        search(laboratory / "space.yaml", laboratory / "study", ray="auto")

    assert not (laboratory / "study").exists()


@pytest.mark.skipif(not installed, reason='needs Ray: pip install "evomerge[ray]"')
def test_an_address_where_nobody_answers_is_refused_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(StudyError, match=f"^--ray {address}: nobody answers there .* start a cluster with: ray start --head"):
            Cluster(dict, address)
