"""The checks of the zoo explain their failures as tests do."""

import pytest

pytest.register_assert_rewrite("tests.zoo.roads", "tests.zoo.adapted")
