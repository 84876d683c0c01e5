"""Python warnings of one kind are kept for the run's own; others are shown."""

import warnings

import pytest

from grace_exp.policy.model_checks import BackboneWarning
from grace_exp.tracking.run_warnings import collected


def test_one_kind_is_kept_and_the_rest_is_shown() -> None:
    with pytest.warns(UserWarning) as shown, collected(BackboneWarning) as found:
        warnings.warn("of the model", BackboneWarning, stacklevel=1)
        warnings.warn("of something else", UserWarning, stacklevel=1)
    assert found == ["of the model"]
    assert [str(one.message) for one in shown] == ["of something else"]
