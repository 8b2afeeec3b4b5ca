"""docs/methods.md says what the methods say, with the counts that they have."""

import pytest

from tests.adapt.cases import METHODS
from tests.docs import methods

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA extension.*:UserWarning", "ignore:Setting boft:UserWarning")


def test_the_page_is_up_to_date():
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page(), "python -m tests.docs.methods"


def test_every_method_has_a_section_with_its_paper():
    text = methods.page()
    for name, kind in METHODS.items():
        assert f"\n## {name}\n" in text
        assert kind.about.source in text
