"""What the doctor says of this machine is so."""

import importlib.metadata

from evomerge import doctor


def test_versions_are_those_that_are_installed():
    found = {finding.name: finding for finding in doctor.doctor()}

    assert found["torch"].text == importlib.metadata.version("torch")
    assert found["optuna"].state == "ok"
    assert doctor.healthy(list(found.values()))


def test_a_core_package_that_is_missing_makes_the_machine_unfit_and_an_extra_does_not(monkeypatch):
    version = importlib.metadata.version

    def absent(name):
        if name in ("optuna", "ray"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = {finding.name: finding for finding in doctor.doctor()}

    assert found["ray"].state == "optional"
    assert "pip install 'evomerge[ray]'" in found["ray"].text
    assert found["optuna"].state == "missing"
    assert not doctor.healthy(list(found.values()))
